"""The base of all modules: parameters are declared by role and signature, and leave Flax with their
metadata.

A module declares each parameter in one line, `self.weight("wq", "hidden", "embed -> heads
head_dim")`, and draws it with unit variance.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.core.meta import AxisMetadata

from mujax.errors import UserError
from mujax.params import ParamMeta, Role, signature

# Unit-variance draws: a parameterization supplies the standard deviation. `zeros` and `ones` have
# none.
DRAWS = {
    "normal": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "zeros": lambda key, shape: jnp.zeros(shape, jnp.float32),
    "ones": lambda key, shape: jnp.ones(shape, jnp.float32),
}


class Boxed(struct.PyTreeNode, AxisMetadata):
    """Carries a ParamMeta out of `Module.init`, through nn.scan; unboxed right after."""

    value: Any
    meta: ParamMeta = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return self.replace(value=val)

    def add_axis(self, index: int, params: Mapping[Any, Any]):
        """Adds the axis along which nn.scan has stacked the parameter; `params` is its
        metadata_params."""
        assert index == 0, "stacked axes come first"
        meta = dataclasses.replace(
            self.meta,
            batch=(params[nn.PARTITION_NAME], *self.meta.batch),
            sizes=(params["size"], *self.meta.sizes),
        )
        return self.replace(meta=meta)

    def remove_axis(self, index: int, params: Mapping[Any, Any]):
        """Removes the axis that add_axis has added; nn.scan calls both."""
        meta = dataclasses.replace(self.meta, batch=self.meta.batch[1:], sizes=self.meta.sizes[1:])
        return self.replace(meta=meta)


class MuModule(nn.Module):
    """nn.Module whose parameters are declared by role and signature; `cfg.dims` gives the sizes.

    layout: where weights and constrained activations are placed, a training.sharding.Layout; None:
    wherever they are. It is given to a whole model, whose submodules have the same; they name axes
    alone.
    """

    cfg: Any
    layout: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.layout is None and isinstance(self.parent, MuModule):
            object.__setattr__(self, "layout", self.parent.layout)  # Flax modules are frozen

    def weight(self, name: str, role: Role, text: str, dist: str = "normal") -> jax.Array:
        """Declares a parameter and returns it, drawn with unit variance.

        Args:
          text: "[batch |] ins -> outs", axes whose sizes `cfg.dims` gives; the array has them in
            this order.
          dist: normal, zeros or ones.

        Raises:
          UserError: an unknown role, axis or draw; the message names the tensor.
        """
        try:
            meta = signature(role, text, self.cfg.dims, dist)
        except UserError as e:
            raise UserError(f"{'/'.join((*self.path, name))}: {e}") from e
        # Flax hands the module the unboxed array.
        w = cast(
            jax.Array,
            self.param(name, lambda key: Boxed(value=DRAWS[dist](key, meta.sizes), meta=meta)),
        )
        return w if self.layout is None else self.layout.weight(w, meta)

    def constrain(self, x: jax.Array, axes: str) -> jax.Array:
        """Splits x over devices by the logical names of its axes ("batch length embed"), as the
        layout says."""
        return x if self.layout is None else self.layout.activation(x, axes.split())

    def record(self, name: str, x) -> None:
        """Records an activation by name, for `check`; costs nothing where nobody asks for the
        collection `activations`."""
        self.sow("activations", name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def unbox(tree) -> tuple[dict, dict]:
    """Splits a tree of Boxed into (arrays, metas): two plain dicts of the same structure.

    Raises:
      UserError: a parameter was not declared with MuModule.weight, so it has no role.
    """

    def is_box(x):
        return isinstance(x, Boxed)

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        if not is_box(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"parameter {name} has no role; declare it with self.weight(name, role, signature)"
            )
    arrays = jax.tree.map(lambda box: box.value, tree, is_leaf=is_box)
    metas = jax.tree.map(lambda box: box.meta, tree, is_leaf=is_box)
    return arrays, metas
