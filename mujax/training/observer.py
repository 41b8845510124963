"""Observation of a run while it trains: metrics, sizes of tensors, speed, a profile."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mujax.data.text import Corpus
from mujax.hardware import peak_flops
from mujax.storage import files
from mujax.training.distributed import is_primary
from mujax.training.logs import RunLog, StepTimer
from mujax.training.metrics import eval_record, json_number
from mujax.training.outcome import Outcome
from mujax.training.run import Run
from mujax.training.sharding import Layout
from mujax.training.steps import METRICS, TrainState, tensor_rms
from mujax.training.workdir import Workdir


class Observer:
    """The observer of a run's steps; it reads each one step late, so the device never waits."""

    def __init__(self, run: Run, corpus: Corpus, workdir: Workdir, log: RunLog, layout: Layout):
        self._run, self._corpus, self._workdir, self._log = run, corpus, workdir, log
        self._tensor_rms = jax.jit(tensor_rms, out_shardings=layout.whole)
        self._timer = StepTimer(run.tokens_per_step, run.flops_per_step, layout.mesh.size)
        self._before: Any = None  # the weights before a step whose update is measured
        self._pending: tuple[int, Mapping[str, Any], Any] | None = (
            None  # (step, metrics, tensors or None), not read yet
        )
        self._trace: Path | None = None  # folder of the profile that is being written
        kind = jax.devices()[0].device_kind
        if is_primary() and peak_flops(kind) is None:
            print(f"no MFU: the peak of device {kind!r} is not known", file=sys.stderr)

    def begin_step(self, t: int, state: TrainState) -> None:
        """Prepares for a step, which donates the memory of the state."""
        monitor = self._run.cfg.monitor
        if t == monitor.profile_step and monitor.profile_steps:
            self._trace = files.scratch(self._workdir.root / "profile")
            jax.profiler.start_trace(str(self._trace))
        is_measured = monitor.tensor_interval and t % monitor.tensor_interval == 0
        self._before = _copy(state.params) if is_measured else None

    def end_step(
        self, t: int, state: TrainState, metrics: Mapping[str, Any], outcome: Outcome
    ) -> None:
        """Takes a step's measurements, to be read later, and reads those of the step before."""
        tensors = None
        if self._before is not None:
            tensors = self._tensor_rms(self._before, state.params, self._run.scalings)
            self._before = None
        self.catch_up(outcome)
        self._timer.step_ended()
        self._pending = (t, metrics, tensors)
        monitor = self._run.cfg.monitor
        if self._trace and t == monitor.profile_step + monitor.profile_steps - 1:
            jax.block_until_ready(state)
            self._stop_trace()
        self._log.beat(t)

    def catch_up(self, outcome: Outcome) -> None:
        """Reads the step that was dispatched last, logs it, and tells the outcome.

        Does nothing for a run that has ended.
        """
        if self._pending is None or outcome.has_ended:
            return
        step, metrics, tensors = self._pending
        self._pending = None
        loss = float(metrics["loss"])
        if step % self._run.cfg.train.log_interval == 0:
            values = {name: json_number(float(metrics[name])) for name in METRICS}
            self._log.metrics({"step": step, **values})
        if tensors is not None:
            self._log.metrics(
                {"step": step, **jax.tree.map(lambda x: json_number(float(x)), tensors)}
            )
        outcome.trained(step, loss)

    def pause(self) -> None:
        """Leaves out the time until the next step."""
        self._timer.pause()

    def beat(self, step: int) -> None:
        """Writes the heartbeat of the run."""
        self._log.beat(step)

    def evaluated(self, step: int, loss: float) -> None:
        """Logs and prints an evaluation, and the speed since the last one."""
        self._log.metrics(eval_record(step, loss, self._corpus.bits_per_byte(loss)))
        performance = self._timer.report(step)
        speed = ""
        if performance:
            self._log.performance(performance)
            mfu = performance["mfu"]
            speed = f"  {performance['tokens_per_second']:.0f} tokens/s" + (
                f"  MFU {mfu:.1%}" if mfu else ""
            )
        if is_primary():
            print(
                f"step {step}/{self._run.cfg.train.steps}  eval loss {loss:.4f}{speed}",
                file=sys.stderr,
            )

    def close(self) -> None:
        """Ends a profile that is being written."""
        self._stop_trace()

    def _stop_trace(self) -> None:
        trace, self._trace = self._trace, None
        if trace:
            jax.profiler.stop_trace()
            files.deliver(trace, self._workdir.root / "profile")


@jax.jit
def _copy(params):
    """Copies weights, which a step takes the memory of."""
    return jax.tree.map(jax.numpy.copy, params)
