"""One run: the simplest loop that is the real thing. Many runs at once are mujax.sweep."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mujax import checkpoint
from mujax import workdir as files
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.metrics import is_bad, is_given_up, json_number
from mujax.results import make_row
from mujax.run import Run, make_run
from mujax.steps import init_options, make_train_fns


def train(tree: Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
    """Trains the run that a config names (its `sweep` is ignored) and returns its result row.

    Leaves config.json, metrics.jsonl (appended as the run goes) and, at the end, checkpoints/ (the weights of a
    run that came through) and result.json. A finished workdir is left alone. An interrupted run starts again
    from step 0: it repeats itself exactly, and what it had logged is kept as metrics.interrupted.jsonl until the
    next interruption.

    Raises:
      UserError: a bad config, data source or workdir; nothing has been compiled.
    """
    run = make_run(make_run_config(tree))
    if run.cfg.mesh.num_devices > 1:
        raise UserError(
            f"mesh.data * mesh.fsdp * mesh.tensor = {run.cfg.mesh.num_devices}: train runs on one device; mujax sweep "
            "splits runs over a mesh"
        )
    root = files.open_workdir(workdir, "config.json", run.cfg.as_dict())
    if (root / "result.json").exists():
        return files.read_json(root / "result.json")
    data = load_batches(run.cfg.data, run.cfg.train, [run.cfg.seed])
    with files.locked(root):
        if (root / "result.json").exists():  # another process has finished it in the meantime
            return files.read_json(root / "result.json")
        return _train(run, root, data)


def _train(run: Run, root: Path, data) -> dict[str, Any]:
    cfg, (batches, validation, fingerprint) = run.cfg, data
    files.write_json(root / "config.json", cfg.as_dict())
    metrics_file = root / "metrics.jsonl"
    if metrics_file.exists():
        metrics_file.rename(root / "metrics.interrupted.jsonl")
        print(f"{root} holds an unfinished run; starting again from step 0", file=sys.stderr)

    start = time.time()
    fns = make_train_fns(run.program)
    init = jax.jit(fns.init, compiler_options=init_options())
    step_fn, evaluate = jax.jit(fns.step, donate_argnums=0), jax.jit(fns.evaluate)
    state = init(np.uint32(cfg.seed), run.hps, run.scalings)
    eval_losses: list[tuple[int, float]] = []
    diverged_at: int | None = None
    stopped_at: int | None = None

    def look(step: int, metrics: Mapping[str, Any]) -> None:
        """Reads the metrics of a step already dispatched; notes a divergence."""
        nonlocal diverged_at
        if diverged_at is not None:
            return
        values = {name: json_number(value) for name, value in metrics.items()}
        if step % cfg.train.log_interval == 0:
            files.append_jsonl(metrics_file, {"step": step, **values})
        if is_bad(float(metrics["loss"]), cfg.train.divergence_loss):
            diverged_at = step

    def look_at_validation(step: int) -> None:
        nonlocal diverged_at, stopped_at
        losses = [evaluate(state.params, rows, run.hps, run.scalings) for rows in validation]
        loss = float(np.mean([float(x) for x in losses]))
        eval_losses.append((step, loss))
        files.append_jsonl(metrics_file, {"step": step, "eval_loss": json_number(loss)})
        tokens_per_second = step * run.tokens_per_step / (time.time() - start)
        print(f"step {step}/{cfg.train.steps}  eval loss {loss:.4f}  {tokens_per_second:.0f} tokens/s", file=sys.stderr)
        if is_bad(loss, cfg.train.divergence_loss):
            diverged_at = step
        elif is_given_up(step, loss, cfg.train.give_up_step, cfg.train.give_up_loss):
            stopped_at = step

    # The loop dispatches step t before it reads the metrics of step t - 1
    pending = None
    for t in range(cfg.train.steps):
        if t % cfg.train.eval_interval == 0:
            if pending:
                look(*pending)
                pending = None
            if diverged_at is None:
                look_at_validation(t)
        if diverged_at is not None or stopped_at is not None:
            break
        state, metrics = step_fn(state, batches[cfg.seed][t], run.hps, run.scalings)
        if pending:
            look(*pending)
        pending = (t, metrics)
    if pending:
        look(*pending)
    if diverged_at is None and stopped_at is None:
        look_at_validation(cfg.train.steps)
    if diverged_at is None and stopped_at is None:  # the last evaluation may have told otherwise
        checkpoint.save(root, cfg.train.steps, state.params, run.table_hash)

    row = make_row(
        run,
        overrides={},
        diverged_at_step=diverged_at,
        stopped_at_step=stopped_at,
        eval_losses=eval_losses,
        data_fingerprint=fingerprint,
        seconds=time.time() - start,
    )
    files.write_json(root / "result.json", row)
    return row
