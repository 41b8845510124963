"""The one exception that a user is meant to see, and the exit codes that ask for another run."""

import difflib
import math
from collections.abc import Iterable

# Exit codes of processes that end without a result. The same command, run again, continues.
CRASHED, INTERRUPTED = 70, 75


class UserError(Exception):
    """An error that the user can fix; its text is one line: what is wrong, where, and what is
    right.

    The command line prints it and exits with code 2, before any compilation or data work.
    """


def is_outage(e: BaseException) -> bool:
    """Tells whether a service or the network failed to answer and may answer later.

    A process that ends so exits with CRASHED and is run again.
    """
    status = _status(e)
    if status:
        return status in (408, 429) or status >= 500
    library = type(e).__module__.partition(".")[0]
    # Google's libraries mark an error that may pass in one of these two ways.
    is_passing = getattr(e, "retryable", False) is True or type(e).__name__ == "TransportError"
    return (
        is_passing
        or isinstance(e, ConnectionError | TimeoutError)
        or library in ("aiohttp", "requests")
    )


def is_refusal(e: BaseException) -> bool:
    """Tells whether access to a file or service was denied."""
    # gcsfs raises a plain error for HTTP 403, known by its text alone.
    return (
        _status(e) in (401, 403) or isinstance(e, PermissionError) or str(e).startswith("Forbidden")
    )


def is_foreseen(e: BaseException) -> bool:
    """Tells whether one line explains the exception; any other exception is a bug."""
    return isinstance(e, UserError | OSError) or is_outage(e) or is_refusal(e)


def _status(e: BaseException) -> int:
    """Returns the HTTP status of an error of gcsfs or Google's libraries; 0 if it has none."""
    code = getattr(e, "code", None)
    if isinstance(code, str):
        return int(code) if code.isdigit() else 0
    return code if isinstance(code, int) else 0


LONG = 80  # characters of a value that a message shows at most


def cut(text: str, limit: float = LONG) -> str:
    """Returns the text on one line, cut to `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: int(limit) - 3]}..."


def shown(value, limit: float = LONG) -> str:
    """Returns the repr of a value for a message, cut to `limit`; never raises."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"<a number of {math.ceil(value.bit_length() * math.log10(2))} digits>"
    try:
        return cut(repr(value), limit)
    except Exception:
        return f"<{type(value).__name__}>"


FEW = 12  # names that a message lists at most


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: '; did you mean d_model?' or the known
    names.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    more = f" and {len(known) - FEW} more" if len(known) > FEW else ""
    return f"; known: {', '.join(known[:FEW])}{more}" if known else ""


def not_one_of(value, known: Iterable[str]) -> str:
    """Returns 'is not one of: sp, mup', with the closest known name; long lists show that name
    alone.
    """
    known = list(known)
    if len(known) > FEW:
        return f"is not one of the {len(known)} there are{suggest(str(value), known)}"
    close = difflib.get_close_matches(str(value), known, n=1)
    return f"is not one of: {', '.join(known)}" + (f"; did you mean {close[0]}?" if close else "")
