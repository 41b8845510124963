"""Measures the cost of mujax train's loop beside its compiled step.

The loop reads batches and metrics, writes logs and checkpoints, and watches for signals.

    PYTHONPATH=. python experiments/benchmarks/train_loop.py

In one process, 100 steps of the loop alternate with 100 bare steps (rows read before, metrics not
read). The loop's time includes checkpoints at the default interval (the first one compiles what
they need), and no evaluation.
"""

import statistics
import tempfile
import time

import jax

from configs import base
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.training import loop
from mujax.training.observer import Observer
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns

STEPS, SEGMENT = 2060, 100


def main() -> None:
    config = base.get_config()
    config.model.d_model, config.train.batch_size = 64, 16
    config.train.steps = config.train.eval_interval = STEPS
    run = make_run(make_run_config(config.to_dict()))
    batches = load_batches(run.cfg, [0])[0][0]
    step = jax.jit(make_train_fns(run.program).step, donate_argnums=0)
    rows = [batches[t] for t in range(SEGMENT)]
    bare, whole, begun = [], [], 0.0

    def copied(state):
        return jax.block_until_ready(jax.tree.map(jax.numpy.copy, state))

    class Between(Observer):
        """A function that is called between the loop's steps.

        Every SEGMENT steps, but not right after a checkpoint, it runs the bare steps.
        """

        def begin_step(self, t, state):
            nonlocal begun
            if t % SEGMENT == SEGMENT // 2:
                jax.block_until_ready(state)
                if begun:
                    whole.append(time.perf_counter() - begun)
                else:
                    step(copied(state), rows[0], run.hps, run.scalings)  # compiles the step
                copy = copied(state)
                start = time.perf_counter()
                for x in rows:
                    copy, metrics = step(copy, x, run.hps, run.scalings)
                jax.block_until_ready((copy, metrics))
                bare.append(time.perf_counter() - start)
                begun = time.perf_counter()
            super().begin_step(t, state)

    loop.Observer = Between
    with tempfile.TemporaryDirectory() as folder:
        loop.train(config.to_dict(), folder)
    bare = bare[: len(whole)]
    step_ms, loop_ms = (1000 * sum(x) / len(x) / SEGMENT for x in (bare, whole))
    medians = [1000 * statistics.median(x) / SEGMENT for x in (bare, whole)]
    print(
        f"{jax.devices()[0].device_kind}: bare step {step_ms:.2f} ms, in the loop {loop_ms:.2f} ms"
    )
    print(
        f"the loop adds {loop_ms / step_ms - 1:+.1%} in all, {medians[1] / medians[0] - 1:+.1%} "
        "by medians of segments"
    )


if __name__ == "__main__":
    main()
