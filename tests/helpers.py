"""What several test modules share."""

import copy
import math
from collections.abc import Callable

import jax
import numpy as np

from mujax.config import RunConfig
from mujax.sweep.engine import Progress, Snapshot
from mujax.sweep.lanes import LaneState, abstract_lane
from mujax.training.outcome import Outcome
from mujax.training.run import Run
from mujax.training.steps import METRICS

FIRST_LOSS = 5.5


def bowl(cfg: RunConfig) -> float:
    """A loss with its optimum at a learning rate of 2^-6, and another one of each seed."""
    return 2 + 0.1 * (math.log2(cfg.optim.learning_rate) + 6) ** 2 + 0.01 * cfg.seed


class Engine:
    """Stands in for train_runs: losses by a law, without XLA.

    All runs advance side by side, an evaluation interval per call. A run's loss falls along a line
    from FIRST_LOSS to `loss(cfg)`; None diverges at step 1. Its weights are a number of its own,
    and a run that goes on from other weights than its own fails.

    steps: what it has trained, over all runs. at_call: call, counted from 1 -> what happens in it.
    """

    def __init__(
        self,
        loss: Callable[[RunConfig], float | None],
        at_call: dict[int, Callable[[], None]] | None = None,
    ):
        self._loss, self._at_call = loss, at_call or {}
        self.steps = self.calls = 0

    def __call__(
        self,
        runs,
        batches,
        validation,
        snapshots=(),
        report=lambda *_: None,
        interrupt=lambda _: None,
    ):
        assert validation.ndim == 3 and set(batches) >= {run.cfg.seed for run in runs}
        in_flight = {}
        for entry in snapshots:
            run, done = runs[entry.index], entry.progress.done
            for wanted, found in zip(
                jax.tree.leaves(_state(run, done)), jax.tree.leaves(entry.state), strict=True
            ):
                np.testing.assert_array_equal(found, wanted)
            in_flight[entry.index] = entry.progress
        for i, run in enumerate(runs):
            empty = np.full((len(METRICS), run.cfg.train.steps), np.nan, np.float32)
            outcome = Outcome(run.cfg.train, [(0, FIRST_LOSS)])
            in_flight.setdefault(i, Progress(0, outcome, empty))
        while in_flight:
            interrupt(
                lambda: [
                    Snapshot(i, copy.deepcopy(p), _state(runs[i], p.done))
                    for i, p in in_flight.items()
                ]
            )
            self.calls += 1
            self._at_call.get(self.calls, lambda: None)()
            for i, progress in list(in_flight.items()):
                before = progress.done
                is_ended = self._advance(progress, runs[i].cfg)
                self.steps += progress.done - before
                report([i], progress.done - before)
                if is_ended:
                    yield i, in_flight.pop(i)

    def _advance(self, progress: Progress, cfg: RunConfig) -> bool:
        """Trains one run up to its next evaluation; whether it has ended."""
        first, steps, final = progress.done, cfg.train.steps, self._loss(cfg)
        progress.seconds += 0.5
        if final is None:
            progress.done = 1
            progress.outcome.trained(1, math.nan)
            progress.history = progress.history[:, :2]
            progress.history[:, 0] = FIRST_LOSS
            return True
        progress.done = min(first + cfg.train.eval_interval, steps)
        losses = FIRST_LOSS + (final - FIRST_LOSS) * np.arange(steps + 1) / steps
        progress.history[:, first : progress.done] = losses[first : progress.done]
        loss = final if progress.done == steps else float(losses[progress.done])
        progress.outcome.evaluated(progress.done, loss)
        return progress.outcome.has_ended


def _state(run: Run, done: int) -> LaneState:
    """Weights that no other run has at any step."""
    number = run.cfg.optim.learning_rate + run.cfg.seed + 100 * done
    state = jax.tree.map(lambda x: np.full(x.shape, number, x.dtype), abstract_lane(run.program))
    return state._replace(train=state.train._replace(step=np.int32(done)), diverged_at=np.int32(-1))
