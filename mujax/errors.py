"""The one exception a user is meant to see, and how a process says that it should be run again."""

import difflib
import math
from collections.abc import Iterable

# Exit codes of processes that end without a result; the same command goes on
CRASHED, INTERRUPTED = 70, 75


class UserError(Exception):
    """Something the user can fix: one line saying what is wrong, where, and what would be right.

    The command line prints it and exits with code 2, before any compilation or data work.
    """


def is_outage(e: BaseException) -> bool:
    """Whether a service, or the network to it, did not answer and may later: such an end is
    CRASHED, and run again."""
    status = _status(e)
    if status:
        return status in (408, 429) or status >= 500
    library = type(e).__module__.partition(".")[0]
    # Google's
    is_passing = getattr(e, "retryable", False) is True or type(e).__name__ == "TransportError"
    return (
        is_passing
        or isinstance(e, ConnectionError | TimeoutError)
        or library in ("aiohttp", "requests")
    )


def is_refusal(e: BaseException) -> bool:
    """Whether something may not be read or written, by whoever asks."""
    # gcsfs' 403
    return (
        _status(e) in (401, 403) or isinstance(e, PermissionError) or str(e).startswith("Forbidden")
    )


def is_foreseen(e: BaseException) -> bool:
    """Whether one line says all that there is to say, as against a bug."""
    return isinstance(e, UserError | OSError) or is_outage(e) or is_refusal(e)


def _status(e: BaseException) -> int:
    """That of HTTP, of the errors of gcsfs and Google's libraries; else 0."""
    code = getattr(e, "code", None)
    if isinstance(code, str):
        return int(code) if code.isdigit() else 0
    return code if isinstance(code, int) else 0


LONG = 80  # characters of a value that a message shows


def cut(text: str, limit: float = LONG) -> str:
    """A text on one line, and not longer than a limit."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: int(limit) - 3]}..."


def shown(value, limit: float = LONG) -> str:
    """A value as a message shows it, whatever its own repr does."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"<a number of {math.ceil(value.bit_length() * math.log10(2))} digits>"
    try:
        return cut(repr(value), limit)
    except Exception:
        return f"<{type(value).__name__}>"


FEW = 12  # names that a message may list


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean d_model?', or the names there are; to end the message about an unknown
    name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    more = f" and {len(known) - FEW} more" if len(known) > FEW else ""
    return f"; known: {', '.join(known[:FEW])}{more}" if known else ""


def not_one_of(value, known: Iterable[str]) -> str:
    """'is not one of: sp, mup', with the nearest of them, and of many that alone."""
    known = list(known)
    if len(known) > FEW:
        return f"is not one of the {len(known)} there are{suggest(str(value), known)}"
    close = difflib.get_close_matches(str(value), known, n=1)
    return f"is not one of: {', '.join(known)}" + (f"; did you mean {close[0]}?" if close else "")
