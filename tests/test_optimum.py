"""Local parabolas: right on exact curves, covering on noisy ones, flagged where they say
nothing."""

import numpy as np
import pytest

from mujax.transfer.laws import Estimate
from mujax.transfer.noise import BORROWED_SPREAD
from mujax.transfer.optimum import (
    BORROWED,
    COARSE,
    CONTRADICTS,
    EDGE,
    FEW,
    FLAT,
    NO_NOISE,
    STEEP,
    UNBRACKETED,
    fit_optima,
)
from mujax.transfer.parabola import LN2, fit_parabolas

GRID = np.linspace(-10, -2, 17)


def bowl(grid, vertex=-6.2, minimum=2.5, curvature=0.1):
    return (minimum + curvature / 2 * (LN2 * (np.asarray(grid) - vertex)) ** 2).tolist()


def fit_optimum(grid, losses, noise=None):
    return fit_optima([grid], [losses], noise)[0]


@pytest.mark.parametrize("step", [0.5, 1, 2])
def test_exact_parabola(step):
    grid = np.arange(-10, -1, step)
    optimum = fit_optimum(grid, bowl(grid), 0.01)
    parabola = optimum.parabola
    np.testing.assert_allclose(
        (parabola.vertex, parabola.minimum, parabola.curvature, parabola.loss(-4)),
        (-6.2, 2.5, 0.1, bowl([-4])[0]), rtol=1e-9,
    )  # fmt: skip
    assert optimum.vertex == pytest.approx(-6.2, abs=1e-4)
    assert optimum.minimum == pytest.approx(2.5, abs=1e-6)
    assert optimum.interval[0] < -6.2 < optimum.interval[1]
    assert optimum.flags == ((COARSE,) if step == 2 else ())


def test_the_window_is_not_pulled_by_a_lopsided_curve():
    """Slow below, a wall above: the local vertex stays near the minimum, that of all that the paper
    keeps does not."""
    grid = np.arange(-14, -2, 0.5)
    u = LN2 * (grid + 6)
    losses = 2.5 + 0.05 * (np.exp(u) - 1 - u)
    local, kept = (
        fit_optimum(grid, losses.tolist(), 0.01).parabola.vertex,
        losses <= 1.35 * losses.min(),
    )
    curvature, slope, _ = np.polyfit(grid[kept], losses[kept], 2)
    wide = -slope / (2 * curvature)
    assert abs(local + 6) < 0.7 * abs(wide + 6)


@pytest.mark.parametrize(("sigma", "step"), [(0.003, 1), (0.01, 0.5)])
@pytest.mark.parametrize("given", [True, False])
def test_vertex_intervals_cover(sigma, step, given):
    """Three seeds; each has luck that is common to its learning rates, and an optimum of its
    own."""
    rng, grid, hits = np.random.default_rng(1), np.arange(-10, -1.9, step), []
    for _ in range(60):
        vertices, curves = rng.uniform(-7, -5, 3), []
        for vertex in vertices:
            own = vertex + 0.2 * rng.standard_normal(3)
            luck = 0.02 * rng.standard_normal(3)
            runs = (
                np.array([bowl(grid, at) for at in own]).T
                + luck
                + sigma * rng.standard_normal((len(grid), 3))
            )
            curves.append([tuple(cell) for cell in runs.tolist()])
        optima = fit_optima([grid] * 3, curves, sigma if given else None)
        hits += [
            o.interval[0] <= vertex <= o.interval[1]
            for o, vertex in zip(optima, vertices, strict=True)
        ]
    assert 0.6 <= np.mean(hits) <= 0.78


def test_noise_comes_from_the_caller_the_seeds_or_the_residuals():
    rng, sigma = np.random.default_rng(5), 0.01
    luck = np.array([0.05, -0.02, 0.0, 0.04, -0.06])
    seeds = (np.array(bowl(GRID))[:, None] + luck + sigma * rng.standard_normal((17, 5))).tolist()
    single = [cell[0] for cell in seeds]
    cases = ((single, 0.01), (seeds, None), (single, None))
    optima = [fit_optimum(GRID, losses, noise) for losses, noise in cases]
    found = [o.noise for o in optima]
    assert [n.source for n in found] == ["given", "seeds", "residuals"]
    # By hand: what is left of the seeds' losses without their means, their luck, and a shift of
    # their optima
    near = np.array(
        [cell for x, cell in zip(GRID, seeds, strict=True) if abs(x - optima[1].log2_lr) <= 3]
    )
    left = near - near.mean(1, keepdims=True)
    slope = np.array([x + 6.2 for x in GRID if abs(x - optima[1].log2_lr) <= 3])
    left = left - np.stack(
        [np.polyval(np.polyfit(slope, column, 1), slope) for column in left.T], 1
    )
    dof = (len(near) - 2) * 4
    assert found[1].dof == dof
    assert found[1].sigma == pytest.approx(np.sqrt((left**2).sum() / dof), rel=0.01)
    assert 0.03 < found[1].offset < 0.06  # the luck's standard deviation is 0.046
    assert found[1].spread < 0.1
    assert (found[2].spread, found[2].spread_dof) == (BORROWED_SPREAD, None)
    assert BORROWED in optima[2].cautions
    assert BORROWED not in optima[1].cautions
    assert 0.005 < found[2].sigma < 0.02
    assert "widened" in fit_optimum(GRID, single, 1e-4).noise.source
    assert NO_NOISE in fit_optimum([-8, -6, -4], [2.6, 2.5, 2.7]).flags


def test_few_seeds_have_wide_tails():
    """With two degrees of freedom a 95% interval is 3.3 times the 68% one, by Student's quantiles,
    and not twice."""
    e = Estimate(0.0, (-1.0, 1.0), (), 2)
    # t tables: 0.975 and 0.8413 at 2 degrees
    assert e.within()[1] == pytest.approx(4.303 / 1.321, rel=1e-3)
    assert Estimate(0.0, (-1.0, 1.0)).within()[1] == pytest.approx(1.96, abs=0.001)


@pytest.mark.parametrize(
    ("grid", "losses", "flag"),
    [
        ([-8, -6, -4], [2.5, 2.6, 2.7], EDGE),
        ([-8, -6, -4, -2], [2.6, 2.5, None, 2.6], UNBRACKETED),
        ([-8, -6, -4, -2], [2.6, 2.5, (2.4, None), 2.6], UNBRACKETED),
        ([-8, -6], [2.6, 2.5], FEW),
        ([-8, -6, -4], [2.501, 2.5, 2.501], FLAT),
        ([-8, -6, -4], [2.52, 2.5, 3.5], STEEP),
        ([-8, -6, -4], [2.6, 2.5, 2.6], COARSE),
    ],
)
def test_flags(grid, losses, flag):
    assert flag in fit_optimum(grid, losses, 0.02).flags


def test_diverged_points_do_not_enter():
    losses = bowl(GRID)
    hurt = [None if x > -4.4 else y for x, y in zip(GRID, losses, strict=True)]
    assert abs(fit_optimum(GRID, hurt, 0.01).vertex + 6.2) < 1e-3
    assert fit_optimum(GRID, [None] * 17) is None
    again = fit_parabolas(
        GRID, np.array([losses, [np.nan if y is None else y for y in hurt]]), np.ones(17)
    )
    np.testing.assert_allclose(again.summaries()[0][:, 1], -6.2)


def test_flat_curves_are_flagged():
    rng = np.random.default_rng(3)
    flagged = [
        bool(fit_optimum(GRID, (2.5 + 0.01 * rng.standard_normal(17)).tolist(), 0.01).flags)
        for _ in range(200)
    ]
    assert np.mean(flagged) >= 0.95


def test_a_fit_that_contradicts_the_points_is_flagged():
    """A plateau beside the lowest point, in noise that is known to be small: no valley fits, and it
    is said."""
    grid = [-10.0, -9.0, -8.0, -7.0, -6.0, -5.0, -4.0]
    losses = [2.60, 2.58, 2.56, 2.30, 2.55, 2.57, 2.59]
    sharp, smooth = fit_optimum(grid, losses, 0.001), fit_optimum(grid, bowl(grid), 0.001)
    assert "widened" in sharp.noise.source
    assert sharp.error > 5 * smooth.error - 1
    assert CONTRADICTS not in smooth.flags
