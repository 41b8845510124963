"""Laws recovered from draws of known ones: no bias, intervals that cover, flags where there is
nothing to know."""

import numpy as np
import pytest
from laws import GRIDS, TRUTH, WIDTHS, clean, draws

from mujax.transfer.exponents import bootstrap, bootstrap_intervals, fast_transfer, fit_laws, kappa
from mujax.transfer.joint import asymptotic_regret, fit_joint, reference_envelope, regret, tradeoff
from mujax.transfer.laws import Estimate, fit_law
from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import judge

KINDS = {"loss": "alpha", "optimum": "beta", "curvature": "gamma"}


def measure(widths, grid, losses, noise=None):
    optima = fit_optima([grid] * len(widths), losses, noise)
    return optima, fit_laws(widths, optima)


def test_exact_laws():
    widths, grid = WIDTHS[7], GRIDS[17]
    alike = [[(y, y, y) for y in curve] for curve in clean(widths, grid)]
    optima, laws = measure(widths, grid, alike, 1e-6)
    for kind, name in KINDS.items():
        assert abs(laws[kind].exponent.value - TRUTH[name]) < 1e-4
    np.testing.assert_allclose(
        (laws["loss"].limit.value, laws["loss"].scale, laws["optimum"].limit.value,
        laws["curvature"].scale),
        (2, 10, -7.5, 0.12), rtol=1e-3,
    )  # fmt: skip
    assert abs(kappa(laws, optima).value - (0.4 - 1.2 + 0.05)) < 1e-3
    assert fast_transfer(laws, optima).above(0)
    assert abs(float(laws["loss"](8192)) - (2 + 10 * 8192**-0.4)) < 1e-4


def check_coverage(num, num_widths, num_lrs, sigma, given, low=0.58, high=0.84, bias=0.35):
    widths, grid, seen = WIDTHS[num_widths], GRIDS[num_lrs], {}
    for losses in draws(num, widths, grid, sigma):
        optima, laws = measure(widths, grid, losses, 3**0.5 * sigma if given else None)
        estimates = {name: laws[kind].exponent for kind, name in KINDS.items()}
        estimates["kappa"], estimates["l_inf"] = kappa(laws, optima), laws["loss"].limit
        for name, e in estimates.items():
            seen.setdefault(name, []).append(e)
    # The optimum may be of a lopsided curve, which these are not: its intervals are a little wide
    # here
    truth = TRUTH | {"kappa": TRUTH["alpha"] - 2 * TRUTH["beta"] + TRUTH["gamma"]}
    for name, estimates in seen.items():
        good = [e for e in estimates if not e.flags]
        assert len(good) >= 0.9 * num, name
        covered = np.mean([e.interval[0] <= truth[name] <= e.interval[1] for e in good])
        half = np.median([(e.interval[1] - e.interval[0]) / 2 for e in good])
        off = np.median([e.value for e in good]) - truth[name]
        assert low <= covered <= high, (name, covered)
        assert abs(off) < bias * half, (name, off / half)


def test_intervals_cover_quickly():
    check_coverage(40, 5, 17, 0.003, given=False, low=0.5, high=0.9, bias=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("sigma", [0.003, 0.01])
@pytest.mark.parametrize("num_lrs", [9, 17])
@pytest.mark.parametrize("num_widths", [5, 7])
def test_intervals_cover(num_widths, num_lrs, sigma, given):
    check_coverage(200, num_widths, num_lrs, sigma, given)


DEGENERATE = {
    "no drift": ("optimum", {"b": 0.0, "x_inf": -6.0}),
    "the same drift at each doubling": ("optimum", {"beta": 0.001, "b": 1000.0, "x_inf": -1001.0}),
    "beta at 2": ("optimum", {"beta": 2.0, "b": 12000.0}),
    "no gain from width": ("loss", {"a": 0.0}),
    "L_inf at 0": ("loss", {"l_inf": 0.0, "alpha": 0.1, "a": 6.0}),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_truths_are_flagged(name, num=30):
    kind, changes = DEGENERATE[name]
    widths, grid, flagged = WIDTHS[5], GRIDS[17], []
    for losses in draws(num, widths, grid, 0.01, **changes):
        _, laws = measure(widths, grid, losses)
        flagged.append(bool(laws[kind].exponent.flags))
    assert np.mean(flagged) >= 0.95


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({"h_0": 0.0}, WIDTHS[5]),
        ({"x_inf": -1.5, "b": 0.0}, WIDTHS[5]),
        ({}, [256]),
        ({}, [256, 512]),
    ],
    ids=["flat", "edge", "one width", "two widths"],
)
def test_what_cannot_be_judged_is_undecided(changes, widths):
    undecided = []
    for losses in draws(30, widths, GRIDS[17], 0.01, **changes):
        optima, laws = measure(widths, GRIDS[17], losses)
        undecided.append(judge(widths, optima).word == "undecided")
        assert len(widths) > 2 or laws == {}
    assert np.mean(undecided) >= 0.95


def test_too_few_widths_are_flagged():
    law = fit_law("loss", [64, 128, 256], [3.0, 2.8, 2.7], [0.01] * 3)
    assert "too few widths" in law.exponent.flags[0]
    assert not law.exponent.below(3)
    with pytest.raises(ValueError, match="takes 3 different widths"):
        fit_law("optimum", [64, 128], [1.0, 2.0])


def test_bootstrap_agrees_with_the_profile():
    widths, grid = WIDTHS[5], GRIDS[17]
    (losses,) = draws(1, widths, grid, 0.003)
    optima, laws = measure(widths, grid, losses)
    drawn = bootstrap(widths, optima)
    assert bootstrap_intervals(drawn)["beta"] == tuple(np.percentile(drawn["beta"], (16, 84)))
    for name, e in {
        **{n: laws[k].exponent for k, n in KINDS.items()},
        "kappa": kappa(laws, optima),
    }.items():
        low, high = np.percentile(drawn[name], (16, 84))
        assert 0.5 < (high - low) / (e.interval[1] - e.interval[0]) < 2, name
        assert abs(np.median(drawn[name]) - e.value) < (high - low) / 2, name
    assert bootstrap(widths, fit_optima([grid] * 5, clean(widths, grid, h_0=0.0), 0.01)) == {}


def test_joint_law():
    widths, grid = WIDTHS[7], GRIDS[17]
    (losses,) = draws(1, widths, grid, 0.003)
    _, laws = measure(widths, grid, losses)
    joint = fit_joint(widths, [grid] * 7, losses, laws)
    for name, rtol in {
        "l_inf": 0.01,
        "a": 0.1,
        "alpha": 0.05,
        "x_inf": 0.02,
        "beta": 0.1,
        "h_0": 0.2,
    }.items():
        assert abs(getattr(joint, name) / TRUTH[name] - 1) < rtol, name
    assert abs(joint.gamma - TRUTH["gamma"]) < 0.03
    assert 0.7 * 0.003**2 < joint.mse < 1.3 * 0.003**2
    assert joint.r2 > 0.999
    assert not joint.flags


def test_joint_intervals_cover(num=40):
    """Those of the parameters the truth, that of E its mean over draws: sigma^2 times (1 - 8
    parameters / points)."""
    widths, grid, sigma = WIDTHS[5], GRIDS[17], 0.003
    joints = []
    for losses in draws(num, widths, grid, sigma):
        _, laws = measure(widths, grid, losses)
        joints.append(fit_joint(widths, [grid] * 5, losses, laws))
    assert not any(j.flags for j in joints)
    # The optimum may be of a lopsided curve, which these are not: its intervals are a little wide
    # here
    truth = TRUTH | {"kappa": TRUTH["alpha"] - 2 * TRUTH["beta"] + TRUTH["gamma"]}
    truth["mse"] = sigma**2 * (1 - 8 / joints[0].num_points)
    for name, ends in joints[0].intervals.items():
        covered = np.mean(
            [j.intervals[name][0] <= truth[name] <= j.intervals[name][1] for j in joints]
        )
        assert 0.5 <= covered <= 0.86, (name, covered)
        assert ends[0] < getattr(joints[0], name) < ends[1]
    centre = np.median([sum(j.intervals["mse"]) / 2 / j.mse for j in joints])
    assert abs(centre - 1) < 0.05


def test_joint_law_of_few_points_and_at_its_bound():
    widths, grid = WIDTHS[5], GRIDS[17]
    (losses,) = draws(
        1, widths, grid, 0.003, seeds=1, b=0.0, x_inf=-6.0, l_inf=0.0, alpha=0.1, a=6.0
    )
    _, laws = measure(widths, grid, losses)
    joint = fit_joint(widths, [grid] * 5, losses, laws)
    assert joint.flags == ("l_inf at its bound",)
    assert joint.intervals["l_inf"] == pytest.approx((joint.l_inf, joint.l_inf))
    assert joint.intervals["beta"] == (0, 2)  # nothing drifts: any beta will do
    few = [[np.mean(cell) for cell in curve[8:10]] for curve in losses[:4]]
    joint = fit_joint(widths[:4], [grid[8:10]] * 4, few, laws)
    assert joint.intervals == {}
    assert "as many parameters as points" in joint.flags


def test_regret_against_the_envelope():
    widths = WIDTHS[5]
    good, bad = ([limit + 10 * n**-0.4 for n in widths] for limit in (2.0, 2.3))
    reference = reference_envelope(
        widths, [bad, [*good[:4], None], [*([None] * 4), good[4]]], 0.001
    )
    np.testing.assert_allclose(regret(widths, bad, reference), 0.3, atol=1e-3)
    left = asymptotic_regret(fit_law("loss", widths, bad, [0.001] * 5), reference)
    assert left.interval[0] < 0.3 < left.interval[1]
    assert left.above(0.2)


def test_tradeoff_and_flagged_estimates():
    """Transfer wins at a large budget on one side of beta = alpha/2 and loses on the other (arXiv
    2512.22768)."""
    for beta, wins in ((0.8, True), (0.2, False)):
        found = tradeoff(1.0, beta)
        assert (found.transfer > found.direct) == wins
    assert found.direct == pytest.approx(2 / 5)
    assert tradeoff(1.0, 1.0).proxy_width == pytest.approx(1 / 3)
    assert tradeoff(1.0, 1.0).transfer == pytest.approx(1 / 2)  # of F^(-1/2) + F^(-2/3) the slower
    assert not Estimate(1.0, (0.9, 1.1), ("at its bound",)).above(0)
