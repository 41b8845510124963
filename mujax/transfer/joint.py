"""The joint law of loss in learning rate and width, its error E, and regret against an envelope.

    L(n, x) = L_inf + A n^-alpha + 1/2 H_0 n^gamma (x - x*(n))^2
    x*(n) = x_inf + B n^-beta,   x = ln(learning rate)

From arXiv 2605.21486; that E is over the points within 1.35 times the minimum of each width is our
reading. Axes: D draws, K kept points, P parameters, W widths.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from mujax.transfer.laws import BOUNDS, Estimate, Kind, Law, fit_law
from mujax.transfer.optimum import Cell, cell_means
from mujax.transfer.parabola import LN2

_PARAMS = ("l_inf", "a", "alpha", "x_mid", "drift", "beta", "h_mid", "gamma")
_DRAWS = 400
# Points with at most this multiple of their width's lowest loss are kept, as in the paper.
LOSS_RATIO = 1.35


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """The fitted joint law; losses in nats, positions in log2 LR, curvatures per (ln LR)^2.

    a, b, h_0: coefficients of n^power.
    mse: the metric E.
    r2: 1 - mse / variance of the kept losses.
    intervals: 68% intervals of l_inf, alpha, beta, gamma, kappa and mse, by a bootstrap of the
      points.

    At beta = 0, x_inf and b are not finite.
    """

    l_inf: float
    a: float
    alpha: float
    x_inf: float
    b: float
    beta: float
    h_0: float
    gamma: float
    mse: float
    rmse: float
    r2: float
    num_points: int
    flags: tuple[str, ...]
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def kappa(self) -> float:
        return self.alpha - 2 * self.beta + self.gamma


def kept_points(
    widths: Sequence[int], log2_lrs: Sequence[Sequence[float]], losses: Sequence[Sequence[Cell]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (width, log2 LR, mean loss), (K,) each, of the points that the law is fitted to.

    Those are within LOSS_RATIO of the lowest loss of their width.
    """
    kept = []
    for width, grid, curve in zip(widths, log2_lrs, losses, strict=True):
        means = cell_means(curve)[0]
        if not np.isfinite(means).any():
            continue
        keep = np.nan_to_num(means, nan=math.inf) <= LOSS_RATIO * np.nanmin(means)
        kept += [(width, x, y) for x, y in zip(np.asarray(grid)[keep], means[keep], strict=True)]
    n_K, x_K, y_K = np.array(kept, float).reshape(-1, 3).T
    return n_K, x_K, y_K


def fit_joint(
    widths: Sequence[int],
    log2_lrs: Sequence[Sequence[float]],
    losses: Sequence[Sequence[Cell]],
    laws: Mapping[Kind, Law],
) -> JointLaw:
    """Fits all points at once, from several starts around the laws of exponents.fit_laws."""
    n_K, x2_K, y_K = kept_points(widths, log2_lrs, losses)
    x_K, log_K = LN2 * x2_K, np.log(n_K)
    middle = float(np.log(sorted(set(n_K))).mean())
    t_K = log_K - middle
    low = [0, 0, BOUNDS["loss"][0], -np.inf, -np.inf, 0, 0, BOUNDS["curvature"][0]]
    high = [np.inf, np.inf, BOUNDS["loss"][1], np.inf, np.inf, 2, np.inf, BOUNDS["curvature"][1]]

    def parts(p):
        l_inf, a, alpha, x_mid, drift, beta, h, gamma = p
        s_K = np.exp(-alpha * t_K)
        # drift d ln(x*)/d ln n at the middle width
        g_K = -np.expm1(-beta * t_K) / beta if beta > 1e-6 else t_K
        d_K, h_K = x_K - x_mid - drift * g_K, h * np.exp(gamma * t_K)
        return s_K, g_K, d_K, h_K

    def residuals(p):
        s_K, _, d_K, h_K = parts(p)
        return p[0] + p[1] * s_K + h_K / 2 * d_K**2 - y_K

    def jacobian(p):
        s_K, g_K, d_K, h_K = parts(p)
        beta, slope_K = p[5], -h_K * d_K
        dg_K = (t_K * np.exp(-beta * t_K) - g_K) / beta if beta > 1e-3 else -(t_K**2) / 2
        return np.stack([
            np.ones_like(s_K), s_K, -p[1] * t_K * s_K,
            slope_K, slope_K * g_K, slope_K * p[4] * dg_K,
            h_K / p[6] / 2 * d_K**2 if p[6] else d_K**2 / 2, h_K / 2 * d_K**2 * t_K,
        ], 1)  # fmt: skip

    fits, n_mid = [], math.exp(middle)
    law, bowl = laws["loss"], laws["curvature"]
    x_mid, per_log = LN2 * float(laws["optimum"](n_mid)), _log_slope(laws["optimum"], n_mid)
    for beta in dict.fromkeys((laws["optimum"].exponent.value, 0.3, 1.0, 1.8)):
        start = [
            law.limit.value, max(law.scale * n_mid**-law.exponent.value, 1e-6), law.exponent.value,
            x_mid, per_log, beta, float(bowl(n_mid)), bowl.exponent.value,
        ]  # fmt: skip
        start = np.clip(start, np.array(low) + 1e-9, np.array(high) - 1e-9)
        # SciPy's stubs know `jac` only as a string.
        jac: Any = jacobian
        fits.append(least_squares(residuals, start, jac, (low, high), x_scale="jac"))
    best = min(fits, key=lambda fit: fit.cost)
    l_inf, a, alpha, x_mid, drift, beta, h, gamma = map(float, best.x)
    mse = float((residuals(best.x) ** 2).mean())
    flags = [
        f"{name} at its bound" for name, at, lo, hi in zip(_PARAMS, best.x, low, high, strict=True)
        if min(at - lo, hi - at) < 1e-3
    ]  # fmt: skip
    intervals = {}
    if len(y_K) <= len(_PARAMS):
        flags.append("as many parameters as points")
    else:
        intervals = _intervals(
            best.x, residuals(best.x), jacobian(best.x), np.array(low), np.array(high)
        )
    per_beta = drift / beta / LN2 if beta else math.nan
    return JointLaw(
        l_inf, a * n_mid**alpha, alpha, x_mid / LN2 + per_beta, -per_beta * n_mid**beta, beta,
        h * n_mid**-gamma, gamma, mse, math.sqrt(mse), 1 - mse / float(y_K.var()), len(y_K),
        tuple(flags), intervals,
    )  # fmt: skip


def _intervals(
    p_P: np.ndarray, left_K: np.ndarray, jacobian_KP: np.ndarray, low: np.ndarray, high: np.ndarray
):
    """Returns intervals by a bootstrap of the residuals, each scaled up by its leverage.

    The law is refitted to first order; a parameter at a bound stays there. The residuals hold the
    law's misfit as well as noise, so E is not noise alone.
    """
    free_P = (p_P - low > 1e-3) & (high - p_P > 1e-3)
    size_P = np.linalg.norm(jacobian_KP, axis=0)
    free_P &= size_P > 0
    u_KP, size, v_PP = np.linalg.svd(jacobian_KP[:, free_P] / size_P[free_P], full_matrices=False)
    known = size > 1e-9 * size[0]
    u_KP, inverse_PP = u_KP[:, known], (v_PP[known] / size[known, None]) / size_P[free_P]
    residual_K = left_K / np.sqrt(np.maximum(1 - (u_KP**2).sum(1), 1e-6))
    drawn_DK = np.random.default_rng(0).choice(
        residual_K - residual_K.mean(), (_DRAWS, len(left_K))
    )
    along_DP = drawn_DK @ u_KP
    p_DP = np.tile(p_P, (_DRAWS, 1))
    p_DP[:, free_P] += along_DP @ inverse_PP
    named = dict(zip(_PARAMS, np.clip(p_DP, low, high).T, strict=True))
    drawn = {name: named[name] for name in ("l_inf", "alpha", "beta", "gamma")}
    drawn["kappa"] = drawn["alpha"] - 2 * drawn["beta"] + drawn["gamma"]
    drawn["mse"] = ((drawn_DK - along_DP @ u_KP.T) ** 2).mean(1)
    return {
        name: (float(a), float(b))
        for name, d in drawn.items()
        for a, b in [np.percentile(d, (16, 84))]
    }


def _log_slope(law: Law, n: float) -> float:
    """Returns d x* / d ln n of the optimum's law, in ln units."""
    step = 1.01
    return LN2 * float(law(n * step) - law(n / step)) / (2 * math.log(step))


def reference_envelope(
    widths: Sequence[int], minima: Sequence[Sequence[float | None]], error: float | None
) -> Law:
    """Fits the law of the lowest L* at each width over all parameterizations, to be frozen.

    Args:
      minima: a list per parameterization of a loss per width, nats; None where there is none.
      error: standard error of each loss, nats.
    """
    lowest = [
        min((v for v in column if v is not None), default=None)
        for column in zip(*minima, strict=True)
    ]
    kept = [(n, v) for n, v in zip(widths, lowest, strict=True) if v is not None]
    return fit_law(
        "loss",
        [n for n, _ in kept],
        [v for _, v in kept],
        None if error is None else [error] * len(kept),
    )


def regret(widths: Sequence[int], minima: Sequence[float], reference: Law) -> list[float]:
    """Returns R(n) = L*(n) - L*_ref(n), nats."""
    return [value - float(reference(n)) for n, value in zip(widths, minima, strict=True)]


def asymptotic_regret(law: Law, reference: Law) -> Estimate:
    """Returns R(inf) = L_inf - L_inf,ref with the interval of L_inf; the reference has no error."""
    e, at = law.limit, reference.limit.value
    interval = None if e.interval is None else (e.interval[0] - at, e.interval[1] - at)
    flags = (*e.flags, *(f"reference: {flag}" for flag in reference.limit.flags))
    return Estimate(e.value - at, interval, flags)


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """Powers of compute F by which excess loss falls (arXiv 2512.22768), up to constants.

    direct: loss falls as F^-direct if the model itself is tuned.
    transfer: loss falls as F^-transfer if a proxy is tuned.
    proxy_width: the proxy's width grows as F^proxy_width.
    """

    direct: float
    transfer: float
    proxy_width: float


def tradeoff(alpha: float, beta: float) -> Tradeoff:
    """Compares tuning one hyperparameter directly and by a proxy, where a run costs width^2.

    The losses are F^(-2a/(a+4)), and F^(-a/2) + F^(-2b/(b+2)) with a proxy of width F^(1/(b+2)):
    transfer wins as F grows if and only if beta > alpha/2.
    """
    return Tradeoff(2 * alpha / (alpha + 4), min(alpha / 2, 2 * beta / (beta + 2)), 1 / (beta + 2))
