"""The command line: finds the verb, and turns errors into one line and an exit code."""

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
from mujax.cli.devices import explained, hide_absent_tpu
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
    """Returns the text of mujax --help."""
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
                from mujax.cli.fields import fields_text  # imported here because models import JAX

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
            # A lost chip or a bug. Python's own code, 1, would mean a failed check: never retried.
            traceback.print_exc()
            return CRASHED
        print(f"mujax: {_one_line(str(e)) or type(e).__name__}", file=sys.stderr)
        # Among them are a full disk and a file that was removed.
        return CRASHED if is_outage(e) else USAGE_ERROR


def _one_line(text: str) -> str:
    """Returns the text without control characters, which a file's name may hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


class _Interrupted(KeyboardInterrupt):
    """The exception raised for SIGINT, in place of Python's KeyboardInterrupt.

    A KeyboardInterrupt raised inside exec, so wherever a dataclass is being created, ends the
    process as killed by SIGINT even if it was caught.
    """


def _interrupt(signum, frame):
    raise _Interrupted


def main() -> None:
    """Runs the command line; the entry point of `mujax` and of `python -m mujax`."""
    # SIGTERM ends a run as Ctrl-C does. In background shells Python ignores SIGINT by default.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    make_tolerant()
    argv = sys.argv[1:]
    if argv[:1] != ["plan"]:  # plan compiles for TPUs that are not there
        hide_absent_tpu()
    code = run(argv)
    for signum in (signal.SIGTERM, signal.SIGINT):
        # The work is done: a signal must not change the exit code while Python shuts down.
        signal.signal(signum, signal.SIG_IGN)
    if error := output_error():
        print(f"mujax: standard output could not be written: {error.strerror}", file=sys.stderr)
        # Where results are in files, the exit code is that of the work.
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
    """Tells whether this process is one of several, for which JAX waits when Python shuts down."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> None:
    """Ends the process without Python's own shutdown.

    Threads that an interruption left running, such as TensorStore's that write a checkpoint, would
    call into an interpreter that is being taken down, and crash it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed stream, or a pipe without reader
            stream.flush()
    os._exit(code)
