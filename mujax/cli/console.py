"""Standard output and error that never end the work by failing.

Causes are a pipe that nobody reads, a full disk, and an ASCII console.
"""

import contextlib
import io
import os
import sys


class _Tolerant(io.RawIOBase):
    """A file descriptor that keeps its first write error and drops all later output."""

    def __init__(self, fd: int):
        self._fd = fd
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, content) -> int:
        if self.error is None:
            try:
                return os.write(self._fd, content)
            except OSError as e:
                self.error = e
        return len(content)


def make_tolerant() -> None:
    """Replaces sys.stdout and sys.stderr by streams that cannot fail, at the start of a process."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # This descriptor is closed. The next opened file would get its number, and all printed
            # text.
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)


def _tolerant(stream, fd: int) -> io.TextIOWrapper:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    is_live = (
        fd == 2
        or getattr(stream, "line_buffering", False)
        or getattr(stream, "write_through", False)
    )
    # A character that the encoding lacks is written as its number, like \\u2014.
    return io.TextIOWrapper(
        io.BufferedWriter(_Tolerant(fd)), encoding, "backslashreplace", line_buffering=is_live
    )


def output_error() -> OSError | None:
    """Flushes standard output, and returns the error that lost a part of it.

    A reader that closed its pipe has seen enough, so that is no error.
    """
    sys.stdout.flush()
    error = getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "error", None)
    return None if isinstance(error, BrokenPipeError) else error
