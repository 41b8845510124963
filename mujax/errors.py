"""The one exception a user is meant to see, and how a process says that it should be run again."""

import difflib
from collections.abc import Iterable

# Exit codes of processes that end without a result; the same command goes on
CRASHED, INTERRUPTED = 70, 75


class UserError(Exception):
    """Something the user can fix: one line saying what is wrong, where, and what would be right.

    The command line prints it and exits with code 2, before any compilation or data work.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean d_model?', or the names there are; to end the message about an unknown name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
