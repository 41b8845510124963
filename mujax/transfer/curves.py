"""Loss against learning rate: from result rows to curves. x is log2 learning rate."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Fields of a sweep that a curve plots or averages over; every other field that varies splits the study.
_PLOTTED = ("model.d_model", "optim.learning_rate", "seed", "parameterization.name")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Final loss against learning rate at one width, averaged over seeds.

    log2_lrs, losses: ascending in learning rate; a loss is None where any seed diverged.
    seed_losses: what was averaged, a tuple a learning rate; None is a diverged run.
    """

    study: str
    width: int
    log2_lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    num_seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    seed_losses: tuple[tuple[float | None, ...], ...]


@dataclasses.dataclass(frozen=True)
class TrainingCurve:
    """Training loss of one run against step, nats a token."""

    study: str
    width: int
    log2_lr: float
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def make_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Curve]]:
    """Rows -> study -> curves in order of width. A study is a parameterization and whatever else varies."""
    rows = list(rows)
    varying = varying_fields(rows)
    cells: dict[tuple[str, int], dict[float, list[float | None]]] = {}
    for row in rows:
        key = (study_name(row, varying), row["width"])
        loss = row["final_loss"] if row["status"] == "ok" else None
        cells.setdefault(key, {}).setdefault(math.log2(row["learning_rate"]), []).append(loss)
    curves: dict[str, list[Curve]] = {}
    for (study, width), by_lr in sorted(cells.items(), key=lambda item: item[0][1]):
        log2_lrs = tuple(sorted(by_lr))
        seeds = [by_lr[x] for x in log2_lrs]
        losses = tuple(_mean(values) for values in seeds)
        diverged = tuple(losses.count(None) for losses in seeds)
        members = curves.setdefault(study, [])
        members.append(
            Curve(study, width, log2_lrs, losses, tuple(map(len, seeds)), diverged, tuple(map(tuple, seeds)))
        )
    # Studies in the order in which the sweep names them
    order = list(dict.fromkeys(study_name(row, varying) for row in rows))
    return {study: curves[study] for study in order}


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None]
    return float(np.mean(finite)) if len(finite) == len(losses) else None


def varying_fields(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Override fields that take several values among the rows of one width, apart from those that a curve plots.

    A field with one value at each width, e.g. steps at fixed tokens a parameter, goes along with the width.
    """
    values: dict[str, dict[int, set[str]]] = {}
    for row in rows:
        for field, value in row["overrides"].items():
            values.setdefault(field, {}).setdefault(row["width"], set()).add(repr(value))
    return [
        field
        for field, by_width in values.items()
        if any(len(seen) > 1 for seen in by_width.values()) and field not in _PLOTTED
    ]


def study_name(row: Mapping[str, Any], varying: Sequence[str]) -> str:
    parts = [f"{field.rpartition('.')[2]}={row['overrides'].get(field)}" for field in varying]
    return ", ".join([row["parameterization"], *parts])
