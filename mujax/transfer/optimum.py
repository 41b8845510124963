"""The optimum of loss against learning rate: the best grid point, beside it a local parabola with its error.

Positions are log2 learning rates, losses nats a token. Curvature is d2L/dx2 with x = ln(learning rate), as in
Kalra & Barkeshli (arXiv 2605.21486). Axes: D draws, X learning rates, S seeds. A diverged run is None here, nan in
arrays, and never a number; one diverged seed makes its whole point diverged.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from mujax.transfer.parabola import LN2, LOCAL, Fits, Window, fit_parabolas, parabola_vertex

# Losses at one learning rate: of one run, or of each seed
Cell = float | None | Sequence[float | None]

# Flags: what is wrong with an optimum, in words. A verdict never rests on a flagged one.
EDGE = "the best point is at the edge of the grid"
UNBRACKETED = "a neighbour of the best point diverged"
FEW = "fewer than 3 points to fit"
NONCONVEX = "not convex around the best point"
FLAT = "curvature cannot be told from 0"
OUTSIDE = "the parabola's vertex is outside the points fitted"
STEEP = "a neighbour of the best point is above the loss bound: the grid is too coarse"
NO_NOISE = "noise unknown: one seed a point and too few points to estimate it"


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviation of one run's loss, nats; dof: degrees of freedom it was estimated with, None if given."""

    sigma: float
    dof: int | None
    source: str

    def quantile(self, z: float) -> float:
        """The value of Student's t as improbable as z standard deviations of a normal."""
        return z if self.dof is None else float(stats.t.ppf(stats.norm.cdf(z), self.dof))


@dataclasses.dataclass(frozen=True)
class Parabola:
    """A parabola minimum + curvature/2 (x - vertex)^2, x = ln LR, fitted to the kept points.

    vertex: log2 LR. interval: its 68% interval (Fieller's, exact for a ratio), None where unbounded.
    curvature: nats per (ln LR)^2. covariance: of (minimum, vertex in log2, curvature), nats and log2; None with
      unknown noise.
    """

    vertex: float
    interval: tuple[float, float] | None
    minimum: float
    curvature: float
    covariance: tuple[tuple[float, ...], ...] | None
    num_points: int
    span: tuple[float, float]

    def loss(self, log2_lr: float) -> float:
        return self.minimum + self.curvature / 2 * (LN2 * (log2_lr - self.vertex)) ** 2

    def error(self, i: int) -> float:
        """Standard error of (minimum, vertex, curvature)[i]; nan with unknown noise."""
        return math.sqrt(self.covariance[i][i]) if self.covariance else math.nan


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best point of a curve.

    log2_lr, loss: of the best grid point. vertex: log2 LR of the parabola through it and its two neighbours,
    None unless both are there and finite. on_edge: it is the first or the last of the grid, so the
    optimum may lie outside.
    parabola: the local least-squares fit, None where there is none. noise: what its errors rest on.
    flags: what is wrong with it.
    """

    log2_lr: float
    loss: float
    vertex: float | None
    on_edge: bool
    parabola: Parabola | None
    noise: Noise | None
    flags: tuple[str, ...]


def cell_means(losses: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Means over seeds (nan where one diverged), numbers of seeds, and the losses themselves."""
    cells = [np.atleast_1d(np.asarray(cell, dtype=float)) for cell in losses]
    means = np.array([cell.mean() if cell.size else math.nan for cell in cells])
    return np.where(np.isfinite(means), means, math.nan), np.array([max(cell.size, 1) for cell in cells]), cells


def fit_optima(
    log2_lrs: Sequence[Sequence[float]],
    losses: Sequence[Sequence[Cell]],
    noise: float | None = None,
    window: Window = LOCAL,
) -> list[Optimum | None]:
    """Optima of several curves, such as the widths of one study, that share their noise; None: all diverged.

    log2_lrs: ascending, a list a curve. losses: likewise.
    noise: standard deviation of one run's loss, nats. Without it, it is estimated over all curves, from the seeds
      of the points kept or, with one seed a point, from what the parabolas leave.
    """
    cells = [cell_means(curve) for curve in losses]
    grids = [np.asarray(grid, float) for grid in log2_lrs]
    fits = [
        fit_parabolas(grid, means[None], seeds, window) if np.isfinite(means).any() else None
        for grid, (means, seeds, _) in zip(grids, cells, strict=True)
    ]
    found = pool_noise([(fit, c[2]) for fit, c in zip(fits, cells, strict=True) if fit], noise)
    return [
        None if fit is None else _optimum(grid, c[0], fit, found, window)
        for grid, c, fit in zip(grids, cells, fits, strict=True)
    ]


def fit_optimum(
    log2_lrs: Sequence[float], losses: Sequence[Cell], noise: float | None = None, window: Window = LOCAL
) -> Optimum | None:
    """The optimum of one curve; None if every point diverged. See fit_optima."""
    return fit_optima([log2_lrs], [losses], noise, window)[0]


def pool_noise(curves: Sequence[tuple[Fits, list[np.ndarray]]], given: float | None) -> Noise | None:
    """One noise level for all curves; None where nothing tells it.

    A level that is given or comes from seeds is widened where the parabolas miss the points by more (p < 0.01).
    """
    kept = [cell for fit, cells in curves for cell, keep in zip(cells, fit.keep_DX[0], strict=True) if keep]
    seed_dof = sum(cell.size - 1 for cell in kept)
    fitted = [fit for fit, _ in curves if fit.count_D[0] > 3]
    rss, dof = sum(float(fit.rss_D[0]) for fit in fitted), sum(int(fit.count_D[0]) - 3 for fit in fitted)
    if given is not None:
        noise = Noise(max(given, 1e-12), None, "given")
    elif seed_dof >= 2:
        squares = sum(float(((cell - cell.mean()) ** 2).sum()) for cell in kept)
        noise = Noise(math.sqrt(squares / seed_dof) or 1e-12, seed_dof, "seeds")
    elif dof >= 2:
        return Noise(math.sqrt(rss / dof) or 1e-12, dof, "residuals")
    else:
        return None
    if dof:
        ratio = rss / dof / noise.sigma**2
        if stats.f.sf(ratio, dof, noise.dof or 10**6) < 0.01:
            return Noise(math.sqrt(rss / dof), dof, f"{noise.source}, widened to the residuals")
    return noise


def _optimum(x_X: np.ndarray, mean_X: np.ndarray, fit: Fits, noise: Noise | None, window: Window) -> Optimum:
    best, keep_X = int(fit.best_D[0]), fit.keep_DX[0]
    on_edge, flags, vertex = best in (0, len(x_X) - 1), [], None
    if on_edge:
        flags.append(EDGE)
    elif not np.isfinite(mean_X[best - 1 : best + 2]).all():
        flags.append(UNBRACKETED)
    else:
        near = slice(best - 1, best + 2)
        vertex = float(parabola_vertex(x_X[near].tolist(), mean_X[near].tolist()))
    if (mean_X[max(best - 1, 0) : best + 2] > window.loss_ratio * mean_X[best]).any():
        flags.append(STEEP)
    c0, c1, c2 = fit.coef_D3[0]
    parabola = None
    if keep_X.sum() < 3:
        flags.append(FEW)
    elif c2 <= 0:
        flags.append(NONCONVEX)
    else:
        parabola, more = _parabola(x_X[keep_X], fit, noise)
        flags += more
    loss, log2_lr = float(mean_X[best]), float(x_X[best])
    return Optimum(log2_lr, loss, vertex, on_edge, parabola, noise, tuple(flags))


def _parabola(kept: np.ndarray, fit: Fits, noise: Noise | None) -> tuple[Parabola, list[str]]:
    value, unit = (a[0] for a in fit.summaries())
    span, flags, interval = (float(kept[0]), float(kept[-1])), [], None
    if not span[0] <= value[1] <= span[1]:
        flags.append(OUTSIDE)
    if noise is None:
        flags.append(NO_NOISE)
    else:
        if value[2] < noise.quantile(3) * noise.sigma * math.sqrt(unit[2, 2]):
            flags.append(FLAT)
        interval = _fieller(fit, noise)
    covariance = None if noise is None else tuple(map(tuple, (noise.sigma**2 * unit).tolist()))
    minimum, vertex, curvature = map(float, value)
    return Parabola(vertex, interval, minimum, curvature, covariance, len(kept), span), flags


def _fieller(fit: Fits, noise: Noise) -> tuple[float, float] | None:
    """68% interval of -c1 / (2 c2), in log2 LR: where (c1 + 2 c2 v)^2 <= q var(c1 + 2 c2 v)."""
    (_, c1, c2), s, q = fit.coef_D3[0], fit.unit_D33[0], (noise.sigma * noise.quantile(1)) ** 2
    a, b, c = 4 * (c2**2 - q * s[2, 2]), 4 * (c1 * c2 - q * s[1, 2]), c1**2 - q * s[1, 1]
    if a <= 0:
        return None
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    low, high = ((sign * root - b) / (2 * a) for sign in (-1, 1))
    return float((low + fit.origin_D[0]) / LN2), float((high + fit.origin_D[0]) / LN2)


def usable(widths: Sequence[int], optima: Sequence[Optimum | None]) -> list[tuple[int, Parabola, Noise]]:
    """What may be measured with: the widths whose optimum has a parabola with errors, and no flag."""
    return [
        (n, o.parabola, o.noise)
        for n, o in zip(widths, optima, strict=True)
        if o and o.parabola and o.noise and not o.flags
    ]
