"""Drift, penalties and a verdict on transfer, from curves of one study at several widths.

Positions are log2 learning rates, losses nats per token. See optimum.py for how a curve is given.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from mujax.transfer.laws import Estimate
from mujax.transfer.noise import student
from mujax.transfer.optimum import Cell, Optimum, cell_means

Word = Literal["transfers", "moves at no cost", "drifts", "undecided"]

# Level of a verdict's intervals. A claim that a number lies above, or below, a limit is then wrong
# in at most one of 20 cases, as in tests of equivalence by two one-sided tests at 5%.
LEVEL = 0.90
CLOSE = 0.02  # nats between a grid's best two points, which other seeds could swap


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on transfer, with its reasons in words.

    movement: of the optimum from the narrowest width to the widest (or the target), log2 LR.
    cost: loss of using the narrowest width's optimum there, nats.
    """

    word: Word
    reasons: tuple[str, ...]
    drift: Estimate | None
    movement: Estimate | None = None
    cost: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class ArgminVerdict:
    """The verdict by best grid points (arXiv 2404.05728).

    word: Yes if the best point is the same at every width, undecided if a cell is missing.
    best: log2 LR per width, None if every point diverged.
    close: widths where the second best point is within CLOSE, so that other seeds could change the
      word.
    """

    word: Literal["Yes", "No", "undecided"]
    best: tuple[float | None, ...]
    close: tuple[int, ...]


def argmin_verdict(
    widths: Sequence[int], log2_lrs: Sequence[Sequence[float]], losses: Sequence[Sequence[Cell]]
) -> ArgminVerdict:
    """Returns the verdict by best grid points.

    A cell is missing if another width has its learning rate; a diverged cell is not missing.
    """
    best, close = [], []
    for width, grid, curve in zip(widths, log2_lrs, losses, strict=True):
        ranked = sorted(
            (y, x)
            for x, y in zip(grid, cell_means(curve)[0].tolist(), strict=True)
            if math.isfinite(y)
        )
        best.append(ranked[0][1] if ranked else None)
        if len(ranked) > 1 and ranked[1][0] - ranked[0][0] < CLOSE:
            close.append(width)
    missing = len({tuple(grid) for grid in log2_lrs}) > 1 or None in best or len(widths) < 2
    word = "undecided" if missing else "Yes" if len(set(best)) == 1 else "No"
    return ArgminVerdict(word, tuple(best), tuple(close))


def drift_per_doubling(widths: Sequence[int], optima: Sequence[Optimum | None]) -> Estimate | None:
    """Measures the slope of the optimal log2 LR against log2 width, with its 68% interval.

    The line is weighted by the vertices' covariance. Where it misses the vertices (p < 0.01), its
    error is widened. The slope is flagged if an optimum is flagged, and None with fewer than two
    widths.
    """
    line = _line(widths, optima)
    if line is None:
        return None
    flags = [
        f"width {n}: {f}"
        for n, o in zip(widths, optima, strict=True)
        for f in (o.flags if o else ["diverged"])
    ]
    if len(widths) < 3:
        flags.append("too few widths: two always lie on a line")
    half = line.error * student(1, line.dof)
    return Estimate(line.slope, (line.slope - half, line.slope + half), tuple(flags), line.dof)


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line through the optima, with its slope through the parabolas' vertices beside it."""

    slope: float
    error: float
    dof: float | None
    parabolas: float


def _line(widths: Sequence[int], optima: Sequence[Optimum | None]) -> _Line | None:
    found = [(n, o) for n, o in zip(widths, optima, strict=True) if o and o.usable]
    if len({n for n, _ in found}) < 2:
        return None
    fit = found[0][1].fit
    assert fit is not None
    pick = np.ix_([o.index for _, o in found], [o.index for _, o in found])
    t, x = np.log2([n for n, _ in found]), np.array([o.vertex for _, o in found], float)
    second = np.array([o.parabola.vertex if o.parabola else o.vertex for _, o in found], float)
    design = np.stack([np.ones_like(t), t - t.mean()], 1)
    weight = np.linalg.inv(fit.covariance_WW[pick] + 1e-12 * np.eye(len(t)))
    unit = np.linalg.inv(design.T @ weight @ design)
    solve, error, dof, spare = unit @ design.T @ weight, math.sqrt(unit[1, 1]), fit.dof, len(x) - 2
    left = x - design @ (solve @ x)
    misses = float(left @ weight @ left)
    if spare and stats.f.sf(misses / spare, spare, dof or 10**6) < 0.01:
        error, dof = error * math.sqrt(misses / spare), float(spare)
    return _Line(float(solve[1] @ x), error, dof, float(solve[1] @ second))


def judge(
    widths: Sequence[int],
    optima: Sequence[Optimum | None],
    tolerance: float = 0.25,
    loss_tolerance: float = 0.02,
    target: int | None = None,
) -> Verdict:
    """Judges how far the optimum moves over the whole range of widths, and what that costs.

    The verdict rests on 90% intervals (LEVEL). With D the movement per doubling of width, and C the
    loss at any other width of using the narrowest width's optimum:

        drifts             D lies beyond the tolerance; or the optimum surely moves and C is above
                           the loss tolerance
        transfers          D lies within the tolerance, C is below the loss tolerance, and the
                           optimum may not move at all
        moves at no cost   the optimum surely moves, D is not beyond the tolerance, and C is below
                           the loss tolerance
        undecided          none of these, or an optimum is flagged: a curve that ends before its
                           optimum could hide any drift

    Args:
      tolerance: log2 LR per doubling of width (SP drifts by about 1, perfect transfer by 0).
      loss_tolerance: nats.
      target: a width beyond the widest; the optimum is assumed to move on to it by D per doubling.
    """
    drift = drift_per_doubling(widths, optima)
    if drift is None:
        flagged = [
            f"width {n}: {f}"
            for n, o in zip(widths, optima, strict=True)
            for f in (o.flags if o else [])
        ]
        return Verdict("undecided", (*flagged, "fewer than two widths have an optimum"), None)
    drifted = drift.within(LEVEL)
    if drift.flags or drifted is None:
        return Verdict("undecided", drift.flags, drift)
    far = target or widths[-1]
    doublings = math.log2(far / widths[0])
    movement = _scaled(drift, doublings)
    costs = [cost for cost in penalties(widths, optima)[1:] if cost]
    if target:
        costs.append(_cost_beyond(optima[-1], movement))
    cost = max(costs, key=lambda c: c.value)
    low, high = drifted
    moves, beyond, inside = (
        low > 0 or high < 0,
        min(abs(low), abs(high)),
        max(abs(low), abs(high)) < tolerance,
    )
    ends = [c.within(LEVEL) or (0.0, math.inf) for c in costs]
    cheapest, dearest = max(max(end[0] for end in ends), 0.0), max(end[1] for end in ends)
    if moves and (beyond > tolerance or cheapest > loss_tolerance):
        word = "drifts"
    elif dearest < loss_tolerance and (moves or inside):
        word = "moves at no cost" if moves else "transfers"
    else:
        word = "undecided"
    side = "within" if inside else "beyond" if moves and beyond > tolerance else "on both sides of"
    reasons = [
        f"the optimum moves by {drift.value:+.3f} log2 LR per doubling of width ({LEVEL:.0%}: "
        f"{low:+.3f} to {high:+.3f}), {side} {tolerance:g}: x{2**movement.value:.2f} from width "
        f"{widths[0]} to {far}",
        f"the narrowest width's optimum costs at most {cost.value:.4f} nats at the other widths "
        f"({LEVEL:.0%}: {cheapest:.4f} to {dearest:.4f}), "
        + (
            "less than"
            if dearest < loss_tolerance
            else "more than"
            if cheapest > loss_tolerance
            else "on both sides of"
        )
        + f" {loss_tolerance:g}",
        *_said(widths, optima, drift),
    ]
    return Verdict(word, tuple(reasons), drift, movement, cost)


def _scaled(e: Estimate, by: float) -> Estimate:
    interval = None if e.interval is None else (e.interval[0] * by, e.interval[1] * by)
    return Estimate(e.value * by, interval, e.flags, e.dof)


def _said(widths: Sequence[int], optima: Sequence[Optimum | None], drift: Estimate) -> list[str]:
    """Returns the verdict's further remarks: estimators that disagree, errors that are borrowed."""
    said, line, ends = [], _line(widths, optima), drift.within(LEVEL)
    if line and ends and not ends[0] <= line.parabolas <= ends[1]:
        said.append(
            f"estimators disagree: the vertices of local parabolas move by {line.parabolas:+.3f} "
            "per doubling"
        )
    cautions: dict[str, list[int]] = {}
    for width, optimum in zip(widths, optima, strict=True):
        for caution in optimum.cautions if optimum else ():
            cautions.setdefault(caution, []).append(width)
    for caution, at in cautions.items():
        said.append(
            caution if len(at) == len(widths) else f"width {', '.join(map(str, at))}: {caution}"
        )
    return said


def penalties(widths: Sequence[int], optima: Sequence[Optimum | None]) -> list[Estimate | None]:
    """Measures the loss at each width of using the narrowest width's optimum, nats.

    The 68% interval is the fitted curve's loss at the ends of the interval of the distance between
    the optima. It is flagged where the proxy's optimum is outside the points that the curve was
    fitted to.
    """
    proxy, found = optima[0], []
    for optimum in optima:
        if (
            proxy is None
            or optimum is None
            or proxy.vertex is None
            or optimum.vertex is None
            or optimum.noise is None
        ):
            found.append(None)
        elif optimum is proxy:
            found.append(Estimate(0.0, (0.0, 0.0), optimum.flags))
        else:
            assert optimum.fit is not None
            pair = optimum.fit.covariance_WW[
                np.ix_([optimum.index, proxy.index], [optimum.index, proxy.index])
            ]
            error = math.sqrt(max(pair[0, 0] + pair[1, 1] - 2 * pair[0, 1], 0.0))
            found.append(
                _cost(optimum, proxy.vertex - optimum.vertex, error, (*proxy.flags, *optimum.flags))
            )
    return found


def _cost(optimum: Optimum, gap: float, error: float, flags: tuple[str, ...]) -> Estimate:
    """Returns the excess loss at a distance `gap` (log2 LR, known to `error`) from an optimum."""
    fit, vertex = optimum.fit, optimum.vertex
    assert fit is not None and vertex is not None
    bowl = fit.valleys.bowls[optimum.index]

    def excess(x: float) -> float:
        return fit.valleys.excess(optimum.index, x)

    half = error * student(1, fit.dof)
    value, ends = excess(vertex + gap), [excess(vertex + gap + side * half) for side in (-1, 1)]
    low = 0.0 if abs(gap) <= half else min(value, *ends)
    if not bowl.x[0] <= vertex + gap <= bowl.x[-1]:
        flags = (*flags, "beyond the points of the fit")
    return Estimate(value, (low, max(value, *ends)), flags, fit.dof)


def _cost_beyond(widest: Optimum | None, movement: Estimate) -> Estimate:
    """Returns the excess loss of the narrowest width's optimum at a width that was not trained.

    The widest width's curve gives the shape.
    """
    assert widest is not None and movement.interval is not None
    error = (movement.interval[1] - movement.interval[0]) / 2 / student(1, movement.dof)
    return _cost(widest, -movement.value, error, ())


def loss_at(log2_lrs: Sequence[float], losses: Sequence[Cell], x: float) -> float | None:
    """Returns the loss at log2 LR x, linear between measured points.

    None outside the grid or beside a diverged point.
    """
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


def loss_gap(
    log2_lrs: Sequence[float],
    losses: Sequence[Cell],
    proxy_log2_lr: float,
    tuned_sp: Sequence[Cell],
) -> float | None:
    """Returns the loss at the proxy's learning rate less the loss of tuned SP, at one width, nats.

    Below 0, transfer is better. Both are trained on the same budget; the runs that tuned SP do not
    count.
    """
    transferred, means = loss_at(log2_lrs, losses, proxy_log2_lr), cell_means(tuned_sp)[0]
    if transferred is None or not np.isfinite(means).any():
        return None
    return transferred - float(np.nanmin(means))


@dataclasses.dataclass(frozen=True)
class StableRange:
    """The range of log2 LRs around the best point with a loss within a tolerance of the best.

    open_low, open_high: whether no measured rise ends the range on that side.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool


def stable_range(
    log2_lrs: Sequence[float], losses: Sequence[Cell], tolerance: float
) -> StableRange | None:
    """Returns the stable range, with ends interpolated linearly.

    At a diverged point the range ends, closed, at the last finite point before it.
    """
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
