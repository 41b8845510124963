"""Does the optimum transfer? Drift, penalties and a verdict in words, from curves of one study at several widths.

Positions are log2 learning rates, losses nats a token. See optimum.py for how a curve is given.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from mujax.transfer.laws import Estimate
from mujax.transfer.optimum import Cell, Noise, Optimum, cell_means, usable
from mujax.transfer.parabola import LN2


@dataclasses.dataclass(frozen=True)
class Verdict:
    """word: transfers, drifts or undecided; reasons: why, in words."""

    word: Literal["transfers", "drifts", "undecided"]
    reasons: tuple[str, ...]
    drift: Estimate | None


@dataclasses.dataclass(frozen=True)
class ArgminVerdict:
    """word: Yes if the best grid point is the same at every width (arXiv 2404.05728), undecided if a cell is missing.

    best: log2 LR a width, None if every point diverged. close: widths where the second best point is within `gap`
    of the best, so that other seeds could turn the word.
    """

    word: Literal["Yes", "No", "undecided"]
    best: tuple[float | None, ...]
    close: tuple[int, ...]


def argmin_verdict(
    widths: Sequence[int], log2_lrs: Sequence[Sequence[float]], losses: Sequence[Sequence[Cell]], gap: float = 0.02
) -> ArgminVerdict:
    """A cell is missing if another width has its learning rate; a diverged one is not missing."""
    best, close = [], []
    for width, grid, curve in zip(widths, log2_lrs, losses, strict=True):
        ranked = sorted((y, x) for x, y in zip(grid, cell_means(curve)[0].tolist(), strict=True) if math.isfinite(y))
        best.append(ranked[0][1] if ranked else None)
        if len(ranked) > 1 and ranked[1][0] - ranked[0][0] < gap:
            close.append(width)
    missing = len({tuple(grid) for grid in log2_lrs}) > 1 or None in best or len(widths) < 2
    word = "undecided" if missing else "Yes" if len(set(best)) == 1 else "No"
    return ArgminVerdict(word, tuple(best), tuple(close))


def drift_per_doubling(widths: Sequence[int], optima: Sequence[Optimum | None]) -> Estimate | None:
    """Slope of the optimal log2 LR against log2 width, weighted by the vertices' errors, with its 68% interval.

    Where a straight line misses the vertices (p < 0.01), its error is widened. Flagged if an optimum is; None with
    fewer than two widths to draw a line through.
    """
    flags = [f"width {n}: {f}" for n, o in zip(widths, optima, strict=True) for f in (o.flags if o else ["diverged"])]
    found = usable(widths, optima)
    if len({n for n, _, _ in found}) < 2:
        return None
    if len(widths) < 3:
        flags.append("too few widths: two always lie on a line")
    t, x = np.log2([n for n, _, _ in found]), np.array([p.vertex for _, p, _ in found])
    w = np.array([p.error(1) for _, p, _ in found]) ** -2
    t0 = t - np.average(t, weights=w)
    slope = float((w * t0 * x).sum() / (w * t0**2).sum())
    spread, spare, noise = float((w * t0**2).sum()) ** -0.5, len(x) - 2, found[0][2]
    chi2 = float((w * (x - np.average(x, weights=w) - slope * t0) ** 2).sum())
    if spare and stats.f.sf(chi2 / spare, spare, noise.dof or 10**6) < 0.01:
        spread, noise = spread * math.sqrt(chi2 / spare), Noise(1.0, spare, "line")
    half = spread * noise.quantile(1)
    return Estimate(slope, (slope - half, slope + half), tuple(flags))


def judge(
    widths: Sequence[int],
    optima: Sequence[Optimum | None],
    tolerance: float = 0.25,
    loss_tolerance: float = 0.02,
) -> Verdict:
    """Transfers or drifts where twice the 68% interval of the drift lies inside or outside +-tolerance.

    tolerance: log2 LR per doubling of width (SP drifts by about 1, perfect transfer by 0).
    loss_tolerance: nats; an optimum that moves, but at a smaller loss at every width than this, is said to.
    A flagged optimum leaves it undecided: a curve that ends before its optimum could hide any drift.
    """
    drift = drift_per_doubling(widths, optima)
    if drift is None:
        flagged = [f"width {n}: {f}" for n, o in zip(widths, optima, strict=True) for f in (o.flags if o else [])]
        return Verdict("undecided", (*flagged, "fewer than two widths have an optimum"), None)
    if drift.flags or drift.interval is None:
        return Verdict("undecided", drift.flags, drift)
    low, high = (drift.value + 2 * (end - drift.value) for end in drift.interval)
    said = f"the optimum moves by {drift.value:+.3f} log2 LR per doubling of width (95%: {low:+.3f} to {high:+.3f})"
    worst = max((p.value for p in penalties(widths, optima) if p), default=math.nan)
    cost = f"the narrowest width's optimum costs at most {worst:.4f} nats at the other widths"
    cost += f", {'less' if worst < loss_tolerance else 'more'} than {loss_tolerance:g}"
    if -tolerance < low and high < tolerance:
        return Verdict("transfers", (said + f", within {tolerance:g}", cost), drift)
    if low > tolerance or high < -tolerance:
        return Verdict("drifts", (said + f", beyond {tolerance:g}", cost), drift)
    return Verdict("undecided", (said + f", on both sides of {tolerance:g}", cost), drift)


def penalties(widths: Sequence[int], optima: Sequence[Optimum | None]) -> list[Estimate | None]:
    """Loss at each width of using the first (narrowest) width's optimum: H/2 (x_proxy - x*)^2, nats; 68% intervals.

    From the local parabola, so flagged where the proxy's optimum is outside the points it was fitted to.
    """
    proxy = optima[0].parabola if optima[0] else None
    found: list[Estimate | None] = []
    for optimum in optima:
        here = optimum.parabola if optimum else None
        if proxy is None or here is None or optimum is None or optima[0] is None or optimum.noise is None:
            found.append(None)
            continue
        gap, inside = LN2 * (proxy.vertex - here.vertex), here.span[0] <= proxy.vertex <= here.span[1]
        flags = (*optima[0].flags, *optimum.flags, *(() if inside else ("beyond the points of the parabola",)))
        if here is proxy:
            found.append(Estimate(0.0, (0.0, 0.0), flags))
            continue
        # The gap's interval carries over to its square, so the penalty's has an end at 0 where the gap's holds 0.
        half = LN2 * optimum.noise.quantile(1) * math.hypot(proxy.error(1), here.error(1))
        near, far = max(abs(gap) - half, 0.0), abs(gap) + half
        ends = (here.curvature / 2 * near**2, here.curvature / 2 * far**2)
        found.append(Estimate(here.curvature / 2 * gap**2, ends, flags))
    return found


def loss_at(log2_lrs: Sequence[float], losses: Sequence[Cell], x: float) -> float | None:
    """Loss at log2 LR x, linear between measured points; None outside the grid or beside a diverged point."""
    means, grid = cell_means(losses)[0], np.asarray(log2_lrs, float)
    if not grid[0] <= x <= grid[-1]:
        return None
    right = int(np.searchsorted(grid, x))
    if grid[right] == x:
        value = float(means[right])
    else:
        share = (x - grid[right - 1]) / (grid[right] - grid[right - 1])
        value = float((1 - share) * means[right - 1] + share * means[right])
    return value if math.isfinite(value) else None


def price(
    log2_lrs: Sequence[float], losses: Sequence[Cell], proxy_log2_lr: float, tuned_sp: Sequence[Cell]
) -> float | None:
    """Loss at one width with the learning rate of the proxy, less that of SP tuned at this width, nats.

    Below 0 is gain. Both trained on the same budget; what tuning SP took besides is not counted.
    """
    transferred, means = loss_at(log2_lrs, losses, proxy_log2_lr), cell_means(tuned_sp)[0]
    if transferred is None or not np.isfinite(means).any():
        return None
    return transferred - float(np.nanmin(means))


@dataclasses.dataclass(frozen=True)
class StableRange:
    """log2 LRs around the best point with a loss within a tolerance of it; open_*: not ended by a measured rise."""

    low: float
    high: float
    open_low: bool
    open_high: bool


def stable_range(log2_lrs: Sequence[float], losses: Sequence[Cell], tolerance: float) -> StableRange | None:
    """Ends are interpolated linearly; one at a diverged point is the last finite point before it, and not open."""
    means, grid = cell_means(losses)[0], np.asarray(log2_lrs, float)
    if not np.isfinite(means).any():
        return None
    best = int(np.nanargmin(means))
    limit, ends, opens = means[best] + tolerance, [], []
    for side in (-1, 1):
        i = best
        while 0 <= i + side < len(grid) and means[i + side] <= limit:
            i += side
        j, end = i + side, grid[i]
        opens.append(not 0 <= j < len(grid))
        if 0 <= j < len(grid) and math.isfinite(means[j]):
            end += (grid[j] - grid[i]) * (limit - means[i]) / (means[j] - means[i])
        ends.append(float(end))
    return StableRange(ends[0], ends[1], opens[0], opens[1])
