"""Rows sorted into studies: the configs of a study differ in the seed and the plotted fields alone.

A study is named by its parameterization and by what else tells its rows from others.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from mujax.storage.records import FACTS
from mujax.sweep.pooling import Coupling, find_coupling, relation_texts, same_values
from mujax.sweep.settings import PLOTTED, comparable

Row = Mapping[str, Any]
UNKNOWN = "unknown"
_ABSENT = object()  # stands for a field that a row's config does not have
_NAMED_BY_ITSELF = (*PLOTTED, "parameterization.name")
_OPERATION = ("mesh.", "checkpoint.", "monitor.")  # change how a run is done, not what it is
# The place of the text is ignored: its fingerprint tells whether it is the same.
_TEXT = ("data.path", "data.glob")
# Facts in a row itself, used if its config is unknown
_FACTS = ("model", "optimizer", "depth", "weight_decay", "steps", "tokens", "n_params")


def field_value(row: Row, field: str) -> Any:
    """Returns the value of a dotted field of a row, from its overrides, its config or its facts."""
    if field in row["overrides"]:
        return row["overrides"][field]
    if row.get("config") is not None:
        return row["config"].get(field, _ABSENT)
    return row.get(FACTS.get(field, field), UNKNOWN)


class Naming:
    """The names of studies, such that all rows given are told apart."""

    def __init__(self, rows: Iterable[Row]):
        rows = list(rows)
        self._rates = same_values(row["learning_rate"] for row in rows)
        fields = {
            field: found for field in _candidates(rows) if (found := _Field(field, rows)).is_varying
        }
        self._labels = {field: _label(field, fields) for field in fields}
        self.coupled = self._find_coupled(rows, fields)
        rates = [self.rate(row) for row in rows]
        self._relations = {
            field: relation_texts(
                coupling,
                list(zip(rates, fields[field].values, strict=True)),
                self._labels[field],
                "learning_rate",
            )
            for field, coupling in self.coupled.items()
        }
        self._fields = {
            field: found for field, found in fields.items() if field not in self.coupled
        }
        # name -> the facts that split it further
        self._facts: dict[str, dict[str, Callable[[Row], str]]] = {}
        self._find_facts(rows)

    def rate(self, row: Row) -> float:
        """Returns a row's learning rate; rates that differ only in rounding are one number."""
        return self._rates[row["learning_rate"]]

    def name(self, row: Row) -> str:
        """Returns the name of a row's study, e.g. 'mup, optimizer=sgd, weight_decay=0.1'."""
        name = self._base_name(row)
        facts = {label: value(row) for label, value in self._facts.get(name, {}).items()}
        return ", ".join([name, *(f"{label}={value}" for label, value in facts.items() if value)])

    def facets(self, row: Row) -> dict[str, str]:
        """Returns the properties that a row's study may be filtered by."""
        facets = {"parameterization": row["parameterization"]}
        if row.get("weight_decay") is not None and "optim.weight_decay" not in self.coupled:
            facets["weight decay"] = f"{row['weight_decay']:g}"
        parts = {
            label: text for label, text in self._parts(row) if label.replace("_", " ") not in facets
        }
        facts = {
            label: value(row) for label, value in self._facts.get(self._base_name(row), {}).items()
        }
        return facets | {
            label.replace("_", " "): text for label, text in (parts | facts).items() if text
        }

    def _parts(self, row: Row, with_usual: bool = True) -> list[tuple[str, str]]:
        parts = []
        for field, found in self._fields.items():
            text = found.text(row)
            if text is not None and (with_usual or text != found.usual):
                parts.append((self._labels[field], text))
        for field, texts in self._relations.items():
            text = texts[self.rate(row), field_value(row, field)]
            parts.append((self._labels[field], text.removeprefix(f"{self._labels[field]}=")))
        return parts

    def _base_name(self, row: Row) -> str:
        parts = self._parts(row, with_usual=False)
        said = [
            text if text.startswith(f"{label} along") else f"{label}={text}"
            for label, text in parts
        ]
        return ", ".join([row["parameterization"], *said])

    def _find_coupled(
        self, rows: Sequence[Row], fields: Mapping[str, "_Field"]
    ) -> dict[str, Coupling]:
        tested = [name for name, field in fields.items() if field.is_free and field.is_numeric]
        others = [field for name, field in fields.items() if name not in tested]
        groups = [
            (row["width"], row["parameterization"], *(field.text(row) for field in others))
            for row in rows
        ]
        found = {
            n: find_coupling(zip(groups, map(self.rate, rows), fields[n].values, strict=True))
            for n in tested
        }
        return {name: coupling for name, coupling in found.items() if coupling}

    def _find_facts(self, rows: Sequence[Row]) -> None:
        """Finds the facts that tell rows apart where no field does, as the configs are unknown."""
        members: dict[str, list[Row]] = {}
        for row in rows:
            members.setdefault(self._base_name(row), []).append(row)
        for name, found in members.items():
            splits: dict[str, Callable[[Row], str]] = {}
            unknown = [row for row in found if row.get("config") is None]
            if 0 < len(unknown) < len(found):
                splits["config"] = lambda row: UNKNOWN if row.get("config") is None else ""
            for fact in _FACTS:

                def said(row: Row, fact: str = fact) -> str:
                    return str(row.get(fact, UNKNOWN)) if row.get("config") is None else ""

                if _splits(unknown, lambda row: row["width"], said):
                    splits[fact] = said
            text = lambda row: str(row.get("data_fingerprint", UNKNOWN))  # noqa: E731
            if _splits(found, _data_fields, text):
                splits["data_fingerprint"] = text
            editions = _editions(found, lambda row, splits=splits: self._table_key(row, splits))
            if editions:
                splits["table_hash"] = lambda row, of=editions: of.get(
                    (row["width"], row.get("table_hash")), ""
                )
            if splits:
                self._facts[name] = splits

    def _table_key(self, row: Row, splits: Mapping[str, Callable[[Row], str]]) -> Hashable:
        """Returns what fixes the numbers of a row's table, within a study."""
        # A field that goes along with the width may be part of the table.
        rate = self.rate(row) if self.coupled else None
        return row["width"], rate, tuple(value(row) for value in splits.values())


class _Field:
    """A config field that may tell studies apart.

    In each config it may be constant, go along with the width (e.g. steps at fixed tokens per
    parameter), or have several values at one width. It tells studies apart by its values, or by how
    it goes along with the width.

    is_varying: whether the field tells studies apart.
    is_free: whether some config has several values at one width.
    is_numeric: whether all values are numbers.
    usual: the value in more than half of the configs, if no config has several values.
    """

    def __init__(self, name: str, rows: Sequence[Row]):
        self._name, self.values = name, [field_value(row, name) for row in rows]
        by_config: dict[int, dict[int, set]] = {}
        self._shown: dict[Any, str] = {}  # value -> text of the first equal value, as 1 and 1.0
        for row, value in zip(rows, self.values, strict=True):
            if value is not _ABSENT:
                known = comparable(value)
                self._shown.setdefault(known, str(value))
                by_config.setdefault(id(row.get("config")), {}).setdefault(row["width"], set()).add(
                    known
                )
        bound = {
            config: {width: value for width, (value,) in values.items()}
            for config, values in by_config.items()
            if all(len(at) == 1 for at in values.values())
        }
        self.is_free = len(bound) < len(by_config)
        self.is_numeric = all(type(value) in (int, float) for value in self.values)
        self._along = self._find_along(bound)
        said = [
            self._along.get(config) or self._shown[next(iter(at.values()))]
            for config, at in bound.items()
        ]
        self.is_varying = self.is_free or len(set(said)) > 1
        most = max(said, key=said.count, default="")
        self.usual = most if not self.is_free and 2 * said.count(most) > len(said) else None

    def text(self, row: Row) -> str | None:
        """Returns what tells a row's study from others; None if its config lacks the field."""
        value = field_value(row, self._name)
        if value is _ABSENT:
            return None
        return self._along.get(id(row.get("config"))) or self._shown[comparable(value)]

    def _find_along(self, bound: Mapping[int, dict[int, Any]]) -> dict[int, str]:
        """Returns how the field goes along with the width in each config where it does."""
        kinds: list[tuple[dict[int, Any], list[int]]] = []
        for config, at in sorted(bound.items(), key=lambda item: -len(set(item[1].values()))):
            same = [
                kind
                for kind in kinds
                if (shared := kind[0].keys() & at) and all(kind[0][n] == at[n] for n in shared)
            ]
            if same:
                same[0][0].update(at)
                same[0][1].append(config)
            elif len(set(at.values())) > 1:
                kinds.append((dict(at), [config]))
        texts: dict[int, str] = {}
        for at, configs in kinds:
            text = f"{self._shown[at[min(at)]]} to {self._shown[at[max(at)]]} by width"
            again = sum(other.startswith(text) for other in set(texts.values()))
            texts |= dict.fromkeys(configs, f"{text} ({again + 1})" if again else text)
        return texts


def _candidates(rows: Sequence[Row]) -> list[str]:
    """Returns the fields that rows set and those in which configs differ, less redundant ones."""
    configs = list(
        {id(row["config"]): row["config"] for row in rows if row.get("config") is not None}.values()
    )
    fields = dict.fromkeys(field for row in rows for field in row["overrides"])
    first = configs[0] if configs else {}
    for config in configs[1:]:
        differ = [f for f in config if f in first and comparable(first[f]) != comparable(config[f])]
        fields |= dict.fromkeys(differ)
    one_text = (
        len({row.get("data_fingerprint") for row in rows}) == 1
        and rows[0].get("data_fingerprint") is not None
    )
    return [
        field
        for field in fields
        if not (
            field in _NAMED_BY_ITSELF
            or field.startswith(_OPERATION)
            or (one_text and field in _TEXT)
        )
    ]


def _label(field: str, among: Iterable[str]) -> str:
    """Returns a field's last name, if it is unique; for optim.name and the like, the section's."""

    def short(name: str) -> str:
        section, _, last = name.rpartition(".")
        return {"optim": "optimizer"}.get(section, section) if last == "name" and section else last

    return short(field) if sum(short(other) == short(field) for other in among) == 1 else field


def _splits(
    rows: Sequence[Row], key: Callable[[Row], Hashable], value: Callable[[Row], Hashable]
) -> bool:
    """Tells whether rows that are equal in `key` differ in `value`."""
    values = [value(row) for row in rows]
    seen: dict[Hashable, Hashable] = {}
    return len(set(values)) > 1 and any(
        seen.setdefault(key(row), own) != own for row, own in zip(rows, values, strict=True)
    )


def _data_fields(row: Row) -> Hashable:
    config = row.get("config") or {}
    return tuple(
        comparable(field_value(row, f)) for f in config if f.startswith("data.") and f not in _TEXT
    )


def _editions(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> dict[tuple[int, Any], str]:
    """Returns {(width, table hash): edition of the table} if equal rows have different tables.

    One version of the code makes the tables of all widths, so the hashes that it made are one
    edition, named by the hash at its narrowest width. If a version made two tables for one width,
    each hash is an edition by itself.
    """
    rows = [row for row in rows if row.get("table_hash")]
    if not _splits(rows, key, lambda row: row["table_hash"]):
        return {}
    editions = {
        (row["width"], row["table_hash"]): {(row["width"], row["table_hash"])} for row in rows
    }
    by_version: dict[Any, set] = {}
    for row in rows:
        by_version.setdefault(row.get("code_version"), set()).add((row["width"], row["table_hash"]))
    for made in by_version.values():
        joined = set().union(*(editions[table] for table in made))
        if len({width for width, _ in joined}) == len(joined):
            editions |= dict.fromkeys(joined, joined)
    return {table: min(edition)[1] for table, edition in editions.items()}
