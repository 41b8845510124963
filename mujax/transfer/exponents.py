"""The three laws of one study, and what follows from their exponents together: kappa, fast transfer, a bootstrap.

Axes: D draws, P exponents, W widths, X learning rates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mujax.transfer.laws import BOUNDS, NAMES, Estimate, Kind, Law, fit_law, profile
from mujax.transfer.optimum import Cell, Optimum, cell_means, fit_optima, usable
from mujax.transfer.parabola import LOCAL, Window, fit_parabolas


def fit_laws(
    widths: Sequence[int],
    optima: Sequence[Optimum | None],
    minima: Literal["fitted", "grid"] = "fitted",
    robust: bool = False,
) -> dict[Kind, Law]:
    """The three laws of one study, by kind, from its unflagged optima; none with fewer than 3 of them.

    minima: L* from the parabolas' minima, or the lowest points of the grids as in the paper; these are biased by the
      noise (the lowest of several) and by up to H/8 steps^2 where the optimum falls between points.
    """
    found = usable(widths, optima)
    if len(found) < 3:
        return {}
    kept, good, dof = [n for n, _, _ in found], [p for _, p, _ in found], found[0][2].dof
    lowest, error = [p.minimum for p in good], [p.error(0) for p in good]
    if minima == "grid":
        at = {n: o.loss for n, o in zip(widths, optima, strict=True) if o}
        lowest, error = [at[n] for n in kept], [noise.sigma for _, _, noise in found]
    vertices, bowls = [p.vertex for p in good], [p.curvature for p in good]
    return {
        "loss": fit_law("loss", kept, lowest, error, dof, robust),
        "optimum": fit_law("optimum", kept, vertices, [p.error(1) for p in good], dof, robust),
        "curvature": fit_law("curvature", kept, bowls, [p.error(2) for p in good], dof, robust),
    }


def combine(estimates: Sequence[Estimate], coefficients: Sequence[float], correlation: np.ndarray) -> Estimate:
    """A sum of estimates and its 68% interval, from the ends of theirs (Zou & Donner 2008, with correlations)."""
    value = sum(c * e.value for c, e in zip(coefficients, estimates, strict=True))
    flags = tuple(dict.fromkeys(flag for e in estimates for flag in e.flags))
    ends = []
    for side in (-1, 1):
        d = []
        for c, e in zip(coefficients, estimates, strict=True):
            if e.interval is None:
                return Estimate(value, None, flags)
            toward = e.interval[(1 + side) // 2] if c > 0 else e.interval[(1 - side) // 2]
            d.append(c * abs(toward - e.value))
        ends.append(value + side * math.sqrt(max(np.array(d) @ correlation @ np.array(d), 0.0)))
    return Estimate(value, (ends[0], ends[1]), flags)


def correlations(laws: Mapping[Kind, Law], optima: Sequence[Optimum | None]) -> np.ndarray:
    """Of (alpha, beta, gamma), through those of each parabola's minimum, vertex and curvature."""
    good = [p for _, p, _ in usable(range(len(optima)), optima)]
    influence_3W = np.array([laws[kind].influence for kind in BOUNDS])
    error_W3 = np.array([[p.error(i) for i in range(3)] for p in good])
    within_W33 = np.array([p.covariance for p in good]) / (error_W3[:, :, None] * error_W3[:, None, :])
    covariance_33 = np.einsum("iw,wij,jw->ij", influence_3W, within_W33, influence_3W)
    with np.errstate(invalid="ignore", divide="ignore"):
        size_3 = np.sqrt(np.diag(covariance_33))
        return np.nan_to_num(covariance_33 / size_3[:, None] / size_3, nan=0.0) * ~np.eye(3, dtype=bool) + np.eye(3)


def kappa(laws: Mapping[Kind, Law], optima: Sequence[Optimum | None]) -> Estimate:
    """alpha - 2 beta + gamma: below 0, an extrapolation error costs less than width gains (arXiv 2605.21486)."""
    return combine([laws[kind].exponent for kind in BOUNDS], (1, -2, 1), correlations(laws, optima))


def fast_transfer(laws: Mapping[Kind, Law], optima: Sequence[Optimum | None]) -> Estimate:
    """beta - alpha/2; transfer is fast, and useful, if above 0 (Ghosh et al., arXiv 2512.22768)."""
    return combine([laws[kind].exponent for kind in BOUNDS], (-0.5, 1, 0), correlations(laws, optima))


def bootstrap(
    widths: Sequence[int],
    log2_lrs: Sequence[Sequence[float]],
    losses: Sequence[Sequence[Cell]],
    noise: float | None = None,
    num_draws: int = 400,
    seed: int = 0,
    window: Window = LOCAL,
) -> dict[str, np.ndarray]:
    """Draws of alpha, beta, gamma and kappa, (D,) each, nan where a draw has no minimum at some width.

    A check of the profile intervals, which stand beside it in a report. Means over seeds are drawn anew: from the
    seeds of each point where all have at least 3, else as the parabola plus normal noise within the window, and
    as the measured loss plus the same noise beyond it. Empty if the optimum of a width is flagged.
    """
    optima, rng = fit_optima(log2_lrs, losses, noise, window), np.random.default_rng(seed)
    if len(usable(widths, optima)) < max(len(widths), 3):
        return {}
    values_WD3, units_W33 = [], []
    for grid, curve, optimum in zip(log2_lrs, losses, optima, strict=True):
        x_X, (mean_X, seeds_X, cells) = np.asarray(grid, float), cell_means(curve)
        assert optimum is not None and optimum.parabola is not None and optimum.noise is not None
        if seeds_X.min() >= 3:
            draw_DX = np.stack([rng.choice(c, (num_draws, c.size)).mean(1) for c in cells], 1)
        else:
            fit = fit_parabolas(x_X, mean_X[None], seeds_X, window)
            smooth_X = [optimum.parabola.loss(x) for x in grid]
            center_X = np.where(fit.keep_DX[0], smooth_X, mean_X)
            draw_DX = center_X + rng.normal(0, optimum.noise.sigma / np.sqrt(seeds_X), (num_draws, len(x_X)))
        value_D3, _ = fit_parabolas(x_X, draw_DX, seeds_X, window).summaries()
        value_D3[~(value_D3[:, 2] > 0)] = math.nan
        values_WD3.append(value_D3)
        units_W33.append(np.diag(np.array(optimum.parabola.covariance)))
    found, error_W3 = {}, np.array(units_W33)
    for i, (kind, (low, high)) in enumerate(BOUNDS.items()):
        p_P, y_DW = np.linspace(low, high, 301), np.array(values_WD3)[:, :, i].T
        chi2_DP = profile(kind, p_P, widths, np.nan_to_num(y_DW), 1 / error_W3[:, i]).chi2_DP
        found[NAMES[kind]] = np.where(np.isfinite(y_DW).all(1), _lowest(p_P, chi2_DP), math.nan)
    return found | {"kappa": found["alpha"] - 2 * found["beta"] + found["gamma"]}


def bootstrap_intervals(drawn: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """68% of the draws that have a minimum at each width; none if that is less than nine in ten of them."""
    kept = {name: d[np.isfinite(d)] for name, d in drawn.items()}
    return {
        name: (float(low), float(high))
        for name, d in kept.items()
        if len(d) >= 0.9 * len(drawn[name])
        for low, high in [np.percentile(d, (16, 84))]
    }


def _lowest(p_P: np.ndarray, chi2_DP: np.ndarray) -> np.ndarray:
    """Where each row is lowest, between the points of an even grid by a parabola; at its ends, the ends."""
    best_D, rows, last = chi2_DP.argmin(1), np.arange(len(chi2_DP)), len(p_P) - 1
    mid_D = np.clip(best_D, 1, last - 1)
    a, b, c = (chi2_DP[rows, mid_D + j] for j in (-1, 0, 1))
    shift_D = np.divide(a - c, 2 * (a - 2 * b + c), out=np.zeros(len(a)), where=a - 2 * b + c > 0)
    return np.where(best_D == mid_D, p_P[mid_D] + shift_D * (p_P[1] - p_P[0]), p_P[best_D])
