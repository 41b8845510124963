"""Verdicts on the published losses of Lingle 2024 and on drawn ones; drift, penalty, loss gap and
stable range."""

import csv

import numpy as np
import pytest
from conftest import ROOT
from laws import GRIDS, WIDTHS, clean, draws

from mujax.report.summary import seed_drifts
from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import argmin_verdict, judge, loss_at, loss_gap, penalties, stable_range

PUBLISHED = {  # group -> (verdict of arXiv 2404.05728, ours at 0.02 nats of noise)
    "baseline": ("Yes", "undecided"),
    "biases": ("Yes", "undecided"),
    "gains_vector": ("No", "undecided"),
    "gains_scalar": ("No", "undecided"),
    "lion": ("No", "undecided"),
    "wd_coupled_0.1": ("No", "undecided"),
    "sp": ("No", "undecided"),
    "combined_large_scale": ("Yes", "undecided"),
}


def published(group):
    curves = {}
    with open(ROOT / "experiments/lingle2024/published.csv") as f:
        for row in csv.DictReader(f):
            if row["group"] == group:
                loss = float(row["loss"])
                curves.setdefault(int(row["width"]), {})[float(row["log2_lr"])] = (
                    loss if loss < 10 else None
                )
    widths = sorted(curves)
    return widths, [list(curves[n]) for n in widths], [list(curves[n].values()) for n in widths]


@pytest.mark.parametrize("group", PUBLISHED)
def test_published_verdicts(group):
    widths, grids, losses = published(group)
    verdict = judge(widths, fit_optima(grids, losses, 0.02))
    assert (argmin_verdict(widths, grids, losses).word, verdict.word) == PUBLISHED[group], verdict
    assert verdict.reasons


def test_argmin_verdict_wants_every_cell_and_names_the_close_calls():
    widths, grids, losses = published("gains_scalar")
    assert argmin_verdict(widths, grids, losses).close == (512, 2048)
    assert (
        argmin_verdict(widths, [grids[0][1:], *grids[1:]], [losses[0][1:], *losses[1:]]).word
        == "undecided"
    )
    assert argmin_verdict([1, 2], [[0, 1]] * 2, [[None, 1.0], [2.0, 1.0]]).word == "Yes"


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("transfers", {"b": 0.0, "x_inf": -6.0}),
        ("drifts", {"beta": 0.001, "b": 1000.0, "x_inf": -999.0}),
    ],
)
def test_verdicts_on_draws(word, changes, num=40):
    widths, words, hits = WIDTHS[5], [], []
    truth = 0.0 if word == "transfers" else -0.69
    for losses in draws(num, widths, GRIDS[17], 0.01, **changes):
        verdict = judge(widths, fit_optima([GRIDS[17]] * 5, losses))
        words.append(verdict.word)
        hits.append(verdict.drift.interval[0] <= truth <= verdict.drift.interval[1])
    assert words.count(word) >= 0.9 * num
    assert 0.5 <= np.mean(hits) <= 0.86


def curves(widths, vertex, bend=0.022, seeds=3, sigma=0.0005):
    """Parabolas with `seeds` runs per point; vertex: width's index -> log2 LR."""
    rng, grid = np.random.default_rng(0), np.arange(-12.0, -1.0)
    means = [[3 + bend * (x - vertex(i)) ** 2 for x in grid] for i in range(len(widths))]
    return [grid.tolist()] * len(widths), [
        [tuple(y + sigma * rng.standard_normal(seeds)) for y in c] for c in means
    ]


def test_a_small_drift_over_many_doublings_that_costs_is_no_transfer():
    """0.21 log2 LR per doubling is within the tolerance; over 7 doublings it is 1.5, and costs
    0.022 * 1.5^2 nats."""
    widths = [32 * 2**i for i in range(8)]
    verdict = judge(widths, fit_optima(*curves(widths, lambda i: -5 - 0.21 * i)))
    assert verdict.word == "drifts"
    assert abs(verdict.drift.value + 0.21) < 0.01
    assert verdict.movement.value == pytest.approx(-0.21 * 7, abs=0.05)
    assert verdict.cost.value == pytest.approx(0.022 * (0.21 * 7) ** 2, rel=0.05)
    assert "more than 0.02" in verdict.reasons[1]


def test_a_proven_movement_that_costs_nothing_has_a_word_and_the_range_asked_for_decides():
    widths = [32, 64, 128, 256]
    optima = fit_optima(*curves(widths, lambda i: -5 - 0.1 * i))
    assert judge(widths, optima).word == "moves at no cost"
    far = judge(widths, optima, target=32 * 2**12)  # 12 doublings: 1.2 log2 LR, 0.032 nats
    assert far.word == "drifts"
    assert far.cost.value == pytest.approx(0.022 * 1.2**2, rel=0.15)
    assert "to 131072" in far.reasons[0]
    assert judge(widths, fit_optima(*curves(widths, lambda i: -5))).word == "transfers"


def test_a_seed_whose_optima_are_flagged_is_not_left_out():
    """The fourth seed's loss rises from the first learning rate on, so that its optima lie at the
    edge."""
    grids, losses = curves([32, 64, 128], lambda i: -5)
    losses = [[(*cell, 3.0 + k) for k, cell in enumerate(curve)] for curve in losses]
    *good, flagged = seed_drifts([32, 64, 128], grids, losses)
    assert len(good) == 3 and all(abs(drift) < 0.05 for drift in good)
    assert flagged is None


def test_losses_below_zero_have_the_verdict_of_the_same_curves_shifted():
    """A table of negative log likelihoods per symbol may be negative; only differences of losses
    count."""
    widths = [64, 128, 256]
    grids, losses = curves(widths, lambda i: -5 - 0.05 * i)
    low = [[tuple(y - 6 for y in cell) for cell in curve] for curve in losses]
    high, below = judge(widths, fit_optima(grids, losses)), judge(widths, fit_optima(grids, low))
    assert high.word == below.word
    assert high.drift.value == pytest.approx(below.drift.value, abs=1e-6)
    assert high.cost.value == pytest.approx(below.cost.value, abs=1e-6)


def test_disagreeing_estimators_are_said():
    """Asymmetry that turns with the width moves parabolas' vertices by 0.3 per doubling; the
    optimum is at rest."""
    widths, grid, rng = [32, 64, 128, 256], np.arange(-10.0, -1.0), np.random.default_rng(1)
    losses = []
    for a in np.linspace(-0.6, 0.6, 4):
        d = grid + 6
        mean = 3 + 0.022 * d**2 * (1 + a * np.tanh(d / 1.5))
        losses.append([tuple(y + 0.001 * rng.standard_normal(3)) for y in mean])
    verdict = judge(widths, fit_optima([grid.tolist()] * 4, losses))
    assert abs(verdict.drift.value) < 0.1
    assert verdict.word in ("transfers", "moves at no cost")
    assert any("estimators disagree" in reason for reason in verdict.reasons)


def test_a_flagged_width_leaves_it_undecided():
    widths, grid = WIDTHS[5], GRIDS[9]
    losses = clean(widths, grid, b=0.0, x_inf=-6.0)
    assert judge(widths, fit_optima([grid] * 5, losses, 0.01)).word == "transfers"
    losses[-1] = clean(widths, grid, b=0.0, x_inf=-12.0)[-1]
    verdict = judge(widths, fit_optima([grid] * 5, losses, 0.01))
    assert verdict.word == "undecided"
    assert any("width 2048: the best point is at the edge" in reason for reason in verdict.reasons)


def test_penalty_loss_gap_and_stable_range():
    widths, grid = WIDTHS[5], GRIDS[9]
    losses = clean(widths, grid, b=0.0, x_inf=-6.0)
    losses[-1] = clean(widths, grid, b=0.0, x_inf=-5.0)[-1]
    found = penalties(widths, fit_optima([grid] * 5, losses, 0.001))
    np.testing.assert_allclose([p.value for p in found[:-1]], 0, atol=1e-6)
    expected = losses[-1][grid.index(-6.0)] - losses[-1][grid.index(-5.0)]
    assert abs(found[-1].value - expected) < 1e-3
    assert found[-1].interval[0] < expected < found[-1].interval[1]
    assert loss_at([-8, -6, -4], [3.0, 2.0, None], -7) == 2.5
    assert loss_at([-8, -6, -4], [3.0, 2.0, None], -5) is None
    assert loss_at([-8, -6, -4], [3.0, 2.0, None], -6) == 2.0
    assert loss_gap([-8, -6, -4], [3.0, 2.0, None], -7, [None, 2.2, 2.4]) == pytest.approx(0.3)
    stable = stable_range([-8, -6, -4, -2], [3.0, 2.0, 2.05, None], 0.1)
    assert (stable.low, stable.high) == pytest.approx((-6.2, -4))
    assert (stable.open_low, stable.open_high) == (False, False)
