"""Trained weights on disk: one folder a step, under checkpoints/ of a run's workdir, written whole or not at all."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from mujax.errors import UserError


def save(root: Path, step: int, params, table_hash: str) -> None:
    """Writes the master weights after `step` updates; those of an earlier attempt at the same run are replaced.

    Args:
      table_hash: of the parameterization that the weights are stored under (see mujax.run.Run).
    """
    with _manager(root, create=True) as manager:
        if step in manager.all_steps():
            manager.delete(step)
        items = {"params": ocp.args.StandardSave(params), "record": ocp.args.JsonSave({"table_hash": table_hash})}
        manager.save(step, args=ocp.args.Composite(**items))


def load(root: Path, abstract_params, table_hash: str) -> tuple[int, Any]:
    """(step, master weights) of the last checkpoint of a workdir.

    Args:
      abstract_params: their shapes and types, with shardings if they are to be split.

    Raises:
      UserError: there is none, or it was saved under another table: its numbers would mean something else.
    """
    if not (root / "checkpoints").is_dir():
        raise UserError(f"--workdir={root} has no checkpoints: mujax train leaves one when a run has come through")
    with _manager(root, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"--workdir={root}: checkpoints/ is empty")
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
        if record["table_hash"] != table_hash:
            raise UserError(
                f"--workdir={root}: its checkpoint was saved under another parameterization table "
                f"({record['table_hash']}, its config now resolves to {table_hash}); use the code that saved it"
            )
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        return step, manager.restore(step, args=args).params


def _manager(root: Path, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(create=create, enable_async_checkpointing=False)
    return ocp.CheckpointManager((root / "checkpoints").absolute(), options=options)
