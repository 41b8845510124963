"""Text from a trained model: prompts of unequal length side by side, one token after the other."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from mujax.config import make_run_config
from mujax.data.loader import shards_folder
from mujax.data.shards import read_description
from mujax.data.tokenizers import Tokenizer, make, of_dataset
from mujax.errors import UserError
from mujax.fields import NUM_BYTES
from mujax.models.layers import reads_out_apart
from mujax.models.protocol import Decoder
from mujax.storage import files
from mujax.storage.records import read_config
from mujax.training.checkpoint import Checkpoints, Record
from mujax.training.run import Run, make_run
from mujax.training.steps import Program, abstract_state, effective


class Sampling(NamedTuple):
    """The way a token is drawn; restrictions apply in this order, and all are traced numbers.

    temperature: the logits are divided by it; 0 takes the most likely token.
    top_k: only the so many most likely ones; 0 for all.
    top_p: of these, the fewest most likely ones whose probabilities sum to it (nucleus,
      1904.09751); 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def draw(keys_B, logits_BV, sampling: Sampling):
    """Draws one token [B] from each row of logits, each with a random key of its own."""
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    is_greedy = sampling.temperature == 0
    sorted_BV = sorted_BV / jnp.where(is_greedy, 1, sampling.temperature)
    rank_V = jnp.arange(logits_BV.shape[-1])
    top_k = jnp.where(is_greedy, 1, jnp.where(sampling.top_k == 0, len(rank_V), sampling.top_k))
    sorted_BV = jnp.where((rank_V < top_k)[None], sorted_BV, -jnp.inf)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    better_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    # Not where all are wanted: rounding may take the sum to 1 before the last token
    sorted_BV = jnp.where((better_BV < sampling.top_p) | (sampling.top_p >= 1), sorted_BV, -jnp.inf)
    rank_B = jax.vmap(jax.random.categorical)(keys_B, sorted_BV)
    return jnp.take_along_axis(order_BV, rank_B[:, None], axis=-1)[:, 0]


def make_generate(program: Program, num_tokens: int, window: int, stop: int):
    """Returns generate(params, hps, scalings, prompts, lengths, sampling, seed, prefix) -> tokens
    [B, P + num_tokens].

    prompts: int [B, P], of which lengths [B] tokens count; row b continues with up to num_tokens
    drawn ones, until `stop`; what follows means nothing. prefix (static): at least 1 and at most
    the shortest length; that many tokens of every prompt are read at once, the rest one by one.
    A model without a cache reads the last `window` tokens anew for each, as if a row began there.

    Every row starts at position 0, as in training, so no row needs padding: while the longest
    prompts are still read, the others are continued already. The draws of a row depend on the seed,
    the row and the position.
    """
    module = program.model_class(program.model)
    dtype = jnp.dtype(program.model.dtype)
    precise = jnp.promote_types(dtype, jnp.float32)  # the readout, as in evaluation
    is_apart = reads_out_apart(module)
    max_length = getattr(program.model, "max_length", None)

    @functools.partial(jax.jit, static_argnames="prefix")
    def generate(
        params, hps, scalings, prompts_BP, lengths_B, sampling: Sampling, seed, prefix: int
    ):
        weights, readout = effective(params, scalings, dtype), effective(params, scalings, precise)

        def read_out(x_B1D):
            logits_B1V = module.apply(readout, x_B1D.astype(precise), hps, method="logits")
            return cast(jax.Array, logits_B1V)[:, 0]

        def read(tokens_BN, cache, position, length: int):
            """Returns (logits after the `length` tokens from `position` on [B, V], the cache)."""
            if cache is None:
                return reread(tokens_BN, position + length), None
            tokens_BT = jax.lax.dynamic_slice_in_dim(tokens_BN, position, length, axis=1)
            x_BTD, cache = module.apply(weights, tokens_BT, hps, cache, position, method="extend")
            return read_out(x_BTD[:, -1:]), cache

        def reread(tokens_BN, length):
            """Returns logits after the first `length` tokens, from reading the last of these
            without a cache."""
            seen = min(window, max_length or window, tokens_BN.shape[1])
            first = jnp.maximum(length - seen, 0)
            # Those after the first `length` change nothing, as the model is causal
            tokens_BT = jax.lax.dynamic_slice_in_dim(tokens_BN, first, seen, axis=1)
            method = "features" if is_apart else "__call__"
            out_BTX = cast(jax.Array, module.apply(weights, tokens_BT, hps, method=method))
            out_B1X = jax.lax.dynamic_slice_in_dim(out_BTX, length - 1 - first, 1, axis=1)
            return read_out(out_B1X) if is_apart else out_B1X[:, 0]

        batch_size = len(prompts_BP)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), jnp.arange(batch_size)
        )
        tokens_BN = jnp.pad(prompts_BP, ((0, 0), (0, num_tokens)))
        cache = module.empty_cache(batch_size, window) if isinstance(module, Decoder) else None
        logits_BV, cache = read(tokens_BN, cache, 0, prefix)

        def proceed(carry):
            t, tokens_BN, _, _, is_done_B = carry
            return (t < tokens_BN.shape[1]) & ~jnp.all(is_done_B)

        def add_token(carry):
            t, tokens_BN, logits_BV, cache, is_done_B = carry
            drawn_B = draw(jax.vmap(jax.random.fold_in, (0, None))(keys_B, t), logits_BV, sampling)
            is_given_B = t < lengths_B
            token_B = jnp.where(is_given_B, tokens_BN[:, t], drawn_B)
            is_done_B |= ~is_given_B & ((token_B == stop) | (t + 1 >= lengths_B + num_tokens))
            tokens_BN = tokens_BN.at[:, t].set(token_B)
            logits_BV, cache = read(tokens_BN, cache, t, 1)
            return t + 1, tokens_BN, logits_BV, cache, is_done_B

        carry = jnp.int32(prefix), tokens_BN, logits_BV, cache, jnp.zeros(batch_size, bool)
        return jax.lax.while_loop(proceed, add_token, carry)[1]

    return generate


def sample(
    workdir: str | Path,
    prompts: Sequence[str],
    num_tokens: int,
    sampling: Sampling,
    window: int = 0,
    seed: int = 0,
    which: str = "latest",
) -> list[str]:
    """Continues prompts with the run that `mujax train` has left in `workdir`.

    Each ends before the end of a document, or after num_tokens tokens. An empty prompt starts a new
    document.

    Args:
      window: tokens that the model looks back on; 0: data.seq_len of the run, as in training.
      which: latest, or best: the checkpoint with the lowest validation loss.

    Raises:
      UserError: no such run or no checkpoint, a model of images, or more tokens than it can take.
    """
    root = files.any_path(workdir)
    if not (root / "config.json").exists():
        if not root.exists():
            raise UserError(f"--workdir={workdir}: no such folder")
        raise UserError(
            f"--workdir={workdir} has no config.json: it is not the workdir of mujax train"
        )
    run = make_run(make_run_config(read_config(root / "config.json")))
    if (reads := getattr(run.cfg.model, "reads", "text")) != "text":
        raise UserError(
            f"--workdir={workdir}: model.name = {run.cfg.model_name!r} reads {reads}, not text, so "
            "nothing can be drawn from it"
        )
    tokenizer, is_row, fingerprint = _tokenizer(run)
    # An empty prompt is where a document begins: after the end of one, or at the start of its row
    start = tokenizer.start_id if is_row else tokenizer.eos_id
    rows = [[start] * (is_row or not len(ids)) + list(ids) for ids in tokenizer.encode(prompts)]
    lengths = [len(row) for row in rows]
    longest, limit = max(lengths) + num_tokens, getattr(run.cfg.model, "max_length", None)
    if limit and longest > limit:
        raise UserError(
            f"a prompt of {max(lengths)} tokens and --num_tokens={num_tokens} make {longest}, and "
            f"model.position = {run.cfg.model.position!r} ends at data.seq_len = {limit}"
        )
    stop = tokenizer.eos_id if run.cfg.data.eos_id < 0 else run.cfg.data.eos_id
    generate = make_generate(run.program, num_tokens, window or run.cfg.data.seq_len, stop)
    params = _load_params(root, which, run, fingerprint)
    prompts_BP = np.zeros((len(rows), max(lengths)), np.int32)
    for b, row in enumerate(rows):
        prompts_BP[b, : len(row)] = row
    tokens_BN = generate(
        params,
        run.hps,
        run.scalings,
        prompts_BP,
        np.array(lengths),
        sampling,
        np.uint32(seed),
        min(lengths),
    )
    return [
        tokenizer.decode(_until(tokens[length : length + num_tokens], stop))
        for tokens, length in zip(np.asarray(tokens_BN).tolist(), lengths, strict=True)
    ]


def _load_params(root: Path, which: str, run: Run, fingerprint: str | None):
    """Loads the weights of a checkpoint onto one device of this machine, whichever the run was on.

    fingerprint: of the data that the run's tokens come from; None: tokens are bytes.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        abstract_state(run.program).params,
    )

    def check(record: Record) -> None:
        if record["table_hash"] != run.table_hash:
            raise UserError(
                f"--workdir={root}: its checkpoint was saved under another parameterization table "
                f"({record['table_hash']}, its config now resolves to {run.table_hash}); use the "
                "code that saved it"
            )

        if fingerprint not in (None, record["data_fingerprint"]):
            raise UserError(
                f"--workdir={root}: it was trained on data of fingerprint "
                f"{record['data_fingerprint']}, and that of its config has {fingerprint} now; "
                "bring the data back to decode its tokens"
            )

    folder = root / "checkpoints" / which
    found = (
        Checkpoints(folder, keep=None).restore({"params": params}, check)
        if folder.is_dir()
        else None
    )
    if found is None:
        raise UserError(
            f"--workdir={root} has no checkpoints in checkpoints/{which}: mujax train leaves them "
            "there"
        )
    return found[1]["params"]


def _tokenizer(run: Run) -> tuple[Tokenizer, bool, str | None]:
    """Returns (tokenizer of the training text, whether a document has a row of its own,
    fingerprint)."""
    data = run.cfg.data
    if data.name != "shards" and data.vocab_size == NUM_BYTES:
        return make("bytes", b"", {}), False, None
    folder = shards_folder(data)
    described = read_description(folder)
    tokenizer = of_dataset(folder, described["tokenizer"])
    return tokenizer, described["layout"] == "document", described["fingerprint"]


def _until(tokens: list[int], stop: int) -> list[int]:
    return tokens[: tokens.index(stop)] if stop in tokens else tokens
