"""The optimum of curves that are steeper on one side, at widths that differ in it: no bias, and
intervals that cover.

Losses are drawn from known curves with a known optimum; experiments/benchmarks/optimum.py measures
more settings.
"""

import sys

import numpy as np
import pytest
from conftest import ROOT

from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import judge

sys.path.insert(0, str(ROOT / "experiments/benchmarks"))
from optimum import SETTINGS, Setting, draw, measure  # noqa: E402


def test_a_turning_asymmetry_is_no_drift():
    """Curves whose steep side changes over the widths: parabolas move by 0.29 per doubling, and
    cover never."""
    found = measure(Setting(asymmetry=0.6), 24)
    assert abs(found.bias) < 0.05
    assert abs(found.parabolas) > 0.2
    assert found.words["drifts"] == 0
    assert 0.4 <= found.coverage <= 0.9


def test_a_true_drift_is_not_called_transfer():
    found = measure(Setting(asymmetry=-0.6, drift=-0.35), 24)
    assert found.words["transfers"] == 0
    assert found.words["undecided"] <= 0.4 * 24


def test_an_uneven_grid_has_no_bias():
    """The grid of 1, 3, 5, 7, 9, 10, 15, 20, 30 thousandths, a fixed shape that is steeper on the
    high side."""
    found = measure(Setting(uneven=True, asymmetry=0.3, turning=False), 24)
    assert abs(found.bias) < 0.03
    assert found.words["drifts"] == 0


def test_the_draws_have_their_optimum_where_they_say():
    for setting in SETTINGS.values():
        x, losses, optima = draw(setting, 1, noiseless=True)
        fine = np.linspace(x[0], x[-1], 2001)
        for w in range(setting.num_widths):
            at = fine[np.argmin(setting.loss(fine, w, optima[0, w]))]
            assert abs(at - optima[0, w]) < 0.02


DECIDABLE = [
    n for n, s in SETTINGS.items() if s.seeds == 3 and s.step < 2 and not (s.growth and s.asymmetry)
]


@pytest.mark.slow
@pytest.mark.parametrize("name", DECIDABLE)
def test_settings(name, num=60):
    """Verdicts and coverage of every setting with three seeds; see
    experiments/benchmarks/optimum.md."""
    setting = SETTINGS[name]
    found = measure(setting, num)
    if abs(setting.drift) >= 0.35:
        assert found.words["transfers"] <= 0.05 * num
        assert found.words["undecided"] <= 0.4 * num
    else:
        assert found.words["drifts"] <= 0.05 * num
    assert found.unflagged >= 0.9 * num
    assert 0.5 <= found.coverage <= 0.92


def test_a_grid_too_coarse_to_tell_the_shape_is_flagged():
    x, losses, _ = draw(Setting(step=2.0), 1)
    optima = fit_optima(
        [x.tolist()] * 4, [[tuple(cell) for cell in curve] for curve in losses[0].tolist()]
    )
    assert all("cannot be told" in " ".join(o.flags) for o in optima)
    assert judge([32, 64, 128, 256], optima).word == "undecided"
