"""Minima of several curves: each is a parabola, bent by a shared shape and by one of its own.

    L_w(x) = c_w + h_w d^2 + R d^2 (g(d) + g_w(d)),   d = x - v_w

x is log2 learning rate, v_w the optimum of curve w. g and g_w are Gaussian processes with length
LENGTH and standard deviations 1 and s. They are relative changes of the curvature with the distance
to the optimum, so that one side may be steeper than the other, in the same way at every width (g)
or in a way of each width's own (g_w). R is a common curvature. A plain parabola puts the optimum
too far to the shallow side; here the optimum stays where the loss is lowest. The fit averages over
s and, with one seed per point, over the noise, weighted by the marginal likelihood.

Compared with parabolas, cubics and plain Gaussian processes in experiments/benchmarks/optimum.md.
Axes: P points of all curves, W curves, M members of the average, B = 3 W coefficients.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

LENGTH = 2.0  # log2 LR over which the curvature changes
OWN_SHAPE = (0.0, 1.2)  # values of s
ONE_SHAPE = (0.6, 0.25)  # prior probability of s = 0, with known and with unknown noise
# Shares of the parabolas' residuals that are tried as noise, if the noise is unknown.
NOISE_STEPS = (1.2, 0.8, 0.5, 0.3, 0.15)
# Search of the optima: most steps, largest step and tolerance in log2 LR.
_ITERATIONS, _STEP, _CLOSE = 8, 0.7, 1e-4


@dataclasses.dataclass(frozen=True)
class Bowl:
    """Points of one curve around its optimum.

    x: log2 LRs.
    loss: mean losses.
    variance: variances of the means relative to one run's variance.
    start: a first guess of the optimum.
    low, high: bounds of the optimum.
    curvature: d2L/dx2 / 2 of a parabola.
    """

    x: np.ndarray
    loss: np.ndarray
    variance: np.ndarray
    start: float
    low: float
    high: float
    curvature: float


@dataclasses.dataclass(frozen=True)
class _Member:
    """One setting of the shape's size and the noise: optima, their covariance, and the curves."""

    log_weight: float
    vertex_W: np.ndarray
    covariance_WW: np.ndarray
    minimum_W: np.ndarray
    minimum_variance_W: np.ndarray
    tilt_W: np.ndarray
    bend_W: np.ndarray
    alpha_P: np.ndarray
    own: float
    sigma: float
    misfit: float


class Valleys:
    """Optima of several curves that share a shape.

    vertex_W: log2 LR.
    covariance_WW: covariance of the vertices, from the noise and from disagreement of the members.
    minimum_W, minimum_error_W: nats.
    sigma: standard deviation of one run's loss, nats, averaged over members.
    misfit: weighted squared residuals over their degrees of freedom `spare`, about 1 where the
      curves are fitted to within the noise.
    """

    def __init__(self, bowls: Sequence[Bowl], sigma: float | None):
        """Fits the curves.

        sigma: standard deviation of one run's loss, nats; None: estimated from the residuals.
        """
        self.bowls = tuple(bowls)
        self._curve_P = np.repeat(np.arange(len(bowls)), [len(b.x) for b in bowls])
        self._x_P = np.concatenate([b.x for b in bowls])
        self._loss_P = np.concatenate([b.loss for b in bowls])
        self._variance_P = np.concatenate([b.variance for b in bowls])
        self._scale = float(np.median([b.curvature for b in bowls]))
        self.spare = len(self._x_P) - 3 * len(bowls)
        sigmas, one_shape = (
            ([sigma], ONE_SHAPE[0]) if sigma is not None else (self._sigmas(), ONE_SHAPE[1])
        )
        # Least noise: keeps the matrices below regular if the curves are exact.
        floor = 1e-3 * self._scale
        self._members = []
        for noise, own in itertools.product(sigmas, OWN_SHAPE if len(bowls) > 1 else OWN_SHAPE[:1]):
            prior = one_shape if own == 0 else (1 - one_shape) / (len(OWN_SHAPE) - 1)
            self._members.append(self._fit(max(noise, floor), own, math.log(prior)))
        log_M = np.array([m.log_weight for m in self._members])
        self._weight_M = np.exp(log_M - log_M.max()) / np.exp(log_M - log_M.max()).sum()
        vertex_MW = np.array([m.vertex_W for m in self._members])
        self.vertex_W, apart_MW = self._mean(vertex_MW), vertex_MW - self._mean(vertex_MW)
        self.covariance_WW = self._mean(np.array([m.covariance_WW for m in self._members]))
        self.covariance_WW = self.covariance_WW + np.einsum(
            "m,mi,mj->ij", self._weight_M, apart_MW, apart_MW
        )
        minimum_MW = np.array([m.minimum_W for m in self._members])
        self.minimum_W = self._mean(minimum_MW)
        variance_W = self._mean(np.array([m.minimum_variance_W for m in self._members]))
        self.minimum_error_W = np.sqrt(variance_W + self._mean((minimum_MW - self.minimum_W) ** 2))
        self.sigma = math.sqrt(self._mean(np.array([m.sigma**2 for m in self._members])))
        self.misfit = float(self._mean(np.array([m.misfit for m in self._members])))

    def _mean(self, values_M: np.ndarray) -> np.ndarray:
        return np.tensordot(self._weight_M, values_M, 1)

    def _sigmas(self) -> list[float]:
        """Returns the noise levels to average over, as shares of the parabolas' residuals."""
        left = [
            b.loss - np.polyval(np.polyfit(b.x - b.start, b.loss, 2), b.x - b.start)
            for b in self.bowls
        ]
        weighted = sum(
            float((r**2 / b.variance).sum()) for r, b in zip(left, self.bowls, strict=True)
        )
        return [step * math.sqrt(weighted / max(self.spare, 1)) for step in NOISE_STEPS]

    def _fit(self, sigma: float, own: float, log_prior: float) -> _Member:
        low_W, high_W, vertex_W = (
            np.array([getattr(b, n) for b in self.bowls]) for n in ("low", "high", "start")
        )
        found = self._solve(vertex_W, None, sigma, own, log_prior)
        for _ in range(_ITERATIONS):
            # A curve F moved by s is F - s F', so the coefficient of the slope is minus the step to
            # the optimum.
            moved_W = np.clip(vertex_W + np.clip(-found.tilt_W, -_STEP, _STEP), low_W, high_W)
            close, vertex_W = np.abs(moved_W - vertex_W).max() < _CLOSE, moved_W
            found = self._solve(vertex_W, self._slope(found), sigma, own, log_prior)
            if close:
                break
        return found

    def _solve(
        self,
        vertex_W: np.ndarray,
        slope_P: np.ndarray | None,
        sigma: float,
        own: float,
        log_prior: float,
    ) -> _Member:
        """Fits all curves with d measured from vertex_W.

        slope_P: derivative of the curves; None for parabolas.
        """
        num_curves, each = len(self.bowls), np.arange(len(self._x_P))
        d_P = self._x_P - vertex_W[self._curve_P]
        covariance_PP = self._shape(d_P, own) * np.outer(d_P**2, d_P**2) + np.diag(
            sigma**2 * self._variance_P
        )
        basis_PB = np.zeros((len(d_P), 3 * num_curves))
        tilt_P = 2 * self._scale * d_P if slope_P is None else slope_P
        for i, column_P in enumerate((np.ones_like(d_P), tilt_P, d_P**2)):
            basis_PB[each, i * num_curves + self._curve_P] = column_P
        inverse_PP = np.linalg.inv(covariance_PP)
        weighted_PB = inverse_PP @ basis_PB
        normal_BB = basis_PB.T @ weighted_PB
        unit_BB = np.linalg.inv(normal_BB)
        coef_B = unit_BB @ (weighted_PB.T @ self._loss_P)
        left_P = self._loss_P - basis_PB @ coef_B
        alpha_P = inverse_PP @ left_P
        log_det, squares = (
            np.linalg.slogdet(covariance_PP)[1] + np.linalg.slogdet(normal_BB)[1],
            float(left_P @ alpha_P),
        )
        level_W, tilt_W, bend_W = coef_B.reshape(3, num_curves)
        at = slice(num_curves, 2 * num_curves)
        return _Member(
            log_prior - 0.5 * (squares + log_det), vertex_W, unit_BB[at, at], level_W,
            np.diag(unit_BB)[:num_curves], tilt_W, bend_W, alpha_P, own, sigma,
            squares / max(self.spare, 1),
        )  # fmt: skip

    def _shape(self, d_P: np.ndarray, own: float) -> np.ndarray:
        """Returns the covariance (P, P) of R (g + g_w) between all points."""
        same_PP = self._curve_P[:, None] == self._curve_P
        return (
            self._scale**2
            * (1 + own**2 * same_PP)
            * np.exp(-0.5 * ((d_P[:, None] - d_P) / LENGTH) ** 2)
        )

    def _slope(self, m: _Member) -> np.ndarray:
        """Returns the derivative of the fitted curves at all points (P,), nats per log2 LR."""
        d_P = self._x_P - m.vertex_W[self._curve_P]
        pull_PP = 2 * d_P[:, None] - (d_P[:, None] - d_P) / LENGTH**2 * d_P[:, None] ** 2
        return (
            2 * m.bend_W[self._curve_P] * d_P
            + (pull_PP * self._shape(d_P, m.own) * d_P**2) @ m.alpha_P
        )

    def excess(self, curve: int, x: float) -> float:
        """Returns the fitted loss at log2 LR x above the curve's minimum, nats.

        Beyond the curve's points it continues as a straight line.
        """
        bowl = self.bowls[curve]
        inside = min(max(x, bowl.x[0]), bowl.x[-1])
        value, step = self.loss(curve, inside), 0.01 * (bowl.x[-1] - bowl.x[0])
        if inside != x:
            inward = inside + math.copysign(step, inside - x)
            value += max(value - self.loss(curve, inward), 0.0) / step * abs(x - inside)
        return max(value - float(self.minimum_W[curve]), 0.0)

    def loss(self, curve: int, x: float) -> float:
        """Returns the fitted loss of a curve at log2 LR x among the bowl's points, nats."""
        return float(self._mean(np.array([self._member_loss(m, curve, x) for m in self._members])))

    def _member_loss(self, m: _Member, curve: int, x: float) -> float:
        d_P, d = self._x_P - m.vertex_W[self._curve_P], x - m.vertex_W[curve]
        shape_P = (
            self._scale**2
            * (1 + m.own**2 * (self._curve_P == curve))
            * np.exp(-0.5 * ((d - d_P) / LENGTH) ** 2)
        )
        return float(
            m.minimum_W[curve] + m.bend_W[curve] * d**2 + (d**2 * shape_P * d_P**2) @ m.alpha_P
        )
