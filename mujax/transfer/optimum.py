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

LN2 = math.log(2)
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
class Window:
    """Which points of a curve its parabola is fitted to.

    half_width: distance to the vertex in log2 LR, at least 1.5 grid steps so that there are 3 points.
    loss_ratio: kept losses are below this multiple of the lowest.
    contiguous: nothing beyond a point that is left out.

    The default is local, since real curves are lopsided (slow below the optimum, a cliff above) and a wide parabola's
    vertex is pulled to the slow side. It moves with the vertex, not with the noisy best point: choosing points
    by their own noise biases the curvature.
    """

    half_width: float = 2.5
    loss_ratio: float = 1.15
    contiguous: bool = True


LOCAL = Window()
KALRA = Window(math.inf, 1.35, contiguous=False)  # the filter of arXiv 2605.21486


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


@dataclasses.dataclass(frozen=True)
class Fits:
    """Parabolas of D draws of one curve, y = c0 + c1 u + c2 u^2 with u = ln(LR) - origin; unit: (X'WX)^-1."""

    best_D: np.ndarray
    keep_DX: np.ndarray
    origin_D: np.ndarray
    coef_D3: np.ndarray
    unit_D33: np.ndarray
    rss_D: np.ndarray

    @property
    def count_D(self) -> np.ndarray:
        return self.keep_DX.sum(1)

    def summaries(self) -> tuple[np.ndarray, np.ndarray]:
        """(minimum, vertex in log2, curvature) as (D, 3), and the covariance for noise 1 as (D, 3, 3)."""
        c0, c1, c2 = self.coef_D3.T
        with np.errstate(divide="ignore", invalid="ignore"):
            v, h = -c1 / (2 * c2), 2 * c2
            value_D3 = np.stack([c0 - c1**2 / (4 * c2), (v + self.origin_D) / LN2, h], -1)
            zero, one = np.zeros_like(v), np.ones_like(v)
            rows = [[one, v, v**2], [zero, -1 / h / LN2, -2 * v / h / LN2], [zero, zero, 2 * one]]
            jacobian_D33 = np.stack([np.stack(row, -1) for row in rows], -2)
            return value_D3, jacobian_D33 @ self.unit_D33 @ jacobian_D33.swapaxes(-1, -2)


def cell_means(losses: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Means over seeds (nan where one diverged), numbers of seeds, and the losses themselves."""
    cells = [np.atleast_1d(np.asarray(cell, dtype=float)) for cell in losses]
    means = np.array([cell.mean() if cell.size else math.nan for cell in cells])
    return np.where(np.isfinite(means), means, math.nan), np.array([max(cell.size, 1) for cell in cells]), cells


def fit_parabolas(log2_lrs: np.ndarray, loss_DX: np.ndarray, seeds_X: np.ndarray, window: Window = LOCAL) -> Fits:
    """Batched local fits; every draw has a finite loss. Points count by their number of seeds."""
    x_X, finite_DX = np.asarray(log2_lrs, float), np.isfinite(loss_DX)
    y_DX, rows, last = np.where(finite_DX, loss_DX, math.inf), np.arange(len(loss_DX)), len(x_X) - 1
    best_D = y_DX.argmin(1)
    low_D, high_D = x_X[np.maximum(best_D - 1, 0)], x_X[np.minimum(best_D + 1, last)]
    step_D = np.maximum(high_D - x_X[best_D], x_X[best_D] - low_D)
    half_D = np.maximum(window.half_width, 1.5 * step_D)[:, None]
    neighbour_DX = finite_DX & (x_X >= low_D[:, None]) & (x_X <= high_D[:, None])
    inside_DX = neighbour_DX | (y_DX <= window.loss_ratio * y_DX[rows, best_D][:, None])
    if window.contiguous:
        out_DX = np.cumsum(~inside_DX, 1)  # constant from the best point up to the first that is left out
        reach_DX = np.concatenate([np.zeros_like(out_DX[:, :1]), out_DX[:, :-1]], 1)
        at = out_DX[rows, best_D][:, None]
        inside_DX &= np.where(np.arange(len(x_X)) > best_D[:, None], out_DX == at, reach_DX == at)
    u_DX = LN2 * (x_X - x_X[best_D][:, None])
    design_DX3 = np.stack([np.ones_like(u_DX), u_DX, u_DX**2], -1)
    y_DX = np.where(finite_DX, loss_DX, 0.0)
    center_D = x_X[best_D]
    for _ in range(3):  # the window follows the vertex
        keep_DX = inside_DX & (np.abs(x_X - center_D[:, None]) <= half_D + 1e-9)
        weighted_DX3 = design_DX3 * (keep_DX * seeds_X)[..., None]
        normal_D33 = np.einsum("dxi,dxj->dij", weighted_DX3, design_DX3)
        enough_D = keep_DX.sum(1) >= 3
        unit_D33 = np.linalg.inv(np.where(enough_D[:, None, None], normal_D33, np.eye(3)))
        coef_D3 = np.einsum("dij,dxj,dx->di", unit_D33, weighted_DX3, y_DX)
        convex_D = enough_D & (coef_D3[:, 2] > 0)
        vertex_D = x_X[best_D] - coef_D3[:, 1] / np.where(convex_D, 2 * coef_D3[:, 2], 1) / LN2
        center_D = np.where(convex_D, np.clip(vertex_D, low_D, high_D), x_X[best_D])
    rss_D = (keep_DX * seeds_X * (y_DX - np.einsum("dxi,di->dx", design_DX3, coef_D3)) ** 2).sum(1)
    coef_D3[~enough_D] = unit_D33[~enough_D] = rss_D[~enough_D] = math.nan
    return Fits(best_D, keep_DX, LN2 * x_X[best_D], coef_D3, unit_D33, rss_D)


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
        noise = Noise(given, None, "given")
    elif seed_dof >= 2:
        squares = sum(float(((cell - cell.mean()) ** 2).sum()) for cell in kept)
        noise = Noise(math.sqrt(squares / seed_dof), seed_dof, "seeds")
    elif dof >= 2:
        return Noise(math.sqrt(rss / dof), dof, "residuals")
    else:
        return None
    if dof and noise.sigma:
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
        vertex = float(parabola_vertex(x_X[best - 1 : best + 2], mean_X[best - 1 : best + 2]))
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
