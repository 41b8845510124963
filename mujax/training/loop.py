"""One run, of any size: on a device, a mesh, or the hosts of a pod; the simplest loop that is the real thing. Many runs
at once are mujax.sweep.study."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mujax.config import differences, make_run_config
from mujax.data.loader import TrainBatches, ahead, load_batches
from mujax.data.text import Corpus
from mujax.errors import UserError
from mujax.hardware import peak_flops
from mujax.storage import files
from mujax.training.checkpoint import Checkpoints, Record
from mujax.training.distributed import agreed, all_same, everywhere, is_primary, stop_requests
from mujax.training.logs import RunLog, StepTimer
from mujax.training.metrics import eval_record, json_number
from mujax.training.outcome import Outcome
from mujax.training.ownership import Claim, check_allowed
from mujax.training.results import code_version, make_row
from mujax.training.run import Run, make_run
from mujax.training.sharding import Layout, make_layout
from mujax.training.steps import (
    METRICS,
    TrainState,
    abstract_state,
    init_options,
    make_train_fns,
    state_shardings,
    tensor_rms,
)


def train(tree: Mapping[str, Any], workdir: str | Path, allowed_changes: Sequence[str] = ()) -> dict[str, Any]:
    """Trains the run that a config names (its `sweep` is ignored) and returns its result row.

    Leaves config.json, metrics.jsonl, performance.jsonl, heartbeat.json and checkpoints/, and at the end result.json.
    A finished workdir is left alone. An interrupted run goes on from its latest sound checkpoint, and what it leaves
    is, bit by bit, what it would have left uninterrupted on these devices. On several processes all call this, with a
    workdir that all of them see.

    Args:
      allowed_changes: fields in which the config may differ from the one that the workdir was begun with; `table` and
        `data` stand for the resolved parameterization and the text that is trained on.

    Raises:
      UserError: a bad config, data source or workdir; nothing has been compiled. Or a checkpoint could not be saved, or
        the workdir was moved away meanwhile; the state is saved in it.
      ConnectionError: a bucket did not answer.
      KeyboardInterrupt: the run was asked to stop, and its state is saved.
    """
    run = everywhere(lambda: make_run(make_run_config(tree)))
    _check_one_command(run, allowed_changes)
    layout = _make_layout(run)
    config = run.cfg.as_dict()
    check_allowed(allowed_changes, config)
    root = everywhere(lambda: files.any_path(workdir))
    agreed(lambda: str(files.open_workdir(workdir, "config.json", config, allowed_changes)))
    batches, validation, corpus = everywhere(lambda: load_batches(run.cfg, [run.cfg.seed]))
    if not all_same(corpus.fingerprint):
        raise UserError(f"the processes of this run read different data (fingerprint {corpus.fingerprint} here)")
    claim = Claim(root, run, corpus.fingerprint, allowed_changes)
    row = agreed(claim.finished_row)
    if row is not None:
        return row
    with contextlib.ExitStack() as stack:
        held: list[files.Held] = []  # by the primary process
        agreed(lambda: held.append(stack.enter_context(files.locked(root))))
        row = agreed(claim.finished_row)  # another process may have finished it in the meantime
        if row is not None:
            return row
        training = _Training(claim, held[0] if held else None, layout, corpus, batches[run.cfg.seed], validation)
        stack.callback(training.close)
        with stop_requests(run.cfg.checkpoint.grace_seconds) as is_stopping:
            return training.run_to_end(is_stopping)


def _check_one_command(run: Run, allowed_changes: Sequence[str]) -> None:
    """Raises UserError, on all processes, unless all are to do the same: each compiles what its own config says."""
    of_run = {**run.cfg.as_dict(), "table_hash": run.table_hash, "allow_config_change": sorted(allowed_changes)}
    own = json.loads(files.as_line(of_run))  # tuples and NumPy's numbers as the first sends them
    first = agreed(lambda: own)

    def check() -> None:
        changes = [f"{field}: {change}" for field, change in differences(first, own).items()]
        if changes:
            process = f"process {jax.process_index()}"
            raise UserError(f"{process} was given another command than process 0: {', '.join(changes[:3])}")

    everywhere(check)


def _make_layout(run: Run) -> Layout | None:
    """The mesh of a run; None: one device, with nothing to split.

    Raises:
      UserError: it does not fit the devices there are.
    """
    mesh = run.cfg.mesh
    where = f"mesh.data * mesh.fsdp * mesh.tensor = {mesh.num_devices}"
    if jax.process_count() > 1 and mesh.num_devices != jax.device_count():
        raise UserError(f"{where} must be the {jax.device_count()} devices of the {jax.process_count()} processes")
    if mesh.num_devices > jax.device_count():
        raise UserError(f"{where} is more than the {jax.device_count()} devices here")
    if mesh.num_devices == 1:
        return None
    return make_layout(1, mesh.data, mesh.fsdp, mesh.tensor, mesh.slices, mesh.axis_rules)


class _Training:
    """A run on its way: its state on the devices, and what the host knows of it."""

    def __init__(
        self,
        claim: Claim,
        held: files.Held | None,
        layout: Layout | None,
        corpus: Corpus,
        batches: TrainBatches,
        validation: np.ndarray,
    ):
        run, root = claim.run, claim.root
        self._claim, self._held, self._run, self._root = claim, held, run, root
        self._layout, self._corpus, self._batches = layout, corpus, batches
        self._cfg = run.cfg.train
        fns = make_train_fns(run.program, layout)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        whole = layout.whole if layout else device
        if layout:
            self._shardings = state_shardings(run.program, layout)
        else:
            self._shardings = jax.tree.map(lambda _: device, abstract_state(run.program))
        self._init = jax.jit(fns.init, out_shardings=self._shardings, compiler_options=init_options())
        self._step = jax.jit(fns.step, donate_argnums=0, out_shardings=(self._shardings, whole))
        self._evaluate = jax.jit(fns.evaluate, out_shardings=whole)
        self._tensor_rms = jax.jit(tensor_rms, out_shardings=whole)
        self._copy = jax.jit(lambda params: jax.tree.map(jax.numpy.copy, params))
        self._validation = [self._place(len(rows), rows.__getitem__) for rows in validation]
        num_devices = layout.mesh.size if layout else 1
        self._log = RunLog(root, is_primary(), (lambda: held.path) if held else None)
        self._timer = StepTimer(run.tokens_per_step, run.flops_per_step, num_devices)
        self._latest, self._best = self._open_checkpoints()
        self._start = time.monotonic()
        self._outcome = Outcome(self._cfg)
        self._saved_at = self._best_saved_at = -1
        self._trace: Path | None = None  # where a profile is being written
        self._has_told = False  # the other processes that the workdir was moved
        # A step is dispatched before the metrics of the one before it are read: (step, metrics, tensors or None)
        self._pending: tuple[int, Mapping[str, Any], Any] | None = None

    def _open_checkpoints(self) -> tuple[Checkpoints, Checkpoints | None]:
        folder, cfg = self._root / "checkpoints", self._run.cfg.checkpoint
        latest = everywhere(lambda: Checkpoints(folder / "latest", cfg.keep))
        return latest, everywhere(lambda: Checkpoints(folder / "best", keep=1)) if cfg.best else None

    def run_to_end(self, is_stopping: Callable[[int], bool]) -> dict[str, Any]:
        """Trains from the latest checkpoint, or from the beginning, to the end; returns the row.

        Raises:
          UserError: see train.
          KeyboardInterrupt: it was asked to stop.
        """
        kind = jax.devices()[0].device_kind
        if is_primary() and peak_flops(kind) is None:
            print(f"no MFU: the peak of device {kind!r} is not known", file=sys.stderr)
        state = self._restore()
        if state is None:
            state = self._init(np.uint32(self._run.cfg.seed), self._run.hps, self._run.scalings)
        t = int(state.step)
        self._rows = ahead(self._read, t, self._cfg.steps)
        while not self._has_ended:
            if self._must_stop(t, is_stopping):
                self._read_pending()
                if self._has_ended:
                    break
                self._save(t, state)
                self._latest.wait()
                agreed(lambda: self._held.check_in_place() if self._held else None)
                raise KeyboardInterrupt
            if self._outcome.must_evaluate(t):
                self._read_pending()
                self._look_at_validation(t, state)
            if t == self._cfg.steps or self._has_ended:
                break
            if t % self._run.cfg.checkpoint.interval == 0 and t:
                self._read_pending()
                self._save(t, state)
            state = self._train_step(t, state)
            t += 1
        self._read_pending()
        self._follow()
        if not self._has_ended:
            self._save(t, state)
        self._latest.wait()
        if self._best:
            self._best.wait()
        self._log.sync()
        row = make_row(
            self._run,
            self._outcome,
            overrides={},
            corpus=self._corpus,
            seconds=time.monotonic() - self._start,
        )
        if is_primary():
            files.write_json(self._root / "result.json", row)
        return row

    def _must_stop(self, t: int, is_stopping: Callable[[int], bool]) -> bool:
        """Whether to save and stop before step t: as asked to, or because the workdir was moved away."""
        if self._held is None or self._held.is_in_place():
            return is_stopping(t)
        if jax.process_count() > 1 and not self._has_told:  # the others stop with this one, at the same step
            self._has_told = True
            signal.raise_signal(signal.SIGTERM)
        return is_stopping(t) or jax.process_count() == 1

    def _follow(self) -> None:
        """Saves from now on where the workdir has been moved to."""

        def where() -> str:
            assert self._held
            return str(self._held.path)

        now = agreed(where)
        if now == str(self._root):
            return
        if is_primary():
            print(f"{self._root} was moved to {now}; saving there", file=sys.stderr)
        self._root = Path(now)
        for checkpoints in (self._latest, self._best):
            if checkpoints:
                checkpoints.close()
        self._latest, self._best = self._open_checkpoints()
        saved = agreed(lambda: self._latest.steps)  # a save that was under way is not among them
        self._saved_at = self._saved_at if self._saved_at in saved else -1

    def _stop_tracing(self) -> None:
        trace, self._trace = self._trace, None
        if trace:
            jax.profiler.stop_trace()
            files.deliver(trace, self._root / "profile")

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # each, whatever becomes of the others
            for checkpoints in (self._latest, self._best):
                if checkpoints:
                    stack.callback(checkpoints.close)
            self._stop_tracing()

    @property
    def _has_ended(self) -> bool:
        return self._outcome.status != "ok"

    def _read(self, t: int):
        return self._place(self._cfg.batch_size, lambda which: self._batches.rows(t, which))

    def _train_step(self, t: int, state: TrainState) -> TrainState:
        run, monitor = self._run, self._run.cfg.monitor
        rows = next(self._rows)
        if t == monitor.profile_step and monitor.profile_steps:
            self._trace = files.scratch(self._root / "profile")
            jax.profiler.start_trace(str(self._trace))
        is_watched = monitor.tensor_interval and t % monitor.tensor_interval == 0
        before = self._copy(state.params) if is_watched else None  # the step takes the state's own memory
        state, metrics = self._step(state, rows, run.hps, run.scalings)
        tensors = self._tensor_rms(before, state.params, run.scalings) if is_watched else None
        self._read_pending()
        self._timer.step_ended()
        self._pending = (t, metrics, tensors)
        if self._trace and t == monitor.profile_step + monitor.profile_steps - 1:
            jax.block_until_ready(state)
            self._stop_tracing()
        self._log.beat(t)
        return state

    def _read_pending(self) -> None:
        """Reads the metrics of the step dispatched last, if they have not been read; notes a divergence."""
        if self._pending is None or self._has_ended:
            return
        step, metrics, tensors = self._pending
        self._pending = None
        loss = float(metrics["loss"])
        if step % self._cfg.log_interval == 0:
            values = {name: json_number(float(metrics[name])) for name in METRICS}
            self._log.metrics({"step": step, **values})
        if tensors is not None:
            self._log.metrics({"step": step, **jax.tree.map(lambda x: json_number(float(x)), tensors)})
        self._outcome.trained(step, loss)

    def _look_at_validation(self, step: int, state: TrainState) -> None:
        if self._has_ended:
            return
        self._timer.pause()
        numbers = self._run.hps, self._run.scalings
        losses = []
        for rows in self._validation:
            losses.append(float(self._evaluate(state.params, rows, *numbers)))
            self._log.beat(step)
        loss = float(np.mean(losses))
        is_best = all(loss < earlier for _, earlier in self._outcome.evals)
        self._outcome.evaluated(step, loss)
        self._log.metrics(eval_record(step, loss, self._corpus.bits_per_byte(loss)))
        self._report(step, loss)
        if is_best and step and not self._has_ended:
            self._save_best(step, state)
        self._latest.check()

    def _report(self, step: int, loss: float) -> None:
        performance = self._timer.report(step)
        speed = ""
        if performance:
            self._log.performance(performance)
            mfu = performance["mfu"]
            speed = f"  {performance['tokens_per_second']:.0f} tokens/s" + (f"  MFU {mfu:.1%}" if mfu else "")
        if is_primary():
            print(f"step {step}/{self._cfg.steps}  eval loss {loss:.4f}{speed}", file=sys.stderr)

    def _place(self, num_rows: int, read: Callable[[slice], np.ndarray]):
        """Rows [B, T + 1] over the mesh; each process reads those that its devices hold."""
        if self._layout is None:
            return read(slice(0, num_rows))
        shape = (num_rows, self._run.program.seq_len + 1)
        shares: dict[tuple, np.ndarray] = {}

        def share(index):
            start, stop, _ = index[0].indices(num_rows)
            if (start, stop) not in shares:
                shares[start, stop] = read(slice(start, stop))
            return shares[start, stop]

        return jax.make_array_from_callback(shape, self._layout.batch(batch_axis=0, ndim=2), share)

    def _record(self) -> Record:
        """What is saved beside the arrays, to know the run by and to go on with."""
        run = self._run
        return {
            "config": run.cfg.as_dict(),
            "table": run.table,
            "table_hash": run.table_hash,
            "data_fingerprint": self._corpus.fingerprint,
            "evals": self._outcome.evals,
            "seconds": time.monotonic() - self._start,
            "code_version": code_version(),
            "jax_version": jax.__version__,
        }

    def _save(self, step: int, state: TrainState) -> None:
        self._follow()
        if step == self._saved_at or self._has_ended:
            return
        self._timer.pause()
        self._log.sync()
        if self._best and self._best_saved_at != step:  # an evaluation that is recorded has its weights on disk
            self._best.wait()
        # The data's position is the step
        self._latest.save(step, {"params": state.params, "opt_state": state.opt_state}, self._record())
        self._saved_at = step

    def _save_best(self, step: int, state: TrainState) -> None:
        self._follow()
        if self._best:
            self._best.save(step, {"params": state.params}, self._record())
            self._best_saved_at = step

    def _restore(self) -> TrainState | None:
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract_state(self._run.program),
            self._shardings,
        )
        trees = {"params": abstract.params, "opt_state": abstract.opt_state}
        found = self._latest.restore(trees, self._claim.check_checkpoint)
        agreed(self._claim.take)
        step = 0 if found is None else found[0]["step"]
        if found is not None:
            record, trees = found
            self._outcome.evals = [(at, loss) for at, loss in record["evals"]]
            self._start = time.monotonic() - record["seconds"]
            self._saved_at = step
            if is_primary():
                print(f"{self._root}: going on from step {step}", file=sys.stderr)
        elif is_primary() and (self._root / "metrics.jsonl").exists():
            print(f"{self._root} holds a run that saved no checkpoint; starting again from step 0", file=sys.stderr)
        agreed(lambda: self._log.go_on_from(step, [at for at, _ in self._outcome.evals]))
        if self._best:  # those of evaluations that are made again
            self._best.keep_only([at for at, _ in self._outcome.evals])
        if found is None:
            return None
        step_array = jax.device_put(np.int32(step), self._shardings.step)
        state = TrainState(step_array, trees["params"], trees["opt_state"])
        best_step = min(self._outcome.evals[1:], key=lambda pair: pair[1], default=(-1, 0.0))[0]
        best = self._best
        if best and best_step == step and agreed(lambda: step not in best.steps):
            self._save_best(step, state)  # both were being written, and this one was lost
        return state
