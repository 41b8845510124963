"""The command line: verbs, flags, exit codes. The only file that reads flags."""

import dataclasses
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import mujax
from mujax.errors import UserError, suggest

FINISHED, CHECK_FAILED, USAGE_ERROR, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 75

_OVERVIEW = """\
mujax - does a hyperparameter tuned on a small model stay right on a large one?

Usage: mujax VERB [flags]          (the same as: python -m mujax VERB [flags])

{verbs}

mujax VERB --help explains a verb, its flags and what it writes, with examples.
"""

_CONFIG_HELP = """\
  --config=FILE.py         a Python file with get_config(); configs/base.py names every field
  --config=FILE.py:ARG     the same, calling get_config(ARG)
  --config.FIELD=VALUE     sets one field, e.g. --config.optim.learning_rate=0.01"""

_TRAIN_HELP = """\
mujax train - trains one model.

  mujax train --config=configs/base.py --workdir=runs/base
  mujax train --config=configs/base.py --workdir=runs/sp256 \\
      --config.model.d_model=256 --config.parameterization.name=sp
  mujax train --config=configs/base.py:mlp --workdir=runs/mlp

Flags
{config}
  --workdir=DIR            where the run is written; one run a folder

Leaves in DIR
  config.json              every field of the run
  metrics.jsonl            a line every train.log_interval steps, and one an evaluation
  result.json              the result row, when the run has finished

A workdir that holds the finished run is left alone; an interrupted run starts again.
Exit codes: 0 finished, 2 something to fix in the command or config, 3 the run diverged,
75 interrupted."""

_SWEEP_HELP = """\
mujax sweep - trains every point of config.sweep, side by side on all cores or devices.

  mujax sweep --config=configs/quickstart.py --workdir=runs/quickstart
  mujax sweep --config=configs/quickstart.py --workdir=runs/wider \\
      --config.sweep.model.d_model="(64, 128, 256)"

The points are the product of the axes in config.sweep. Points that differ in numbers alone
(parameterization, learning rate, seed, ...) share one compiled program.

Flags
{config}
  --workdir=DIR            where the sweep is written; one sweep a folder

Leaves in DIR
  manifest.json            the config, and the fields that each point overrides
  results.jsonl            one row a finished point; a diverged point has null losses
  points/ID/metrics.jsonl  the training curve of a point

Stopped by Ctrl-C or SIGTERM, it keeps what has finished; the same command goes on from there.
Exit codes: 0 all points finished (diverged ones included), 2 something to fix in the command
or config, 75 interrupted."""

_REPORT_HELP = """\
mujax report - where the best learning rate lies at each width, and how it moves.

  mujax report --workdir=runs/quickstart

Flags
  --workdir=DIR            a folder that mujax sweep or mujax train has written

Prints the table of optima, and leaves in DIR
  report.html              curves, optima, training curves, config; one file, needs no network
  figures/*.png, *.pdf     loss against learning rate, optimum against width
  transfer.json            the curves, optima and drift as numbers
Exit codes: 0 written, 2 something to fix in the command or the folder."""


_EXPLAIN_HELP = """\
mujax explain - every number of a parameterization, tensor by tensor, and where it came from.

  mujax explain --config=configs/quickstart.py
  mujax explain --config=configs/quickstart.py --diff=sp
  mujax explain --config=configs/quickstart.py --widths=32,128,512
  mujax explain --config=configs/base.py --config.parameterization.name=mup_table8 \\
      --config.parameterization.override="('unembed.lr=0.5', 'input=sp')"

Flags
{config}
  --widths=W,W,...         the numbers at several widths side by side
  --diff=TABLE             only what differs from another table
  --json                   JSON on stdout, with everything

Overrides (config.parameterization.override, a tuple of strings) are TARGET=VALUE or
TARGET.NUMBER=VALUE
  TARGET                   a role, a tensor, a pattern of tensors ('blocks/*/wq'), or a forward
                           scale (attention, residual, logits, embedding)
  NUMBER                   init, forward, lr, eps, weight_decay or readout
  VALUE                    a table, a row of one ('sp.hidden'), or, for a single number or a scale,
                           the number itself

Tables
{tables}
Exit codes: 0 printed, 2 something to fix in the command or config."""

_CHECK_HELP = """\
mujax check - is the model right under its parameterization and optimizer, and which tensor is not?

  mujax check --config=configs/quickstart.py --workdir=runs/check --fast
  mujax check --config=configs/quickstart.py --workdir=runs/check-sp \\
      --config.parameterization.name=sp
  mujax check --config=configs/base.py --workdir=runs/check-sgd \\
      --config.optim.name=sgd --config.optim.learning_rate=0.5

Reads the exponents of the resolved table; rescales stored weights, which must change nothing
(float64); and trains small models of several widths, at the config's learning rate held constant
and without clipping, to compare how every weight, update and activation grows with width with what
the maximal-update limit wants.

Flags
{config}
  --workdir=DIR            where check.json and check.png are written
  --fast                   4 widths, 3 seeds, 10 steps; without it 5 widths, 5 seeds, 30 steps
  --widths=W,W,...         other widths than 1, 2, 4, 8 (and 16) times parameterization.base_width
  --seeds=N                another number of seeds, at least 3

With parameterization.base_d_head set, heads grow with width and their number stays.
A workdir that holds an earlier check keeps it, in earlier/N.
Exit codes: 0 pass (benign deviations included), 1 fail, 2 something to fix in the command or
config."""


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command: its help (first line: 'mujax NAME - summary.'), its function, whose keyword arguments are its
    flags, and of these the ones that must be given and those that take no value."""

    help: str
    run: Callable[..., int]
    flags: tuple[str, ...]
    required: tuple[str, ...] = ("config", "workdir")
    switches: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return self.help.splitlines()[0].partition(" - ")[2]


def _train(config: ConfigDict, workdir: str) -> int:
    from mujax.train import train

    row = train(config.to_dict(), workdir)
    if row["status"] == "diverged":
        print(f"diverged at step {row['diverged_at_step']}; {workdir}/metrics.jsonl has the curve")
        return DIVERGED
    print(f"final loss {row['final_loss']:.4f} nats/token, best {row['best_loss']:.4f} at step {row['best_step']}")
    return FINISHED


def _make_cores_devices() -> None:
    """Lanes of a sweep are split over devices, so each core is made one, unless the number is set already.

    Accelerators are devices as they are.
    """
    import jax

    is_set = (
        "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_num_cpu_devices"] > 0
    )
    if not is_set:
        jax.config.update("jax_num_cpu_devices", num_cores())


def _sweep(config: ConfigDict, workdir: str) -> int:
    _make_cores_devices()
    from mujax.sweep import sweep

    rows = sweep(config.to_dict(), workdir)
    diverged = sum(row["status"] == "diverged" for row in rows)
    print(f"{len(rows)} points finished, {diverged} of them diverged; see them with: mujax report --workdir={workdir}")
    return FINISHED


def num_cores() -> int:
    """Cores this process may use; macOS cannot tell, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(workdir: str) -> int:
    from mujax.transfer.report import report

    print(report(workdir))
    print(f"\n{workdir}/report.html")
    return FINISHED


def _explain(config: ConfigDict, widths: str | None, diff: str | None, json: bool) -> int:
    from mujax.check.explain import explain
    from mujax.check.run import at_width

    cfg = _without_sweep(config)
    cfgs = [at_width(cfg, width) for width in _numbers("widths", widths)] or [cfg]
    print(explain(cfgs, diff or "", json))
    return FINISHED


def _check(config: ConfigDict, workdir: str, fast: bool, widths: str | None, seeds: str | None) -> int:
    _make_cores_devices()
    from mujax.check.render import format_report, write_report
    from mujax.check.run import FAST, FULL, check
    from mujax.workdir import make_writable

    make_writable(workdir)
    num_seeds = _numbers("seeds", seeds)
    if len(num_seeds) > 1:
        raise UserError(f"--seeds={seeds} is the number of seeds, one number")
    report = check(
        _without_sweep(config),
        FAST if fast else FULL,
        _numbers("widths", widths),
        *num_seeds,
        progress=lambda text: print(f"{text} ...", file=sys.stderr, flush=True),
    )
    root = write_report(report, workdir)
    print(f"{format_report(report)}\n\n{root / 'check.json'}\n{root / 'check.png'}")
    return FINISHED if report.verdict.passed else CHECK_FAILED


def _without_sweep(config: ConfigDict) -> Any:
    from mujax.config import make_run_config

    return make_run_config({key: value for key, value in config.to_dict().items() if key != "sweep"})


def _numbers(flag: str, text: str | None) -> list[int]:
    """'32,64' -> [32, 64]."""
    try:
        values = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--{flag}={text} is not a whole number, or several between commas") from None
    if any(value < 1 for value in values):
        raise UserError(f"--{flag}={text}: a number must be at least 1")
    return values


VERBS = {
    "train": Verb(_TRAIN_HELP.format(config=_CONFIG_HELP), _train, ("config", "workdir")),
    "sweep": Verb(_SWEEP_HELP.format(config=_CONFIG_HELP), _sweep, ("config", "workdir")),
    "report": Verb(_REPORT_HELP, _report, ("workdir",), required=("workdir",)),
    "explain": Verb(
        _EXPLAIN_HELP, _explain, ("config", "widths", "diff", "json"), required=("config",), switches=("json",)
    ),
    "check": Verb(
        _CHECK_HELP.format(config=_CONFIG_HELP),
        _check,
        ("config", "workdir", "fast", "widths", "seeds"),
        switches=("fast",),
    ),
}


def parse(verb: str, argv: Sequence[str]) -> dict[str, Any]:
    """Flags of a verb -> keyword arguments of its function.

    Raises:
      UserError: an unknown or missing flag, a config file that fails, or a field that does not exist.
    """
    argv = _joined(argv)
    takes_config = "config" in VERBS[verb].flags
    values = flags.FlagValues()
    for name in VERBS[verb].flags:
        if name in VERBS[verb].switches:
            flags.DEFINE_boolean(name, False, "", flag_values=values)
        elif name != "config":
            flags.DEFINE_string(name, None, "", flag_values=values)
    if takes_config:
        _check_overrides(_load_config(verb, argv), argv)
    try:
        if takes_config:  # here, because it already reads the files that --flagfile names
            config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["mujax", *argv])
        rest = values(["mujax", *argv])[1:]
    except (flags.Error, OSError, TypeError, ValueError) as e:
        raise UserError(f"{_one_line(e)}; see mujax {verb} --help") from e
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    if "workdir" in VERBS[verb].required and not values.workdir:
        raise UserError(f"{verb} needs --workdir=DIR")
    return {name: values[name].value for name in VERBS[verb].flags}


def _joined(argv: Sequence[str]) -> list[str]:
    """-name and --name value -> --name=value, the one form in which config_flags and we look for a config."""
    joined: list[str] = []
    for arg in argv:
        if not arg.startswith("-"):
            takes_value = joined and joined[-1].startswith("--") and "=" not in joined[-1]
            if takes_value:
                joined[-1] += f"={arg}"
                continue
        joined.append(f"-{arg}" if re.match("-[a-z]", arg) else arg)
    return joined


def _load_config(verb: str, argv: Sequence[str]) -> ConfigDict:
    """The config file alone, without overrides, so that its own errors are told apart from theirs."""
    found = [arg for arg in argv if arg.startswith("--config=")]
    if not found:
        raise UserError(f"{verb} needs --config=FILE.py, for example --config=configs/base.py")
    path = found[-1].partition("=")[2].partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config={path}: no such file")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["mujax", found[-1]])
    try:
        values(["mujax", found[-1]])
    except (Exception, SystemExit) as e:  # a config file is the user's code and may raise anything
        cause: BaseException = e  # config_flags wraps what get_config raised
        while inner := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
            cause = inner
        raise UserError(f"--config={path}: {type(cause).__name__}: {_one_line(cause)}") from e
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {type(values.config).__name__}, not a ConfigDict")
    return values.config


def _check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
    for arg in argv:
        if not arg.startswith("--config."):
            continue
        flag = arg.partition("=")[0]
        fields = flag.removeprefix("--config.").split(".")
        node: Any = config
        for name in fields:
            if not isinstance(node, ConfigDict) or name not in node:
                names = list(node) if isinstance(node, ConfigDict) else []
                if fields[0] == "sweep" and len(fields) > 1:
                    raise UserError(f"{flag}: the config sweeps no such axis; name it in the config file, in c.sweep")
                raise UserError(f"{flag}: the config has no such field{suggest(name, names)}")
            node = node[name]


def help_text(verb: str) -> str:
    """What mujax VERB --help prints."""
    if verb != "explain":
        return VERBS[verb].help
    from mujax.parameterization import PARAMETERIZATIONS

    tables = "\n".join(
        textwrap.fill(f"{name}: {table.source}", 100, initial_indent="  ", subsequent_indent="      ")
        for name, table in PARAMETERIZATIONS.items()
    )
    return _EXPLAIN_HELP.format(config=_CONFIG_HELP, tables=tables)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def run(argv: Sequence[str]) -> int:
    """Runs `mujax ARGV` and returns the exit code."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        verbs = "\n".join(f"  {name:<8} {verb.summary}" for name, verb in VERBS.items())
        print(_OVERVIEW.format(verbs=verbs))
        return FINISHED if argv else USAGE_ERROR
    if argv[0] in ("--version", "version"):
        print(f"mujax {mujax.__version__}")
        return FINISHED
    verb, rest = argv[0], argv[1:]
    try:
        if verb not in VERBS:
            raise UserError(f"unknown verb {verb!r}; one of {', '.join(VERBS)} (mujax --help)")
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(rest):
            print(help_text(verb))
            return FINISHED
        return VERBS[verb].run(**parse(verb, rest))
    except (UserError, OSError) as e:  # OSError: a full disk, a file taken away
        print(f"mujax: {_one_line(e)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        is_sweep = verb == "sweep"
        after = "finished points are kept, the same command goes on" if is_sweep else "the same command starts it again"
        print(f"\nmujax: interrupted; {after}", file=sys.stderr)
        return INTERRUPTED


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the installed command and of python -m mujax."""
    # SIGTERM ends a run as Ctrl-C does. Python ignores SIGINT in background shells unless told otherwise.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    sys.exit(run(sys.argv[1:]))
