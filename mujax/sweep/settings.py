"""The settings of rows: the config of a workdir, and the fields that a row sets itself."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.config import OPERATION_SECTIONS, SECTIONS, STUDY_SECTIONS, leaves, renamed_fields
from mujax.fields import defaults
from mujax.storage.records import FACTS, read_config, read_manifest

# Fields that a curve plots or averages over
PLOTTED = ("model.d_model", "optim.learning_rate", "seed")

Fields = Mapping[str, Any]  # by dotted name


def run_fields(config: Any) -> Fields | None:
    """Returns the fields that make a run what it is, by dotted name; None if this is no config.

    Fields that were declared after it was recorded are at their defaults, but for those of an
    architecture, which brings JAX.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("optim"), Mapping):
        return None
    config = renamed_fields(config)
    own = {k: v for k, v in config.items() if k not in (*STUDY_SECTIONS, *OPERATION_SECTIONS)}
    for name, section in SECTIONS.items():
        if isinstance(own.get(name), Mapping):
            own[name] = {**defaults(section), **own[name]}
    return dict(leaves(own))


def comparable(value: Any) -> Any:
    """Returns a value in a form in which equal ones are equal: 1 and 1.0, a tuple and a list; True
    is not 1."""
    if type(value) in (int, float) and value == value:
        return value
    if isinstance(value, list | tuple):
        return tuple(map(comparable, value))
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), comparable(item)) for key, item in value.items()))
    return repr(value)


def changes(config: Fields, base: Fields) -> dict[str, Any]:
    """Returns the fields that `config` has other than `base`, as overrides of it."""
    return {
        field: value
        for field, value in config.items()
        if field not in base or comparable(value) != comparable(base[field])
    }


@dataclasses.dataclass(frozen=True)
class Entry:
    """A point as a manifest records it; config: its fields without the overrides, None where that
    cannot be told."""

    config: Fields | None
    overrides: Mapping[str, Any] | None


class Settings:
    """The configs of a workdir (of a sweep, a merged one or a single run), and which of them each
    row is of."""

    def __init__(self, record: Mapping[str, Any]):
        """Reads the configs of a record, see record_of."""
        merged = record.get("merged")
        configs = merged if isinstance(merged, list) else [record.get("config")]
        self.configs = [run_fields(config) for config in configs]
        self._are_sweeps = [
            isinstance(config, Mapping) and bool(config.get("sweep")) for config in configs
        ]
        points = record.get("points")
        self.points: Mapping[str, Any] | None = points if isinstance(points, Mapping) else None

    def entry(self, row: Mapping[str, Any]) -> Entry:
        """Returns the config of a row and its overrides; where the manifest names the point, the
        manifest's."""
        point = self.points.get(row["id"]) if self.points is not None else {}
        if not isinstance(point, Mapping):  # no point of this manifest
            return Entry(None, None)
        overrides = (
            point["overrides"]
            if isinstance(point.get("overrides"), Mapping)
            else row.get("overrides")
        )
        # also where one is a section
        overrides = dict(leaves(overrides)) if isinstance(overrides, Mapping) else {}
        which = point.get("config", None if len(self.configs) > 1 else 0)
        if type(which) is int and 0 <= which < len(self.configs):
            return Entry(self.configs[which], overrides)
        fitting = [
            config
            for config in self.configs
            if config is not None and _agrees(row, config, overrides)
        ]
        return Entry(fitting[0] if len(fitting) == 1 else None, overrides)

    def own_fields(self, rows: Iterable[Mapping[str, Any]]) -> list[set[str]]:
        """Returns, for each config, the fields in which its runs may differ: those that its points
        set, and those that a curve plots."""
        found: list[set[str]] = [{*PLOTTED} for _ in self.configs]
        for row in [*({"id": name} for name in self.points or {}), *rows]:
            entry = self.entry(row)
            for config, own in zip(self.configs, found, strict=True):
                own |= (
                    set(entry.overrides or ())
                    if config is entry.config or config == entry.config
                    else set()
                )
        return found

    def place(
        self, row: Mapping[str, Any], fields: Fields | None, own: Sequence[set[str]]
    ) -> tuple[int, dict[str, Any]] | None:
        """Returns (number of the config, overrides) by which a single run is or could be a point of
        this workdir, else None.

        Args:
          fields: the config of the single run. own: see own_fields.
        """
        if self.points and row["id"] in self.points:
            entry = self.entry(row)
            if entry.config is not None and entry.overrides is not None:
                return next(i for i, c in enumerate(self.configs) if c is entry.config), dict(
                    entry.overrides
                )
        for number, config in enumerate(self.configs):
            if fields is not None and config is not None:
                may_differ = (
                    own[number] if self._are_sweeps[number] else own[number] | numbers(fields)
                )
                if (overrides := belongs(fields, config, may_differ)) is not None:
                    return number, overrides
        return None


def record_of(root: Path) -> dict[str, Any]:
    """Reads the manifest of a sweep's workdir; for a single run makes one like that of a sweep of
    it alone; else returns {}."""
    if (root / "manifest.json").exists():
        return read_manifest(root / "manifest.json")
    if (root / "config.json").exists():
        return {"config": read_config(root / "config.json")}
    return {}


def is_single_run(root: Path) -> bool:
    """Returns whether a workdir is that of `mujax train`."""
    others = ("manifest.json", "results.jsonl")
    return (root / "config.json").exists() and not any((root / name).exists() for name in others)


def belongs(run: Fields, config: Fields, own: Iterable[str]) -> dict[str, Any] | None:
    """Returns the overrides that turn a sweep's config into that of a single run; None if more than
    `own` fields differ."""
    found = changes(run, config)
    return found if run.keys() == config.keys() and found.keys() <= set(own) else None


def among(run: Fields, bases: list[Fields]) -> tuple[Fields, dict[str, Any]]:
    """Returns (base, overrides) of a single run among others.

    The base is the first that it differs from in numbers and in its table alone, as points of one
    sweep may. A run without such a base becomes one itself.
    """
    for base in bases:
        if (found := belongs(run, base, numbers(run))) is not None:
            return base, found
    bases.append(run)
    return run, {}


def numbers(run: Fields) -> set[str]:
    """Returns the fields in which single runs may differ and yet be points of one sweep: numbers,
    and the table's name."""
    return {field for field, value in run.items() if type(value) in (int, float)} | {
        "parameterization.name"
    }


def _agrees(row: Mapping[str, Any], config: Fields, overrides: Fields) -> bool:
    """Returns whether what a row says of itself could come from a config."""
    said = {field: row[fact] for field, fact in FACTS.items() if row.get(fact) is not None}
    here = {**config, **overrides}
    return all(
        comparable(value) == comparable(here[field])
        for field, value in said.items()
        if field in here
    )
