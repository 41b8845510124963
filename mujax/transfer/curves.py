"""Loss against learning rate: from result rows to curves, optima and drift. x is log2 learning rate."""

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
    """

    study: str
    width: int
    log2_lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    num_seeds: tuple[int, ...]
    diverged: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TrainingCurve:
    """Training loss of one run against step, nats a token."""

    study: str
    width: int
    log2_lr: float
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best point of a curve.

    log2_lr, loss: of the best grid point. vertex: x of the parabola through it and its two neighbours,
    None unless both are there and finite. on_edge: it is the first or the last of the grid, so the
    optimum may lie outside.
    """

    log2_lr: float
    loss: float
    vertex: float | None
    on_edge: bool


@dataclasses.dataclass(frozen=True)
class Drift:
    """How the optimum moves. per_doubling: least-squares slope of its log2 LR against log2 width.

    narrowest, widest: (width, log2 LR of the best grid point) at the two ends.
    edge_widths: widths whose optimum lies at the edge of the grid; with any, the drift is a bound at
      best and must not be reported as a measurement.
    """

    per_doubling: float
    narrowest: tuple[int, float]
    widest: tuple[int, float]
    edge_widths: tuple[int, ...]


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
        curves.setdefault(study, []).append(Curve(study, width, log2_lrs, losses, tuple(map(len, seeds)), diverged))
    # Studies in the order in which the sweep names them
    order = list(dict.fromkeys(study_name(row, varying) for row in rows))
    return {study: curves[study] for study in order}


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None]
    return float(np.mean(finite)) if len(finite) == len(losses) else None


def varying_fields(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Override fields that take several values among the rows, apart from those that a curve plots."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for field, value in row["overrides"].items():
            values.setdefault(field, set()).add(repr(value))
    return [field for field, seen in values.items() if len(seen) > 1 and field not in _PLOTTED]


def study_name(row: Mapping[str, Any], varying: Sequence[str]) -> str:
    parts = [f"{field.rpartition('.')[2]}={row['overrides'].get(field)}" for field in varying]
    return ", ".join([row["parameterization"], *parts])


def find_optimum(curve: Curve) -> Optimum | None:
    """The optimum of a curve; None if every point diverged."""
    finite = [(loss, i) for i, loss in enumerate(curve.losses) if loss is not None]
    if not finite:
        return None
    loss, best = min(finite)
    x, vertex = curve.log2_lrs, None
    on_edge = best in (0, len(x) - 1)
    if not on_edge:
        left, right = curve.losses[best - 1], curve.losses[best + 1]
        if left is not None and right is not None:
            vertex = parabola_vertex(x[best - 1 : best + 2], (left, loss, right))
    return Optimum(x[best], loss, vertex, on_edge)


def parabola_vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """x of the minimum of the parabola through three points, the middle one lowest; any spacing.

    On a flat bottom (all three equal) it is the middle one.
    """
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    if left == right:
        return x[1]
    # The secant slopes hold at the midpoints of their intervals; the vertex is where the slope is zero.
    first, last = (x[0] + x[1]) / 2, (x[1] + x[2]) / 2
    return first - left * (last - first) / (right - left)


def find_drift(curves: Sequence[Curve]) -> Drift | None:
    """Drift of one study's optimum; interpolated optima where there are, grid ones elsewhere.

    None with fewer than two widths that have an optimum.
    """
    optima = [(curve.width, optimum) for curve in curves if (optimum := find_optimum(curve))]
    if len({width for width, _ in optima}) < 2:
        return None
    log2_widths = np.log2([width for width, _ in optima])
    best = [o.log2_lr if o.vertex is None else o.vertex for _, o in optima]
    slope = np.polyfit(log2_widths, best, 1)[0]
    (first, narrow), (last, wide) = optima[0], optima[-1]
    edges = tuple(width for width, optimum in optima if optimum.on_edge)
    return Drift(float(slope), (first, narrow.log2_lr), (last, wide.log2_lr), edges)
