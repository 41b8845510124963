"""Sources of documents: files of text, JSON lines or parquet.

Each source is cut into parts, each the work of one process. Parts, and documents in a part, keep
the order of the source.
"""

import contextlib
import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from mujax.data.text import compression_of, cut_of, find_files, held_out_files
from mujax.data.tokenizers import Ids, Tokenizer
from mujax.errors import UserError, shown

# text per part, if a source can be cut anywhere
PART_BYTES = 2**26


class Encoded(NamedTuple):
    """A document that comes as ids, without its end.

    text_bytes: bytes of the text that the ids stand for; 0: unknown.
    """

    ids: Ids
    text_bytes: int


Document = str | Encoded


def length_of(document: Document) -> int:
    """Returns the number of characters, or of ids."""
    return len(document if isinstance(document, str) else document.ids)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a source.

    name: its name in messages.
    split: train or validation, by the source itself.
    size: bytes, for showing progress.
    where: how the source finds it, as JSON values.
    """

    name: str
    split: str
    size: int
    where: tuple


class Source(Protocol):
    """A source of documents; it is pickled, to be sent to other processes.

    has_validation: whether some of its parts are for validation.
    tokenizer: the tokenizer of its documents, if they are encoded.
    """

    @property
    def has_validation(self) -> bool: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def parts(self) -> list[Part]: ...

    def documents(self, part: Part) -> Iterator[Document]: ...


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Text files, the embedded ones or a folder's; a file is a document.

    Validation documents are those of mujax.data.text: by file, or the end of each of a few.
    """

    name: str  # "embedded" or "text"
    path: str
    glob: str
    has_validation = True
    tokenizer = None

    def parts(self) -> list[Part]:
        root, files = find_files(self.name, self.path, self.glob)
        keys = [file.relative_to(root).as_posix() for file in files]
        held_out = held_out_files(keys)
        parts = []
        for split in ("train", "validation"):
            is_own = [
                held_out is None or (key in held_out) == (split == "validation") for key in keys
            ]
            kept = [file for file, own in zip(files, is_own, strict=True) if own]
            for chunk in _by_size(kept, [f.stat().st_size for f in kept], PART_BYTES // 16):
                names = chunk[0].name + (f" to {chunk[-1].name}" if len(chunk) > 1 else "")
                size = sum(f.stat().st_size for f in chunk)
                parts.append(Part(names, split, size, (held_out is None, *map(str, chunk))))
        return parts

    def documents(self, part: Part) -> Iterator[str]:
        is_cut, *files = part.where
        for file in files:
            text = _decode(_read(Path(file)), file)
            if is_cut:
                cut = cut_of(text)
                text = text[:cut] if part.split == "train" else text[cut:]
            yield text.decode()


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """JSON lines as on Hugging Face (C4, FineWeb), also as .gz; a line is a document."""

    pattern: str
    validation_pattern: str
    field: str
    tokenizer = None

    @property
    def has_validation(self) -> bool:
        return bool(self.validation_pattern)

    def parts(self) -> list[Part]:
        found = []
        for split, files in _found("jsonl", self.pattern, self.validation_pattern):
            for file in files:
                self._check_readable(file)
            found += [Part(file, split, Path(file).stat().st_size, (file,)) for file in files]
        return found

    def documents(self, part: Part) -> Iterator[Document]:
        (file,) = part.where
        number = 0
        try:
            with cast(
                IO[bytes], gzip.open(file, "rb") if file.endswith(".gz") else open(file, "rb")
            ) as stream:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield self._parse(line, f"{file}, line {number}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            raise UserError(f"{file} is damaged after line {number}: {e}") from e
        except OSError as e:
            raise UserError(f"{file} cannot be read: {e.strerror or e}") from e

    def _check_readable(self, file: str) -> None:
        try:
            with open(file, "rb") as stream:
                kind = compression_of(stream.read(8))
        except OSError as e:
            raise UserError(f"{file} cannot be read: {e.strerror or e}") from e
        if kind == "gzip" and not file.endswith(".gz"):
            raise UserError(
                f"{file} is compressed (gzip) without the suffix by which mujax knows it: add .gz"
            )
        if kind and kind != "gzip":
            raise UserError(
                f"{file} is compressed ({kind}), which mujax does not read: decompress it, or use "
                ".gz"
            )

    def _parse(self, line: bytes, where: str) -> Document:
        try:
            record = json.loads(_decode(line, where))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{where} is not JSON: {e}") from e
        if not isinstance(record, dict) or self.field not in record:
            fields = _names(record) if isinstance(record, dict) else type(record).__name__
            raise UserError(
                f"{where} has no field {self.field!r} but: {fields}; name the one with the text: "
                "--field"
            )
        return _document(record[self.field], self.field, where)


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Parquet files as on Hugging Face: a row is a document, row groups of a file are a part."""

    pattern: str
    validation_pattern: str
    field: str
    tokenizer = None

    @property
    def has_validation(self) -> bool:
        return bool(self.validation_pattern)

    def parts(self) -> list[Part]:
        found = []
        for split, files in _found("parquet", self.pattern, self.validation_pattern):
            for file in files:
                metadata = _open_parquet(file, self.field).metadata
                groups = list(range(metadata.num_row_groups))
                sizes = [metadata.row_group(i).total_byte_size for i in groups]
                for chunk in _by_size(groups, sizes, PART_BYTES):
                    size = sum(sizes[i] for i in chunk)
                    found.append(
                        Part(
                            f"{file}, row groups {chunk[0]} to {chunk[-1]}",
                            split,
                            size,
                            (file, *chunk),
                        )
                    )
        return found

    def documents(self, part: Part) -> Iterator[Document]:
        import pyarrow as pa

        file, *groups = part.where
        try:
            opened = _open_parquet(file, self.field)
            for batch in opened.iter_batches(
                batch_size=1024, row_groups=groups, columns=[self.field]
            ):
                for value in batch.column(0).to_pylist():
                    yield _document(value, self.field, part.name)
        except UnicodeDecodeError as e:
            raise UserError(f"{part.name}: {self.field} is not UTF-8 ({e.reason})") from e
        except (pa.ArrowException, OSError) as e:
            raise UserError(f"{part.name} cannot be read: {' '.join(str(e).split())[:200]}") from e


def folder_and_glob(pattern: str) -> tuple[str, str]:
    """Splits 'a/b/**/*.txt' into ('a/b', '**/*.txt'); a folder alone means all its files."""
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return str(Path(*parts[:first])), str(Path(*parts[first:])) if first < len(parts) else "**/*"


def _found(kind: str, pattern: str, validation_pattern: str) -> list[tuple[str, list[str]]]:
    found = {}
    for split, wanted in (("validation", validation_pattern), ("train", pattern)):
        if wanted or split == "train":
            files = sorted(
                f
                for f in glob.glob(str(Path(wanted).expanduser()), recursive=True)
                if Path(f).is_file()
            )
            if not files:
                raise UserError(f"{kind}: no file matches {wanted!r}")
            found[split] = files
    held_out = {os.path.realpath(file) for file in found.get("validation", ())}
    train = [file for file in found["train"] if os.path.realpath(file) not in held_out]
    if not train:
        raise UserError(f"{kind}: every file that matches {pattern!r} is for validation")
    return [("train", train), *([("validation", found["validation"])] if held_out else [])]


def _by_size(items: Sequence[Any], sizes: Sequence[int], limit: int) -> Iterator[list[Any]]:
    """Groups neighbours up to a size; a larger item is a group by itself."""
    chunk, total = [], 0
    for item, size in zip(items, sizes, strict=True):
        if chunk and total + size > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def _open_parquet(file: str, field: str):
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as e:
        raise UserError("--source=parquet:PATTERN needs pyarrow: pip install 'mujax[data]'") from e
    try:
        opened = parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as e:
        with contextlib.suppress(OSError), open(file, "rb") as stream:
            if kind := compression_of(stream.read(8)):
                raise UserError(f"{file} is compressed as a whole ({kind}): decompress it") from e
        raise UserError(f"{file} is no parquet file: {' '.join(str(e).split())[:200]}") from e
    if field not in opened.schema_arrow.names:
        names = opened.schema_arrow.names
        raise UserError(
            f"{file} has no column {field!r} but: {_names(names)}; name the one with the text: "
            "--field"
        )
    return opened


def _names(fields: Iterable[str]) -> str:
    """Returns the names of a record's fields, cut to a line, as a name may be a whole document."""
    fields = [name if len(name) <= 40 else f"{name[:40]}..." for name in fields]
    return ", ".join(fields[:20]) + (f" and {len(fields) - 20} more" if len(fields) > 20 else "")


def _document(value: Any, field: str, where: str) -> Document:
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as e:  # half of a surrogate pair, which JSON allows
            raise UserError(f"{where}: {field} is no text that UTF-8 can hold ({e.reason})") from e
        return value
    if isinstance(value, list):
        bad = next((i for i in value if type(i) is not int or not 0 <= i < 2**31), None)
        if bad is not None:
            raise UserError(f"{where}: {field} has {shown(bad)}, which is no id")
        return Encoded(tuple(value), 0)
    raise UserError(f"{where}: {field} is {type(value).__name__}, not text")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from e


def _decode(text: bytes, where: str) -> bytes:
    try:
        text.decode()
    except UnicodeDecodeError as e:
        if kind := compression_of(text):
            raise UserError(
                f"{where} is compressed ({kind}): decompress it, or leave it out by the pattern"
            ) from e
        raise UserError(f"{where} is not UTF-8 text (byte {e.start})") from e
    return text
