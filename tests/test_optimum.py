"""Local parabolas: right on exact curves, covering on noisy ones, flagged where they say nothing."""

import numpy as np
import pytest

from mujax.transfer.optimum import EDGE, FEW, FLAT, NO_NOISE, STEEP, UNBRACKETED, fit_optima, fit_optimum
from mujax.transfer.parabola import KALRA, LN2, LOCAL, fit_parabolas

GRID = np.linspace(-10, -2, 17)


def bowl(grid, vertex=-6.2, minimum=2.5, curvature=0.1):
    return (minimum + curvature / 2 * (LN2 * (np.asarray(grid) - vertex)) ** 2).tolist()


@pytest.mark.parametrize("window", [KALRA, None])
@pytest.mark.parametrize("step", [0.5, 1, 2])
def test_exact_parabola(step, window):
    grid = np.arange(-10, -1, step)
    optimum = fit_optimum(grid, bowl(grid), 0.01, **({"window": window} if window else {}))
    parabola = optimum.parabola
    np.testing.assert_allclose(
        (parabola.vertex, parabola.minimum, parabola.curvature, parabola.loss(-4)),
        (-6.2, 2.5, 0.1, bowl([-4])[0]), rtol=1e-9,
    )  # fmt: skip
    assert parabola.interval[0] < -6.2 < parabola.interval[1]
    assert not optimum.flags


def test_the_default_window_is_not_pulled_by_a_lopsided_curve():
    """Slow below, a wall above: the local vertex stays near the minimum, that of the paper's filter does not."""
    grid = np.arange(-14, -2, 0.5)
    u = LN2 * (grid + 6)
    losses = (2.5 + 0.05 * (np.exp(u) - 1 - u)).tolist()
    local, wide = (fit_optimum(grid, losses, 0.01, w).parabola.vertex for w in (LOCAL, KALRA))
    assert abs(local + 6) < 0.7 * abs(wide + 6)


@pytest.mark.parametrize(("sigma", "step"), [(0.003, 1), (0.01, 0.5), (0.01, 1)])
@pytest.mark.parametrize("given", [True, False])
def test_vertex_intervals_cover(sigma, step, given):
    rng, grid, hits = np.random.default_rng(1), np.arange(-10, -1.9, step), []
    for _ in range(200):
        vertex = rng.uniform(-7, -5)
        curves = [np.array(bowl(grid, vertex)) + sigma * rng.standard_normal(len(grid)) for _ in range(3)]
        optimum = fit_optima([grid] * 3, [c.tolist() for c in curves], sigma if given else None)[0]
        low, high = optimum.parabola.interval
        hits.append(low <= vertex <= high)
    assert 0.58 <= np.mean(hits) <= 0.78


def test_noise_comes_from_the_caller_the_seeds_or_the_residuals():
    rng, sigma = np.random.default_rng(5), 0.01
    seeds = (np.array(bowl(GRID))[:, None] + sigma * rng.standard_normal((17, 5))).tolist()
    single = [cell[0] for cell in seeds]
    cases = ((single, 0.01), (seeds, None), (single, None))
    optima = [fit_optimum(GRID, losses, noise) for losses, noise in cases]
    found = [o.noise for o in optima]
    assert [n.source for n in found] == ["given", "seeds", "residuals"]
    assert [n.dof for n in found] == [None, 40, 7]
    # By hand: pooled over the seeds of the points kept; what the kept points leave of a parabola
    low, high = optima[1].parabola.span
    pooled = np.sqrt(np.mean([np.var(c, ddof=1) for x, c in zip(GRID, seeds, strict=True) if low <= x <= high]))
    kept = [(x, y) for x, y in zip(GRID, single, strict=True) if np.clip(x, *optima[2].parabola.span) == x]
    x, y = np.transpose(kept)
    left = y - np.polyval(np.polyfit(x, y, 2), x)
    residual = np.sqrt(left @ left / (len(x) - 3))
    np.testing.assert_allclose([n.sigma for n in found], [sigma, pooled, residual], rtol=1e-6)
    five, one = (fit_optimum(GRID, losses, sigma).parabola.error(1) for losses in (seeds, single))
    assert 1.5 < one / five < 3.5  # five seeds, errors smaller by sqrt(5)
    assert "widened" in fit_optimum(GRID, single, 1e-4).noise.source
    assert NO_NOISE in fit_optimum([-8, -6, -4], [2.6, 2.5, 2.7]).flags


@pytest.mark.parametrize(
    ("grid", "losses", "flag"),
    [
        ([-8, -6, -4], [2.5, 2.6, 2.7], EDGE),
        ([-8, -6, -4, -2], [2.6, 2.5, None, 2.6], UNBRACKETED),
        ([-8, -6, -4, -2], [2.6, 2.5, (2.4, None), 2.6], UNBRACKETED),
        ([-8, -6], [2.6, 2.5], FEW),
        ([-8, -6, -4], [2.501, 2.5, 2.501], FLAT),
        ([-8, -6, -4], [2.52, 2.5, 3.5], STEEP),
    ],
)
def test_flags(grid, losses, flag):
    assert flag in fit_optimum(grid, losses, 0.02).flags


def test_diverged_points_do_not_enter():
    losses = bowl(GRID)
    hurt = [None if x > -4.4 else y for x, y in zip(GRID, losses, strict=True)]
    assert abs(fit_optimum(GRID, hurt, 0.01).parabola.vertex + 6.2) < 1e-9
    assert fit_optimum(GRID, [None] * 17) is None
    again = fit_parabolas(GRID, np.array([losses, [np.nan if y is None else y for y in hurt]]), np.ones(17))
    np.testing.assert_allclose(again.summaries()[0][:, 1], -6.2)


def test_flat_curves_are_flagged():
    rng = np.random.default_rng(3)
    flagged = [bool(fit_optimum(GRID, (2.5 + 0.01 * rng.standard_normal(17)).tolist(), 0.01).flags) for _ in range(200)]
    assert np.mean(flagged) >= 0.95
