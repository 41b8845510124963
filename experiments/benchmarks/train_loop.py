"""What the loop of mujax train adds to its compiled step: batches, metrics, logs, signals, checkpoints.

PYTHONPATH=. python experiments/benchmarks/train_loop.py

In one process, 100 steps of the loop and 100 of the bare step in turn (rows read before, nothing looked at). The loop's
time has checkpoints at the default interval in it (the first compiles what they need), and no evaluation.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jax

from configs import base
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.training.loop import _Training
from mujax.training.ownership import Claim
from mujax.training.run import make_run

STEPS, SEGMENT = 2060, 100


def main() -> None:
    config = base.get_config()
    config.model.d_model, config.train.batch_size = 64, 16
    config.train.steps = config.train.eval_interval = STEPS
    run = make_run(make_run_config(config.to_dict()))
    batches, validation, corpus = load_batches(run.cfg, [0])
    batches = batches[0]
    with tempfile.TemporaryDirectory() as folder:
        training = _Training(Claim(Path(folder), run, corpus.fingerprint, ()), None, corpus, batches, validation)
        rows = [batches[t] for t in range(SEGMENT)]
        bare, whole, begun = [], [], 0.0
        train_step = training._train_step

        def between(t, state):
            """The loop's own step; every SEGMENT steps, not right after a checkpoint, also the bare ones."""
            nonlocal begun
            if t % SEGMENT == SEGMENT // 2:
                jax.block_until_ready(state)
                if begun:
                    whole.append(time.perf_counter() - begun)
                copy = jax.tree.map(jax.numpy.copy, state)
                jax.block_until_ready(copy)
                start = time.perf_counter()
                for x in rows:
                    copy, metrics = training._step(copy, x, run.hps, run.scalings)
                jax.block_until_ready((copy, metrics))
                bare.append(time.perf_counter() - start)
                begun = time.perf_counter()
            return train_step(t, state)

        training._train_step = between
        training.run_to_end(lambda step: False)
        training.close()
    bare = bare[: len(whole)]
    step_ms, loop_ms = (1000 * sum(x) / len(x) / SEGMENT for x in (bare, whole))
    medians = [1000 * statistics.median(x) / SEGMENT for x in (bare, whole)]
    print(f"{jax.devices()[0].device_kind}: bare step {step_ms:.2f} ms, in the loop {loop_ms:.2f} ms")
    print(
        f"the loop adds {loop_ms / step_ms - 1:+.1%} in all, {medians[1] / medians[0] - 1:+.1%} by medians of segments"
    )


if __name__ == "__main__":
    main()
