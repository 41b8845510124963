"""The command line: finds the verb, and turns what goes wrong into one line and an exit code."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence

import mujax
from mujax.cli import (
    check,
    explain,
    export,
    launch,
    merge,
    plan,
    prepare,
    report,
    sample,
    sweep,
    train,
    version,
)
from mujax.cli.console import make_tolerant, output_error
from mujax.cli.cores import explained, hide_absent_tpu
from mujax.cli.flags import parse
from mujax.cli.verb import FINISHED, USAGE_ERROR
from mujax.errors import CRASHED, INTERRUPTED, UserError, is_foreseen, is_outage, suggest

VERBS = {
    module.VERB.name: module.VERB
    for module in (
        train,
        sweep,
        launch,
        plan,
        merge,
        report,
        explain,
        check,
        export,
        prepare,
        sample,
        version,
    )
}

OVERVIEW = """\
mujax - does a hyperparameter tuned on a small model stay right on a large one?

Usage: mujax VERB [flags]          (the same as: python -m mujax VERB [flags])

{verbs}

mujax VERB --help explains a verb, its flags and what it writes, with examples.
"""


def overview() -> str:
    """What mujax --help prints."""
    return OVERVIEW.format(
        verbs="\n".join(f"  {name:<8} {verb.summary()}" for name, verb in VERBS.items())
    )


def run(argv: Sequence[str]) -> int:
    """Runs `mujax ARGV` and returns the exit code."""
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(overview())
        return FINISHED if argv else USAGE_ERROR
    if argv[0] == "--version":
        print(f"mujax {mujax.__version__}")
        return FINISHED
    name, rest = argv[0], argv[1:]
    try:
        if name not in VERBS:
            raise UserError(f"unknown verb {name!r}{suggest(name, VERBS)} (mujax --help)")
        verb = VERBS[name]
        if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(rest):
            print(verb.help_text())
            if "--helpfull" in rest and "config" in verb.required:
                from mujax.cli.fields import fields_text  # here, as models bring JAX

                print(f"\n{fields_text()}")
            return FINISHED
        return verb.run(**parse(verb, rest))
    except KeyboardInterrupt:
        is_kept = name in ("train", "sweep", "launch", "prepare")
        after = (
            "what was done is kept, the same command goes on"
            if is_kept
            else "the same command starts it again"
        )
        print(f"\nmujax: interrupted; {after}", file=sys.stderr)
        return INTERRUPTED
    except Exception as raised:
        e = explained(raised)
        if not is_foreseen(e):
            # a lost chip, a bug: Python's own 1 would be a verdict, which launchers never run again
            traceback.print_exc()
            return CRASHED
        print(f"mujax: {_one_line(str(e)) or type(e).__name__}", file=sys.stderr)
        # a full disk and a file taken away among them
        return CRASHED if is_outage(e) else USAGE_ERROR


def _one_line(text: str) -> str:
    """Text for a terminal, without the control characters that a file may have had in a name."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


class _Interrupted(KeyboardInterrupt):
    """Python's own KeyboardInterrupt, raised anywhere inside exec - so wherever a module with a
    dataclass is being imported - ends the process as killed by SIGINT, though it was caught and all
    went well after."""


def _interrupt(signum, frame):
    raise _Interrupted


def main() -> None:
    """Entry point of the installed command and of python -m mujax."""
    # SIGTERM ends a run as Ctrl-C does. Python ignores SIGINT in background shells unless told
    # otherwise.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    make_tolerant()
    argv = sys.argv[1:]
    if argv[:1] != ["plan"]:  # which compiles for TPUs, and takes none
        hide_absent_tpu()
    code = run(argv)
    for signum in (signal.SIGTERM, signal.SIGINT):
        # what was done stands, whatever comes while Python shuts down
        signal.signal(signum, signal.SIG_IGN)
    if error := output_error():
        print(f"mujax: standard output could not be written: {error.strerror}", file=sys.stderr)
        # Files hold what was done, and the exit code is that of the work; what was only printed is
        # lost
        is_in_files = (
            any(arg.startswith("--workdir") for arg in argv)
            and argv[0] != "sample"
            and "--dry_run" not in argv
        )
        code = code if code or is_in_files else USAGE_ERROR
    if code == INTERRUPTED and not _is_one_of_several():
        _leave(code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    """Whether this process has others beside it, which JAX waits for when Python shuts down."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> None:
    """Ends the process without Python's own shutdown: threads that an interruption left at work, as
    TensorStore's that write a checkpoint, would call into an interpreter that is being taken down,
    and crash it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or a pipe that nobody reads
            stream.flush()
    os._exit(code)
