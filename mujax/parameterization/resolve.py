"""The numbers of every tensor, from a table and metadata: here alone, a rule becomes a value."""

import dataclasses
import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from mujax.errors import UserError
from mujax.parameterization.table import Parameterization, Row, ScaleRules, Size, size_of
from mujax.params import ROLES, ParamMeta, map_params, named_leaves

Number = float | Any  # or a traced array


class Scaling(NamedTuple):
    """The resolved numbers of one tensor, all of them traced in the training step.

    init: standard deviation of the stored weight (1 for zeros and ones, which are not scaled).
    forward: effective weight = forward * stored weight.
    lr, eps, weight_decay: factors on the hyperparameters of the same names.
    """

    init: Number = 1.0
    forward: Number = 1.0
    lr: Number = 1.0
    eps: Number = 1.0
    weight_decay: Number = 1.0


class Scales(NamedTuple):
    """The resolved forward scales, which the model receives in its Hps; see ScaleRules."""

    attention: Number = 1.0
    residual: Number = 1.0
    logits: Number = 1.0
    embedding: Number = 1.0


def is_scaling(x) -> bool:
    return isinstance(x, Scaling)


def assign_rows(table: Parameterization, metas) -> dict[str, Any]:
    """Returns the tree of the Row that each tensor of a tree of ParamMeta follows.

    Raises:
      UserError: a tensor's role has no row, or the tensor is repeated over an axis that the table
        has no rule for.
    """

    def row(name: str, meta: ParamMeta) -> Row:
        for pattern, row in table.tensors.items():
            if fnmatchcase(name, pattern):
                return row
        for axis in meta.batch:
            if axis not in table.repeated:
                raise UserError(
                    f"{name} is repeated over {axis!r}, for which parameterization {table.name!r} "
                    "declares no rule; override its tensors to scale each copy as a matrix of its "
                    "own, e.g. parameterization.override = "
                    f"('{name.rpartition('/')[0]}/w*={table.name}',)"
                )
        if meta.role not in table.rows:
            raise UserError(
                f"parameterization {table.name!r} has no row for role {meta.role!r} of {name}; "
                f"{_DECLARE[meta.role]}"
            )
        return table.rows[meta.role]

    return map_params(row, metas)


_DECLARE = {
    "tied": "declare how a tied embedding scales, e.g. parameterization.override = ('tied=mup',), "
    "or untie it",
    "kv": "declare how shared keys and values scale, e.g. parameterization.override = ('kv=mup',), "
    "or give every query head its own",
}


def resolve(rows, metas, base_metas, column: str) -> dict[str, Any]:
    """Returns a tree of Scaling beside the parameters.

    Args:
      rows: tree of Row, from assign_rows.
      metas: tree of ParamMeta of the model.
      base_metas: the same tree at the base sizes.
      column: column of learning rates, one of COLUMNS.

    Raises:
      UserError: a row has no learning rate for the column, or the two trees have different tensors.
    """

    if changed := sorted(set(named_leaves(metas)) ^ set(named_leaves(base_metas))):
        raise UserError(
            f"{changed[0]} is in the model or in the model at the base sizes, but not in both: its "
            "layers are no stack (nn.scan), so parameterization.base_num_layers must be 0"
        )

    width, base_width = _width(metas), _width(base_metas)

    def scaling(name: str, row: Row, meta: ParamMeta, base: ParamMeta) -> Scaling:
        if (meta.role, meta.axes) != (base.role, base.axes):
            raise UserError(
                f"{name} is {meta.role} {meta.text!r} but {base.role} {base.text!r} at the base "
                "width"
            )
        if column not in row.lr:
            raise UserError(
                f"{name}: the rule from {row.source} has no learning rate for the {column} family "
                f"of optimizers; it has {', '.join(row.lr)}. Declare one, e.g. "
                f"parameterization.override = ('{name}.lr=mup',)"
            )
        if not width and any(power.width for power in row.powers):
            raise UserError(
                f"{name}: the rule from {row.source} goes by the width, which is the size of the "
                "axis 'embed', and no tensor of the model has that axis; name the width so in its "
                "signatures"
            )
        size, base_size = size_of(meta, width), size_of(base, base_width)
        return Scaling(
            init=row.init(size, base_size) if meta.dist == "normal" else 1.0,
            forward=row.forward(size, base_size),
            lr=row.lr[column](size, base_size),
            eps=row.eps(size, base_size),
            weight_decay=row.weight_decay(size, base_size),
        )

    return map_params(scaling, rows, metas, base_metas)


def _width(metas) -> int:
    """Returns the size of the axis `embed`; 0 if no tensor has it."""
    return next(
        (meta.size("embed") for meta in named_leaves(metas).values() if "embed" in meta.axes), 0
    )


def has_depth_rules(rows, rules: ScaleRules) -> bool:
    powers = [*vars(rules).values()]
    for row in named_leaves(rows).values():
        powers += row.powers
    return any(power.needs_depth for power in powers)


def check_depth(
    table: Parameterization, rows, rules: ScaleRules, metas, dims: Mapping[str, int]
) -> None:
    """Raises UserError if a rule depends on depth and no tensor tells the depth.

    Depth is read off the axis `layers` of a stacked tensor, which a model of several layers must
    have.
    """
    is_stacked = any("layers" in meta.batch for meta in named_leaves(metas).values())
    if dims.get("layers", 1) > 1 and not is_stacked and has_depth_rules(rows, rules):
        raise UserError(
            f"parameterization {table.name!r} has rules for depth, but no tensor of the model is "
            "repeated over 'layers': stack the layers with nn.scan"
        )


def scale_rules(table: Parameterization, rows, metas) -> ScaleRules:
    """Returns a model's forward-scale rules; a tied embedding's readout factor scales logits."""
    tied = [
        row
        for row, meta in zip(named_leaves(rows).values(), named_leaves(metas).values(), strict=True)
        if meta.role == "tied"
    ]
    if not tied:
        return table.scales
    return dataclasses.replace(table.scales, logits=table.scales.logits * tied[0].readout)


def resolve_scales(
    rules: ScaleRules, dims: Mapping[str, int], base_dims: Mapping[str, int]
) -> Scales:
    """Returns the values of forward-scale rules; a size that the model lacks counts as 1."""

    def size(dims, axis: str) -> Size:
        return Size(fan_in=dims.get(axis, 1), layers=dims.get("layers", 1))

    head, base_head = size(dims, "head_dim"), size(base_dims, "head_dim")
    width, base_width = size(dims, "embed"), size(base_dims, "embed")
    return Scales(
        attention=rules.attention(head, base_head),
        residual=rules.residual(width, base_width),
        logits=rules.logits(width, base_width),
        embedding=rules.embedding(width, base_width),
    )


def format_table(metas, scalings, scales: Scales) -> str:
    """Returns a line per tensor (name, role, signature, draw, numbers), then the forward scales."""
    leaves = named_leaves(metas)
    numbers = named_leaves(scalings)
    wide = [max(map(len, column)) for column in (leaves, ROLES, [m.text for m in leaves.values()])]
    lines = []
    for name, meta in leaves.items():
        values = "  ".join(f"{k}={float(v):<9.6g}" for k, v in numbers[name]._asdict().items())
        head = f"{name:<{wide[0]}}  {meta.role:<{wide[1]}}  {meta.text:<{wide[2]}}"
        lines.append(f"{head}  {meta.dist:<6}  {values}".rstrip())
    lines.append(
        "  ".join(f"{name}_scale={float(value):.6g}" for name, value in scales._asdict().items())
    )
    return "\n".join(lines) + "\n"


def table_hash(metas, scalings, scales: Scales) -> str:
    """Returns 12 hex digits of the SHA-256 of the resolved table, with its numbers as float32."""

    def exact(numbers):
        return [float(np.float32(value)).hex() for value in numbers]

    numbers = named_leaves(scalings)
    rows = [
        (name, meta.role, meta.text, meta.sizes, meta.dist, exact(numbers[name]))
        for name, meta in named_leaves(metas).items()
    ]
    return hashlib.sha256(repr((rows, exact(scales))).encode()).hexdigest()[:12]
