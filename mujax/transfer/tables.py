"""Results from elsewhere: a CSV or JSONL file whose columns are named on the command line."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mujax.errors import UserError, suggest
from mujax.transfer.phase import PhasePoint
from mujax.transfer.rows import Row

# What a column may be, and what it is called where --columns does not say
RUNS = ("study", "parameterization", "weight_decay", "width", "learning_rate", "log2_learning_rate", "loss", "seed")
RUNS += ("tokens", "steps", "n_params")
METRICS = ("study", "parameterization", "weight_decay", "E", "R_inf", "kappa")
_DIVERGED = ("", "nan", "inf", "+inf", "-inf", "infinity", "null", "none", "na", "n/a", "diverged")


def parse_columns(text: str | None) -> dict[str, str]:
    """'width=n,loss=val_loss' -> {'width': 'n', 'loss': 'val_loss'}.

    Raises:
      UserError: it is something else, or names a quantity twice or that we do not know.
    """
    columns: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not (name and equals and column):
            raise UserError(f"--columns: {part!r} is not NAME=COLUMN, e.g. --columns=width=n,loss=val_loss")
        if name not in RUNS + METRICS:
            raise UserError(f"--columns: {name!r} is nothing we know{suggest(name, dict.fromkeys(RUNS + METRICS))}")
        if name in columns:
            raise UserError(f"--columns names {name} twice")
        columns[name] = column
    if {"learning_rate", "log2_learning_rate"} <= set(columns):
        raise UserError("--columns: learning_rate and log2_learning_rate: give one of them")
    return columns


@dataclasses.dataclass(frozen=True)
class Table:
    """What a file holds: runs or points of the phase diagrams. repeated: how many rows say what another says."""

    rows: list[Row]
    points: list[PhasePoint]
    repeated: int


def read_table(file: str, columns: Mapping[str, str]) -> Table:
    """Rows as a sweep writes them, or, where the file has E, R_inf and kappa instead of losses, points of the phase
    diagrams. A loss that is empty or not finite is a diverged run. Names in `columns` are of RUNS or METRICS.

    Raises:
      UserError: the file cannot be read, lacks a column, or has a cell that is not what its column is.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--input={file}: no such file")
    if path.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--input={file}: the name must end in .csv or .jsonl")
    try:
        records = list(_csv(file, path) if path.suffix == ".csv" else _jsonl(file, path))
    except UnicodeDecodeError:
        raise UserError(f"--input={file} is not UTF-8 text") from None
    if not records:
        raise UserError(f"--input={file} holds no rows")
    present = dict.fromkeys(key for _, record in records for key in record)
    for name, column in columns.items():
        if column not in present:
            raise UserError(
                f"--input={file} has no column {column!r}, which --columns names for {name}" + _known(present)
            )
    plain = {name: name for name in RUNS + METRICS if name in present}
    if "log2_learning_rate" in columns:
        plain.pop("learning_rate", None)
    if "learning_rate" in columns:
        plain.pop("log2_learning_rate", None)
    named = {**plain, **columns}
    cells = _Cells(file, named)
    is_metrics = {"E", "R_inf", "kappa"} <= set(named) and not {"loss", "width"} & set(named)
    if is_metrics:
        return Table([], [cells.phase_point(line, record) for line, record in records], 0)
    wanted = ["width", "loss", *([] if "log2_learning_rate" in named else ["learning_rate"])]
    for name in wanted:
        if name not in named:
            raise UserError(f"--input={file}: which column is the {name}? --columns={name}=COLUMN" + _known(present))
    rows = cells.rows(records)
    return Table(rows, [], len(records) - len(rows))


def _known(present: Mapping[str, None]) -> str:
    return f"; there are {', '.join(present)}"


def _csv(file: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise UserError(f"--input={file}, line {reader.line_num}: not as many cells as the header has")
                yield reader.line_num, {str(key).strip(): value for key, value in record.items()}
        except csv.Error as e:
            raise UserError(f"--input={file}, line {reader.line_num}: {e}") from None


def _jsonl(file: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as e:
                raise UserError(f"--input={file}, line {number} is not JSON: {e}") from None
            if not isinstance(record, dict):
                raise UserError(f"--input={file}, line {number} is not a JSON object")
            yield number, record


class _Cells:
    """Cells by our names, with the place of what is wrong."""

    def __init__(self, file: str, named: Mapping[str, str]):
        self.file, self.named = file, named

    def _wrong(self, line: int, name: str, value: Any, right: str) -> UserError:
        column = f"column {self.named[name]!r}" + (f" ({name})" if self.named[name] != name else "")
        return UserError(f"--input={self.file}, line {line}: {column} is {value!r}, not {right}")

    def number(self, line: int, record: Mapping[str, Any], name: str, whole: bool = False) -> float | None:
        """A finite number; None where there is no such column."""
        if name not in self.named:
            return None
        cell = record.get(self.named[name])
        try:
            value = math.nan if isinstance(cell, bool) else float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value) or (whole and value != int(value)):
            raise self._wrong(line, name, cell, "a whole number" if whole else "a finite number")
        return int(value) if whole else value

    def loss(self, line: int, record: Mapping[str, Any]) -> float | None:
        cell = record.get(self.named["loss"])
        if cell is None or str(cell).strip().lower() in _DIVERGED:
            return None
        return self.number(line, record, "loss")

    def text(self, record: Mapping[str, Any], name: str) -> str | None:
        return str(record.get(self.named[name], "")).strip() if name in self.named else None

    def phase_point(self, line: int, record: Mapping[str, Any]) -> PhasePoint:
        values = {name: self.number(line, record, name) for name in ("E", "R_inf", "kappa")}
        if not (values["E"] or 0) > 0:
            raise self._wrong(line, "E", record.get(self.named["E"]), "above 0, as a mean square is")
        names = {name: self.text(record, name) for name in ("study", "parameterization")}
        facets = {"parameterization": names["parameterization"] or names["study"] or "all"}
        if (decay := self.number(line, record, "weight_decay")) is not None:
            facets["weight decay"] = f"{decay:g}"
        name = ", ".join(filter(None, dict.fromkeys([*names.values(), *list(facets.values())[1:]]))) or "all"
        return PhasePoint.plain(name, facets, values["E"] or 0.0, values["R_inf"] or 0.0, values["kappa"] or 0.0)

    def rows(self, records: list[tuple[int, dict[str, Any]]]) -> list[Row]:
        """Rows in the form of results.jsonl. A row that repeats another is left out; one that contradicts it is not."""
        seen: dict[tuple, tuple[int, float | None]] = {}
        rows: list[Row] = []
        for line, record in records:
            width, loss = self.number(line, record, "width", whole=True), self.loss(line, record)
            if not width or width < 1:
                raise self._wrong(line, "width", record.get(self.named["width"]), "at least 1")
            rate = self._rate(line, record)
            study, table = self.text(record, "study"), self.text(record, "parameterization")
            decay, seed = self.number(line, record, "weight_decay"), self.number(line, record, "seed", whole=True)
            overrides: dict[str, Any] = {} if decay is None else {"optim.weight_decay": decay}
            if study is not None and table is not None:
                overrides["study"] = study
            facts = {name: self.number(line, record, name) for name in ("tokens", "steps", "n_params")}
            key = (study, table, decay, *facts.values(), width, rate, seed)
            if key in seen:
                before, other = seen[key]
                if other != loss:
                    raise UserError(
                        f"--input={self.file}: lines {before} and {line} give two losses for one width, learning rate "
                        "and study; name the column that tells them apart, e.g. --columns=seed=COLUMN"
                    )
                continue
            seen[key] = line, loss
            rows.append({
                "id": f"line {line}", "status": "diverged" if loss is None else "ok", "diverged_at_step": None,
                "width": width, "parameterization": table or study or "all", "learning_rate": rate, "seed": seed or 0,
                "final_loss": loss, "overrides": overrides,
                **{name: value for name, value in {**facts, "weight_decay": decay}.items() if value is not None},
            })  # fmt: skip
        return rows

    def _rate(self, line: int, record: Mapping[str, Any]) -> float:
        name = "log2_learning_rate" if "log2_learning_rate" in self.named else "learning_rate"
        value = self.number(line, record, name)
        assert value is not None
        if name == "learning_rate" and value <= 0:
            raise self._wrong(line, name, value, "above 0; for log2 of it use log2_learning_rate")
        if name == "log2_learning_rate" and abs(value) > 300:
            raise self._wrong(line, name, value, "a log2 of a learning rate")
        return value if name == "learning_rate" else 2.0**value
