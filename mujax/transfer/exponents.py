"""The three laws of one study, and what follows from their exponents together.

That is kappa, fast transfer, and a bootstrap of them. Axes: D draws, P exponents, W widths, X
learning rates.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mujax.transfer.laws import BOUNDS, NAMES, Estimate, Kind, Law, fit_law, profile
from mujax.transfer.optimum import Optimum, Parabola

DRAWS = 400  # number of bootstrap draws


def usable(
    widths: Sequence[int], optima: Sequence[Optimum | None]
) -> list[tuple[int, Optimum, Parabola]]:
    """Returns the widths that laws may be fitted to, with their optimum and parabola.

    The optimum of such a width has errors and no flag.
    """
    return [
        (n, o, o.parabola)
        for n, o in zip(widths, optima, strict=True)
        if o and o.usable and o.parabola
    ]


def fit_laws(widths: Sequence[int], optima: Sequence[Optimum | None]) -> dict[Kind, Law]:
    """Returns the three laws of one study, by kind, fitted to its unflagged optima.

    No laws with fewer than 3 of them, or with losses at or below 0, as the limit is at least 0. L*
    is the minimum of the fitted curve. The lowest grid points, which the paper uses, are biased by
    the noise (the lowest of several) and by up to H/8 steps^2 where the optimum falls between
    points.
    """
    found = usable(widths, optima)
    if len(found) < 3 or min(o.loss for _, o, _ in found) <= 0:
        return {}
    kept, dof = [n for n, _, _ in found], next(o.noise.dof for _, o, _ in found if o.noise)
    lowest, error = [o.minimum for _, o, _ in found], [o.minimum_error for _, o, _ in found]
    places = [
        (o.vertex, o.fit.own_error(o.index), o.fit.dof)
        for _, o, _ in found
        if o.fit and o.vertex is not None
    ]
    vertices, apart = [place for place, _, _ in places], [own for _, own, _ in places]
    return {
        "loss": fit_law("loss", kept, lowest, error, dof),
        "optimum": fit_law("optimum", kept, vertices, apart, places[0][2]),
        "curvature": fit_law(
            "curvature",
            kept,
            [p.curvature for _, _, p in found],
            [p.error(2) for _, _, p in found],
            dof,
        ),
    }


def combine(
    estimates: Sequence[Estimate], coefficients: Sequence[float], correlation: np.ndarray
) -> Estimate:
    """Returns a weighted sum of estimates with its 68% interval.

    The interval follows from the ends of the estimates' intervals and their correlations (Zou &
    Donner 2008).
    """
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
    """Returns the correlations of (alpha, beta, gamma).

    They come from the correlations of each parabola's minimum, vertex and curvature.
    """
    good = [p for _, _, p in usable(range(len(optima)), optima)]
    influence_3W = np.array([laws[kind].influence for kind in BOUNDS])
    error_W3 = np.array([[p.error(i) for i in range(3)] for p in good])
    within_W33 = np.array([p.covariance for p in good]) / (
        error_W3[:, :, None] * error_W3[:, None, :]
    )
    covariance_33 = np.einsum("iw,wij,jw->ij", influence_3W, within_W33, influence_3W)
    with np.errstate(invalid="ignore", divide="ignore"):
        size_3 = np.sqrt(np.diag(covariance_33))
        return np.nan_to_num(covariance_33 / size_3[:, None] / size_3, nan=0.0) * ~np.eye(
            3, dtype=bool
        ) + np.eye(3)


def kappa(laws: Mapping[Kind, Law], optima: Sequence[Optimum | None]) -> Estimate:
    """Returns alpha - 2 beta + gamma (arXiv 2605.21486).

    Below 0, an extrapolation error costs less than the added width gains.
    """
    return combine([laws[kind].exponent for kind in BOUNDS], (1, -2, 1), correlations(laws, optima))


def fast_transfer(laws: Mapping[Kind, Law], optima: Sequence[Optimum | None]) -> Estimate:
    """Returns beta - alpha/2; transfer is fast and useful above 0 (arXiv 2512.22768)."""
    return combine(
        [laws[kind].exponent for kind in BOUNDS], (-0.5, 1, 0), correlations(laws, optima)
    )


def bootstrap(widths: Sequence[int], optima: Sequence[Optimum | None]) -> dict[str, np.ndarray]:
    """Draws alpha, beta, gamma and kappa anew, (D,) each, from the optima and their errors.

    The draws follow the laws' nonlinearity, so they check the profile intervals beside them in a
    report. Empty if the optimum of a width is flagged.
    """
    found, rng = usable(widths, optima), np.random.default_rng(0)
    if len(found) < max(len(widths), 3) or min(o.loss for _, o, _ in found) <= 0:
        return {}
    fit = found[0][1].fit
    assert fit is not None
    pick = np.ix_([o.index for _, o, _ in found], [o.index for _, o, _ in found])
    centers = {"loss": [o.minimum for _, o, _ in found], "optimum": [o.vertex for _, o, _ in found]}
    centers["curvature"] = [p.curvature for _, _, p in found]
    covariances = {
        "loss": np.diag([o.minimum_error**2 for _, o, _ in found]),
        "optimum": fit.covariance_WW[pick],
        "curvature": np.diag([p.error(2) ** 2 for _, _, p in found]),
    }  # fmt: skip
    drawn = {}
    for kind, (low, high) in BOUNDS.items():
        p_P = np.linspace(low, high, 301)
        y_DW = rng.multivariate_normal(centers[kind], covariances[kind], DRAWS, method="svd")
        weight_W = 1 / np.maximum(np.diag(covariances[kind]), 1e-24)
        drawn[NAMES[kind]] = _lowest(p_P, profile(kind, p_P, widths, y_DW, weight_W).chi2_DP)
    return drawn | {"kappa": drawn["alpha"] - 2 * drawn["beta"] + drawn["gamma"]}


def bootstrap_intervals(drawn: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Returns the middle 68% of the draws, by name."""
    ends = {name: np.percentile(d, (16, 84)) for name, d in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _lowest(p_P: np.ndarray, chi2_DP: np.ndarray) -> np.ndarray:
    """Returns the position of each row's minimum, by a parabola through an even grid's points.

    At an end of the grid, it is the end itself.
    """
    best_D, rows, last = chi2_DP.argmin(1), np.arange(len(chi2_DP)), len(p_P) - 1
    mid_D = np.clip(best_D, 1, last - 1)
    a, b, c = (chi2_DP[rows, mid_D + j] for j in (-1, 0, 1))
    shift_D = np.divide(a - c, 2 * (a - 2 * b + c), out=np.zeros(len(a)), where=a - 2 * b + c > 0)
    return np.where(best_D == mid_D, p_P[mid_D] + shift_D * (p_P[1] - p_P[0]), p_P[best_D])
