"""Curves of loss against learning rate, made from result rows; x is log2 learning rate."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mujax.report.studies import Naming
from mujax.sweep.pooling import level_seeds


@dataclasses.dataclass(frozen=True)
class Curve:
    """Final loss against learning rate at one width, averaged over seeds.

    log2_lrs, losses: ascending in learning rate; a loss is None where any seed diverged. A missing
      run leaves no trace.
    seeds, seed_losses: what was averaged, a tuple per learning rate; None is a diverged run. Where
      learning rates have different seeds, each seed's common offset is subtracted (see
      pooling.level_seeds).
    raw_losses: the seeds' losses as they were measured.
    """

    study: str
    width: int
    log2_lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    num_seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    seed_losses: tuple[tuple[float | None, ...], ...]
    seeds: tuple[tuple[int, ...], ...]
    raw_losses: tuple[tuple[float | None, ...], ...]


@dataclasses.dataclass(frozen=True)
class TrainingCurve:
    """Training loss of one run against step, nats per token."""

    study: str
    width: int
    log2_lr: float
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def make_curves(
    rows: Iterable[Mapping[str, Any]], naming: Naming | None = None
) -> dict[str, list[Curve]]:
    """Returns {study: curves in order of width} from rows.

    naming: names of the studies, if they are told apart among more rows than these.
    """
    rows = list(rows)
    naming = naming or Naming(rows)
    cells: dict[tuple[str, int], dict[float, list[tuple[int, float | None]]]] = {}
    for row in rows:
        by_lr = cells.setdefault((naming.name(row), row["width"]), {})
        if row["status"] in ("diverged", "stopped"):
            by_lr.setdefault(math.log2(naming.rate(row)), []).append((row["seed"], None))
        elif row["final_loss"] is not None:
            by_lr.setdefault(math.log2(naming.rate(row)), []).append(
                (row["seed"], row["final_loss"])
            )
    # studies in the order in which the sweep names them
    studies: dict[str, list[Curve]] = {study: [] for study, _ in cells}
    for (study, width), by_lr in sorted(cells.items(), key=lambda item: item[0][1]):
        log2_lrs = tuple(sorted(by_lr))
        seeds = tuple(tuple(seed for seed, _ in by_lr[x]) for x in log2_lrs)
        raw = tuple(tuple(loss for _, loss in by_lr[x]) for x in log2_lrs)
        level = level_seeds(seeds, raw)
        means, diverged = tuple(map(_mean, level)), tuple(losses.count(None) for losses in raw)
        if log2_lrs:
            studies[study].append(
                Curve(
                    study,
                    width,
                    log2_lrs,
                    means,
                    tuple(map(len, seeds)),
                    diverged,
                    level,
                    seeds,
                    raw,
                )
            )
    return {study: curves for study, curves in studies.items() if curves}


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None]
    return float(np.mean(finite)) if len(finite) == len(losses) else None
