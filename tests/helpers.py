"""Helpers of several test modules: an engine without XLA, a small run and its files, and documents
with their shards."""

import copy
import functools
import gzip
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import sentencepiece
from conftest import ROOT

from mujax.config import RunConfig, make_run_config
from mujax.storage.files import read_jsonl
from mujax.sweep import study
from mujax.sweep.engine import Progress, Snapshot
from mujax.sweep.lanes import LaneState, abstract_lane
from mujax.training import loop
from mujax.training.checkpoint import Checkpoints
from mujax.training.observer import Observer
from mujax.training.outcome import Outcome
from mujax.training.run import Run, make_run
from mujax.training.steps import METRICS, abstract_state

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


def train_by(engine: Engine, monkeypatch) -> None:
    """Has every sweep of this process train by an engine."""
    monkeypatch.setattr(study, "sweep", functools.partial(study.sweep, train_runs=engine))


def end_at_training(monkeypatch) -> None:
    """Has every run of this process be interrupted where it would begin to train, so that nothing
    is compiled: exit code 75 then says that all before that went well."""

    def train_to_end(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_to_end", train_to_end)


def _state(run: Run, done: int) -> LaneState:
    """Weights that no other run has at any step."""
    number = run.cfg.optim.learning_rate + run.cfg.seed + 100 * done
    state = jax.tree.map(lambda x: np.full(x.shape, number, x.dtype), abstract_lane(run.program))
    return state._replace(train=state.train._replace(step=np.int32(done)), diverged_at=np.int32(-1))


def flags_of(text_file: Path, workdir: Path, model: str = "transformer", **overrides) -> list[str]:
    """Returns the command line of a small run that saves often; section__field=value overrides."""
    fields = {
        "data.name": "text", "data.path": text_file, "data.seq_len": 16, "model.d_model": 16,
        "parameterization.base_width": 16, "schedule.warmup_steps": 4, "train.steps": 40,
        "train.batch_size": 4, "train.eval_interval": 10, "train.eval_batches": 2,
        "train.log_interval": 1, "checkpoint.interval": 7, "monitor.tensor_interval": 9,
    }  # fmt: skip
    if model == "transformer":
        fields["model.d_head"] = 8
    fields |= {name.replace("__", "."): value for name, value in overrides.items()}
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["train", f"--config={ROOT}/configs/base.py:{model}", f"--workdir={workdir}", *options]


def left_by(workdir: Path, step: int = 40) -> tuple:
    """Returns all that a finished run leaves and that does not depend on time: the row, the log and
    every array."""
    row = json.loads((workdir / "result.json").read_text())
    run = make_run(make_run_config(json.loads((workdir / "config.json").read_text())))
    state = abstract_state(run.program)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trees = {"params": state.params, "opt_state": state.opt_state}
    trees = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), trees)
    record, found = Checkpoints(workdir / "checkpoints" / "latest", keep=None).restore(
        trees, lambda record: None
    )
    assert record["step"] == step
    arrays = [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]
    return {**row, "seconds": 0}, (workdir / "metrics.jsonl").read_text(), arrays


def each_step_once(workdir: Path, steps: int = 40) -> None:
    """Asserts that the log of a run of flags_of has every record once, in order."""
    kinds = ("loss", "eval_loss", "tensors")
    records = list(read_jsonl(workdir / "metrics.jsonl"))
    logged = {kind: [r["step"] for r in records if kind in r] for kind in kinds}
    assert logged == {
        "loss": [*range(steps)],
        "eval_loss": [*range(0, steps + 1, 10)],
        "tensors": [*range(0, steps, 9)],
    }


def strike(monkeypatch, where: str, call: int, action) -> None:
    """Takes `action` at one call of a method, before it does its work; counted from 1."""
    owner = Checkpoints if where == "save" else Observer
    whole, calls = getattr(owner, where), []

    def struck(*args, **kwargs):
        calls.append(where)
        if len(calls) == call:
            action()
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, where, struck)


def wait_for(path: Path) -> None:
    """Waits until something is at a path."""
    deadline = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def die():
    """Ends the run as a kill does: nothing is saved."""
    raise KeyboardInterrupt


def terminate():
    """Asks this process to stop, as a scheduler does."""
    os.kill(os.getpid(), signal.SIGTERM)


WORDS = Path(os.__file__).read_text().split()
VOCAB = 400


def documents(count: int = 60) -> list[str]:
    """Returns documents of 0 to 400 real words; one is empty, some have characters of several
    bytes."""
    rng = random.Random(0)
    return [
        " ".join(rng.choices(WORDS, k=min(400,
        int(rng.expovariate(0.02)) + 1))) + "\n\N{SNOWMAN} é" * (i % 7 == 0)
        if i != 5 else "" for i in range(count)
    ]  # fmt: skip


def write_jsonl(file: Path, texts, field: str = "text") -> None:
    """Writes documents as JSON lines, compressed where the name says so."""
    with (
        gzip.open(file, "wt")
        if file.suffix == ".gz"
        else open(file, "w", encoding="utf-8") as stream
    ):
        stream.writelines(json.dumps({"url": "a", field: text}) + "\n" for text in texts)


def stream_of(folder: Path, split: str) -> np.ndarray:
    """Reads all tokens of a split, without the code under test."""
    described = json.loads((folder / "dataset.json").read_text())
    names = [shard["file"] for shard in described["shards"] if shard["split"] == split]
    return np.concatenate([np.fromfile(folder / name, described["dtype"]) for name in names])


def expected_ids(pieces: Path, texts) -> list[list[int]]:
    """Tokenizes the documents that are not empty, by the library itself."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    return [processor.encode(text) for text in texts if text]


def train_args(folder: Path, workdir: Path, **fields) -> list[str]:
    """Returns the command line of a small run on shards; `fields` are of the section data."""
    fields = {"name": "shards", "path": folder, "seq_len": 16, "vocab_size": VOCAB, **fields}
    sizes = {
        "model.d_model": 16,
        "model.d_head": 8,
        "parameterization.base_width": 16,
        "schedule.warmup_steps": 2,
    }
    sizes |= {
        "train.steps": 8,
        "train.batch_size": 4,
        "train.eval_interval": 4,
        "train.eval_batches": 2,
    }
    flags = [f"--config.data.{name}={value}" for name, value in fields.items()]
    flags += [f"--config.{name}={value}" for name, value in sizes.items()]
    return ["train", f"--config={ROOT}/configs/base.py", f"--workdir={workdir}", *flags]
