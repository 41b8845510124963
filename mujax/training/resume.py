"""Saved states of a run: the latest ones, which it resumes from, and the weights of the best
evaluation."""

import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from mujax.training.checkpoint import Checkpoints, Record
from mujax.training.distributed import agreed, everywhere, is_primary
from mujax.training.logs import RunLog
from mujax.training.outcome import Outcome
from mujax.training.ownership import Ownership
from mujax.training.results import code_version
from mujax.training.steps import TrainState
from mujax.training.workdir import Workdir


class Saves:
    """The saved states of one run; all its processes make the same calls."""

    def __init__(self, ownership: Ownership, workdir: Workdir, log: RunLog):
        self._ownership, self._workdir, self._log = ownership, workdir, log
        self._start = time.monotonic()
        self._saved_at = self._best_saved_at = -1
        self._open()

    def _open(self) -> None:
        folder, cfg = self._workdir.root / "checkpoints", self._ownership.run.cfg.checkpoint
        self._latest = everywhere(lambda: Checkpoints(folder / "latest", cfg.keep))
        self._best = everywhere(lambda: Checkpoints(folder / "best", keep=1)) if cfg.best else None

    @property
    def seconds(self) -> float:
        """The wall time of the run, including that before an interruption."""
        return time.monotonic() - self._start

    def resume(
        self, abstract: TrainState, init: Callable[[], TrainState]
    ) -> tuple[TrainState, Outcome]:
        """Returns the run as its latest sound checkpoint has it, or as `init` begins it if there is
        none.

        The workdir is the run's from then on, and its log ends where the run goes on.

        Args:
          abstract: shapes, types and shardings of the state.

        Raises:
          UserError: there are only damaged checkpoints, or they are of another run.
        """
        trees = {"params": abstract.params, "opt_state": abstract.opt_state}
        found = self._latest.restore(trees, self._ownership.check_checkpoint)
        agreed(self._ownership.take)
        step, outcome, root = 0, Outcome(self._ownership.run.cfg.train), self._workdir.root
        if found is not None:
            record, trees = found
            step, outcome.evals = record["step"], [(at, loss) for at, loss in record["evals"]]
            self._start = time.monotonic() - record["seconds"]
            self._saved_at = step
            if is_primary():
                print(f"{root}: going on from step {step}", file=sys.stderr)
        elif is_primary() and (root / "metrics.jsonl").exists():
            print(
                f"{root} holds a run that saved no checkpoint; starting again from step 0",
                file=sys.stderr,
            )
        eval_steps = [at for at, _ in outcome.evals]
        agreed(lambda: self._log.go_on_from(step, eval_steps))
        best = self._best
        if best:  # those of evaluations that are made again
            best.keep_only(eval_steps)
        if found is None:
            return init(), outcome
        step_array = jax.device_put(np.int32(step), abstract.step.sharding)
        state = TrainState(step_array, trees["params"], trees["opt_state"])
        if best and outcome.best_step == step and agreed(lambda: step not in best.steps):
            self.save_best(step, state, outcome)  # both were being written, and this one was lost
        return state, outcome

    def save(self, step: int, state: TrainState, outcome: Outcome) -> None:
        """Begins to save a state, unless that of this step is saved; the data's position is the
        step."""
        self._follow()
        if step == self._saved_at:
            return
        self._log.sync()
        if self._best and self._best_saved_at != step:
            # an evaluation that is recorded has its weights on disk
            self._best.wait()
        self._latest.save(
            step, {"params": state.params, "opt_state": state.opt_state}, self._record(outcome)
        )
        self._saved_at = step

    def save_best(self, step: int, state: TrainState, outcome: Outcome) -> None:
        """Begins to save the weights of the best evaluation so far."""
        self._follow()
        if self._best:
            self._best.save(step, {"params": state.params}, self._record(outcome))
            self._best_saved_at = step

    def check(self) -> None:
        """Raises UserError if a save that has been begun has failed."""
        self._latest.check()

    def stop(self, step: int, state: TrainState, outcome: Outcome) -> None:
        """Saves a state and blocks until it is on disk.

        Raises:
          UserError: it is saved, but the workdir was moved.
        """
        self.save(step, state, outcome)
        self._latest.wait()
        self._workdir.check_in_place()

    def finish(self, state: TrainState, outcome: Outcome) -> None:
        """Saves the last state of a run that came through; blocks until all is on disk."""
        self._follow()
        if outcome.status == "ok":
            self.save(outcome.train.steps, state, outcome)
        self._latest.wait()
        if self._best:
            self._best.wait()
        self._log.sync()

    def close(self) -> None:
        """Ends what is under way."""
        self._latest.close()
        if self._best:
            self._best.close()

    def _follow(self) -> None:
        """Saves from now on where the workdir has been moved to."""
        if self._workdir.follow():
            self.close()
            self._open()
            # a save that was under way is not among them
            saved = agreed(lambda: self._latest.steps)
            self._saved_at = self._saved_at if self._saved_at in saved else -1

    def _record(self, outcome: Outcome) -> Record:
        """Returns what is saved beside the arrays, to know the run by and to go on with."""
        run = self._ownership.run
        return {
            "config": run.cfg.as_dict(),
            "table": run.table,
            "table_hash": run.table_hash,
            "data_fingerprint": self._ownership.data_fingerprint,
            "evals": outcome.evals,
            "seconds": self.seconds,
            "code_version": code_version(),
            "jax_version": jax.__version__,
        }
