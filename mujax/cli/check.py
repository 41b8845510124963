"""mujax check - is a model right under its table and optimizer, and which tensor is wrong?

  mujax check --config=configs/quickstart.py --workdir=runs/check --fast
  mujax check --config=configs/quickstart.py --workdir=runs/check-sp \\
      --config.parameterization.name=sp
  mujax check --config=configs/base.py --workdir=runs/check-sgd \\
      --config.optim.name=sgd --config.optim.learning_rate=0.5

Reads the exponents of the resolved table. Rescales stored weights, which must change nothing
(float64). Changes the tokens after each position, which must change nothing up to that position.
Trains small models of several widths, with a constant learning rate and without clipping, and
compares how every weight, update and activation grows with width with the maximal-update limit.
Blames the first one that is off while everything it is computed from is right.

Flags
{config}
  --workdir=DIR            where check.json and check.png are written
  --fast                   4 widths, 3 seeds, 10 steps; without it 5 widths, 5 seeds, 30 steps
  --widths=W,W,...         other widths than 1, 2, 4, 8 (and 16) times parameterization.base_width
  --seeds=N                another number of seeds, at least 3

With parameterization.base_d_head set, heads grow with width and their number stays.
An earlier check in the workdir is kept in earlier/N.
Exit codes: 0 pass (benign deviations included), 1 fail or undecided (by these widths and seeds;
widths that would decide are named), 2 a mistake in the command or config."""

import sys
from typing import Any

from mujax.cli.devices import find_devices, make_cores_devices
from mujax.cli.flags import numbers
from mujax.cli.verb import CHECK_FAILED, FINISHED, Verb
from mujax.errors import UserError


def run(
    config: dict[str, Any], workdir: str, fast: bool, widths: str | None, seeds: str | None
) -> int:
    make_cores_devices()
    find_devices()
    from mujax.check.render import format_report, write_report
    from mujax.check.run import FAST, FULL, check
    from mujax.config import make_run_config
    from mujax.storage.files import local_path, make_writable

    make_writable(local_path(workdir))
    num_seeds = numbers("seeds", seeds, most=1000)
    if len(num_seeds) > 1:
        raise UserError(f"--seeds={seeds} is the number of seeds, one number")
    report = check(
        make_run_config(config),
        FAST if fast else FULL,
        numbers("widths", widths),
        *num_seeds,
        progress=lambda text: print(f"{text} ...", file=sys.stderr, flush=True),
    )
    root = write_report(report, workdir)
    print(f"{format_report(report)}\n\n{root / 'check.json'}\n{root / 'check.png'}")
    return FINISHED if report.verdict.passed else CHECK_FAILED


VERB = Verb(
    "check",
    __doc__,
    run,
    required=("config", "workdir"),
    optional=("fast", "widths", "seeds"),
    switches=("fast",),
)
