"""Verdicts on the published losses of Lingle 2024 and on drawn ones; drift, penalty, price and stable range."""

import csv

import numpy as np
import pytest
from conftest import ROOT
from laws import GRIDS, WIDTHS, clean, draws

from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import argmin_verdict, judge, loss_at, penalties, price, stable_range

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
                curves.setdefault(int(row["width"]), {})[float(row["log2_lr"])] = loss if loss < 10 else None
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
    assert argmin_verdict(widths, [grids[0][1:], *grids[1:]], [losses[0][1:], *losses[1:]]).word == "undecided"
    assert argmin_verdict([1, 2], [[0, 1]] * 2, [[None, 1.0], [2.0, 1.0]]).word == "Yes"


@pytest.mark.parametrize(
    ("word", "changes"),
    [("transfers", {"b": 0.0, "x_inf": -6.0}), ("drifts", {"beta": 0.001, "b": 1000.0, "x_inf": -999.0})],
)
def test_verdicts_on_draws(word, changes):
    widths, words, hits = WIDTHS[5], [], []
    truth = 0.0 if word == "transfers" else -0.69
    for losses in draws(100, widths, GRIDS[17], 0.01, **changes):
        verdict = judge(widths, fit_optima([GRIDS[17]] * 5, losses))
        words.append(verdict.word)
        hits.append(verdict.drift.interval[0] <= truth <= verdict.drift.interval[1])
    assert words.count(word) >= 90
    assert 0.55 <= np.mean(hits) <= 0.81


def test_a_flagged_width_leaves_it_undecided():
    widths, grid = WIDTHS[5], GRIDS[9]
    losses = clean(widths, grid, b=0.0, x_inf=-6.0)
    assert judge(widths, fit_optima([grid] * 5, losses, 0.01)).word == "transfers"
    losses[-1] = clean(widths, grid, b=0.0, x_inf=-12.0)[-1]
    verdict = judge(widths, fit_optima([grid] * 5, losses, 0.01))
    assert verdict.word == "undecided"
    assert any("width 2048: the best point is at the edge" in reason for reason in verdict.reasons)


def test_penalty_price_and_stable_range():
    widths, grid = WIDTHS[5], GRIDS[9]
    losses = clean(widths, grid, b=0.0, x_inf=-6.0)
    losses[-1] = clean(widths, grid, b=0.0, x_inf=-5.0)[-1]
    found = penalties(widths, fit_optima([grid] * 5, losses, 0.001))
    np.testing.assert_allclose([p.value for p in found[:-1]], 0, atol=1e-9)
    expected = losses[-1][grid.index(-6.0)] - losses[-1][grid.index(-5.0)]
    assert abs(found[-1].value - expected) < 1e-9
    assert found[-1].interval[0] < expected < found[-1].interval[1]
    assert loss_at([-8, -6, -4], [3.0, 2.0, None], -7) == 2.5
    assert loss_at([-8, -6, -4], [3.0, 2.0, None], -5) is None
    assert loss_at([-8, -6, -4], [3.0, 2.0, None], -6) == 2.0
    assert price([-8, -6, -4], [3.0, 2.0, None], -7, [None, 2.2, 2.4]) == pytest.approx(0.3)
    stable = stable_range([-8, -6, -4, -2], [3.0, 2.0, 2.05, None], 0.1)
    assert (stable.low, stable.high) == pytest.approx((-6.2, -4))
    assert (stable.open_low, stable.open_high) == (False, False)
