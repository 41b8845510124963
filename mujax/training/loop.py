"""The loop of one run of any size: on a device, a mesh, or the hosts of a pod.

mujax.sweep.study trains many runs at once.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mujax.config import differences, make_run_config
from mujax.data.loader import ahead, load_batches
from mujax.errors import UserError
from mujax.hardware import check_devices
from mujax.storage import files, locks
from mujax.storage.records import Row
from mujax.training.distributed import agreed, all_same, everywhere, is_primary, stop_requests
from mujax.training.logs import RunLog
from mujax.training.observer import Observer
from mujax.training.outcome import Outcome
from mujax.training.ownership import Ownership, check_allowed
from mujax.training.results import make_row
from mujax.training.resume import Saves
from mujax.training.run import Run, make_run
from mujax.training.sharding import Layout, make_layout
from mujax.training.steps import (
    Program,
    TrainState,
    abstract_state,
    init_options,
    make_train_fns,
    state_shardings,
)
from mujax.training.workdir import Workdir


def train(tree: Mapping[str, Any], workdir: str | Path, allowed_changes: Sequence[str] = ()) -> Row:
    """Trains the run that a config names (its `sweep` is ignored) and returns its result row.

    Writes config.json, metrics.jsonl, performance.jsonl, heartbeat.json and checkpoints/, and at
    the end result.json. A finished workdir stays as it is. An interrupted run resumes from its
    latest sound checkpoint, bit-exactly on the same devices. On several processes all call this,
    with a workdir that all of them see.

    Args:
      allowed_changes: fields in which the config may differ from the one that the workdir was begun
        with; `table` and `data` stand for the resolved parameterization and the text of training.

    Raises:
      UserError: a bad config, data source or workdir; nothing has been compiled. Or a checkpoint
        could not be saved, or the workdir was moved away meanwhile; the state is saved in it.
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
        raise UserError(
            f"the processes of this run read different data (fingerprint {corpus.fingerprint} here)"
        )
    ownership = Ownership(root, run, corpus.fingerprint, allowed_changes)
    row = agreed(ownership.finished_row)
    if row is not None:
        return row
    with contextlib.ExitStack() as stack:
        held: list[locks.Held] = []  # the lock, on the primary process
        agreed(lambda: held.append(stack.enter_context(locks.locked(root))))
        row = agreed(ownership.finished_row)  # another process may have finished it in the meantime
        if row is not None:
            return row
        folder = Workdir(root, held[0] if held else None)
        log = RunLog(root, is_primary(), lambda: folder.now)
        # Several processes keep no program beyond its run: they part when they end
        jit = _jit if jax.process_count() == 1 else _jit.__wrapped__
        fns = jit(run.program, layout)
        observer = Observer(run, corpus, folder, log, layout)
        saves = Saves(ownership, folder, log)
        stack.callback(saves.close)
        stack.callback(observer.close)

        def read(t: int):
            shape = run.program.batch_size, run.program.seq_len + 1
            return layout.place(shape, functools.partial(batches[run.cfg.seed].rows, t))

        with stop_requests(run.cfg.checkpoint.grace_seconds) as is_asked:
            must_stop = functools.partial(folder.must_stop, is_asked)
            placed = [layout.place(rows.shape, rows.__getitem__) for rows in validation]
            outcome = train_to_end(run, fns, read, placed, saves, observer, must_stop)
            row = make_row(run, outcome, overrides={}, corpus=corpus, seconds=saves.seconds)
            folder.write_result(row)
            return row


class Fns(NamedTuple):
    """The functions of one run, jitted for its devices; see mujax.training.steps.

    abstract: its state, as shapes, types and shardings.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[..., jax.Array]
    abstract: TrainState


def train_to_end(
    run: Run,
    fns: Fns,
    read: Callable[[int], Any],
    validation: Sequence[Any],
    saves: Saves,
    observer: Observer,
    must_stop: Callable[[int], bool],
) -> Outcome:
    """Trains a run from its latest checkpoint, or from the beginning, to its end.

    Args:
      read: t -> the rows of batch t.
      validation: rows, batch by batch.
      must_stop: t -> whether to save and stop before step t.

    Raises:
      UserError: see train.
      KeyboardInterrupt: the run was asked to stop, and its state is saved.
    """
    cfg, numbers = run.cfg.train, (run.hps, run.scalings)
    state, outcome = saves.resume(fns.abstract, lambda: fns.init(np.uint32(run.cfg.seed), *numbers))
    rows = ahead(read, int(state.step), cfg.steps)
    for t in range(int(state.step), cfg.steps + 1):
        is_stopping, is_saving = must_stop(t), t > 0 and t % run.cfg.checkpoint.interval == 0
        # Step t - 1 may still be running, and the next decisions depend on its result.
        if is_stopping or is_saving or outcome.must_evaluate(t):
            observer.catch_up(outcome)

        if is_stopping and not outcome.has_ended:
            saves.stop(t, state, outcome)
            raise KeyboardInterrupt

        if outcome.must_evaluate(t):
            observer.pause()
            losses = []
            for batch in validation:
                losses.append(float(fns.evaluate(state.params, batch, *numbers)))
                observer.beat(t)
            loss = float(np.mean(losses))
            outcome.evaluated(t, loss)
            observer.evaluated(t, loss)
            if outcome.status == "ok" and outcome.best_step == t:
                saves.save_best(t, state, outcome)
            saves.check()

        if outcome.has_ended:
            break

        if is_saving:
            observer.pause()
            saves.save(t, state, outcome)

        batch = next(rows)
        observer.begin_step(t, state)
        state, metrics = fns.step(state, batch, *numbers)
        # reads step t - 1 while the device computes step t
        observer.end_step(t, state, metrics, outcome)
    saves.finish(state, outcome)
    return outcome


@functools.lru_cache(maxsize=8)  # runs of one process share programs, as those of a sweep do
def _jit(program: Program, layout: Layout) -> Fns:
    """Jits the functions of a run; they are compiled when they are first called."""
    fns, abstract = make_train_fns(program, layout), abstract_state(program)
    shardings, whole = state_shardings(program, layout), layout.whole
    return Fns(
        init=jax.jit(fns.init, out_shardings=shardings, compiler_options=init_options()),
        step=jax.jit(fns.step, donate_argnums=0, out_shardings=(shardings, whole)),
        evaluate=jax.jit(fns.evaluate, out_shardings=whole),
        abstract=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        ),
    )


def _check_one_command(run: Run, allowed_changes: Sequence[str]) -> None:
    """Raises UserError on all processes unless all have the same config, which each compiles."""
    of_run = {
        **run.cfg.as_dict(),
        "table_hash": run.table_hash,
        "allow_config_change": sorted(allowed_changes),
    }
    own = json.loads(files.as_line(of_run))  # converts tuples and NumPy numbers as sending does
    first = agreed(lambda: own)

    def check() -> None:
        changes = [f"{field}: {change}" for field, change in differences(first, own).items()]
        if changes:
            process = f"process {jax.process_index()}"
            raise UserError(
                f"{process} was given another command than process 0: {', '.join(changes[:3])}"
            )

    everywhere(check)


def _make_layout(run: Run) -> Layout:
    """Makes the mesh of a run.

    Raises:
      UserError: it does not fit the devices here.
    """
    mesh = run.cfg.mesh
    if jax.process_count() > 1 and mesh.num_devices != jax.device_count():
        raise UserError(
            f"mesh.data * mesh.fsdp * mesh.tensor = {mesh.num_devices} must be the "
            f"{jax.device_count()} devices of the {jax.process_count()} processes"
        )
    check_devices(mesh.num_devices, jax.device_count(), "here")
    return make_layout(1, mesh.data, mesh.fsdp, mesh.tensor, mesh.slices, mesh.axis_rules)
