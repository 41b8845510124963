"""Locks of workdirs: a folder is held by flock, a place in a bucket by an object written anew."""

import contextlib
import datetime
import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mujax.errors import INTERRUPTED, UserError
from mujax.storage import buckets
from mujax.storage.records import check_regular

BEAT_SECONDS = 10.0  # between two signs of life of the holder of a lock
MISSED_BEATS = 3  # that end a lock


class Held:
    """A workdir while a process holds its lock.

    The folder itself is what is held, so that it is found under another name too. A place in a
    bucket cannot be moved.
    """

    def __init__(self, root: Path, folder: int | None):
        """Takes the folder as a file descriptor; None of a bucket."""
        self._root, self._folder = root, folder

    def is_in_place(self) -> bool:
        """Returns whether the name that the process was given is still that of the folder."""
        return self._folder is None or self._is(self._root)

    @property
    def path(self) -> Path:
        """The name that the folder has now.

        Raises:
          UserError: the folder was deleted, or this system cannot tell its name.
        """
        if self.is_in_place():
            return self._root
        with contextlib.suppress(OSError):
            now = Path(os.readlink(f"/proc/self/fd/{self._folder}"))  # of Linux
            if self._is(now):
                return now
        raise UserError(
            f"--workdir={self._root} was deleted, or moved out of sight, while it was in use; "
            "nothing more was saved"
        )

    def check_in_place(self) -> None:
        """Raises UserError if the folder has another name than the process was given."""
        if not self.is_in_place():
            raise UserError(
                f"--workdir={self._root} was moved to {self.path} while it was in use, and all is "
                f"saved there; go on with --workdir={self.path}"
            )

    def _is(self, path: Path) -> bool:
        assert self._folder is not None
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._folder))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a file system that does not answer says nothing of where a folder is
            return True


@contextlib.contextmanager
def locked(root: Path) -> Iterator[Held]:
    """Holds a workdir for this process alone; the lock of a process that was killed ends with it,
    that of a bucket soon after.

    Raises:
      UserError: another process holds it.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    if buckets.is_bucket(root):
        with _object_locked(root, owner):
            yield Held(root, None)
        return
    lock = root / "lock"
    check_regular(lock)
    with open(lock, "a+b") as stream:
        stream.seek(0)
        holder = _printable(stream.read(200))
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir={root} is in use by {holder or 'another process'}; wait until it has "
                "ended, or give this one a workdir of its own"
            ) from None
        except OSError as e:
            print(
                f"{root} cannot be locked ({e.strerror}); see that no other process uses it",
                file=sys.stderr,
            )
        if holder:
            print(
                f"{root}: {holder} did not end cleanly; going on from what it has left",
                file=sys.stderr,
            )
        stream.truncate(0)
        stream.write(owner.encode())
        stream.flush()
        folder = os.open(root, os.O_RDONLY)
        try:
            yield Held(root, folder)
        finally:
            os.close(folder)
            stream.truncate(0)


@contextlib.contextmanager
def _object_locked(root: Path, owner: str) -> Iterator[None]:
    """Holds a workdir in a bucket by an object that names the holder.

    The holder writes the object anew every BEAT_SECONDS; one that stays the same was left by a
    process that was killed. A holder that finds another's name there, because it was cut off too
    long or both began at once, ends its process.

    Raises:
      UserError: another process holds it.
    """
    lock, own = root / "lock", f"{owner} ({secrets.token_hex(4)}), seen at "
    left = buckets.read_text(lock)
    if left:
        seconds = MISSED_BEATS * BEAT_SECONDS
        print(f"{root}: {left}; waiting {seconds:.0f} s to see whether it lives", file=sys.stderr)
        time.sleep(seconds)
        now = buckets.read_text(lock)
        if now and now != left:
            raise UserError(
                f"--workdir={root} is in use by {now}; wait until it has ended, or give this one "
                "a workdir of its own"
            )
        print(f"{root}: going on from what it has left", file=sys.stderr)
    has_ended = threading.Event()

    def show_life() -> None:
        buckets.write(lock, f"{own}{datetime.datetime.now(datetime.UTC).isoformat()}".encode())

    def go_on_showing() -> None:
        while not has_ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the next one may come through
                now = buckets.read_text(lock)
                if not now.startswith(own):
                    text = f"mujax: {root} was taken over by {now or 'another'}; this run ends"
                    print(text, file=sys.stderr, flush=True)
                    os._exit(INTERRUPTED)
                show_life()

    show_life()
    beats = threading.Thread(target=go_on_showing, daemon=True)
    beats.start()
    try:
        yield
    finally:
        has_ended.set()
        beats.join()
        with contextlib.suppress(OSError), buckets.errors_of(lock):
            # what was done stands; the next one waits for a while
            if buckets.read_text(lock).startswith(own):
                lock.unlink(missing_ok=True)


def _printable(content: bytes) -> str:
    """Returns text of a lock file on one line, whoever has written it."""
    text = content.decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
