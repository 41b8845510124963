"""Noise in one study's curves: of a run's loss, of its growth with the learning rate, and of seeds.

A seed may shift its own optimum. Positions are log2 learning rates, losses nats per token. Axes: X
learning rates, S seeds.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

# Spread of the optimum over seeds, log2 LR, borrowed where a study has too few seeds to estimate
# its own. In the 54 studies of experiments/lingle2024 and experiments/kalra2026 that have at least
# three seeds it is 0.165 (root mean square over 426 degrees of freedom), with quartiles of 0 and
# 0.21 over studies; the value here is on the high side.
BORROWED_SPREAD = 0.2
_GROWTH_PRIOR = 0.7  # standard deviation of the log variance's slope per log2 LR, before any data


@dataclasses.dataclass(frozen=True)
class Noise:
    """The standard deviation `sigma` of one run's loss, nats, and what else seeds change.

    dof: degrees of freedom that sigma was estimated with, None if it was given.
    growth: slope of the log variance per log2 LR.
    spread: standard deviation of a seed's own optimum, log2 LR.
    spread_dof: degrees of freedom of the spread, None if it is borrowed.
    offset: standard deviation of a seed's luck, nats, which is common to all learning rates; 0 if
      it cannot be estimated.
    """

    sigma: float
    dof: int | None
    source: str
    growth: float = 0.0
    spread: float = BORROWED_SPREAD
    spread_dof: int | None = None
    offset: float = 0.0

    def quantile(self, z: float) -> float:
        """Returns the value of Student's t as improbable as z standard deviations of a normal."""
        return student(z, self.dof)


def student(z: float, dof: float | None) -> float:
    """Returns the value of Student's t as improbable as z standard deviations of a normal.

    dof: degrees of freedom; None for a normal distribution.
    """
    return z if dof is None else float(stats.t.ppf(stats.norm.cdf(z), dof))


@dataclasses.dataclass(frozen=True)
class SeedCurve:
    """Losses around the optimum of one curve, at the learning rates that have all of its seeds.

    offset_X: log2 LR less the optimum.
    slope_X: derivative of the loss there, nats per log2 LR.
    """

    offset_X: np.ndarray
    slope_X: np.ndarray
    loss_XS: np.ndarray


def noise_from_seeds(curves: Sequence[SeedCurve]) -> Noise | None:
    """Splits differences between seeds into each seed's offset and shift, and each run's noise.

    A seed's offset is common to its learning rates and moves no optimum. A shift s of the optimum
    changes the loss by -slope * s. None with fewer than two degrees of freedom for the noise.
    """
    squares, dof, logs, shifts, offsets = 0.0, 0, [], [], []
    for curve in curves:
        num_points, num_seeds = curve.loss_XS.shape
        if num_seeds < 2 or num_points < 2:
            continue
        left_XS = curve.loss_XS - curve.loss_XS.mean(1, keepdims=True)
        offset_S = left_XS.mean(0)
        left_XS = left_XS - offset_S
        offsets.append((float(offset_S @ offset_S), num_seeds - 1, num_points))
        slope_X, params = curve.slope_X - curve.slope_X.mean(), 1
        size = float(slope_X @ slope_X)
        if num_points > 3 and size > 0:
            shift_S, params = slope_X @ left_XS / size, 2
            left_XS = left_XS - slope_X[:, None] * shift_S
            shifts.append((float(shift_S @ shift_S), num_seeds - 1, size))
        squares += float((left_XS**2).sum())
        dof += (num_points - params) * (num_seeds - 1)
        with np.errstate(divide="ignore"):
            log_X = np.log((left_XS**2).sum(1) / (num_seeds - 1))
        logs += [
            (x, y, num_seeds - 1)
            for x, y in zip(curve.offset_X, log_X, strict=True)
            if math.isfinite(y)
        ]
    if dof < 2:
        return None
    variance = squares / dof
    spread_dof = sum(freedom for _, freedom, _ in shifts)
    known = spread_dof >= 4
    return Noise(
        math.sqrt(variance) or 1e-12, dof, "seeds", _growth(logs),
        _excess(shifts, variance) if known else BORROWED_SPREAD,
        spread_dof if known else None, _excess(offsets, variance),
    )  # fmt: skip


def _excess(sums: Sequence[tuple[float, int, float]], variance: float) -> float:
    """Returns the standard deviation over seeds that remains after the noise is subtracted.

    sums: (sum of squares, dof, weight) of each estimate per seed.
    """
    own = sum(total - freedom * variance / size for total, freedom, size in sums) / sum(
        f for _, f, _ in sums
    )
    return math.sqrt(max(own, 0.0))


def _growth(logs: Sequence[tuple[float, float, int]]) -> float:
    """Returns the slope of the log variance per log2 LR.

    The variance of a log variance with f degrees of freedom is about 2 / f.
    """
    if len(logs) < 6:
        return 0.0
    x, y, freedom = np.array(logs, float).T
    weight = freedom / 2.6
    x0 = x - np.average(x, weights=weight)
    return float((weight * x0 * y).sum() / ((weight * x0**2).sum() + _GROWTH_PRIOR**-2))
