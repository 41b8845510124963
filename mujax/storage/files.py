"""Files of a workdir: written whole or appended by lines, under a lock, never of two studies."""

import contextlib
import errno
import glob
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mujax.config import OPERATION_SECTIONS, config_of_today, differences, leaves
from mujax.errors import UserError, is_outage
from mujax.storage import buckets
from mujax.storage.records import read_bytes, read_config, read_manifest
from mujax.storage.records import read_json as read_json
from mujax.storage.records import read_jsonl as read_jsonl


def local_path(workdir: str | Path) -> Path:
    """Returns the folder that --workdir names.

    Raises:
      UserError: it names a bucket, for which this verb is not made.
    """
    if buckets.is_bucket(workdir):
        raise UserError(
            f"--workdir={workdir} is not a local folder; only mujax train and sample take buckets"
        )
    return Path(os.path.expanduser(workdir))


def any_path(workdir: str | Path) -> Path:
    """Returns the folder, or the place in a bucket, that --workdir names.

    Raises:
      UserError: see buckets.bucket_path.
    """
    return buckets.bucket_path(str(workdir)) if buckets.is_bucket(workdir) else local_path(workdir)


def find_folders(pattern: str) -> list[Path]:
    """Returns the folders that one of --sources names, in order.

    Raises:
      UserError: there is none.
    """
    folders = [
        Path(name) for name in sorted(glob.glob(str(local_path(pattern)))) if Path(name).is_dir()
    ]
    if not folders:
        raise UserError(f"--sources: no folder {pattern}")
    return folders


def absolute(path: Path) -> Path:
    """Returns a path from the root on; that of an object in a bucket always is."""
    return path if buckets.is_bucket(path) else path.absolute()


def make_writable(workdir: str | Path) -> Path:
    """Makes the folder and tries it; in a bucket there is none to make.

    Raises:
      UserError: it cannot be written.
    """
    root = any_path(workdir)
    probe = root / f".write_probe_{os.getpid()}"
    try:
        if buckets.is_bucket(root):
            buckets.write(probe, b"")
        else:
            root.mkdir(parents=True, exist_ok=True)
            probe.touch()
        probe.unlink()
    except OSError as e:
        if is_outage(e):
            raise
        raise UserError(f"--workdir={workdir} cannot be written: {e.strerror or e}") from e
    return root


def set_aside(root: Path, names: Iterable[str], copied: Iterable[str] = ()) -> Path:
    """Moves what an earlier call left under these names, in order, to earlier/1, earlier/2, ...;
    first copies some.

    Returns the folder that they are moved to.
    """
    present = [name for name in names if (root / name).exists()]
    folder = _folder_for_earlier(root)
    if present:
        _copy(root, copied, folder)
        for name in present:
            move(root / name, folder / name)
    return folder


def keep_copies(root: Path, names: Iterable[str]) -> Path:
    """Copies files that are about to be written anew to earlier/1, earlier/2, ...; returns that
    folder."""
    folder = _folder_for_earlier(root)
    _copy(root, names, folder)
    return folder


def _folder_for_earlier(root: Path) -> Path:
    return next(f for n in itertools.count(1) if not (f := root / "earlier" / str(n)).exists())


def _copy(root: Path, names: Iterable[str], folder: Path) -> None:
    for name in names:
        if (root / name).exists():
            _write_whole(folder / name, read_bytes(root / name))


def move(source: Path, target: Path) -> None:
    """Gives a file or a folder another name, in a folder that is made if there is none."""
    if buckets.is_bucket(source):
        buckets.move(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def same_study(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a config that makes a workdir's study: all but how runs are done, and how
    far the grid is refined."""
    fixed = {
        key: value for key, value in config.items() if key not in (*OPERATION_SECTIONS, "refine")
    }
    return json.loads(_dumps(fixed))


def is_same_study(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Returns whether two configs, of this or of earlier versions, are of one study."""
    a, b = _comparable(a, b)
    return a == b


def _comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns two configs as same_study does, with the same fields if they are of two versions."""
    studies = [same_study(a), same_study(b)]
    names = [{field for field, _ in leaves(study)} for study in studies]
    # What fields there are is looked up in the architectures, which bring JAX
    return studies if names[0] == names[1] else [same_study(config_of_today(c)) for c in (a, b)]


def check_same(
    where: str,
    recorded: Mapping[str, Any],
    config: Mapping[str, Any],
    allowed: Iterable[str] | None = None,
) -> None:
    """Raises UserError, which names what is different, unless two configs are of the same study.

    Args:
      allowed: fields, or sections of them, that may differ; None: nothing may, whatever the user
        says.
    """
    changes = {
        field: change
        for field, change in differences(*_comparable(recorded, config)).items()
        if not any(f"{field}.".startswith(f"{name}.") for name in allowed or ())
    }
    if changes:
        shown = [f"{field}: {change}" for field, change in changes.items()]
        more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
        otherwise = "" if allowed is None else ", or allow it with --allow_config_change=FIELD"
        what = f"{', '.join(shown[:3])}{more}"
        raise UserError(
            f"{where} belongs to another config: {what}; choose a new workdir{otherwise}"
        )


def open_workdir(
    workdir: str | Path,
    record: str,
    config: Mapping[str, Any],
    allowed_changes: Iterable[str] | None = None,
) -> Path:
    """Makes `workdir`, or recognizes it as this very run's or sweep's own.

    Args:
      record: the file that says what a workdir is for: config.json (a run, which it holds itself)
        or manifest.json (a sweep, which it holds under `config`). The caller writes it.
      config: must be the same study as the recorded one if there is any, but for the fields
        allowed_changes.

    Raises:
      UserError: the workdir cannot be written, or belongs to something else.
    """
    root = make_writable(workdir)
    for other in {"config.json", "manifest.json"} - {record}:
        if (root / other).exists():
            raise UserError(
                f"--workdir={workdir} holds {other}, the record of another verb; choose a new "
                "workdir"
            )
    file = root / record
    if file.exists():
        recorded = read_manifest(file)["config"] if record == "manifest.json" else read_config(file)
        check_same(f"--workdir={workdir}", recorded, config, allowed_changes)
    return root


def _dumps(document, indent: int | None = None) -> str:
    # NumPy's numbers
    return json.dumps(document, indent=indent, allow_nan=False, default=lambda x: x.item())


def as_line(record) -> bytes:
    """Returns a record as a line of a JSONL file."""
    return _dumps(record).encode() + b"\n"


def write_json(file: Path, document) -> None:
    """Writes whole or not at all."""
    _write_whole(file, (_dumps(document, indent=1) + "\n").encode())


def write_jsonl(file: Path, records) -> None:
    """Writes whole or not at all, one record a line."""
    _write_whole(file, b"".join(as_line(record) for record in records))


def _write_whole(file: Path, content: bytes) -> None:
    with replacing(file) as stream:
        stream.write(content)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Yields a stream whose content replaces `file` once all of it is written and synced; an error
    leaves the file as it was."""
    if buckets.is_bucket(file):
        with io.BytesIO() as content:
            yield content
            buckets.write(file, content.getvalue())
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(temporary, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        folder = os.open(file.parent, os.O_RDONLY)  # so that the name, too, outlives a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def append_jsonl(file: Path, record, is_synced: bool = True) -> None:
    """Appends one line in one write and syncs it to disk, so that a crash tears at most that line.

    is_synced: False: only a crash of the machine can lose it, and takes no time to avoid.
    """
    line = as_line(record)
    with open(file, "ab", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if stream.write(line) != len(line):
            # the disk is full: leave no fragment for the next line to join
            os.truncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        if is_synced:
            os.fsync(stream.fileno())


def drop_torn_line(file: Path) -> bool:
    """Cuts off a last line that lacks its newline, so that appending goes on cleanly; True if there
    was one."""
    if not file.exists():
        return False
    content = read_bytes(file)
    keep = content.rfind(b"\n") + 1
    if keep == len(content):
        return False
    if buckets.is_bucket(file):  # copied from a folder
        buckets.write(file, content[:keep])
    else:
        os.truncate(file, keep)
    return True


def scratch(folder: Path) -> Path:
    """Yields a local folder to write to: the workdir itself, or for a bucket a temporary one, which
    `deliver` copies."""
    return Path(tempfile.mkdtemp()) if buckets.is_bucket(folder) else folder


def deliver(local: Path, folder: Path) -> None:
    """Brings what was written to scratch(folder) where it belongs."""
    if buckets.is_bucket(folder):
        try:
            buckets.upload(local, folder)
        finally:
            shutil.rmtree(local)
