"""When a run ends: by a loss that is not sound, by the rule of giving up, or with all its steps
done and evaluated."""

import dataclasses
import math

import numpy as np
import pytest
from conftest import tiny_tree

from mujax.config import make_run_config
from mujax.training.outcome import Outcome, is_sound

# 12 steps, evaluated every 5: at 0, 5, 10 and 12
TRAIN = make_run_config(tiny_tree(train__divergence_loss=20.0)).train
HOPELESS = dataclasses.replace(TRAIN, give_up_step=6, give_up_loss=3.0)


def evaluated(train, *losses) -> Outcome:
    """The outcome after the first evaluations of a run, none of which comes after its end."""
    outcome = Outcome(train)
    for step, loss in zip((0, 5, 10, 12), losses, strict=False):
        assert outcome.must_evaluate(step) and not outcome.has_ended
        outcome.evaluated(step, loss)
        assert not outcome.must_evaluate(step)
    return outcome


def test_when_it_is_evaluated():
    assert [step for step in range(13) if Outcome(TRAIN).must_evaluate(step)] == [0, 5, 10, 12]


@pytest.mark.parametrize(
    ("train", "losses", "ended", "diverged_at", "stopped_at"),
    [
        (TRAIN, (5.0, 4.0, 4.0), False, None, None),
        (TRAIN, (5.0, 4.0, 4.0, 20.0), True, None, None),  # at the bound is within it
        (TRAIN, (5.0, 20.001), True, 5, None),
        (TRAIN, (5.0, math.nan), True, 5, None),
        (TRAIN, (5.0, 4.0, math.inf), True, 10, None),
        (HOPELESS, (5.0, 4.0), False, None, None),  # not before its step
        (HOPELESS, (5.0, 4.0, 3.5), True, None, 10),
        (HOPELESS, (5.0, 4.0, 3.0), False, None, None),
        (HOPELESS, (5.0, 4.0, 2.0, 3.5), True, None, 12),
        (HOPELESS, (5.0, 4.0, math.nan), True, 10, None),
    ],
)
def test_ends_at_an_evaluation(train, losses, ended, diverged_at, stopped_at):
    outcome = evaluated(train, *losses)
    assert (outcome.has_ended, outcome.diverged_at, outcome.stopped_at) == (
        ended,
        diverged_at,
        stopped_at,
    )
    expected = (
        "ok" if diverged_at == stopped_at else "stopped" if diverged_at is None else "diverged"
    )
    assert outcome.status == expected


@pytest.mark.parametrize("loss", [20.5, math.nan, math.inf])
def test_ends_in_training(loss):
    outcome = evaluated(TRAIN, 5.0)
    outcome.trained(2, 20.0)
    assert not outcome.has_ended
    outcome.trained(3, loss)
    assert (outcome.has_ended, outcome.status, outcome.diverged_at) == (True, "diverged", 3)


def test_a_lane_is_frozen_by_the_same_rule():
    losses = [19.0, 20.0, 20.5, math.nan, math.inf]
    assert is_sound(np.float32(losses), np.float32(20.0)).tolist() == [
        is_sound(loss, 20.0) for loss in losses
    ]


def test_the_best_evaluation():
    """The first of equals; not that of untrained weights, which nobody wants to keep."""
    losses = [(5.0,), (5.0, 5.0, 6.0), (5.0, 4.0), (5.0, 4.0, 4.0), (5.0, 4.0, 3.0, 3.5)]
    assert [evaluated(TRAIN, *given).best_step for given in losses] == [None, None, 5, 5, 10]
    assert Outcome(TRAIN).best_step is None
