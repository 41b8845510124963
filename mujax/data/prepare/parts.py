"""Parts of a source into files of tokens, by one process or by many, each part by one of them."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from mujax.data import tokenizers
from mujax.data.prepare.sources import Document, Part, Source, length_of
from mujax.data.shards import SPLITS
from mujax.data.tokenizers import Ids
from mujax.errors import UserError
from mujax.storage import files

PREPARING = "preparing"
# Counts for layout document beside the tokens of its rows: ends after the first, and tokens before
# documents were cut
ROW_COUNTS = ("padding", "whole_tokens")
# text that is encoded per call
BATCH_CHARACTERS = 2**20
Encode = Callable[[Sequence[Document]], Sequence[Ids]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe of a dataset; every field is a flag of `mujax prepare`.

    source, tokenizer: see make_source and tokenizers.parse; `train:N` trains SentencePiece on the
      source, '' leaves the tokenizer to a seqio Task.
    layout: document or packed.
    seq_len: for layout document, else 0.
    validation: head:N, the first N documents; hash:SHARE, the documents with the lowest SHA-256;
      own or own:WHERE, the source's own validation documents.
    field: field of a record that holds its text.
    data_dir: data folder of TFDS.
    """

    source: str
    tokenizer: str
    layout: str
    seq_len: int = 0
    validation: str = "own"
    field: str = "text"
    data_dir: str = ""


class Rule:
    """The rule of which documents are for validation, see Recipe.validation."""

    def __init__(self, text: str):
        self.kind, _, value = text.partition(":")
        self.own, self.count, self.share = "", 0, 0.0
        try:
            match self.kind:
                case "own":
                    self.own = value
                case "head":
                    self.count = int(value)
                case "hash":
                    self.share = float(value)
            if not (self.kind == "own" or self.count > 0 or 0 < self.share < 1):
                raise ValueError
        except ValueError:
            raise UserError(
                f"--validation={text} is none of: own, own:WHERE, head:N, hash:SHARE (below 1)"
            ) from None

    def is_hashed_in(self, document: Document) -> bool:
        if not self.share:
            return False
        content = (
            document.encode()
            if isinstance(document, str)
            else np.asarray(document.ids, "<u4").tobytes()
        )
        return int.from_bytes(hashlib.sha256(content).digest()[:8]) < self.share * 2**64


@dataclasses.dataclass(frozen=True)
class Work:
    """The data that a process needs to do parts.

    Processes make the tokenizer anew, since it cannot be pickled.
    """

    source: Source
    recipe: Recipe
    root: Path
    kind: str
    model: bytes
    options: Mapping[str, str]
    vocab_size: int
    eos_id: int
    start_id: int

    def make_encode(self) -> Encode:
        if self.source.tokenizer is not None:
            return _ids_of
        tokenizer = tokenizers.make(self.kind, self.model, self.options)
        return lambda documents: tokenizer.encode(texts_of(documents, self.kind))


def do_all(
    work: Work, parts: Sequence[Part], heads: Sequence[int], num_processes: int, is_quiet: bool
) -> None:
    todo = [i for i in range(len(parts)) if not record_file(work.root, i).exists()]
    in_bytes = all(part.size for part in parts)
    sizes = [part.size if in_bytes else 1 for part in parts]
    done = sum(sizes) - sum(sizes[i] for i in todo)
    unit, total = "B" if in_bytes else "part", sum(sizes)
    with tqdm(
        total=total, initial=done, unit=unit, unit_scale=in_bytes, disable=is_quiet, desc="prepare"
    ) as bar:
        for i in _completed(work, parts, heads, todo, min(num_processes, len(todo))):
            bar.update(sizes[i])


def _completed(work: Work, parts, heads, todo: Sequence[int], num_processes: int) -> Iterator[int]:
    """Does the parts, and yields each that is done."""
    if num_processes <= 1:
        encode = work.make_encode()
        for i in todo:
            _do(work, encode, i, parts[i], heads[i])
            yield i
        return
    # Not by fork, which threads of JAX and TensorFlow do not survive.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_processes,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(work,),
    )
    try:
        futures = {pool.submit(_do_in_worker, i, parts[i], heads[i]): i for i in todo}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool as e:
        raise UserError(
            "a process of mujax prepare was killed, as when memory is short: try fewer --processes"
        ) from e
    finally:
        # After an exception unfinished parts are given up: the next call does them again.
        for process in list((pool._processes or {}).values()) if sys.exc_info()[0] else []:
            process.terminate()
        pool.shutdown(cancel_futures=True)


_worker: tuple[Work, Encode] | None = None


def _start_worker(work: Work) -> None:
    global _worker
    # Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (work, work.make_encode())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _do_in_worker(i: int, part: Part, head: int) -> None:
    assert _worker is not None
    work, encode = _worker
    _do(work, encode, i, part, head)


def record_file(root: Path, i: int) -> Path:
    return root / PREPARING / f"part-{i:05d}.json"


def _do(work: Work, encode: Encode, i: int, part: Part, head: int) -> None:
    """Writes the files of a part, then its record."""
    rule, num_documents, num_empty = Rule(work.recipe.validation), 0, 0
    with contextlib.ExitStack() as stack:
        names = {split: f"{split}-{i:05d}.bin" for split in SPLITS}
        outputs = {
            split: _Output(work, part, name, split, encode, stack) for split, name in names.items()
        }
        for document in work.source.documents(part):
            if not length_of(document):
                num_empty += 1
                continue
            is_validation = (
                part.split == "validation" or num_documents < head or rule.is_hashed_in(document)
            )
            outputs["validation" if is_validation else "train"].add(document)
            num_documents += 1
        for output in outputs.values():
            output.flush()
    shards = [output.as_dict() for output in outputs.values()]
    for shard in shards:
        if not shard["bytes"]:
            (work.root / shard["file"]).unlink()
    files.write_json(record_file(work.root, i), {"empty_documents": num_empty, "shards": shards})


class _Output:
    """The file of one split of a part: tokens in the recipe's layout, and counts."""

    def __init__(
        self,
        work: Work,
        part: Part,
        name: str,
        split: str,
        encode: Encode,
        stack: contextlib.ExitStack,
    ):
        self._work, self._part, self._name, self._split, self._encode = (
            work,
            part,
            name,
            split,
            encode,
        )
        self._stream: IO[bytes] = stack.enter_context(files.replacing(work.root / name))
        self._dtype = dtype_of(work.vocab_size)
        self._digest, self._bytes = hashlib.sha256(), 0
        self._waiting: list[Document] = []
        self._waiting_size = 0
        self._counts = {"documents": 0, "tokens": 0, "text_bytes": 0, "cut_documents": 0}
        if work.recipe.layout == "document":
            self._counts |= dict.fromkeys(ROW_COUNTS, 0)

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        self._waiting_size += length_of(document)
        if self._waiting_size > BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        documents, self._waiting, self._waiting_size = self._waiting, [], 0
        try:
            encoded = [np.asarray(ids, np.int64) for ids in self._encode(documents)]
            self._check(np.concatenate(encoded) if encoded else np.empty(0, np.int64))
        except UserError as e:
            raise UserError(f"{self._part.name}: {e}") from e
        encoded = [ids.astype(self._dtype) for ids in encoded]
        self._counts["documents"] += len(documents)
        self._counts["text_bytes"] += sum(
            len(d.encode()) if isinstance(d, str) else d.text_bytes for d in documents
        )
        whole = sum(len(ids) + 1 for ids in encoded)  # one end per document
        is_packed = self._work.recipe.layout == "packed"
        if is_packed:
            self._counts["tokens"] += whole
        else:
            self._counts["whole_tokens"] += whole
        content = (self._packed(encoded) if is_packed else self._rows(encoded)).tobytes()
        self._stream.write(content)
        self._digest.update(content)
        self._bytes += len(content)

    def _check(self, ids: np.ndarray) -> None:
        size, end = self._work.vocab_size, self._work.eos_id
        bad = ids[(ids < 0) | (ids >= size)]
        if len(bad):
            raise UserError(f"id {bad[0]} is none of the {size} of its tokenizer")
        if np.any(ids == end):
            raise UserError(f"a document has in it the id that ends documents, {end}")

    def _packed(self, encoded: Sequence[np.ndarray]) -> np.ndarray:
        end = np.full(1, self._work.eos_id, self._dtype)
        return np.concatenate([piece for ids in encoded for piece in (ids, end)] or [end[:0]])

    def _rows(self, encoded: Sequence[np.ndarray]) -> np.ndarray:
        """Returns [., seq_len + 1]: start, document and end, even if it is cut (2404.05728)."""
        seq_len = self._work.recipe.seq_len
        rows = np.full((len(encoded), seq_len + 1), self._work.eos_id, self._dtype)
        rows[:, 0] = self._work.start_id
        for row, ids in zip(rows, encoded, strict=True):
            kept = ids[: seq_len - 1]
            row[1 : 1 + len(kept)] = kept
            self._counts["cut_documents"] += len(kept) < len(ids)
            self._counts["tokens"] += len(kept) + 1
            self._counts["padding"] += seq_len - len(kept) - 1
        return rows

    def as_dict(self) -> dict[str, Any]:
        identity = {"file": self._name, "split": self._split, "bytes": self._bytes}
        return {**identity, "sha256": self._digest.hexdigest(), **self._counts}


def dtype_of(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _ids_of(documents: Sequence[Document]) -> Sequence[Ids]:
    return [document.ids for document in documents if not isinstance(document, str)]


def texts_of(documents: Sequence[Document], kind: str) -> Sequence[Any]:
    """Returns what a tokenizer of this kind encodes: texts, or ids."""
    is_text = [isinstance(document, str) for document in documents]
    if kind == "ids" and any(is_text):
        raise UserError("it is text where --tokenizer=ids expects lists of ids")
    if kind != "ids" and not all(is_text):
        raise UserError("it holds lists of ids, not text: use --tokenizer=ids:N,eos_id=I")
    return documents if all(is_text) else _ids_of(documents)
