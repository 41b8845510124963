"""Workdirs in buckets: gs://BUCKET/PATH, as paths of etils, which Orbax takes too.

A bucket holds objects, each there whole or not at all. It has no folders to make or to rename, no
appending and no locks; this module has the replacements.
"""

import contextlib
import datetime
import errno
import importlib.util
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from mujax.errors import INTERRUPTED, UserError, is_outage

# TensorFlow, where there is one, would do the same another way; etils asks once, also about a path
# in a folder
os.environ.setdefault("EPATH_USE_TF", "0")
# gcsfs also logs, with tracebacks, the errors that it raises
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

BEAT_SECONDS = 10.0  # between two signs of life of the holder of a lock
MISSED_BEATS = 3  # that end a lock


def is_bucket(path: str | Path) -> bool:
    return "://" in str(path)


def bucket_path(name: str) -> Path:
    """Returns the path of an object, with the methods of Path that reading and writing need.

    Raises:
      UserError: no gs://BUCKET, the library for it is not installed, or the bucket may not be read.
      ConnectionError: it does not answer.
    """
    scheme, _, rest = name.partition("://")
    if scheme != "gs" or not rest.partition("/")[0]:  # Orbax writes to folders and to gs:// alone
        raise UserError(f"--workdir={name} is neither a folder nor gs://BUCKET/PATH")
    if set(rest) & set("*?[]"):
        # gcsfs would move and delete, for us and for Orbax, all that matches
        raise UserError(f"--workdir={name}: in a bucket, no name may have *, ?, [ or ]")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"--workdir={name} needs gcsfs: pip install 'mujax[gcs]'")
    import fsspec.config
    from etils import epath

    # TensorStore writes to the same bucket past gcsfs, which must not answer from what it has
    # listed before
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    path = cast(Path, epath.Path(name))
    try:
        path.exists()
    except Exception as e:  # no credentials, no right, no network: each in its own way
        kind = ConnectionError if is_outage(e) else UserError
        raise kind(f"--workdir={name} cannot be reached: {_reason(e)}") from e
    return path


def write(file: Path, content: bytes) -> None:
    """Puts an object in the place of another; who reads sees the one or the other.

    Raises:
      OSError: it could not be written, whatever the reason; a ConnectionError if that may pass.
    """
    with _errors_of(file):
        file.write_bytes(content)


def move(source: Path, target: Path) -> None:
    """Copies an object, or all below a name, inside the bucket, and deletes it.

    Raises:
      OSError: as `write`.
    """
    import fsspec

    with _errors_of(source):
        filesystem, _ = fsspec.core.url_to_fs(str(source))
        filesystem.mv(str(source), str(target), recursive=True)


def upload(folder: Path, target: Path) -> None:
    """Writes all files of a local folder below `target`."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            write(target / file.relative_to(folder).as_posix(), file.read_bytes())


@contextlib.contextmanager
def locked(root: Path, owner: str) -> Iterator[None]:
    """Holds a workdir by an object that names the holder, and is written anew every BEAT_SECONDS
    while it lives: one that stays the same was left by a process that was killed. A holder that
    finds it another's - it was cut off too long, or both began in the same moment - ends at once.

    Raises:
      UserError: another process holds it.
    """
    lock, own = root / "lock", f"{owner} ({secrets.token_hex(4)}), seen at "
    left = _read(lock)
    if left:
        seconds = MISSED_BEATS * BEAT_SECONDS
        print(f"{root}: {left}; waiting {seconds:.0f} s to see whether it lives", file=sys.stderr)
        time.sleep(seconds)
        now = _read(lock)
        if now and now != left:
            raise UserError(
                f"--workdir={root} is in use by {now}; wait until it has ended, or give this one "
                "a workdir of its own"
            )
        print(f"{root}: going on from what it has left", file=sys.stderr)
    has_ended = threading.Event()

    def show_life() -> None:
        write(lock, f"{own}{datetime.datetime.now(datetime.UTC).isoformat()}".encode())

    def go_on_showing() -> None:
        while not has_ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the next one may come through
                now = _read(lock)
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
        with contextlib.suppress(OSError), _errors_of(lock):
            # what was done stands; the next one waits for a while
            if _read(lock).startswith(own):
                lock.unlink(missing_ok=True)


def _read(file: Path) -> str:
    with _errors_of(file), contextlib.suppress(FileNotFoundError):
        return file.read_bytes().decode()
    return ""


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turns errors of gcsfs and of the libraries below it into OSErrors with a number."""
    try:
        yield
    except Exception as e:
        kind = ConnectionError if is_outage(e) else OSError
        raise kind(errno.EIO, _reason(e), str(path)) from e


def _reason(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
