"""Token shards: files of token ids with a dataset.json that describes them, read here.

`mujax prepare` writes them. A file is a stream of uint16 or uint32, little-endian, named
train-00000.bin and so on. Layout `document`: rows of seq_len + 1, one document each, cut or padded.
Layout `packed`: documents one after the other, each with its end. Rows of any length are cut from
all files of a split as one stream, and overlap by one token, so that each token is a target once.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mujax.data.text import Corpus
from mujax.errors import UserError, shown
from mujax.storage.records import check_regular, is_name, read_json

FORMAT = 1
LAYOUTS = ("document", "packed")
SPLITS = ("train", "validation")
DESCRIPTION, VERIFIED = "dataset.json", ".verified.json"
# A model's vocabulary may be rounded up to a multiple of this, for faster matmuls.
VOCAB_MULTIPLE = 128
HASH_BYTES = 2**20


class StreamRows:
    """Rows of `length` tokens, each `stride` tokens after the one before, in a sequence of streams.

    rows[indices] reads an array [len(indices), length] and nothing else.
    """

    def __init__(self, streams: Sequence[np.ndarray], length: int, stride: int):
        self._streams, self._length, self._stride = streams, length, stride
        self._ends = np.cumsum([len(stream) for stream in streams], dtype=np.int64)
        self._num_rows = max(0, (int(self._ends[-1]) - length) // stride + 1) if streams else 0
        # Views of the streams; that of a stream shorter than a row is never used.
        self._windows = [
            np.lib.stride_tricks.sliding_window_view(stream, length)
            if len(stream) >= length
            else stream
            for stream in streams
        ]

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        starts = np.asarray(indices, np.int64) * self._stride
        which = np.searchsorted(self._ends, starts, side="right")
        begins = self._ends[which] - [len(self._streams[i]) for i in which]
        is_whole = starts + self._length <= self._ends[which]
        rows = np.empty((len(starts), self._length), self._streams[0].dtype)
        for i in np.unique(which[is_whole]):
            chosen = is_whole & (which == i)
            rows[chosen] = self._windows[i][starts[chosen] - begins[chosen]]
        for k in np.flatnonzero(~is_whole):
            rows[k] = self._spanning(int(which[k]), int(starts[k] - begins[k]))
        return rows

    def _spanning(self, stream: int, start: int) -> np.ndarray:
        pieces, missing = [], self._length
        while missing:
            pieces.append(self._streams[stream][start : start + missing])
            missing -= len(pieces[-1])
            stream, start = stream + 1, 0
        return np.concatenate(pieces)


def fingerprint(description: Mapping[str, Any]) -> str:
    """Returns 12 hex digits of the SHA-256 of layout, tokenizer and content of all files."""
    parts = {
        key: description[key]
        for key in ("format", "layout", "seq_len", "dtype", "tokenizer", "shards")
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def sealed(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description with its own SHA-256, which reveals an edit."""
    content = {key: value for key, value in description.items() if key != "sha256"}
    return {
        **content,
        "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    }


def read_description(folder: Path) -> dict[str, Any]:
    """Reads the dataset.json of a folder.

    Raises:
      UserError: there is none, or mujax prepare did not write it so.
    """
    file = folder / DESCRIPTION
    try:
        description = read_json(file)
        if description["format"] != FORMAT:
            raise UserError(
                f"{file} has format {description['format']!r}; this version of mujax reads {FORMAT}"
            )
        is_same = description == sealed(description) and description["fingerprint"] == fingerprint(
            description
        )
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {DESCRIPTION}: it is no dataset; mujax prepare makes one"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{file} cannot be read: {type(e).__name__}: {e}") from e
    if not is_same:
        raise UserError(
            f"{file} was edited: its SHA-256 is not that of its content; restore it from a copy"
        )
    _check_fields(f"{file}", description, _CHECKS)  # someone may have edited and sealed it
    _check_fields(f"{file}, tokenizer", description["tokenizer"], _TOKENIZER_CHECKS)
    for i, shard in enumerate(description["shards"]):
        _check_fields(f"{file}, shard {i}", shard, _SHARD_CHECKS)
        if shard["bytes"] % np.dtype(description["dtype"]).itemsize:
            raise UserError(
                f"{file}, shard {i}: {shard['bytes']} bytes are no whole number of "
                f"{description['dtype']}"
            )
    for split in SPLITS:
        _check_fields(f"{file}, {split}", description["splits"][split], _SPLIT_CHECKS)
    return description


def _is_count(x) -> bool:
    return type(x) is int and 0 <= x < 2**63


def _is_name(x) -> bool:
    return isinstance(x, str) and x not in ("", ".", "..") and Path(x).name == x and "\0" not in x


# checks of what is read of a dataset.json, of its tokenizer, and of a shard
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "layout": lambda x: x in LAYOUTS,
    "seq_len": _is_count,
    "dtype": lambda x: x in ("uint16", "uint32"),
    "fingerprint": lambda x: isinstance(x, str),
    "tokenizer": lambda x: isinstance(x, dict),
    "recipe": lambda x: isinstance(x, dict),
    "shards": lambda x: isinstance(x, list) and all(isinstance(shard, dict) for shard in x),
    "splits": lambda x: (
        isinstance(x, dict) and all(isinstance(x.get(split), dict) for split in SPLITS)
    ),
}
_TOKENIZER_CHECKS: dict[str, Callable[[Any], bool]] = {
    "vocab_size": lambda x: _is_count(x) and 0 < x < 2**31,
    "eos_id": lambda x: _is_count(x) and x < 2**31,
    "kind": lambda x: isinstance(x, str),
    "options": lambda x: isinstance(x, dict),
    "file": lambda x: x == "" or _is_name(x),
    "sha256": lambda x: isinstance(x, str),
}
_SHARD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "file": _is_name,
    "split": lambda x: x in SPLITS,
    "bytes": _is_count,
    "sha256": lambda x: isinstance(x, str),
}
_SPLIT_CHECKS: dict[str, Callable[[Any], bool]] = {
    "tokens_per_byte": lambda x: x is None or type(x) in (int, float) and 0 < x < 1e38,
}


def _check_fields(
    where: str, fields: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]]
) -> None:
    for name, is_right in checks.items():
        if name not in fields or not is_right(fields[name]):
            value = shown(fields[name]) if name in fields else "missing"
            raise UserError(
                f"{where}: {name} is {value}, which mujax prepare never writes; restore it from a "
                "copy"
            )


def check_files(folder: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError, which names the file, if a file is missing, cut short or changed.

    A file is read only once, as long as its size and time of change stay the same.
    """
    verified, found = {}, {}
    with contextlib.suppress(OSError, UserError):  # on an error all files are read
        verified = read_json(folder / VERIFIED)
    unread = []
    for shard in shards:
        if not is_name(shard["file"]):
            raise UserError(
                f"{folder / DESCRIPTION}: {shown(shard['file'])} is no name of a file in its folder"
            )
        file = folder / shard["file"]
        check_regular(file)
        try:
            status = file.stat()
        except OSError as e:
            raise UserError(
                f"{file} is missing: {e.strerror}; restore it from a copy, or prepare the data "
                "anew elsewhere"
            ) from e
        if status.st_size != shard["bytes"]:
            raise UserError(
                f"{file} has {status.st_size} bytes, not the {shard['bytes']} that were written: "
                "restore it"
            )
        found[shard["file"]] = [status.st_size, status.st_mtime_ns, shard["sha256"]]
        if verified.get(shard["file"]) != found[shard["file"]]:
            unread.append(shard)
    if not unread:
        return
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, digest in zip(
            unread, pool.map(lambda s: _sha256(folder / s["file"]), unread), strict=True
        ):
            if digest != shard["sha256"]:
                raise UserError(
                    f"{folder / shard['file']} was changed since it was prepared: restore it from "
                    "a copy"
                )
    with contextlib.suppress(OSError):  # in a read-only folder all files are read each time
        temporary = folder / f"{VERIFIED}.{os.getpid()}"
        temporary.write_text(json.dumps(found))
        temporary.replace(folder / VERIFIED)


def load_shards(
    folder: Path, seq_len: int, vocab_size: int, eos_id: int, separator_id: int, batch_size: int
) -> Corpus:
    """Returns the rows of a dataset, memory-mapped [., seq_len + 1], checked against a config.

    Raises:
      UserError: no dataset, a damaged one, or one that does not fit the config.
    """
    description = read_description(folder)
    where, tokenizer = f"data.path = {str(folder)!r}", description["tokenizer"]
    least = tokenizer["vocab_size"]
    if not least <= vocab_size <= -(-least // VOCAB_MULTIPLE) * VOCAB_MULTIPLE:
        raise UserError(
            f"data.vocab_size = {vocab_size}: {where} has {least} ids; set that, or up to the next "
            f"multiple of {VOCAB_MULTIPLE}"
        )
    is_packed, end = description["layout"] == "packed", tokenizer["eos_id"]
    if not is_packed and description["seq_len"] != seq_len:
        raise UserError(
            f"data.seq_len = {seq_len}: {where} has a document a row, cut to "
            f"{description['seq_len']}"
        )
    if not is_packed and eos_id != end:
        raise UserError(
            f"data.eos_id = {eos_id}: rows of {where} are padded with {end}, which the loss must "
            "not count"
        )
    if is_packed and eos_id != -1:
        raise UserError(
            f"data.eos_id = {eos_id}: {where} is packed, and the loss counts all of a row: set -1"
        )
    if separator_id not in (-1, end):
        raise UserError(
            f"model.separator_id = {separator_id}: documents of {where} end with {end}; set that, "
            "or -1"
        )
    check_files(folder, description["shards"])
    stride = seq_len if is_packed else seq_len + 1
    splits = {}
    for split in SPLITS:
        files = [
            folder / shard["file"] for shard in description["shards"] if shard["split"] == split
        ]
        dtype = np.dtype(description["dtype"]).newbyteorder("<")
        splits[split] = StreamRows(
            [np.memmap(file, dtype, "r") for file in files], seq_len + 1, stride
        )
        if len(splits[split]) < batch_size:
            raise UserError(
                f"{where}: its {split} split has {len(splits[split])} rows of {seq_len} tokens, "
                f"and train.batch_size = {batch_size}"
            )
    validation = description["splits"]["validation"]
    return Corpus(
        **splits,
        fingerprint=description["fingerprint"],
        tokens_per_byte=validation["tokens_per_byte"],
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
