"""Text without a network: the running interpreter's standard library, or any text file or folder.

Bytes are the vocabulary (256 ids). Documents are joined by a zero byte and cut into rows of seq_len
+ 1, each overlapping the next by one, so that every byte is a target exactly once.
"""

import dataclasses
import functools
import hashlib
import math
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mujax.errors import UserError

DOCUMENT_END = 0
VALIDATION_SHARE = 0.05
# A folder of at least this many files is split by file; fewer files are each split by position.
MIN_FILES_TO_SPLIT_BY_FILE = 20
# first bytes of compressed files
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}

# Tests are not written to be read, encodings/ holds generated tables, and the others vary by
# machine.
_EMBEDDED_SUFFIXES = (".py", ".txt")
_EMBEDDED_SKIP = {
    "test",
    "tests",
    "idle_test",
    "encodings",
    "site-packages",
    "dist-packages",
    "__pycache__",
}


class Rows(Protocol):
    """An array [num_rows, seq_len + 1], or an object that is indexed like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Rows of tokens [num_rows, seq_len + 1] of both splits, and what identifies them.

    fingerprint: first 12 hex digits of a SHA-256 of all training data.
    tokens_per_byte: of the validation split's text; None if it is unknown or there is no text.
    """

    train: Rows
    validation: Rows
    fingerprint: str
    tokens_per_byte: float | None

    def bits_per_byte(self, loss: float) -> float | None:
        """Converts a loss in nats per token to bits per byte of text."""
        return None if self.tokens_per_byte is None else loss * self.tokens_per_byte / math.log(2)


def embedded_files() -> list[Path]:
    """Returns the standard library's own .py and .txt files, about 11 MB, sorted.

    Empty if the standard library is not on disk.
    """
    found = []
    for folder, subfolders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        subfolders[:] = [name for name in subfolders if name not in _EMBEDDED_SKIP]
        kept = [
            name
            for name in names
            if name.endswith(_EMBEDDED_SUFFIXES) and not name.startswith("_sysconfigdata")
        ]
        found += [Path(folder) / name for name in kept]
    return sorted(found)


def find_files(name: str, path: str, glob: str) -> tuple[Path, list[Path]]:
    """Returns (root, files) of a source.

    Raises:
      UserError: the source is missing or holds no file.
    """
    if name == "embedded":
        files = embedded_files()
        if not files:
            raise UserError(
                "data.name = 'embedded': this Python has no standard library sources on disk; set "
                "data.path"
            )
        return Path(sysconfig.get_paths()["stdlib"]), files
    root = Path(os.path.expanduser(path))
    try:
        if root.is_file():
            return root.parent, [root]
        if not root.is_dir():
            raise UserError(f"data.path = {path!r}: no such file or folder")
        files = sorted(file for file in root.glob(glob) if file.is_file())
    except (OSError, ValueError, NotImplementedError) as e:
        raise UserError(
            f"data.path = {path!r} with data.glob = {glob!r} cannot be read: {e}"
        ) from e
    if not files:
        raise UserError(f"data.path = {path!r}: no file matches data.glob = {glob!r}")
    return root, files


@functools.lru_cache(maxsize=4)
def load_corpus(name: str, path: str, glob: str, seq_len: int, batch_size: int) -> Corpus:
    """Reads a source and splits it.

    The 5% of files with the lowest hash of their paths are for validation, so the split does not
    depend on the order on disk. With fewer than 20 files, it is the last 5% of each file instead.

    Raises:
      UserError: missing, empty, not UTF-8, or less than one batch of rows in either split.
    """
    root, files = find_files(name, path, glob)
    documents = {file.relative_to(root).as_posix(): _read_utf8(file) for file in files}
    documents = {key: text for key, text in documents.items() if text}
    if not documents:
        raise UserError(
            f"{_describe(name, path)} is empty: it has {len(files)} file(s) and no text"
        )
    train, validation = (bytes([DOCUMENT_END]).join(part) for part in _split(documents))
    for split, stream in (("training", train), ("validation", validation)):
        if len(stream) < batch_size * seq_len + 1:
            raise UserError(
                f"{_describe(name, path)} is too small: {len(stream)} {split} bytes, and one batch "
                f"needs train.batch_size * data.seq_len = {batch_size * seq_len}"
            )
    digest = hashlib.sha256(b"%d %d " % (seq_len, len(train)) + train + validation).hexdigest()
    return Corpus(
        _rows(train, seq_len), _rows(validation, seq_len), digest[:12], tokens_per_byte=1.0
    )


def _describe(name: str, path: str) -> str:
    return "data.name = 'embedded'" if name == "embedded" else f"data.path = {path!r}"


def compression_of(head: bytes) -> str:
    """Returns the compression of a file with these first bytes, whatever its name; '' if none."""
    return next((kind for magic, kind in COMPRESSIONS.items() if head.startswith(magic)), "")


def _read_utf8(file: Path) -> bytes:
    try:
        raw = file.read_bytes()
        raw.decode()
    except UnicodeDecodeError as e:
        if kind := compression_of(raw):
            raise UserError(
                f"{file} is compressed ({kind}): decompress it, or narrow data.glob"
            ) from e
        raise UserError(
            f"{file} is not UTF-8 text (byte {e.start}); convert it, or narrow data.glob"
        ) from e
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from e
    return raw


def held_out_files(keys: Sequence[str]) -> set[str] | None:
    """Returns the validation files by their paths from the root; None: the end of each file."""
    if len(keys) < MIN_FILES_TO_SPLIT_BY_FILE:
        return None
    by_hash = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
    return set(by_hash[: int(np.ceil(VALIDATION_SHARE * len(by_hash)))])


def cut_of(text: bytes) -> int:
    """Returns where the validation part at the end of a document begins, between characters."""
    cut = int(len(text) * (1 - VALIDATION_SHARE))
    while cut < len(text) and text[cut] & 0xC0 == 0x80:
        cut += 1
    return cut


def _split(documents: dict[str, bytes]) -> tuple[list[bytes], list[bytes]]:
    held_out = held_out_files(list(documents))
    if held_out is None:
        cuts = [(text, cut_of(text)) for text in documents.values()]
        return [text[:cut] for text, cut in cuts], [text[cut:] for text, cut in cuts]
    train = [text for key, text in documents.items() if key not in held_out]
    return train, [text for key, text in documents.items() if key in held_out]


def _rows(stream: bytes, seq_len: int) -> np.ndarray:
    tokens = np.frombuffer(stream, np.uint8)
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]
