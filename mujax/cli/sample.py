"""mujax sample - text from a model that mujax train has trained.

  mujax sample --workdir=runs/base --prompt="def main(" --temperature=0.7
  mujax sample --workdir=runs/base --prompts=prompts.txt --top_p=0.8 --num_samples=3

Flags
  --workdir=DIR            a folder, or gs://BUCKET/PATH, that mujax train has written
  --checkpoint=WHICH       latest (the default), or best, with the lowest validation loss
  --prompt=TEXT            the beginning of the text; without it, a new document
  --prompts=FILE           prompts instead, one per line, continued side by side
  --num_samples=N          continuations of each prompt (1)
  --num_tokens=N           tokens to add at most (256); a document may end earlier
  --temperature=X          divides the logits (1); 0 takes the most likely token
  --top_k=N                draws only from the N most likely tokens (0: all)
  --top_p=P                draws only from the fewest tokens with total probability P (1: all)
  --window=N               tokens that attention reads back (data.seq_len of the run)
  --seed=N                 seed of the draws (0)

Prints each prompt with its continuation.
Exit codes: 0 printed, 2 a mistake in the command or the folder."""

import logging
from pathlib import Path

from mujax.cli.devices import find_devices
from mujax.cli.flags import number
from mujax.cli.verb import FINISHED, Verb
from mujax.errors import UserError


def run(
    workdir: str,
    prompt: str | None,
    prompts: str | None,
    num_tokens: str | None,
    num_samples: str | None,
    temperature: str | None,
    top_k: str | None,
    top_p: str | None,
    window: str | None,
    seed: str | None,
    checkpoint: str | None,
) -> int:
    from mujax.sample import Sampling, sample

    # Orbax warns that it is read-only, as intended.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    which = checkpoint or "latest"
    if which not in ("latest", "best"):
        raise UserError(f"--checkpoint={which} is not one of: latest, best")
    if prompt is not None and prompts is not None:
        raise UserError("--prompt and --prompts: give one of them")
    sampling = Sampling(
        number("temperature", temperature, 1.0, 0),
        number("top_k", top_k, 0, 0),
        number("top_p", top_p, 1.0, 1e-6, 1),
    )
    find_devices()
    lines = [prompt or ""] if prompts is None else _read_lines("prompts", prompts)
    texts = [text for text in lines for _ in range(number("num_samples", num_samples, 1, 1, 10**5))]
    limits = (
        number("num_tokens", num_tokens, 256, 1, 2**24),
        sampling,
        number("window", window, 0, 0, 2**24),
    )
    continuations = sample(workdir, texts, *limits, number("seed", seed, 0, 0, 2**32 - 1), which)
    for i, (text, continuation) in enumerate(zip(texts, continuations, strict=True), start=1):
        heading = f"--- {i} of {len(texts)}\n" if len(texts) > 1 else ""
        print(f"{heading}{text}{continuation}")
    return FINISHED


def _read_lines(flag: str, file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except ValueError:
        raise UserError(f"--{flag}={file} is not UTF-8 text") from None
    if not lines:
        raise UserError(f"--{flag}={file} is empty: it holds a prompt a line")
    return lines


VERB = Verb(
    "sample",
    __doc__,
    run,
    required=("workdir",),
    optional=(
        "prompt",
        "prompts",
        "num_tokens",
        "num_samples",
        "temperature",
        "top_k",
        "top_p",
        "window",
        "seed",
    )
    + ("checkpoint",),
)
