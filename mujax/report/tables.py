"""Tables of results from elsewhere, read as rows like those of a sweep.

The command line names the columns.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mujax.errors import UserError, suggest
from mujax.report import external
from mujax.report.external import Records, read_records
from mujax.report.repeats import FACTS, WHOLE, Run, join_runs
from mujax.report.rows import Row
from mujax.transfer.phase import PhasePoint

# Quantities that a column may hold, with the names it has if --columns does not tell
TEXTS = ("study", "parameterization", "seed", "status")
RUNS = (*TEXTS, "weight_decay", "width", "learning_rate", "log2_learning_rate", "loss", *FACTS)
METRICS = ("study", "parameterization", "weight_decay", "E", "R_inf", "kappa")
KNOWN = tuple(dict.fromkeys(RUNS + METRICS))
SEVERAL = ("study", "seed")  # quantities that several columns may form together
MOST = 1e30  # largest number in a cell
FEW = 3  # lines that a note names at most

# quantity -> the columns that hold it; no columns: the quantity is left out
Columns = dict[str, tuple[str, ...]]
_QUOTED = r'"(?:[^"]|"")*"'
_PART = re.compile(rf'\s*([^,="]*?)\s*=\s*((?:{_QUOTED}|[^,"])*?)\s*(?:,|$)')
_PIECE = re.compile(rf'\s*({_QUOTED}|[^+"]*?)\s*(?:\+|$)')


def parse_columns(text: str | None) -> Columns:
    """Parses --columns into {quantity: columns}.

    'width=n,study=a+b,loss="loss, val",tokens=' -> {'width': ('n',), 'study': ('a', 'b'), 'loss':
    ('loss, val',), 'tokens': ()}.

    Raises:
      UserError: another form, a quantity named twice, or an unknown quantity.
    """
    columns: Columns = {}
    at, text = 0, text or ""
    while at < len(text):
        if not ((found := _PART.match(text, at)) and found[1]):
            rest = text[at:].partition(",")[0]
            raise UserError(
                f"--columns: {rest!r} is not NAME=COLUMN, e.g. --columns=width=n,loss=val_loss; "
                "a column with a comma in its name stands in double quotes"
            )
        at, name = found.end(), found[1]
        if name not in KNOWN:
            raise UserError(f"--columns: {name!r} is nothing we know{suggest(name, KNOWN)}")
        if name in columns:
            raise UserError(f"--columns names {name} twice")
        columns[name] = _pieces(found[2])
    if columns.get("learning_rate") and columns.get("log2_learning_rate"):
        raise UserError("--columns: learning_rate and log2_learning_rate: give one of them")
    return columns


def _pieces(text: str) -> tuple[str, ...]:
    """Splits 'a+"b+c"' into ('a', 'b+c')."""
    pieces, at = [], 0
    while at < len(text):
        found = _PIECE.match(text, at)
        if not found or not found[1]:
            raise UserError(
                f"--columns: {text!r} is neither a column nor several with + between them"
            )
        quoted = found[1].startswith('"')
        pieces.append(found[1][1:-1].replace('""', '"').strip() if quoted else found[1])
        at = found.end()
    return tuple(pieces)


@dataclasses.dataclass(frozen=True)
class Table:
    """The content of a file: runs, or points of the phase diagrams.

    warnings: what a reader should know about the rows.
    averaged: how many runs a point of a curve is the mean of, and by which columns they differ;
      empty if each point is one run.
    """

    rows: list[Row]
    points: list[PhasePoint]
    warnings: list[str]
    averaged: str


def read_table(file: str, columns: Columns) -> Table:
    """Reads rows like those of a sweep, or phase points if the file has E, R_inf and kappa.

    A loss that is not finite is a diverged run. A row without a loss is left out, with a warning.

    Raises:
      UserError: the file cannot be read, lacks a column, has a cell of the wrong kind, or
        contradicts itself about one run.
    """
    found = read_records(file)
    named = _name_columns(found, columns)
    cells = _Cells(found, named)
    if {"E", "R_inf", "kappa"} <= set(named) and not {"loss", "width"} & set(named):
        return Table([], [cells.phase_point(line, record) for line, record in found.rows], [], "")
    for name in ("width", "loss", *([] if "log2_learning_rate" in named else ["learning_rate"])):
        if name not in named:
            known = ", ".join(found.columns)
            raise UserError(
                f"--input={file}: which column is the {name}? --columns={name}=COLUMN; there are "
                f"{known}"
                + (
                    "; no comma, semicolon or tab divides its cells"
                    if len(found.columns) == 1
                    else ""
                )
            )
    runs, missing = cells.runs()
    joined = join_runs(found, named, runs)
    return Table(joined.rows, [], [*missing, *joined.warnings], joined.averaged)


def _name_columns(found: Records, columns: Columns) -> Columns:
    """Adds to `columns` those that bear the name of a quantity and are not named otherwise."""
    named: Columns = {}
    for name, pieces in columns.items():
        if (whole := "+".join(pieces)) in found.columns:  # the name of a column holds a +
            pieces = (whole,)
        if len(pieces) > 1 and name not in SEVERAL:
            raise UserError(
                f"--columns: {name} is in one column; several with + between them may be "
                f"{', '.join(SEVERAL)}"
            )
        for column in pieces:
            if column not in found.columns:
                known = ", ".join(found.columns)
                said = (
                    f"--input={found.file} has no column {column!r}, which --columns names for "
                    f"{name}"
                )
                raise UserError(f"{said}; there are {known}")
        named[name] = pieces
    taken = {column for name, pieces in named.items() if name != "study" for column in pieces}
    if named.get("log2_learning_rate"):
        taken.add("learning_rate")
    if named.get("learning_rate"):
        taken.add("log2_learning_rate")
    plain = {
        name: (name,) for name in KNOWN if name in found.columns and name not in taken | set(named)
    }
    return {name: pieces for name, pieces in {**plain, **named}.items() if pieces}


class _Cells:
    """The cells of a table by quantity; errors name the place."""

    def __init__(self, found: Records, named: Columns):
        self.found, self.named = found, named
        numbers = [
            column for name, pieces in named.items() if name not in TEXTS for column in pieces
        ]
        self.decimal_commas = found.has_decimal_commas(numbers)

    def _wrong(self, line: int, record: Mapping[str, Any], name: str, right: str) -> UserError:
        column = self.named[name][0]
        cell, said = (
            record.get(column),
            f"column {column!r}" + (f" ({name})" if column != name else ""),
        )
        if external.is_missing(cell) and name in ("weight_decay", *FACTS):
            right += f"; --columns={name}= reads the table without it"
        elif "," in str(cell) and self.found.delimiter == ",":
            right += "; decimal commas are read from files divided by semicolons or tabs"
        elif "," in str(cell):
            right += (
                "; are its commas decimal ones? Write all numbers of the file with points, and no "
                "thousands apart"
            )
        return UserError(
            f"--input={self.found.file}, line {line}: {said} is {_short(cell)}, not {right}"
        )

    def number(
        self, line: int, record: Mapping[str, Any], name: str, whole: bool = False
    ) -> float | None:
        """Returns a finite number; None if there is no such column."""
        if name not in self.named:
            return None
        value = external.number(record.get(self.named[name][0]), self.decimal_commas)
        if not abs(value) <= (WHOLE if whole else MOST) or (whole and value != int(value)):
            # False for NaN
            right = "a whole number" if whole else "a finite number"
            raise self._wrong(
                line, record, name, right + (" that a run may have" if abs(value) > MOST else "")
            )
        return value

    def text(self, record: Mapping[str, Any], name: str) -> str | None:
        """Returns the words of a column, or of several with their names; None if there is none."""
        if name not in self.named:
            return None
        columns = self.named[name]
        if len(columns) == 1:
            return external.text(record.get(columns[0]))
        words = [(column, external.text(record.get(column))) for column in columns]
        return ", ".join(f"{column}={word}" if word else f"no {column}" for column, word in words)

    def phase_point(self, line: int, record: Mapping[str, Any]) -> PhasePoint:
        values = {name: self.number(line, record, name) or 0.0 for name in ("E", "R_inf", "kappa")}
        if not values["E"] > 0:
            raise self._wrong(line, record, "E", "above 0, as a mean square is")
        names = {name: self.text(record, name) for name in ("study", "parameterization")}
        facets = {"parameterization": names["parameterization"] or names["study"] or "all"}
        if (decay := self.number(line, record, "weight_decay")) is not None:
            facets["weight decay"] = f"{decay:g}"
        name = (
            ", ".join(filter(None, dict.fromkeys([*names.values(), *list(facets.values())[1:]])))
            or "all"
        )
        return PhasePoint.plain(name, facets, values["E"], values["R_inf"], values["kappa"])

    def runs(self) -> tuple[list[Run], list[str]]:
        """Returns the runs with a known loss or divergence, and a warning about the other rows."""
        runs: list[Run] = []
        holes: list[str] = []
        for line, record in self.found.rows:
            cell, status = record.get(self.named["loss"][0]), self.text(record, "status") or ""
            is_missing = external.is_missing(cell)
            diverged = (
                external.is_diverged(cell)
                or external.is_diverged(status)
                or (is_missing and status == "stopped")
            )
            if is_missing and not diverged:
                rate = self.named.get("log2_learning_rate") or self.named["learning_rate"]
                shown = [
                    f"{column} {external.text(record.get(column)) or 'empty'}"
                    for column in (*self.named["width"], *rate)
                ]
                holes.append(f"line {line} ({', '.join(shown)})")
                continue
            width = self.number(line, record, "width", whole=True)
            if not width or width < 1:
                raise self._wrong(line, record, "width", "at least 1")
            runs.append(
                Run(
                    line, record, self._name(record, "study"),
                    self._name(record, "parameterization"), int(width), self._rate(line, record),
                    self.number(line, record, "weight_decay"), self.text(record, "seed"),
                    self._facts(line, record),
                    None if diverged else self.number(line, record, "loss"),
                )
            )  # fmt: skip
        column = self.named["loss"][0]
        if not runs:
            raise UserError(
                f"--input={self.found.file}: column {column!r} holds no loss, in none of "
                f"{len(holes)} rows"
            )
        if not holes:
            return runs, []
        more = f" and {len(holes) - FEW} more" if len(holes) > FEW else ""
        return runs, [
            f"{len(holes)} rows have no loss in column {column!r} and are left out: "
            f"{', '.join(holes[:FEW])}{more}; where a run diverged write nan"
        ]

    def _name(self, record: Mapping[str, Any], name: str) -> str | None:
        """Returns a part of a study's name, also for an empty cell."""
        word = self.text(record, name)
        return f"no {self.named[name][0]}" if word == "" else word

    def _facts(self, line: int, record: Mapping[str, Any]) -> dict[str, float]:
        """Returns tokens, steps and parameters, as whole numbers where possible."""
        values = {
            name: value for name in FACTS if (value := self.number(line, record, name)) is not None
        }
        return {
            name: int(value) if value == int(value) else value for name, value in values.items()
        }

    def _rate(self, line: int, record: Mapping[str, Any]) -> float:
        name = "log2_learning_rate" if "log2_learning_rate" in self.named else "learning_rate"
        value = self.number(line, record, name)
        assert value is not None
        if name == "learning_rate" and value <= 0:
            raise self._wrong(line, record, name, "above 0; for log2 of it use log2_learning_rate")
        if name == "log2_learning_rate" and abs(value) > 300:
            raise self._wrong(line, record, name, "a log2 of a learning rate")
        return float(value) if name == "learning_rate" else 2.0**value


def _short(cell: Any) -> str:
    words = repr(cell)
    return words if len(words) <= 60 else f"{words[:50]}... ({len(words)} characters)"
