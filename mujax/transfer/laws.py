"""Power laws in width n and the intervals of their exponents (arXiv 2605.21486).

    L*(n) = L_inf + A n^-alpha   loss at the optimum, nats per token; L_inf >= 0
    x*(n) = x_inf + B n^-beta    optimal log2 LR; beta in [0, 2]
    H(n)  = H_0 n^gamma          curvature there, nats per (ln LR)^2

For a given exponent each law is linear, so it is fitted by a search over the exponent alone. The
same search gives the profile of chi2, and an interval is where the profile lies within a quantile
of its minimum. Near a bound, where a bootstrap's percentiles or a covariance fail, such intervals
keep their coverage, and they need no draws. Axes: D draws, P exponents, W widths.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from mujax.transfer.noise import student

Kind = Literal["loss", "optimum", "curvature"]
BOUNDS: dict[Kind, tuple[float, float]] = {
    "loss": (0.001, 3.0),
    "optimum": (0.0, 2.0),
    "curvature": (-3.0, 3.0),
}
NAMES: dict[Kind, str] = {"loss": "alpha", "optimum": "beta", "curvature": "gamma"}

# In standard errors: an exponent closer than the first to a bound counts as at the bound; a trend
# smaller than the second counts as none.
AT_BOUND, NO_TREND = 2.0, 3.0
WIDEST = 0.5  # an exponent with a larger error counts as unknown


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 68% interval (None: unbounded or unknown) and flags that say what is wrong.

    dof: degrees of freedom of the number's error, None for many.
    """

    value: float
    interval: tuple[float, float] | None
    flags: tuple[str, ...] = ()
    dof: float | None = None

    def within(self, level: float = 0.95) -> tuple[float, float] | None:
        """Returns the two-sided interval at another level, by the quantiles of Student's t."""
        if self.interval is None:
            return None
        wider = student(float(stats.norm.ppf((1 + level) / 2)), self.dof) / student(1, self.dof)
        low, high = (self.value + wider * (end - self.value) for end in self.interval)
        return low, high

    def below(self, x: float) -> bool:
        """Tells whether the number is unflagged and its 95% interval ends below x."""
        ends = self.within()
        return not self.flags and ends is not None and ends[1] < x

    def above(self, x: float) -> bool:
        """Tells whether the number is unflagged and its 95% interval begins above x."""
        ends = self.within()
        return not self.flags and ends is not None and ends[0] > x


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law value(n) = limit + scale n^power.

    power: -exponent for the laws of loss and optimum, else exponent.
    influence: (W,), change of the exponent per standard error of each point; its squares sum to the
      exponent's variance.
    chi2: weighted sum of squared residuals; without errors, the unweighted sum.
    dof: widths less parameters.
    """

    kind: Kind
    exponent: Estimate
    limit: Estimate
    scale: float
    widths: tuple[int, ...]
    influence: tuple[float, ...]
    chi2: float
    dof: int

    def __call__(self, width: float | np.ndarray) -> float | np.ndarray:
        power = self.exponent.value if self.kind == "curvature" else -self.exponent.value
        if self.kind == "optimum" and self.exponent.value == 0:
            # The limit beta -> 0 of a law is log n.
            return self.limit.value + self.scale * np.log(width)
        return self.limit.value + self.scale * np.asarray(width, float) ** power


@dataclasses.dataclass(frozen=True)
class Profile:
    """The best law at each exponent.

    chi2_DP: weighted sums of squared residuals.
    limit_DP, limit_var_P: limits, and their variance.
    scale_DP: coefficients of (n/n_0)^power, with n_0 the mean width.
    """

    chi2_DP: np.ndarray
    limit_DP: np.ndarray
    scale_DP: np.ndarray
    limit_var_P: np.ndarray


def profile(
    kind: Kind,
    exponent_P: np.ndarray,
    widths: Sequence[int],
    y_DW: np.ndarray,
    weight_W: np.ndarray,
):
    """Fits a law by weighted linear least squares at each exponent; weight_W: 1 / variance.

    In the basis (1 - (n/n_0)^-p) / p the law of the optimum has a limit at p = 0, drift by the same
    factor at each doubling; its limit at infinite width is then infinite.
    """
    log_W = np.log(np.asarray(widths, float))
    log_W = log_W - log_W.mean()
    p_P1, w, total = exponent_P[:, None], weight_W, weight_W.sum()
    if kind == "curvature":
        t_PW = np.exp(p_P1 * log_W)
        return _through_zero(t_PW, y_DW, w)
    small_P1 = np.abs(p_P1) < 1e-9
    g_PW = np.where(small_P1, log_W, -np.expm1(-p_P1 * log_W) / np.where(small_P1, 1.0, p_P1))
    g_mean_P, y_mean_D1 = g_PW @ w / total, (y_DW @ w / total)[:, None]
    g0_PW, y0_DW = g_PW - g_mean_P[:, None], y_DW - y_mean_D1
    gg_P, gy_DP = g0_PW**2 @ w, (y0_DW * w) @ g0_PW.T
    slope_DP = gy_DP / gg_P
    residual_DPW = y0_DW[:, None] - slope_DP[..., None] * g0_PW
    with np.errstate(divide="ignore", invalid="ignore"):
        lever_P = 1 / exponent_P - g_mean_P
        limit_DP, var_P = y_mean_D1 + slope_DP * lever_P, 1 / total + lever_P**2 / gg_P
        found = Profile(residual_DPW**2 @ w, limit_DP, -slope_DP / exponent_P, var_P)
    if kind == "optimum":
        return found
    bound = _through_zero(np.exp(-p_P1 * log_W), y_DW, w)
    free_DP = limit_DP >= 0  # False for nan, too
    pick = [
        np.where(free_DP, a, b)
        for a, b in ((found.chi2_DP, bound.chi2_DP), (found.scale_DP, bound.scale_DP))
    ]
    return Profile(pick[0], np.where(free_DP, limit_DP, 0.0), pick[1], var_P)


def _through_zero(t_PW: np.ndarray, y_DW: np.ndarray, w: np.ndarray) -> Profile:
    scale_DP = (y_DW * w) @ t_PW.T / (t_PW**2 @ w)
    chi2_DP = (y_DW[:, None] - scale_DP[..., None] * t_PW) ** 2 @ w
    return Profile(chi2_DP, np.zeros_like(chi2_DP), scale_DP, np.zeros(len(t_PW)))


def fit_law(
    kind: Kind,
    widths: Sequence[int],
    values: Sequence[float],
    errors: Sequence[float] | None = None,
    dof: float | None = None,
) -> Law:
    """Fits one law to one value per width.

    Args:
      errors: standard errors of the values. They are widened where the law misses the values by
        more (p < 0.01). None: equal errors, estimated from the residuals.
      dof: degrees of freedom of the errors, None for many.
    """
    n, y, params = (
        np.asarray(widths, float),
        np.asarray(values, float),
        2 if kind == "curvature" else 3,
    )
    if len(n) < params or len(set(widths)) < len(n):
        raise ValueError(
            f"the law of the {kind} takes {params} different widths, not {list(widths)}"
        )
    spare = len(n) - params
    weight_W = np.ones(len(n)) if errors is None else np.asarray(errors, float) ** -2
    low, high = BOUNDS[kind]
    p_P, found = _search(kind, np.linspace(low, high, 241), widths, y, weight_W)
    best = int(found.chi2_DP[0].argmin())
    chi2 = float(found.chi2_DP[0, best])
    unit, freedom = _noise_of_law(chi2, spare, errors is None, dof)

    def threshold(z: float) -> float:
        return student(z, freedom) ** 2 * unit

    delta_P = found.chi2_DP[0] - chi2
    value = float(p_P[best])
    flags = _flags(kind, p_P, delta_P, threshold, spare, found)
    if kind == "loss" and found.scale_DP[0, best] < 0:
        flags.append("the loss grows with width")
    constant = (y - np.average(y, weights=weight_W)) ** 2 @ weight_W
    if kind != "curvature" and constant - chi2 < threshold(NO_TREND):
        flags.append("no trend with width to fit an exponent to")
    interval = limit_interval = None
    if unit > 0 or chi2 == 0:
        within_P = (delta_P <= threshold(1)) & np.isfinite(found.limit_var_P)
        interval = (
            _crossing(p_P, delta_P, threshold(1), best, -1),
            _crossing(p_P, delta_P, threshold(1), best, 1),
        )
        spread_P = np.sqrt(
            np.maximum(threshold(1) - delta_P, 0)[within_P] * found.limit_var_P[within_P]
        )
        limits_P = found.limit_DP[0][within_P]
        if len(limits_P) and not (kind == "optimum" and interval[0] == 0):
            # At beta = 0 there is no limit.
            ends = float((limits_P - spread_P).min()), float((limits_P + spread_P).max())
            limit_interval = (max(ends[0], 0.0), ends[1]) if kind == "loss" else ends
        if interval[1] - interval[0] > 2 * WIDEST:
            flags.append(f"ill-conditioned: {NAMES[kind]} is known to no better than {WIDEST}")
    else:
        flags.append("as many parameters as widths, and no errors given")
    limit, scale = float(found.limit_DP[0, best]), float(found.scale_DP[0, best])
    if kind == "optimum" and value == 0:
        # In place of x_inf + B n^0: a line in log n, limit = its value at n = 1
        scale, limit = map(float, np.polyfit(np.log(n), y, 1, w=np.sqrt(weight_W)))
    else:  # converts coefficients of (n/n_0)^power to those of n^power
        scale *= float(_powers(kind, value, np.ones(1), n)[0])
    influence = _influence(kind, value, limit, scale, n, np.sqrt(weight_W)) * math.sqrt(unit)
    return Law(
        kind, Estimate(value, interval, tuple(flags)),
        Estimate(limit, limit_interval, tuple(flags)), scale,
        tuple(widths), tuple(influence.tolist()), chi2, spare,
    )  # fmt: skip


def _noise_of_law(
    chi2: float, spare: int, unknown: bool, dof: float | None
) -> tuple[float, float | None]:
    """Returns (variance in units of the errors, its degrees of freedom)."""
    if unknown:
        return (chi2 / spare, spare) if spare else (0.0, None)
    if spare and stats.f.sf(chi2 / spare, spare, dof or 10**6) < 0.01:
        return chi2 / spare, spare
    return 1.0, dof


def _powers(kind: Kind, p: float, n: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Returns (n / n_0)^power."""
    middle = np.exp(np.log(widths).mean())
    return (n / middle) ** (p if kind == "curvature" else -p)


def _search(
    kind: Kind, p_P: np.ndarray, widths: Sequence[int], y: np.ndarray, weight_W: np.ndarray
):
    """Returns the profile on a grid that is fine near the minimum of chi2 and keeps the bounds."""
    low, high = p_P[0], p_P[-1]
    for _ in range(3):
        found = profile(kind, p_P, widths, y[None], weight_W)
        chi2_P = found.chi2_DP[0]
        near = np.flatnonzero(chi2_P - chi2_P.min() <= 25)
        fine = np.linspace(p_P[max(near[0] - 1, 0)], p_P[min(near[-1] + 1, len(p_P) - 1)], 240)
        p_P = np.unique(np.concatenate([[low], fine, [high]]))
    return p_P, profile(kind, p_P, widths, y[None], weight_W)


def _crossing(p_P: np.ndarray, delta_P: np.ndarray, level: float, best: int, side: int) -> float:
    """Returns where the profile first reaches `level` on a side of its minimum, else the bound."""
    i = best
    while 0 <= i + side < len(p_P) and delta_P[i + side] < level:
        i += side
    j = i + side
    if not 0 <= j < len(p_P):
        return float(p_P[i])
    # Interpolates in the square root of chi2, which is nearly straight.
    a, b, c = math.sqrt(max(delta_P[i], 0)), math.sqrt(delta_P[j]), math.sqrt(level)
    return float(p_P[i] + (p_P[j] - p_P[i]) * (c - a) / (b - a))


def _flags(
    kind: Kind, p_P: np.ndarray, delta_P: np.ndarray, threshold, spare: int, found: Profile
) -> list[str]:
    flags, name, level = [], NAMES[kind], threshold(AT_BOUND)
    if spare < 1:
        flags.append("too few widths: as many as the law has parameters")
    flags += [f"{name} at its bound {p_P[end]:g}" for end in (0, -1) if delta_P[end] < level]
    if kind == "loss" and (delta_P[found.limit_DP[0] <= 0] < level).any():
        flags.append("L_inf at its bound 0")
    return flags


def _influence(
    kind: Kind, p: float, limit: float, scale: float, n: np.ndarray, root_W: np.ndarray
) -> np.ndarray:
    """Returns d exponent / d point, in units of the points' errors.

    It is a row of the pseudo-inverse of the weighted Jacobian.
    """
    log_W, sign = np.log(n), 1 if kind == "curvature" else -1
    if kind == "optimum" and p == 0:
        return np.full(len(n), math.nan)
    t = np.exp(sign * p * log_W)
    columns = [sign * scale * t * log_W, t, np.ones_like(t)]
    if kind == "curvature" or (kind == "loss" and limit == 0):
        columns.pop()
    if scale == 0:
        return np.full(len(n), math.nan)
    return np.linalg.pinv(np.stack(columns, 1) * root_W[:, None])[0]
