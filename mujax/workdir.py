"""What a workdir holds: files written whole or appended a line at a time, never two studies in one."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mujax.config import differences
from mujax.errors import UserError


def open_workdir(workdir: str | Path, record: str, config: Mapping[str, Any]) -> Path:
    """Makes `workdir`, or recognizes it as this very run's or sweep's own.

    Args:
      record: the file that says what a workdir is for: config.json (a run, which it holds itself) or
        manifest.json (a sweep, which it holds under `config`). The caller writes it.
      config: JSON values; must equal the recorded ones if there are any.

    Raises:
      UserError: the workdir cannot be written, or belongs to something else.
    """
    root = Path(workdir).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".write_probe_{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise UserError(f"--workdir={workdir} cannot be written: {e.strerror}") from e
    for other in {"config.json", "manifest.json"} - {record}:
        if (root / other).exists():
            raise UserError(f"--workdir={workdir} holds {other}, the record of another verb; choose a new workdir")
    if (root / record).exists():
        recorded = read_json(root / record)
        changes = differences(recorded.get("config", recorded), json.loads(json.dumps(config)))
        if changes:
            more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
            raise UserError(f"--workdir={workdir} belongs to another config: {changes[0]}{more}; choose a new workdir")
    return root


def write_json(file: Path, document) -> None:
    """Writes whole or not at all."""
    _write_whole(file, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_jsonl(file: Path, records) -> None:
    """Writes whole or not at all, one record a line."""
    _write_whole(file, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def _write_whole(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, file)


def append_jsonl(file: Path, record) -> None:
    """Appends one line in one write and syncs it to disk, so that a crash tears at most that line."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(file: Path):
    """Raises UserError if the file is not JSON."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read as JSON: {e}") from e


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSONL file; a last line without its newline was torn by a crash and is left out."""
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError as e:
            raise UserError(f"{file}, line {number} is not JSON: {e}") from e


def drop_torn_line(file: Path) -> bool:
    """Cuts off a last line that lacks its newline, so that appending goes on cleanly; True if there was one."""
    if not file.exists():
        return False
    content = file.read_bytes()
    keep = content.rfind(b"\n") + 1
    if keep == len(content):
        return False
    os.truncate(file, keep)
    return True
