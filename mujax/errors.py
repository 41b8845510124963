"""The one exception a user is meant to see."""

import difflib
from collections.abc import Iterable


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
