"""Benchmarks keep up with what they measure."""

import numpy as np
import pytest
from conftest import ROOT


@pytest.fixture
def child(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "benchmarks")
    import sweep_engine_child

    return sweep_engine_child


def test_ways_of_training_points_are_the_same_work(child):
    """The engine's losses, before and after training, are those of the benchmark's loop."""
    case = child.Case(2, 12, d_model=16, num_layers=2, d_head=8, vocab_size=256, batch_size=4,
                      seq_len=16)  # fmt: skip
    runs = child.make_runs(case, [0, 1])
    data = child.load_data(case, runs[0].cfg.seed)
    engine, loop = (list(f(runs, *data)) for f in (child.train_in_engine, child.train_in_a_loop))
    np.testing.assert_allclose(engine, loop, rtol=1e-4)
    assert all(first > last for first, last in engine)
