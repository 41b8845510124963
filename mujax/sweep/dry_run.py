"""The dry run: what a sweep would do and cost, without compiling anything."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mujax.columns import align
from mujax.sweep.points import Point, Shard, group_points, make_points
from mujax.sweep.refine import refine_config
from mujax.training.run import Run
from mujax.training.steps import example_numbers, make_train_fns


def estimate_bytes(run: Run) -> tuple[int, int]:
    """Estimates bytes of one lane from shapes alone: (its state, its state while it trains).

    State is weights and optimizer. Training adds gradients and what autodiff keeps of the forward
    pass. The engine goes by what the compiler says.
    """
    fns = make_train_fns(run.program)
    numbers = example_numbers(run.program)
    state = jax.eval_shape(fns.init, np.uint32(0), *numbers)
    rows = jax.ShapeDtypeStruct((run.program.batch_size, run.program.seq_len + 1), np.uint8)
    kept = jax.eval_shape(
        lambda p, rows: jax.vjp(lambda p: fns.evaluate(p, rows, *numbers), p)[1], state.params, rows
    )
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    residuals = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
    return size, size + gradients + residuals


def dry_run(tree: Mapping[str, Any], shard: Shard, config_flags: Sequence[str]) -> str:
    """Describes what a sweep will do: one line per group, totals, and for each point the command
    that runs it alone.

    Args:
      config_flags: --config=FILE and the fields that the command line sets.

    Raises:
      UserError: the sweep would be refused.
    """
    grid = make_points(tree)
    refinement = refine_config(tree, grid)
    points = shard.take(grid, refinement.field if refinement else None)
    header = (
        "group",
        "model",
        "width",
        "depth",
        "points",
        "steps",
        "tokens",
        "FLOPs",
        "state",
        "training",
    )
    table: list[tuple[str, ...]] = [header]
    groups = group_points(points)
    for members in groups:
        run = members[0].run
        state, training = estimate_bytes(run)
        table.append(
            (
                run.group,
                run.cfg.model_name,
                f"{run.cfg.model.d_model}",
                f"{run.cfg.model.num_layers}",
                f"{len(members)}",
                f"{run.cfg.train.steps}",
                f"{sum(point.tokens for point in members):.3g}",
                f"{sum(point.flops for point in members):.3g}",
                _bytes(state),
                _bytes(training),
            )
        )
    lines = align(table, ">")
    programs = {(m[0].run.program, m[0].run.cfg.mesh) for m in groups}
    lines += [
        "",
        f"{len(points)} points in {len(groups)} groups, {len(programs)} training programs; "
        f"{sum(p.tokens for p in points):.3g} tokens, {sum(p.flops for p in points):.3g} FLOPs",
        "state, training: estimated bytes of one lane, before the compiler has shared or "
        "recomputed anything",
        "",
    ]
    if refinement:
        lines.insert(
            -1,
            f"and then points along {refinement.field} until its best value is bracketed within 2^"
            f"{refinement.log2_step:g}",
        )
    own = [
        flag
        for flag in config_flags
        if not flag.startswith(("--config.sweep", "--config.refine", "--config.mesh"))
    ]
    command = shlex.join(["mujax", "train", *own])
    lines += [f"{command} {_flags(point)} --workdir=runs/{point.id}" for point in points]
    return "\n".join(lines)


def _bytes(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1024)), 4)
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _flags(point: Point) -> str:
    """Returns a point's own fields as flags; a mesh is for sweeps, train runs on one device."""
    flags = [
        f"--config.{field}={value}"
        for field, value in point.overrides.items()
        if not field.startswith("mesh.")
    ]
    mesh = point.run.cfg.mesh
    sizes = [name for name in ("data", "fsdp", "tensor", "slices") if getattr(mesh, name) != 1]
    return shlex.join([*flags, *(f"--config.mesh.{name}=1" for name in sizes)])
