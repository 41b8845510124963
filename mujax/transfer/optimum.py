"""The optimum of loss against learning rate: the best grid point, and the fitted minimum.

Positions are log2 learning rates, losses nats per token. Curvature is d2L/dx2 with x = ln(learning
rate), as in Kalra & Barkeshli (arXiv 2605.21486). Axes: D draws, X learning rates, S seeds, W
curves. A diverged run is None here, nan in arrays, and never a number; one diverged seed makes its
whole point diverged. A point that was not run is absent.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from mujax.transfer.noise import Noise, SeedCurve, noise_from_seeds, student
from mujax.transfer.parabola import LN2, Fits, fit_parabolas
from mujax.transfer.valley import Bowl, Valleys

# Losses at one learning rate: of one run, or of each seed, in the same order everywhere
Cell = float | None | Sequence[float | None]

# Flags say what is wrong with an optimum. A verdict never rests on a flagged optimum.
EDGE = "the best point is at the edge of the grid"
UNBRACKETED = "a neighbour of the best point diverged"
FEW = "fewer than 3 points to fit"
COARSE = (
    "fewer than 4 points around the best: the curve's shape, and so its optimum, cannot be told"
)
NONCONVEX = "not convex around the best point"
FLAT = "curvature cannot be told from 0"
CONTRADICTS = "the fitted optimum contradicts the measured points"
STEEP = "a neighbour of the best point is more than 0.4 nats above it: the grid is too coarse"
NO_NOISE = "noise unknown: one seed per point and too few points to estimate it"

# Cautions leave no verdict undecided: the optimum's interval allows for them.
BORROWED = (
    "too few seeds to tell how far they move the optimum: 0.2 log2 LR is borrowed from other "
    "studies"
)
DISAGREE = "a parabola's vertex is elsewhere"

BOWL = 3.0  # log2 LR to each side of the best point, where the shared shape is fitted
RISE = 0.4  # nats above the best point, beyond which a curve is a cliff
_NEEDED = 4  # points needed to fit a shape


@dataclasses.dataclass(frozen=True)
class Parabola:
    """A parabola minimum + curvature/2 (x - vertex)^2, x = ln LR, fitted within 2.5 log2 LR.

    Curvature and its error are measured with it. Its vertex is a second opinion on the optimum,
    biased where a curve is steeper on one side.

    vertex: log2 LR.
    curvature: nats per (ln LR)^2.
    covariance: of (minimum, vertex in log2, curvature), nats and log2; None with unknown noise.
    """

    vertex: float
    minimum: float
    curvature: float
    covariance: tuple[tuple[float, ...], ...] | None
    num_points: int
    span: tuple[float, float]

    def loss(self, log2_lr: float) -> float:
        """Returns the parabola's loss at a log2 learning rate, nats."""
        return self.minimum + self.curvature / 2 * (LN2 * (log2_lr - self.vertex)) ** 2

    def error(self, i: int) -> float:
        """Returns the standard error of (minimum, vertex, curvature)[i]; nan with unknown noise."""
        return math.sqrt(self.covariance[i][i]) if self.covariance else math.nan


@dataclasses.dataclass(frozen=True)
class Fit:
    """The fit that the curves of one study share.

    covariance_WW: covariance of the vertices, log2 LR squared, from noise, from the freedom of the
      shape, and from seeds that move the optimum.
    dof: effective degrees of freedom of the errors (Satterthwaite), None for many.
    """

    valleys: Valleys
    covariance_WW: np.ndarray
    dof: float | None

    def own_error(self, index: int) -> float:
        """Returns the standard error of a vertex, log2 LR, without the part common to all curves.

        The common part moves no trend.
        """
        size, variance = len(self.covariance_WW), float(self.covariance_WW[index, index])
        if size == 1:
            return math.sqrt(variance)
        common = (self.covariance_WW.sum() - np.trace(self.covariance_WW)) / (size * (size - 1))
        return math.sqrt(max(variance - max(float(common), 0.0), 0.1 * variance))


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best point of a curve, and the minimum of the fitted curve.

    log2_lr, loss: the best grid point.
    on_edge: whether it is the first or last of the grid, so that the optimum may lie outside.
    vertex: log2 LR where the fitted curve is lowest; None if no curve can be fitted.
    error: standard error of the vertex.
    interval: 68% interval of the vertex.
    minimum, minimum_error: fitted loss at the vertex, nats.
    parabola: the local least-squares parabola.
    noise: the noise that the errors rest on.
    flags: what is wrong with this optimum.
    cautions: what else a reader should know.
    fit, index: the fit of all curves of the study, and the index of this one.
    """

    log2_lr: float
    loss: float
    on_edge: bool
    vertex: float | None
    error: float
    minimum: float
    minimum_error: float
    parabola: Parabola | None
    noise: Noise | None
    flags: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    fit: Fit | None = None
    index: int = 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 68% interval of the vertex; None with unknown noise."""
        if self.vertex is None or self.fit is None or self.noise is None:
            return None
        half = self.error * student(1, self.fit.dof)
        return self.vertex - half, self.vertex + half

    @property
    def usable(self) -> bool:
        """Whether a conclusion may rest on this optimum: it has a vertex, an error, and no flag."""
        return self.vertex is not None and self.noise is not None and not self.flags


def cell_means(losses: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns means over seeds (nan if one diverged), numbers of seeds, and the losses per seed."""
    cells = [np.atleast_1d(np.asarray(cell, dtype=float)) for cell in losses]
    means = np.array([cell.mean() if cell.size else math.nan for cell in cells])
    return (
        np.where(np.isfinite(means), means, math.nan),
        np.array([max(cell.size, 1) for cell in cells]),
        cells,
    )


@dataclasses.dataclass(frozen=True)
class _Curve:
    """One curve and its parabola; the shared shape is fitted to the points `near` the best."""

    x_X: np.ndarray
    mean_X: np.ndarray
    seeds_X: np.ndarray
    cells: list[np.ndarray]
    parabola: Fits
    best: int
    near: slice

    def seed_curve(self) -> SeedCurve:
        """Returns the losses of the points near the best that have the most seeds."""
        most = self.seeds_X[self.near].max()
        at = [i for i in range(self.near.start, self.near.stop) if self.seeds_X[i] == most]
        _, vertex, curvature = self.parabola.summaries()[0][0]
        offset_X = self.x_X[at] - vertex
        return SeedCurve(
            offset_X, LN2**2 * curvature * offset_X, np.array([self.cells[i] for i in at])
        )

    def bowl(self, noise: Noise | None) -> Bowl:
        """Returns the points to fit.

        The optimum is searched between the points that are worse than the best by 3 errors.
        """
        x_X, mean_X, count_X = self.x_X[self.near], self.mean_X[self.near], self.seeds_X[self.near]
        best, sigma = self.best - self.near.start, noise.sigma if noise else 0.0
        worse_X = mean_X - mean_X[best] > 3 * sigma * np.sqrt(1 / count_X + 1 / count_X[best])
        low = max((i for i in range(best) if worse_X[i]), default=0)
        high = min((i for i in range(best + 1, len(x_X)) if worse_X[i]), default=len(x_X) - 1)
        _, vertex, curvature = self.parabola.summaries()[0][0]
        start = float(np.clip(vertex, x_X[low], x_X[high]))
        grow_X = np.exp((noise.growth if noise else 0.0) * (x_X - start))
        return Bowl(
            x_X,
            mean_X,
            grow_X / grow_X.mean() / count_X,
            start,
            x_X[low],
            x_X[high],
            LN2**2 * curvature / 2,
        )


def fit_optima(
    log2_lrs: Sequence[Sequence[float]],
    losses: Sequence[Sequence[Cell]],
    noise: float | None = None,
) -> list[Optimum | None]:
    """Finds the optima of several curves that share noise and shape, such as a study's widths.

    Args:
      log2_lrs: ascending, a list per curve.
      losses: a list per curve.
      noise: standard deviation of one run's loss, nats. None: estimated over all curves, from the
        seeds of the points around the optima or, with one seed per point, from the residuals.

    Returns:
      An optimum per curve; None where every point diverged.
    """
    curves = [_curve(grid, curve) for grid, curve in zip(log2_lrs, losses, strict=True)]
    flags = [_structure(curve) if curve else () for curve in curves]
    index = [i for i, curve in enumerate(curves) if curve and not flags[i]]
    good = [curve for i, curve in enumerate(curves) if curve and i in index]
    found = noise_from_seeds([curve.seed_curve() for curve in good])
    if noise is not None:
        found = dataclasses.replace(
            found or Noise(0.0, None, ""), sigma=max(noise, 1e-12), dof=None, source="given"
        )
    fit, found = _fit_together(good, found) if good else (None, found)
    optima: list[Optimum | None] = []
    for i, curve in enumerate(curves):
        if curve is None:
            optima.append(None)
        elif i in index and fit is not None:
            optima.append(_optimum(curve, fit, index.index(i), found))
        else:
            optima.append(_unfitted(curve, flags[i], found))
    return optima


def _curve(grid: Sequence[float], losses: Sequence[Cell]) -> _Curve | None:
    x_X, (mean_X, seeds_X, cells) = np.asarray(grid, float), cell_means(losses)
    if not np.isfinite(mean_X).any():
        return None
    parabola = fit_parabolas(x_X, mean_X[None], seeds_X)
    best, last = int(np.nanargmin(mean_X)), len(x_X) - 1
    step = max(x_X[min(best + 1, last)] - x_X[best], x_X[best] - x_X[max(best - 1, 0)])
    reach, low, high = max(BOWL, 1.5 * step) + 1e-9, best, best

    def belongs(i: int) -> bool:
        is_next = abs(i - best) == 1
        return bool(
            np.isfinite(mean_X[i])
            and (is_next or abs(x_X[i] - x_X[best]) <= reach and mean_X[i] <= mean_X[best] + RISE)
        )

    while low > 0 and belongs(low - 1):
        low -= 1
    while high < last and belongs(high + 1):
        high += 1
    return _Curve(x_X, mean_X, seeds_X, cells, parabola, best, slice(low, high + 1))


def _structure(curve: _Curve) -> tuple[str, ...]:
    """Returns the flags of a curve that has no bowl to fit."""
    best, mean_X = curve.best, curve.mean_X
    if best in (0, len(mean_X) - 1):
        return (EDGE, *((FEW,) if curve.parabola.count_D[0] < 3 else ()))
    if not np.isfinite(mean_X[best - 1 : best + 2]).all():
        return (UNBRACKETED,)
    if curve.parabola.count_D[0] < 3:
        return (FEW,)
    return (NONCONVEX,) if curve.parabola.coef_D3[0, 2] <= 0 else ()


def _fit_together(curves: Sequence[_Curve], noise: Noise | None) -> tuple[Fit, Noise | None]:
    """Fits the shared shape; known noise is widened where the curves miss the points (p < 0.05)."""
    valleys = Valleys([curve.bowl(noise) for curve in curves], noise.sigma if noise else None)
    wider = 1.0
    if noise is None:
        noise = Noise(valleys.sigma, valleys.spare, "residuals") if valleys.spare >= 2 else None
    elif valleys.spare > 0 and stats.f.sf(valleys.misfit, valleys.spare, noise.dof or 10**6) < 0.05:
        wider = valleys.misfit
        noise = dataclasses.replace(
            noise,
            sigma=noise.sigma * math.sqrt(wider),
            dof=valleys.spare,
            source=f"{noise.source}, widened to the residuals",
        )
    seeds_W = np.array([curve.seeds_X[curve.near].max() for curve in curves])
    spread_W = (noise.spread if noise else 0.0) ** 2 / seeds_W
    covariance_WW = wider * valleys.covariance_WW + np.diag(spread_W)
    dof = None
    if noise:
        share = float(spread_W.sum() / np.trace(covariance_WW))
        parts = [(1 - share, noise.dof), (share, noise.spread_dof)]
        spent = sum(part**2 / freedom for part, freedom in parts if freedom)
        dof = max(1 / spent, 1.0) if spent else None
    return Fit(valleys, covariance_WW, dof), noise


def _parabola(curve: _Curve, noise: Noise | None) -> Parabola | None:
    if curve.parabola.count_D[0] < 3 or curve.parabola.coef_D3[0, 2] <= 0:
        return None
    value, unit = (a[0] for a in curve.parabola.summaries())
    kept = curve.x_X[curve.parabola.keep_DX[0]]
    covariance = None if noise is None else tuple(map(tuple, (noise.sigma**2 * unit).tolist()))
    minimum, vertex, curvature = map(float, value)
    return Parabola(
        vertex, minimum, curvature, covariance, len(kept), (float(kept[0]), float(kept[-1]))
    )


def _unfitted(curve: _Curve, flags: tuple[str, ...], noise: Noise | None) -> Optimum:
    x, loss = float(curve.x_X[curve.best]), float(curve.mean_X[curve.best])
    return Optimum(
        x,
        loss,
        EDGE in flags,
        None,
        math.nan,
        math.nan,
        math.nan,
        _parabola(curve, noise),
        noise,
        flags,
    )


def _optimum(curve: _Curve, fit: Fit, index: int, noise: Noise | None) -> Optimum:
    best, valleys = curve.best, fit.valleys
    vertex, minimum = float(valleys.vertex_W[index]), float(valleys.minimum_W[index])
    error, minimum_error = (
        math.sqrt(fit.covariance_WW[index, index]),
        float(valleys.minimum_error_W[index]),
    )
    minimum_error = math.hypot(
        minimum_error, (noise.offset if noise else 0.0) / math.sqrt(curve.seeds_X[best])
    )
    bowl, parabola = valleys.bowls[index], _parabola(curve, noise)
    flags, cautions = [], []
    if (curve.mean_X[best - 1 : best + 2] > curve.mean_X[best] + RISE).any():
        flags.append(STEEP)
    if len(bowl.x) < _NEEDED:
        flags.append(COARSE)
    if noise is None:
        flags.append(NO_NOISE)
    else:
        if parabola and parabola.curvature < noise.quantile(3) * parabola.error(2):
            flags.append(FLAT)
        allowed = 3 * math.hypot(noise.sigma / math.sqrt(curve.seeds_X[best]), minimum_error)
        at_end = min(vertex - bowl.low, bowl.high - vertex) < 1e-3
        if at_end or minimum > curve.mean_X[best] + allowed:
            flags.append(CONTRADICTS)
        if noise.spread_dof is None:
            cautions.append(BORROWED)
    if parabola and abs(parabola.vertex - vertex) > max(0.25, 2 * error):
        cautions.append(f"{DISAGREE}, at {parabola.vertex:.2f}")
    return Optimum(
        float(curve.x_X[best]), float(curve.mean_X[best]), False, vertex, error, minimum,
        minimum_error, parabola, noise, tuple(flags), tuple(cautions), fit, index,
    )  # fmt: skip
