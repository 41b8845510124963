"""Records of a table from elsewhere, CSV or JSONL, with cells as they were written.

Also the spellings of a number and of a missing one.
"""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mujax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
_DELIMITERS = (",", ";", "\t")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d*(e[+-]?\d+)?", re.IGNORECASE)
# also the form of a number between 1 and 1000 with three decimals
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
# Cells without a value. A spreadsheet's errors come from its formulas, e.g. a mean of no runs.
_MISSING = re.compile(
    r"|-+|\?|na|n/a|null|none|nil|missing|#(n/a|null!|div/0!|num!|value!|ref!|name\?)",
    re.IGNORECASE,
)
# Spellings of a diverged run's loss by Python, C, Java and people
_DIVERGED = re.compile(
    r"[+-]?(nan(\(.*\))?|inf(inity)?|1\.#(inf|ind|qnan|snan)\d*)|∞|-∞|diverged", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a file by their columns, each with its line number.

    file: the file as --input names it.
    columns: names in the file's order.
    delimiter: between cells; empty for JSONL.
    """

    file: str
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, Any]]]
    delimiter: str

    def has_decimal_commas(self, columns: Iterable[str]) -> bool:
        """Tells whether the numbers in `columns` are written as 0,5.

        They are if commas do not separate the cells, no number has a point, and at least one comma
        cannot mark thousands.
        """
        if self.delimiter in ("", ","):
            return False
        cells = {text(record.get(column)) for _, record in self.rows for column in columns}
        commas = [cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell)]
        return any(not _THOUSANDS.fullmatch(cell) for cell in commas) and not any(
            map(_DECIMAL_POINT.fullmatch, cells)
        )


def read_records(file: str) -> Records:
    """Reads a .jsonl file, or a .csv or .tsv file separated by commas, semicolons or tabs.

    Raises:
      UserError: the file cannot be read, two columns have one name, or a line has not as many cells
        as the header.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--input={file}: no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--input={file}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"--input={file} is not UTF-8 text; spreadsheets save it as 'CSV UTF-8'"
        ) from None
    records = _jsonl(file, content) if path.suffix == ".jsonl" else _csv(file, content)
    if not records.rows:
        raise UserError(f"--input={file} holds no rows")
    return records


def text(cell: Any) -> str:
    """Returns the words of a cell, on one line."""
    return "" if cell is None else " ".join(str(cell).split())


def is_missing(cell: Any) -> bool:
    return _MISSING.fullmatch(text(cell)) is not None


def is_diverged(cell: Any) -> bool:
    """Tells whether a loss, or the status of a run, means that the run diverged."""
    return _DIVERGED.fullmatch(text(cell)) is not None


def number(cell: Any, decimal_commas: bool = False) -> float:
    """Returns the number in a cell; NaN if it has none."""
    if isinstance(cell, bool):
        return math.nan
    if decimal_commas and isinstance(cell, str) and "." not in cell:
        cell = cell.replace(",", ".")
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _csv(file: str, content: str) -> Records:
    lines = io.StringIO(content, newline="")
    headers: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        lines.seek(0)
        try:
            headers[delimiter] = [
                name.strip() for name in next(filter(None, _reader(lines, delimiter)), [])
            ]
        except csv.Error:  # a quoted name is followed by another delimiter
            pass
    delimiter = max(headers, key=lambda delimiter: len(headers[delimiter]), default=",")
    lines.seek(0)
    reader = _reader(lines, delimiter)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
        _refuse_namesakes(file, header)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(header):
                    where = f"--input={file}, line {reader.line_num}"
                    raise UserError(
                        f"{where}: {len(cells)} cells, where the header has {len(header)}"
                    )
                rows.append(
                    (reader.line_num, {k: v for k, v in zip(header, cells, strict=True) if k})
                )
    except csv.Error as e:
        raise UserError(f"--input={file}, line {reader.line_num}: {e}") from None
    return Records(file, tuple(filter(None, header)), rows, delimiter)


def _reader(lines: Iterable[str], delimiter: str):
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def _refuse_namesakes(file: str, names: Sequence[str]) -> None:
    """Raises UserError if two columns have one name; columns without a name are allowed."""
    for at, name in enumerate(names):
        if name and name in names[:at]:
            first, second = names.index(name) + 1, at + 1
            raise UserError(
                f"--input={file}: columns {first} and {second} are both named {name!r}; rename "
                "one of them"
            )


def _jsonl(file: str, content: str) -> Records:
    rows: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as e:
            raise UserError(f"--input={file}, line {number} is not JSON: {e}") from None
        if not isinstance(pairs, _Pairs):
            raise UserError(f"--input={file}, line {number} is not a JSON object")
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            again = next(name for at, name in enumerate(names) if name in names[:at])
            raise UserError(
                f"--input={file}, line {number} has {again!r} twice; leave one of them out"
            )
        rows.append((number, dict(pairs)))
        columns |= dict.fromkeys(names)
    return Records(file, tuple(columns), rows, "")


class _Pairs(list):
    """The members of a JSON object as written, including repeated names."""
