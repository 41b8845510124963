"""The command line: verbs, flags, exit codes. The only file that reads flags."""

import dataclasses
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import mujax
from mujax.errors import UserError, suggest
from mujax.help import help_text, overview

FINISHED, CHECK_FAILED, USAGE_ERROR, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 75


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command: its function, whose keyword arguments are its flags, and of these the ones that must be given and
    those that take no value."""

    run: Callable[..., int]
    flags: tuple[str, ...]
    required: tuple[str, ...] = ("config", "workdir")
    switches: tuple[str, ...] = ()
    takes_argv: bool = False  # its own command line too


def _train(config: dict[str, Any], workdir: str) -> int:
    from mujax.train import train

    row = train(config, workdir)
    if row["status"] == "diverged":
        print(f"diverged at step {row['diverged_at_step']}; {workdir}/metrics.jsonl has the curve")
        return DIVERGED
    if row["status"] == "stopped":
        print(f"given up at step {row['stopped_at_step']} by train.give_up_step; {workdir}/metrics.jsonl has the curve")
        return FINISHED
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


def _sweep(
    config: dict[str, Any],
    workdir: str | None,
    dry_run: bool,
    shard: str | None,
    tensorboard: bool,
    wandb_mode: str | None,
    argv: Sequence[str],
) -> int:
    from mujax.points import Shard

    part = Shard() if shard is None else Shard.parse(shard)
    if dry_run:
        from mujax import dry_run as dry

        print(
            dry.dry_run(
                config,
                part,
                [arg for arg in _joined(argv) if arg.startswith(("--config", "--noconfig", "--flagfile"))],
            )
        )
        return FINISHED
    if not workdir:
        raise UserError("sweep needs --workdir=DIR")
    _make_cores_devices()
    from mujax.mirrors import open_mirrors
    from mujax.sweep import sweep

    study = Path(workdir).name
    rows = sweep(config, workdir, part, lambda root: open_mirrors(root, study, tensorboard, wandb_mode or ""))
    counts = {status: sum(row["status"] == status for row in rows) for status in ("diverged", "stopped")}
    stopped = f" and {counts['stopped']} given up" if counts["stopped"] else ""
    print(
        f"{len(rows)} points finished, {counts['diverged']} of them diverged{stopped}; "
        f"see them with: mujax report --workdir={workdir}"
    )
    return FINISHED


def _launch(
    config: dict[str, Any],
    workdir: str,
    engine: str,
    name: str | None,
    shards: str | None,
    retries: str | None,
    parallel: str | None,
    argv: Sequence[str],
    **flags: str | bool | None,
) -> int:
    from mujax.launch import launch

    joined = _joined(argv)
    if any(arg.startswith("--flagfile") for arg in joined):
        raise UserError("launch takes no --flagfile: its jobs could not read it")
    return launch(
        config,
        [arg for arg in joined if arg.startswith(("--config", "--noconfig"))],
        workdir,
        engine,
        name,
        _number("shards", shards, 1, 1),
        _number("retries", retries, 5, 0),
        {**flags, "parallel": None if parallel is None else _number("parallel", parallel, 1, 1)},
    )


def _plan(config: dict[str, Any], workdir: str | None, topology: str, search: bool) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # even beside a TPU: a plan takes none
    from mujax.plan.plan import plan

    fits = plan(config, topology, workdir, search, lambda text: print(text, flush=True))
    return FINISHED if fits else CHECK_FAILED


def _merge(workdir: str, sources: str) -> int:
    from mujax.merge import merge

    print(merge(workdir, sources.split(",")))
    return FINISHED


def num_cores() -> int:
    """Cores this process may use; macOS cannot tell, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(workdir: str, sources: str | None, input: str | None, columns: str | None, noise: str | None) -> int:
    from mujax.check.tensors import tensor_tables
    from mujax.transfer.report import report

    level = None if noise is None else _number("noise", noise, 0.0, 0)
    print(report(workdir, sources.split(",") if sources else (), input, columns, level, tensor_tables))
    print(f"\n{workdir}/report.html")
    return FINISHED


def _explain(config: dict[str, Any], widths: str | None, diff: str | None, json: bool) -> int:
    from mujax.check.explain import explain
    from mujax.check.run import at_width
    from mujax.config import make_run_config

    cfg = make_run_config(config)
    cfgs = [at_width(cfg, width) for width in _numbers("widths", widths)] or [cfg]
    print(explain(cfgs, diff or "", json))
    return FINISHED


def _check(config: dict[str, Any], workdir: str, fast: bool, widths: str | None, seeds: str | None) -> int:
    _make_cores_devices()
    from mujax.check.render import format_report, write_report
    from mujax.check.run import FAST, FULL, check
    from mujax.config import make_run_config
    from mujax.workdir import make_writable

    make_writable(workdir)
    num_seeds = _numbers("seeds", seeds)
    if len(num_seeds) > 1:
        raise UserError(f"--seeds={seeds} is the number of seeds, one number")
    report = check(
        make_run_config(config),
        FAST if fast else FULL,
        _numbers("widths", widths),
        *num_seeds,
        progress=lambda text: print(f"{text} ...", file=sys.stderr, flush=True),
    )
    root = write_report(report, workdir)
    print(f"{format_report(report)}\n\n{root / 'check.json'}\n{root / 'check.png'}")
    return FINISHED if report.verdict.passed else CHECK_FAILED


def _sample(
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
) -> int:
    from mujax.sample import Sampling, sample

    if prompt is not None and prompts is not None:
        raise UserError("--prompt and --prompts: give one of them")
    sampling = Sampling(
        _number("temperature", temperature, 1.0, 0),
        _number("top_k", top_k, 0, 0),
        _number("top_p", top_p, 1.0, 1e-6, 1),
    )
    lines = [prompt or ""] if prompts is None else _read_lines("prompts", prompts)
    texts = [text for text in lines for _ in range(_number("num_samples", num_samples, 1, 1))]
    numbers = _number("num_tokens", num_tokens, 256, 1), sampling, _number("window", window, 0, 0)
    continuations = sample(workdir, texts, *numbers, _number("seed", seed, 0, 0, 2**32 - 1))
    for i, (text, continuation) in enumerate(zip(texts, continuations, strict=True), start=1):
        heading = f"--- {i} of {len(texts)}\n" if len(texts) > 1 else ""
        print(f"{heading}{text}{continuation}")
    return FINISHED


def _number(flag: str, text: str | None, default, least, most=math.inf):
    """The value of a flag, a number of the kind of its default."""
    kind = type(default)
    try:
        value = default if text is None else kind(text)
    except ValueError:
        raise UserError(f"--{flag}={text} is not a {'whole ' if kind is int else ''}number") from None
    if not (math.isfinite(value) and least <= value <= most):
        raise UserError(f"--{flag}={text} must be at least {least}" + (f", at most {most}" if most < math.inf else ""))
    return value


def _read_lines(flag: str, file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except ValueError:
        raise UserError(f"--{flag}={file} is not UTF-8 text") from None
    if not lines:
        raise UserError(f"--{flag}={file} is empty: it holds a prompt a line")
    return lines


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
    "train": Verb(_train, ("config", "workdir")),
    "sweep": Verb(
        _sweep,
        ("config", "workdir", "dry_run", "shard", "tensorboard", "wandb_mode"),
        required=("config",),
        switches=("dry_run", "tensorboard"),
        takes_argv=True,
    ),
    "launch": Verb(
        _launch,
        ("config", "workdir", "engine", "name", "shards", "retries", "out", "parallel")
        + ("topology", "spot", "zone", "project", "runtime_version")  # tpu_vm
        + ("image", "mount", "queue")  # jobset
        + ("partition", "time"),  # slurm
        required=("config", "workdir", "engine"),
        switches=("spot",),
        takes_argv=True,
    ),
    "plan": Verb(
        _plan, ("config", "workdir", "topology", "search"), required=("config", "topology"), switches=("search",)
    ),
    "merge": Verb(_merge, ("workdir", "sources"), required=("workdir", "sources")),
    "report": Verb(_report, ("workdir", "sources", "input", "columns", "noise"), required=("workdir",)),
    "explain": Verb(_explain, ("config", "widths", "diff", "json"), required=("config",), switches=("json",)),
    "check": Verb(_check, ("config", "workdir", "fast", "widths", "seeds"), switches=("fast",)),
    "sample": Verb(
        _sample,
        (
            "workdir",
            "prompt",
            "prompts",
            "num_tokens",
            "num_samples",
            "temperature",
            "top_k",
            "top_p",
            "window",
            "seed",
        ),
        required=("workdir",),
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
    for name in VERBS[verb].required:
        if not values[name].value:
            raise UserError(f"{verb} needs --{name}={'NAME' if name == 'topology' else 'DIR'}")
    kwargs: dict[str, Any] = {name: values[name].value for name in VERBS[verb].flags}
    if takes_config:
        kwargs["config"] = kwargs["config"].to_dict()
    return kwargs


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def run(argv: Sequence[str]) -> int:
    """Runs `mujax ARGV` and returns the exit code."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(overview())
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
        raw = {"argv": rest} if VERBS[verb].takes_argv else {}
        return VERBS[verb].run(**parse(verb, rest), **raw)
    except (UserError, OSError) as e:  # OSError: a full disk, a file taken away
        print(f"mujax: {_one_line(e)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        is_kept = verb in ("sweep", "launch")
        after = "what was done is kept, the same command goes on" if is_kept else "the same command starts it again"
        print(f"\nmujax: interrupted; {after}", file=sys.stderr)
        return INTERRUPTED


class _Interrupted(KeyboardInterrupt):
    """Python's own KeyboardInterrupt, raised anywhere inside exec - so wherever a module with a dataclass is being
    imported - ends the process as killed by SIGINT, though it was caught and all went well after."""


def _interrupt(signum, frame):
    raise _Interrupted


def main() -> None:
    """Entry point of the installed command and of python -m mujax."""
    # SIGTERM ends a run as Ctrl-C does. Python ignores SIGINT in background shells unless told otherwise.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    code = run(sys.argv[1:])
    for signum in (signal.SIGTERM, signal.SIGINT):  # what was done stands, whatever comes while Python shuts down
        signal.signal(signum, signal.SIG_IGN)
    sys.exit(code)
