"""A parameterization as data, and the one function that turns it into numbers.

Nothing else in mujax knows SP from muP: modules draw with unit variance, optimizers apply the numbers
they are given.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mujax.params import ROLES, ParamMeta


@dataclasses.dataclass(frozen=True)
class Power:
    """The factor fan_in^fan_in * (fan_in / base fan_in)^ratio_in * (fan_out / base fan_out)^ratio_out."""

    fan_in: float = 0.0
    ratio_in: float = 0.0
    ratio_out: float = 0.0

    def __call__(self, meta: ParamMeta, base: ParamMeta) -> float:
        return (
            float(meta.fan_in) ** self.fan_in
            * (meta.fan_in / base.fan_in) ** self.ratio_in
            * (meta.fan_out / base.fan_out) ** self.ratio_out
        )


ONE = Power()


@dataclasses.dataclass(frozen=True)
class Row:
    """How one role scales: the five numbers of Scaling, each as a Power of its fans."""

    init: Power = ONE
    forward: Power = ONE
    lr: Power = ONE
    eps: Power = ONE
    weight_decay: Power = ONE


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """A table: one Row a role, and the exponent of the attention scale.

    attention: the scale is base_d_head^-1/2 * (d_head / base_d_head)^attention, so every
      parameterization agrees at the base head size: -1 for muP, -1/2 for SP.
    """

    name: str
    source: str
    rows: Mapping[str, Row]
    attention: float

    def attention_scale(self, d_head: int, base_d_head: int) -> float:
        return base_d_head**-0.5 * (d_head / base_d_head) ** self.attention


class Scaling(NamedTuple):
    """The resolved numbers of one tensor, all of them traced in the training step.

    init: standard deviation of the stored weight (1 for zeros and ones, which are not scaled).
    forward: effective weight = forward * stored weight.
    lr, eps, weight_decay: factors on the hyperparameters of the same names.
    """

    init: float | jax.Array = 1.0
    forward: float | jax.Array = 1.0
    lr: float | jax.Array = 1.0
    eps: float | jax.Array = 1.0
    weight_decay: float | jax.Array = 1.0


def is_scaling(x) -> bool:
    return isinstance(x, Scaling)


def resolve(table: Parameterization, metas, base_metas) -> dict[str, Any]:
    """Table and metadata -> a tree of Scaling beside the parameters.

    Args:
      table: the parameterization.
      metas: tree of ParamMeta of the model.
      base_metas: the same tree at the base width, where every table equals SP.

    Raises:
      ValueError: a role has no row, or the two trees declare a tensor differently.
    """

    def scaling(path, meta: ParamMeta, base: ParamMeta) -> Scaling:
        name = tensor_name(path)
        if meta.role not in table.rows:
            raise ValueError(f"parameterization {table.name!r} has no row for role {meta.role!r} of {name}")
        if (meta.role, meta.axes) != (base.role, base.axes):
            raise ValueError(f"{name} is {meta.role} {meta.text!r} but {base.role} {base.text!r} at the base width")
        row = table.rows[meta.role]
        return Scaling(
            init=row.init(meta, base) if meta.dist == "normal" else 1.0,
            forward=row.forward(meta, base),
            lr=row.lr(meta, base),
            eps=row.eps(meta, base),
            weight_decay=row.weight_decay(meta, base),
        )

    return jax.tree_util.tree_map_with_path(scaling, metas, base_metas)


def tensor_name(path) -> str:
    """Key path -> 'blocks/attention/wq'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def format_table(metas, scalings, attention_scale: float) -> str:
    """One line a tensor: name, role, signature, shape and its numbers; then the attention scale."""
    names = [tensor_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(metas)]
    leaves = jax.tree.leaves(metas)
    numbers = jax.tree.leaves(scalings, is_leaf=is_scaling)
    wide = [max(map(len, column)) for column in (names, ROLES, [m.text for m in leaves])]
    lines = []
    for name, meta, scaling in zip(names, leaves, numbers, strict=True):
        values = "  ".join(f"{k}={float(v):<9.6g}" for k, v in scaling._asdict().items())
        head = f"{name:<{wide[0]}}  {meta.role:<{wide[1]}}  {meta.text:<{wide[2]}}"
        lines.append(f"{head}  {meta.dist:<6}  {values}".rstrip())
    lines.append(f"attention_scale={attention_scale:.6g}")
    return "\n".join(lines) + "\n"


def table_hash(metas, scalings, attention_scale: float) -> str:
    """First 12 hex of the SHA-256 of the resolved table, each number as it is used, in float32."""
    named = jax.tree_util.tree_leaves_with_path(scalings, is_leaf=is_scaling)
    rows = [
        (tensor_name(path), meta.role, meta.text, meta.sizes, meta.dist, [float(np.float32(v)).hex() for v in scaling])
        for (path, scaling), meta in zip(named, jax.tree.leaves(metas), strict=True)
    ]
    return hashlib.sha256(repr((rows, float(np.float32(attention_scale)).hex())).encode()).hexdigest()[:12]
