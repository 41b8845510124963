"""Sampling: decoding step by step equals the parallel forward pass, prompts share a batch without
touching each other, tokens are drawn with the probabilities asked for, and a trained run's text
comes from its checkpoint."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_mujax, tiny_tree
from models import OPTIONS, apply, in_numpy, initial_params, make, make_with, shaken
from scipy.stats import chisquare

from mujax import main, sample
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.models import MODELS
from mujax.models.transformer import Attention, Block, Transformer
from mujax.sample import Sampling, draw, make_generate
from mujax.training.checkpoint import Checkpoints
from mujax.training.loop import train
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns


def decoded(run, params, tokens, window, first):
    """Logits of every position, from `first` tokens at once and then one at a time."""
    module, variables = MODELS["transformer"][1](run.cfg.model), {"params": params}

    @jax.jit
    def extend(tokens, cache, position):
        x, cache = module.apply(variables, tokens, run.hps, cache, position, method="extend")
        return module.apply(variables, x, run.hps, method="logits"), cache

    logits, cache = extend(tokens[:, :first], module.empty_cache(len(tokens), window), 0)
    found = [logits]
    for t in range(first, tokens.shape[1]):
        logits, cache = extend(tokens[:, t : t + 1], cache, t)
        found.append(logits)
    return np.concatenate(found, axis=1)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


# Of the options, those that touch what a cache or a position is
TOUCHED = (
    "baseline",
    "gpt",
    "no positions, shared keys",
    "qk norm, one key head, swiglu",
    "normalized elu attention",
)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(o, id=name, marks=[] if name in TOUCHED else pytest.mark.slow)
        for name, o in OPTIONS.items()
    ],
)
def test_decoding_equals_the_parallel_forward_pass(options):
    run = make_with(options)
    params, tokens = (
        shaken(initial_params(run, seed=3)),
        np.random.default_rng(0).integers(0, 256, (2, 12)),
    )
    close(
        decoded(run, params, tokens, 12, first=5),
        apply(run)(params, tokens, run.hps),
    )


@pytest.mark.parametrize("first", [1, 4, 11])
def test_the_window_slides(first):
    """Beyond the window, whether the first tokens fill it or not: a query sees the window's
    positions alone."""
    run = make_with({"num_kv_heads": 2})
    params, tokens = (
        shaken(initial_params(run, seed=3)),
        np.random.default_rng(0).integers(0, 256, (2, 17)),
    )
    theirs = in_numpy(run.cfg.model, params, tokens, float(run.hps.attention_scale), window=4)
    close(decoded(run, params, tokens, 4, first), theirs)
    assert (
        np.abs(theirs - in_numpy(run.cfg.model, params, tokens, float(run.hps.attention_scale)))[
            :, 4:
        ].max()
        > 0.01
    )


PROMPTS = [b"import os, sys", b"de", b"class"]


def generated(run, params, prompts, num_tokens, sampling, seed=0, stop=-1, window=64):
    generate = make_generate(run.program, num_tokens, window, stop)
    lengths = [len(p) for p in prompts]
    rows = np.zeros((len(prompts), max(lengths)), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = list(prompt)
    tokens = generate(
        params, run.hps, run.scalings, rows, np.array(lengths), sampling, seed, min(lengths)
    )
    return [
        list(map(int, row[: length + num_tokens]))
        for row, length in zip(tokens, lengths, strict=True)
    ]


class AttentionWithoutCache(Attention):
    extend = empty_cache = None


class BlockWithoutCache(Block):
    mixer_class = AttentionWithoutCache


class TransformerWithoutCache(Transformer):
    block_class = BlockWithoutCache


def without_cache(run):
    program = dataclasses.replace(run.program, model_class=TransformerWithoutCache)
    return dataclasses.replace(run, program=program)


def test_without_a_cache_the_same_tokens_are_drawn():
    """By attention whose cache is taken away: every token from a pass over all before it."""
    run = make_with({"num_kv_heads": 2})
    params = shaken(initial_params(run))
    module = TransformerWithoutCache(run.cfg.model)
    assert Transformer(run.cfg.model).empty_cache(2, 8) is not None
    assert module.empty_cache(2, 8) is None
    cached = generated(run, params, PROMPTS, 8, Sampling())
    assert generated(without_cache(run), params, PROMPTS, 8, Sampling()) == cached


def test_without_a_cache_the_window_is_read_anew():
    """Beyond the window, each token is the most likely one after the last 5 as a text of their
    own."""
    run = make_with({})
    params, forward = shaken(initial_params(run)), apply(run)
    (ours,) = generated(without_cache(run), params, [b"im"], 12, Sampling(temperature=0), window=5)
    scaled = jax.tree.map(lambda w, s: w * s.forward, params, run.scalings)
    tokens = list(b"im")
    for _ in range(12):
        seen = tokens[-5:]
        padded = np.array([seen + [0] * (5 - len(seen))])
        tokens.append(int(np.argmax(forward(scaled, padded, run.hps)[0, len(seen) - 1])))
    assert ours == tokens


@pytest.mark.parametrize("run", [make_with({}), make("mlp")], ids=["transformer", "mlp"])
def test_unequal_prompts_against_whole_forward_passes(run):
    """The most likely continuation of each, found without cache and batch, one whole forward pass a
    token; also by a model that has no cache, nor a readout of its own."""
    params = shaken(initial_params(run))
    forward = apply(run)
    ours = generated(run, params, PROMPTS, 8, Sampling(temperature=0))
    scaled = jax.tree.map(lambda w, s: w * s.forward, params, run.scalings)
    for prompt, continued in zip(PROMPTS, ours, strict=True):
        tokens = list(prompt)
        for _ in range(8):
            # what comes later changes nothing before it
            padded = np.array([tokens + [0] * (24 - len(tokens))])
            tokens.append(int(np.argmax(forward(scaled, padded, run.hps)[0, len(tokens) - 1])))
        assert continued == tokens


def test_a_row_is_drawn_as_if_it_were_alone():
    run = make_with({})
    params = shaken(initial_params(run))
    together = generated(run, params, [PROMPTS[0], *PROMPTS], 8, Sampling())
    assert together[0] == generated(run, params, PROMPTS[:1], 8, Sampling())[0]
    assert together[0] != together[1]  # one prompt, two samples
    assert together[0] != generated(run, params, PROMPTS[:1], 8, Sampling(), seed=1)[0]


def test_every_position_is_drawn_anew():
    """From a model to which all tokens are alike: 40 draws of 256 have some repeats, but not one
    token throughout."""
    run = make_with({})
    params = initial_params(run)
    params |= {"unembed": 0 * params["unembed"]}
    for tokens in generated(run, params, [b"a", b"a"], 40, Sampling()):
        assert 25 < len(set(tokens)) < 41


PROBS = np.array([0.02, 0.3, 0.05, 0.2, 0.01, 0.25, 0.12, 0.05])


def restricted(temperature, top_k, top_p):
    """The probabilities asked for, in NumPy."""
    probs = PROBS ** (1 / temperature) / np.sum(PROBS ** (1 / temperature))
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    total, kept = 0.0, []
    for i in order:
        if total < top_p:
            kept.append(i)
        total += probs[i]
    probs[[i for i in range(len(probs)) if i not in kept]] = 0
    return probs / probs.sum()


@pytest.mark.parametrize(
    "how, support", [((1, 0, 1), 8), ((0.5, 0, 1), 8), ((2, 0, 1), 8), ((1, 3, 1), 3), ((1, 0, 0.7),
    3),
                     ((1, 0, 0.76), 4), ((1.5, 5, 0.95), 5), ((1, 4, 0.7), 3)],
)  # fmt: skip
def test_tokens_are_drawn_with_the_probabilities_asked_for(how, support):
    """Chi-square of 20,000 draws; no draw at all of what is excluded."""
    num_draws, probs = 20_000, restricted(*how)
    assert np.count_nonzero(probs) == support
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(PROBS)) + 3, (num_draws, 8))
    tokens = jax.jit(draw)(jax.random.split(jax.random.key(0), num_draws), logits, Sampling(*how))
    counts = np.bincount(tokens, minlength=8)
    assert np.all(counts[probs == 0] == 0)
    assert chisquare(counts[probs > 0], num_draws * probs[probs > 0]).pvalue > 1e-3
    if how != (1, 0, 1):  # and it could have failed
        assert chisquare(counts + 1, (num_draws + 8) * PROBS).pvalue < 1e-6


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file):
    """(workdir, run, result row) of a model that has learned a little."""
    tree = tiny_tree(
        data__name="text", data__path=str(text_file), train__steps=60, train__batch_size=16,
        optim__learning_rate=2.0**-4, model__d_model=32, data__seq_len=32,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("trained")
    return root, tree, train(tree, root)


def test_text_from_a_checkpoint(trained, capsys, tmp_path):
    root, _, _ = trained
    texts = sample.sample(root, ["import ", ""], 100, Sampling(temperature=0.5))
    # It has learned which bytes there are: initially 1 in 3 was printable ASCII
    assert all(
        sum(c.isascii() and (c.isprintable() or c == "\n") for c in text) > 90 for text in texts
    )
    (tmp_path / "prompts.txt").write_text("import \n\n")
    args = [
        "sample",
        f"--workdir={root}",
        f"--prompts={tmp_path / 'prompts.txt'}",
        "--num_tokens=100",
    ]
    assert main.run([*args, "--temperature=0.5"]) == 0
    assert capsys.readouterr().out == f"--- 1 of 2\nimport {texts[0]}\n--- 2 of 2\n{texts[1]}\n"
    assert (
        main.run(
            ["sample", f"--workdir={root}", "--prompt=ab", "--num_tokens=5", "--num_samples=2"]
        )
        == 0
    )
    first, second = capsys.readouterr().out.split("--- 2 of 2\n")
    assert first.startswith("--- 1 of 2\nab") and second.startswith("ab") and first[11:] != second


def test_the_weights_are_those_of_the_last_step(trained):
    """Their loss on the validation text, measured anew, is the one in the result."""
    root, tree, row = trained
    run = make_run(make_run_config(tree))
    params = sample._load_params(root, "latest", run, None)
    _, validation, _ = load_batches(run.cfg, [0])
    evaluate = jax.jit(make_train_fns(run.program).evaluate)
    losses = [float(evaluate(params, rows, run.hps, run.scalings)) for rows in validation]
    np.testing.assert_allclose(np.mean(losses), row["final_loss"], rtol=1e-6)


def test_weights_of_a_device_that_is_not_here(trained, tmp_path):
    """Saved on the eighth device, sampled from in a process that has one."""
    root, tree, row = trained
    run = make_run(make_run_config(tree))
    params = jax.device_put(sample._load_params(root, "latest", run, None), jax.devices()[7])
    record = {"config": {}, "table": "", "evals": [], "seconds": 1.0}
    record |= {name: row[name] for name in ("table_hash", "data_fingerprint")}
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "latest", keep=2)
    checkpoints.save(60, {"params": params}, record)
    checkpoints.wait()
    shutil.copy(root / "config.json", tmp_path)
    args = ["--prompt=import ", "--num_tokens=20", "--temperature=0"]
    there, here = (run_mujax("sample", f"--workdir={folder}", *args) for folder in (tmp_path, root))
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout


def test_text_ends_with_its_document(trained):
    """At the end of a document and at num_tokens, whichever comes first."""
    run = make_with({})
    params = shaken(initial_params(run))
    (tokens,) = generated(run, params, [b"a"], 30, Sampling())
    stop = tokens[12]
    cut = tokens.index(stop, 1)
    (until,) = generated(run, params, [b"a"], 30, Sampling(), stop=stop)
    assert until[: cut + 1] == tokens[: cut + 1] and not any(until[cut + 1 :])
    assert sample._until([97, 98, stop, 99], stop) == [97, 98]
    assert sample._tokenizer(run)[0].decode([97, 255]) == "a\N{REPLACEMENT CHARACTER}"


def test_what_cannot_be_sampled_is_told_in_one_line(trained, tmp_path, tiny, capsys):
    root, _, _ = trained
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / "config.json").write_text(json.dumps(make("cnn").cfg.as_dict()))
    with pytest.raises(UserError, match="model.name = 'cnn' reads images, not text"):
        sample.sample(tmp_path / "cnn", ["a"], 4, Sampling())
    with pytest.raises(UserError, match="no config.json"):
        sample.sample(tmp_path, ["a"], 4, Sampling())
    train(tiny(optim__learning_rate=1e4, optim__grad_clip=0.0), tmp_path / "diverged")
    with pytest.raises(UserError, match="has no checkpoints in checkpoints/latest"):
        sample.sample(tmp_path / "diverged", ["a"], 4, Sampling())
    shutil.copytree(root, tmp_path / "other")
    config = json.loads((root / "config.json").read_text())
    config["parameterization"]["name"] = "sp"
    config["parameterization"]["base_width"] = 16
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="saved under another parameterization table"):
        sample.sample(tmp_path / "other", ["a"], 4, Sampling())
    train(tiny(model__position="learned"), tmp_path / "learned")
    assert len(sample.sample(tmp_path / "learned", ["abc"], 13, Sampling(top_k=1))) == 1
    with pytest.raises(
        UserError, match="make 17, and model.position = 'learned' ends at data.seq_len = 16"
    ):
        sample.sample(tmp_path / "learned", ["abc"], 14, Sampling())
    capsys.readouterr()
    for flags, message in {
        "--temperature=hot": "--temperature=hot is not a number",
        "--top_k=1.5": "--top_k=1.5 is not a whole number",
        "--top_p=0": "--top_p=0 must be at least 1e-06, at most 1",
        "--num_tokens=0": "--num_tokens=0 must be at least 1",
        "--prompt=a --prompts=b": "--prompt and --prompts: give one of them",
        "--prompts=nowhere": "nowhere",
    }.items():
        assert main.run(["sample", f"--workdir={root}", *flags.split()]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
