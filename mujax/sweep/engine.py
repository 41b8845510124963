"""Trains many runs of one program to their ends, side by side in the slots of a chunk. No files.

A chunk has a fixed number of lanes. When a run has finished or diverged, its lane is given to the
next run that waits, as soon as the other lanes have an evaluation before them. What a run computes
depends on neither its lane nor its neighbours.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mujax.config import TrainConfig
from mujax.data.loader import TrainBatches
from mujax.hps import stack
from mujax.sweep.compilation import (
    Executables,
    choose_lanes,
    compile_lanes,
    num_row_sets,
    steps_per_call,
)
from mujax.sweep.lanes import LaneState
from mujax.training.outcome import Outcome
from mujax.training.run import Run
from mujax.training.steps import METRICS


@dataclasses.dataclass
class Progress:
    """The progress of a run, under way or ended.

    done: finished updates. history: float32 [metrics, steps], NaN where not trained yet; at the end
    of the run only the steps that were tried. seconds: the run's share of the chunk's wall time.
    """

    done: int
    outcome: Outcome
    history: np.ndarray
    seconds: float = 0.0


class Snapshot(NamedTuple):
    """A run in flight, outside of a chunk; `state` is its LaneState as NumPy arrays."""

    index: int
    progress: Progress
    state: LaneState


def train_runs(
    runs: Sequence[Run],
    batches: Mapping[int, TrainBatches],
    validation: np.ndarray,
    snapshots: Sequence[Snapshot] = (),
    report: Callable[[Sequence[int], int], None] = lambda indices, steps: None,
    interrupt: Callable[[Callable[[], list[Snapshot]]], None] = lambda _: None,
    vmapped: bool | None = None,
) -> Iterator[tuple[int, Progress]]:
    """Trains runs that share their program, data, and lengths; yields (index, Progress) as each
    ends.

    Args:
      batches: seed -> Batches. validation: [E, B, T + 1].
      snapshots: runs among these that go on from an earlier chunk; the others start at step 0.
      report: called with the indices of runs that have advanced, and by how many steps.
      interrupt: called between two calls of the program, with a function that returns all runs in
        flight; may raise to end the work here.
      vmapped: whether the lanes of a device are vmapped; None: on accelerators.

    Raises:
      UserError: one run does not fit into memory.
    """
    started = {p.index for p in snapshots}
    waiting: collections.deque[Snapshot | int] = collections.deque(snapshots)
    waiting.extend(i for i in range(len(runs)) if i not in started)
    if vmapped is None:
        vmapped = jax.default_backend() != "cpu"
    chunk = Chunk(runs, batches, validation, choose_lanes(runs, validation, vmapped))
    while waiting or chunk.busy:
        chunk.refill(waiting)
        yield from chunk.evaluate()
        if not chunk.busy:
            continue
        interrupt(
            lambda chunk=chunk: [
                *chunk.take_snapshots(),
                *(entry for entry in waiting if isinstance(entry, Snapshot)),
            ]
        )
        if not waiting:
            chunk = chunk.compacted()
        before = chunk.busy
        steps, ended = chunk.train()
        report([index for index, _ in before], steps)
        yield from ended


class Chunk:
    """The lanes on the devices, and the host's record of the run in each."""

    def __init__(self, runs, batches, validation, executables: Executables):
        self._runs, self._batches, self._validation = runs, batches, validation
        self._executables = executables
        self._train_cfg: TrainConfig = runs[0].cfg.train
        self._slots: list[tuple[int, Progress] | None] = [None] * executables.num_lanes
        self._numbers = self._stack([0] * executables.num_lanes)
        self._lanes: LaneState | None = None
        self._num_row_sets = num_row_sets(runs, executables.num_lanes, executables.vmapped)
        self._seconds_per_step = math.nan
        self._read_ahead: dict[tuple[int, int], np.ndarray] = {}

    @property
    def busy(self) -> list[tuple[int, Progress]]:
        return [slot for slot in self._slots if slot]

    def refill(self, waiting: collections.deque) -> None:
        """Gives free lanes to waiting runs, at moments when all other lanes have an evaluation
        before them.

        A call trains all lanes by the same number of steps, so they must reach their evaluations
        together.
        """
        interval = self._train_cfg.eval_interval
        if not all(progress.done % interval == 0 for _, progress in self.busy):
            return
        new: dict[int, Snapshot | int] = {}
        for lane, slot in enumerate(self._slots):
            if slot or not waiting or not self._has_rows_for(waiting[0]):
                continue
            entry = new[lane] = waiting.popleft()
            if isinstance(entry, Snapshot):
                self._slots[lane] = (entry.index, entry.progress)
            else:
                history = np.full((len(METRICS), self._train_cfg.steps), np.nan, np.float32)
                self._slots[lane] = (entry, Progress(0, Outcome(self._train_cfg), history))
        if not new:
            return
        self._numbers = self._stack([slot[0] if slot else 0 for slot in self._slots])
        is_new = np.asarray([lane in new for lane in range(len(self._slots))])
        drawn = self._executables.init(*self._numbers)
        self._lanes = (
            drawn if self._lanes is None else self._executables.replace(self._lanes, drawn, is_new)
        )
        if restored := {
            lane: entry.state for lane, entry in new.items() if isinstance(entry, Snapshot)
        }:
            self._put(restored)

    def evaluate(self) -> Iterator[tuple[int, Progress]]:
        """Evaluates runs that have reached the step of an evaluation, and yields those that end
        with it."""
        due = [
            (lane, *slot)
            for lane, slot in enumerate(self._slots)
            if slot and slot[1].outcome.must_evaluate(slot[1].done)
        ]
        if not due:
            return
        start = time.monotonic()
        due_N = np.zeros(len(self._slots), bool)
        due_N[[lane for lane, *_ in due]] = True
        losses_N = np.asarray(
            self._executables.evaluate(self._lanes, self._validation, due_N, *self._numbers[1:])
        )
        seconds = (time.monotonic() - start) / len(due)
        for lane, index, progress in due:
            progress.outcome.evaluated(progress.done, float(losses_N[lane]))
            progress.seconds += seconds
            if progress.outcome.has_ended:
                progress.history = progress.history[:, : progress.done]
                self._slots[lane] = None
                yield index, progress

    def train(self) -> tuple[int, list[tuple[int, Progress]]]:
        """Calls the program once; returns (steps trained, runs that diverged)."""
        cfg = self._train_cfg
        to_stop = (
            min(cfg.eval_interval - progress.done % cfg.eval_interval, cfg.steps - progress.done)
            for _, progress in self.busy
        )
        num_steps = min(steps_per_call(self._train_cfg), *to_stop)
        keys = self._row_sets()
        sets = list(dict.fromkeys(key for key in keys if key))
        rows = [self._read_ahead.pop(key, None) for key in sets]
        rows = [
            self._read_rows(*key) if x is None else x for key, x in zip(sets, rows, strict=True)
        ]
        rows_UKBT = np.stack(rows + rows[:1] * (self._num_row_sets - len(rows)))
        row_set_N = np.asarray([sets.index(key) if key else 0 for key in keys], np.int32)
        active_N = np.asarray([slot is not None for slot in self._slots])
        bounds_N = np.full(len(self._slots), cfg.divergence_loss, np.float32)
        start = time.monotonic()
        lanes, metrics = self._executables.train(
            self._lanes,
            rows_UKBT,
            row_set_N,
            active_N,
            np.int32(num_steps),
            *self._numbers[1:],
            bounds_N,
        )
        self._lanes = lanes
        # Read while the devices work, for the next call; in vain only for a run that diverges in
        # this one
        self._read_ahead = {
            (seed, done + num_steps): self._read_rows(seed, done + num_steps)
            for seed, done in sets
            if done + num_steps < cfg.steps
        }
        metrics = {name: np.asarray(values_NK) for name, values_NK in metrics.items()}
        diverged_at_N = np.asarray(lanes.diverged_at)
        seconds = time.monotonic() - start
        self._seconds_per_step = seconds / num_steps
        ended, share = [], seconds / len(self.busy)
        for lane, slot in enumerate(self._slots):
            if not slot:
                continue
            progress = slot[1]
            span = slice(progress.done, progress.done + num_steps)
            progress.history[:, span] = [metrics[name][lane, :num_steps] for name in METRICS]
            progress.done += num_steps
            progress.seconds += share
            if diverged_at_N[lane] >= 0:
                progress.done = progress.outcome.diverged_at = int(diverged_at_N[lane])
                progress.history = progress.history[:, : progress.done + 1]
                ended.append(slot)
                self._slots[lane] = None
        return num_steps, ended

    def compacted(self) -> "Chunk":
        """Returns a smaller chunk with the same runs where most lanes are idle and the move saves
        more time than it costs.

        Lanes that are not vmapped cost nothing when idle.
        """
        old = self._executables
        num_slots = old.layout.num_slots
        per_slot = 2 ** math.ceil(math.log2(math.ceil(len(self.busy) / num_slots)))
        num_lanes = per_slot * num_slots
        if not old.vmapped or 2 * num_lanes > old.num_lanes:
            return self
        remaining = max(self._train_cfg.steps - progress.done for _, progress in self.busy)
        saved = remaining * self._seconds_per_step * (1 - num_lanes / old.num_lanes)
        if math.isnan(saved) or saved < old.compile_seconds:
            return self
        snapshots = self.take_snapshots()
        self._lanes = None  # makes room for the smaller chunk
        executables = compile_lanes(
            self._runs, self._validation, old.layout, num_lanes, old.vmapped
        )
        chunk = Chunk(self._runs, self._batches, self._validation, executables)
        chunk.refill(collections.deque(snapshots))
        return chunk

    def take_snapshots(self) -> list[Snapshot]:
        """Returns snapshots of everything in flight, between two calls of the program."""
        lanes = jax.device_get(self._lanes)
        return [
            Snapshot(*slot, jax.tree.map(lambda x, lane=lane: x[lane], lanes))
            for lane, slot in enumerate(self._slots)
            if slot
        ]

    def _put(self, states: Mapping[int, LaneState]) -> None:
        """Writes the states of snapshots into their lanes."""

        def write(x, *of_lanes):
            values = np.array(x)
            for lane, value in zip(states, of_lanes, strict=True):
                values[lane] = value
            return jax.device_put(values, x.sharding)

        self._lanes = jax.tree.map(write, self._lanes, *states.values())

    def _stack(self, indices: Sequence[int]):
        runs = [self._runs[i] for i in indices]
        seeds = np.asarray([run.cfg.seed for run in runs], np.uint32)
        return seeds, stack([run.hps for run in runs]), stack([run.scalings for run in runs])

    def _row_sets(self) -> list[tuple[int, int] | None]:
        """Returns (seed, step) of the next batch of each lane."""
        return [
            (self._runs[slot[0]].cfg.seed, slot[1].done) if slot else None for slot in self._slots
        ]

    def _has_rows_for(self, entry: Snapshot | int) -> bool:
        index, done = (
            (entry.index, entry.progress.done) if isinstance(entry, Snapshot) else (entry, 0)
        )
        return (
            len({*self._row_sets(), (self._runs[index].cfg.seed, done)} - {None})
            <= self._num_row_sets
        )

    def _read_rows(self, seed: int, first: int) -> np.ndarray:
        """Reads batches from step `first` on [K, B, T + 1]; always as many, so that one program
        serves every call."""
        last = self._train_cfg.steps - 1
        return np.stack(
            [
                self._batches[seed][min(first + k, last)]
                for k in range(steps_per_call(self._train_cfg))
            ]
        )
