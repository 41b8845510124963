"""Workdirs in buckets: gs://BUCKET/PATH, as paths of etils, which Orbax takes too.

A bucket holds objects, each there whole or not at all. It has no folders to make or to rename, no
appending and no locks; this module has the replacements.
"""

import contextlib
import errno
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from mujax.errors import UserError, is_outage

# TensorFlow, where there is one, would do the same another way; etils asks once, also about a path
# in a folder
os.environ.setdefault("EPATH_USE_TF", "0")
# gcsfs also logs, with tracebacks, the errors that it raises
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


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
    with errors_of(file):
        file.write_bytes(content)


def move(source: Path, target: Path) -> None:
    """Copies an object, or all below a name, inside the bucket, and deletes it.

    Raises:
      OSError: as `write`.
    """
    import fsspec

    with errors_of(source):
        filesystem, _ = fsspec.core.url_to_fs(str(source))
        filesystem.mv(str(source), str(target), recursive=True)


def upload(folder: Path, target: Path) -> None:
    """Writes all files of a local folder below `target`."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            write(target / file.relative_to(folder).as_posix(), file.read_bytes())


def read_text(file: Path) -> str:
    with errors_of(file), contextlib.suppress(FileNotFoundError):
        return file.read_bytes().decode()
    return ""


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turns errors of gcsfs and of the libraries below it into OSErrors with a number."""
    try:
        yield
    except Exception as e:
        kind = ConnectionError if is_outage(e) else OSError
        raise kind(errno.EIO, _reason(e), str(path)) from e


def _reason(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
