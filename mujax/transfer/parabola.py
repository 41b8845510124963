"""Parabolas through the points around a minimum, by batched local least squares.

The window of points follows the vertex. Axes: D draws, X learning rates.
"""

import dataclasses
import math

import numpy as np

LN2 = math.log(2)


# A parabola is fitted to a window of contiguous points. The window is local, since real curves are
# lopsided (slow below the optimum, a cliff above) and a wide parabola's vertex is pulled to the
# slow side. It moves with the vertex, not with the noisy best point: choosing points by their own
# noise biases the curvature.
HALF_WIDTH = 2.5  # log2 LR around the vertex, but at least 1.5 grid steps, for 3 points
RISE = 0.4  # nats above the lowest loss at most


@dataclasses.dataclass(frozen=True)
class Fits:
    """Parabolas y = c0 + c1 u + c2 u^2 of D draws of one curve, with u = ln(LR) - origin.

    unit_D33: (X'WX)^-1.
    """

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
        """Returns (minimum, vertex in log2, curvature), (D, 3), and the covariance at noise 1."""
        c0, c1, c2 = self.coef_D3.T
        with np.errstate(divide="ignore", invalid="ignore"):
            v, h = -c1 / (2 * c2), 2 * c2
            value_D3 = np.stack([c0 - c1**2 / (4 * c2), (v + self.origin_D) / LN2, h], -1)
            zero, one = np.zeros_like(v), np.ones_like(v)
            rows = [[one, v, v**2], [zero, -1 / h / LN2, -2 * v / h / LN2], [zero, zero, 2 * one]]
            jacobian_D33 = np.stack([np.stack(row, -1) for row in rows], -2)
            return value_D3, jacobian_D33 @ self.unit_D33 @ jacobian_D33.swapaxes(-1, -2)


def fit_parabolas(log2_lrs: np.ndarray, loss_DX: np.ndarray, seeds_X: np.ndarray) -> Fits:
    """Fits one local parabola per draw; points weigh by their number of seeds.

    Every draw has a finite loss.
    """
    x_X, finite_DX = np.asarray(log2_lrs, float), np.isfinite(loss_DX)
    y_DX, rows, last = np.where(finite_DX, loss_DX, math.inf), np.arange(len(loss_DX)), len(x_X) - 1
    best_D = y_DX.argmin(1)
    low_D, high_D = x_X[np.maximum(best_D - 1, 0)], x_X[np.minimum(best_D + 1, last)]
    step_D = np.maximum(high_D - x_X[best_D], x_X[best_D] - low_D)
    half_D = np.maximum(HALF_WIDTH, 1.5 * step_D)[:, None]
    neighbour_DX = finite_DX & (x_X >= low_D[:, None]) & (x_X <= high_D[:, None])
    lowest_D1 = y_DX[rows, best_D][:, None]
    inside_DX = neighbour_DX | (y_DX <= lowest_D1 + RISE)
    # Constant from the best point up to the first point that is left out.
    out_DX = np.cumsum(~inside_DX, 1)
    reach_DX = np.concatenate([np.zeros_like(out_DX[:, :1]), out_DX[:, :-1]], 1)
    at = out_DX[rows, best_D][:, None]
    inside_DX &= np.where(np.arange(len(x_X)) > best_D[:, None], out_DX == at, reach_DX == at)
    u_DX = LN2 * (x_X - x_X[best_D][:, None])
    design_DX3 = np.stack([np.ones_like(u_DX), u_DX, u_DX**2], -1)
    y_DX = np.where(finite_DX, loss_DX, 0.0)
    center_D = x_X[best_D]

    def solve(center_D):
        keep_DX = inside_DX & (np.abs(x_X - center_D[:, None]) <= half_D + 1e-9)
        weighted_DX3 = design_DX3 * (keep_DX * seeds_X)[..., None]
        normal_D33 = np.einsum("dxi,dxj->dij", weighted_DX3, design_DX3)
        enough_D = keep_DX.sum(1) >= 3
        unit_D33 = np.linalg.inv(np.where(enough_D[:, None, None], normal_D33, np.eye(3)))
        return (
            keep_DX,
            enough_D,
            unit_D33,
            np.einsum("dij,dxj,dx->di", unit_D33, weighted_DX3, y_DX),
        )

    for _ in range(2):  # the window follows the vertex
        _, enough_D, _, coef_D3 = solve(center_D)
        convex_D = enough_D & (coef_D3[:, 2] > 0)
        vertex_D = x_X[best_D] - coef_D3[:, 1] / np.where(convex_D, 2 * coef_D3[:, 2], 1) / LN2
        center_D = np.where(convex_D, np.clip(vertex_D, low_D, high_D), x_X[best_D])
    keep_DX, enough_D, unit_D33, coef_D3 = solve(center_D)
    rss_D = (keep_DX * seeds_X * (y_DX - np.einsum("dxi,di->dx", design_DX3, coef_D3)) ** 2).sum(1)
    coef_D3[~enough_D] = unit_D33[~enough_D] = rss_D[~enough_D] = math.nan
    return Fits(best_D, keep_DX, LN2 * x_X[best_D], coef_D3, unit_D33, rss_D)
