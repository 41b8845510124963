"""The process that sweep_engine.py starts and times: trains a case's points, or tells the device.

    python sweep_engine_child.py [MODE CASE POINT ...]

Prints one line of JSON.
"""

import dataclasses
import json
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from sweep_engine import CASES, Case

from configs.base import get_config
from mujax.cli.devices import num_cores
from mujax.config import make_run_config
from mujax.data.loader import TrainBatches, validation_batches
from mujax.data.text import load_corpus
from mujax.training.results import code_version
from mujax.training.run import device_description, make_run
from mujax.training.steps import init_options, make_train_fns

# Learning rates of the first and the last point; above, rounding grows over 100 steps.
LOG2_LEARNING_RATES = (-10, -8)
EVAL_BATCHES = 4  # per evaluation, at step 0 and after the last step


def make_runs(case: Case, indices: Sequence[int]) -> list:
    c = get_config()
    c.model.update(d_model=case.d_model, num_layers=case.num_layers, d_head=case.d_head)
    c.train.update(
        steps=case.steps,
        batch_size=case.batch_size,
        eval_interval=case.steps,
        eval_batches=EVAL_BATCHES,
    )
    c.schedule.warmup_steps = case.steps // 5
    c.data.seq_len = case.seq_len
    low, high = LOG2_LEARNING_RATES
    runs = []
    for i in indices:
        c.optim.learning_rate = 2.0 ** (low + (high - low) * i / (case.points - 1))
        cfg = make_run_config(c.to_dict())
        model = dataclasses.replace(cfg.model, vocab_size=case.vocab_size)
        runs.append(make_run(dataclasses.replace(cfg, model=model)))
    return runs


def load_data(case: Case, seed: int):
    """Returns ({seed: training batches}, validation batches [E, B, T + 1]) of the embedded text."""
    bytes_per_token = 1 if case.vocab_size == 256 else 2
    row_bytes = bytes_per_token * (case.seq_len + 1)
    corpus = load_corpus("embedded", "", "", seq_len=row_bytes - 1, batch_size=case.batch_size)

    def tokens(rows):
        if bytes_per_token == 1:
            return rows
        pairs = rows.reshape(len(rows), -1, 2).astype(np.uint16)
        return (pairs[..., 0] * 256 + pairs[..., 1]) % case.vocab_size

    batches = {seed: TrainBatches(tokens(corpus.train), case.batch_size, seed)}
    return batches, validation_batches(tokens(corpus.validation), case.batch_size, EVAL_BATCHES)


def train_in_a_loop(runs, batches, validation) -> Iterator[tuple[float, float]]:
    """Trains one run after the other, compiled once, as mujax.training.loop but without files."""
    fns = make_train_fns(runs[0].program)
    init = jax.jit(fns.init, compiler_options=init_options())
    step_fn, evaluate = jax.jit(fns.step, donate_argnums=0), jax.jit(fns.evaluate)

    def mean_loss(run, state):
        losses = [evaluate(state.params, rows, run.hps, run.scalings) for rows in validation]
        return float(np.mean([float(x) for x in losses]))

    for run in runs:
        state = init(np.uint32(run.cfg.seed), run.hps, run.scalings)
        first_loss, loss = mean_loss(run, state), 0.0
        for t in range(run.cfg.train.steps):
            state, metrics = step_fn(state, batches[run.cfg.seed][t], run.hps, run.scalings)
            # Metrics of the step before, read after this step is dispatched, as to see a
            # divergence.
            float(loss)
            loss = metrics["loss"]
        yield first_loss, mean_loss(run, state)


def train_in_engine(runs, batches, validation) -> Iterator[tuple[float, float]]:
    from mujax.sweep.engine import train_runs  # here, as the other modes do not import it

    evals = {i: progress.outcome.evals for i, progress in train_runs(runs, batches, validation)}
    for i in range(len(runs)):
        yield evals[i][0][1], evals[i][-1][1]


def train(mode: str, case: Case, indices: Sequence[int]) -> dict[str, list]:
    """Returns the validation losses of each point, at step 0 and after the last step."""
    if mode == "engine":
        # As in `mujax sweep`: one CPU device per core; accelerators are devices already.
        jax.config.update("jax_num_cpu_devices", num_cores())
    runs = make_runs(case, indices)
    train_all = train_in_engine if mode == "engine" else train_in_a_loop
    return {"losses": list(train_all(runs, *load_data(case, runs[0].cfg.seed)))}


def describe() -> dict[str, str]:
    """Returns the fields of a result that tell where and what was measured."""
    device, cpuinfo = device_description(), Path("/proc/cpuinfo")
    if jax.default_backend() == "cpu":
        named = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
        device = f"{num_cores()} x cpu ({named[1] if named else platform.machine()})"
    return {"device": device, "jax_version": jax.__version__, "code_version": code_version()}


if __name__ == "__main__":
    _, *args = sys.argv
    print(
        json.dumps(
            train(args[0], CASES[args[1]], [int(i) for i in args[2:]]) if args else describe()
        )
    )
