"""What a parameter is: its role, its signature, and how both leave a Flax module.

A module declares each parameter in one line, `self.weight("wq", "hidden", "embed -> heads head_dim")`,
and draws it with unit variance. How big it should be is decided elsewhere (mujax.parameterization).
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.core.meta import AxisMetadata

from mujax.errors import UserError, suggest

Role = Literal["input", "hidden", "output", "vector", "tied", "kv"]
ROLES: tuple[str, ...] = get_args(Role)

# Unit-variance draws: a parameterization supplies the standard deviation. `zeros` and `ones` have none.
DRAWS = {
    "normal": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "zeros": lambda key, shape: jnp.zeros(shape, jnp.float32),
    "ones": lambda key, shape: jnp.ones(shape, jnp.float32),
}


LONGEST = 2**31 - 1  # an axis
# Float32 weights, gradients and two moments of so many are 2 PiB; the largest machine of one network, 9,216 chips of
# TPU7x, has 1.7
MOST_PARAMS = 2**47


def check_num_params(count: int, what: str) -> None:
    """Raises UserError if no machine could hold so many parameters."""
    if count > MOST_PARAMS:
        raise UserError(f"{what}: {count:.6g} parameters are more than any machine could train, 2^47 = 1.4e14")


@dataclasses.dataclass(frozen=True)
class ParamMeta:
    """Scaling metadata of one parameter; hashable, and a leaf in any pytree.

    Attributes:
      role: input (finite -> width), hidden (width -> width), output (width -> finite), or vector
        (gains and biases), after Yang et al. (2203.03466), Table 3; tied (an input embedding that is the
        readout too); or kv (width -> keys or values shared by several query heads).
      batch: axes the matrix is repeated over (layers, experts); they count in no fan.
      ins, outs: logical input and output axes; fan_in and fan_out are the products of their sizes.
      sizes: the sizes of batch + ins + outs, in that order, which is also the array's shape.
      dist: the draw, a key of DRAWS.
    """

    role: Role
    batch: tuple[str, ...]
    ins: tuple[str, ...]
    outs: tuple[str, ...]
    sizes: tuple[int, ...]
    dist: str = "normal"

    @property
    def axes(self) -> tuple[str, ...]:
        return self.batch + self.ins + self.outs

    @property
    def fan_in(self) -> int:
        return self._size_of(self.ins)

    @property
    def fan_out(self) -> int:
        return self._size_of(self.outs)

    @property
    def text(self) -> str:
        """The signature it was declared by, e.g. 'layers | embed -> mlp'."""
        head = f"{' '.join(self.batch)} | " if self.batch else ""
        return head + f"{' '.join(self.ins)} -> {' '.join(self.outs)}".strip()

    def size(self, axis: str) -> int:
        return self.sizes[self.axes.index(axis)]

    def _size_of(self, names: tuple[str, ...]) -> int:
        return math.prod(self.size(name) for name in names)


def signature(role: Role, text: str, dims: Mapping[str, int], dist: str = "normal") -> ParamMeta:
    """Parses '[batch |] ins -> outs' into a ParamMeta, sizes looked up in `dims`.

    Raises:
      UserError: the role or draw is unknown, the arrow is missing, or an axis repeats or has no size.
    """
    if role not in ROLES:
        raise UserError(f"{role!r}, the role of {text!r}, is no role{suggest(role, ROLES)}")
    if dist not in DRAWS:
        raise UserError(f"draw {dist!r} of {text!r} is not one of {', '.join(DRAWS)}")
    batch, _, arrow = text.rpartition("|")
    ins, found, outs = arrow.partition("->")
    if not found:
        raise UserError(f"signature {text!r} has no '->'; write 'embed -> mlp', or '-> embed' for a vector")
    axes = tuple(batch.split() + ins.split() + outs.split())
    unknown = [axis for axis in axes if axis not in dims]
    if unknown:
        raise UserError(f"signature {text!r}: no size for axis {unknown[0]!r}; known: {', '.join(dims)}")
    if len(set(axes)) < len(axes):
        raise UserError(f"signature {text!r} repeats an axis; give each its own name")
    sizes = tuple(dims[axis] for axis in axes)
    for axis, size in zip(axes, sizes, strict=True):
        if size > LONGEST:
            raise UserError(f"signature {text!r}: {axis!r} has size {size:.6g}; an axis is indexed by int32")
    check_num_params(math.prod(sizes), f"signature {text!r}")
    return ParamMeta(role, tuple(batch.split()), tuple(ins.split()), tuple(outs.split()), sizes, dist)


class Boxed(struct.PyTreeNode, AxisMetadata):
    """Carries a ParamMeta out of `Module.init`, through nn.scan; unboxed right after."""

    value: Any
    meta: ParamMeta = struct.field(pytree_node=False)

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return self.replace(value=val)

    def add_axis(self, index: int, params: Mapping[Any, Any]):
        """nn.scan stacked the parameter along a new first axis; `params` is its metadata_params."""
        assert index == 0, "stacked axes come first"
        meta = dataclasses.replace(
            self.meta,
            batch=(params[nn.PARTITION_NAME], *self.meta.batch),
            sizes=(params["size"], *self.meta.sizes),
        )
        return self.replace(meta=meta)

    def remove_axis(self, index: int, params: Mapping[Any, Any]):
        """The inverse of add_axis: nn.scan calls both."""
        meta = dataclasses.replace(self.meta, batch=self.meta.batch[1:], sizes=self.meta.sizes[1:])
        return self.replace(meta=meta)


# Where arrays live while a module runs: a training.sharding.Layout, or None on one device. Modules name axes alone.
_LAYOUT: contextvars.ContextVar[Any] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def laid_out(layout) -> Iterator[None]:
    """Modules that are traced inside place their weights and constrained activations as `layout` says."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


class MuModule(nn.Module):
    """nn.Module whose parameters are declared by role and signature; `cfg.dims` gives the sizes."""

    cfg: Any

    def weight(self, name: str, role: Role, text: str, dist: str = "normal") -> jax.Array:
        """Declares a parameter and returns it, drawn with unit variance.

        Args:
          text: "[batch |] ins -> outs", axes whose sizes `cfg.dims` gives; the array has them in this order.
          dist: normal, zeros or ones.

        Raises:
          UserError: an unknown role, axis or draw; the message names the tensor.
        """
        try:
            meta = signature(role, text, self.cfg.dims, dist)
        except UserError as e:
            raise UserError(f"{'/'.join((*self.path, name))}: {e}") from e
        # Flax hands the module the unboxed array.
        w = cast(jax.Array, self.param(name, lambda key: Boxed(value=DRAWS[dist](key, meta.sizes), meta=meta)))
        layout = _LAYOUT.get()
        return w if layout is None else layout.weight(w, meta)

    def constrain(self, x: jax.Array, axes: str) -> jax.Array:
        """x, whose axes have these logical names ("batch length embed"), split over devices as a layout says."""
        layout = _LAYOUT.get()
        return x if layout is None else layout.activation(x, axes.split())

    def record(self, name: str, x) -> None:
        """Names an activation, for `check`; costs nothing where the collection `activations` is not asked for."""
        self.sow("activations", name, x, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def unbox(tree) -> tuple[dict, dict]:
    """Tree of Boxed -> (arrays, metas): two plain dicts of the same structure.

    Raises:
      UserError: a parameter was not declared with MuModule.weight, so it has no role.
    """

    def is_box(x):
        return isinstance(x, Boxed)

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        if not is_box(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"parameter {name} has no role; declare it with self.weight(name, role, signature)")
    arrays = jax.tree.map(lambda box: box.value, tree, is_leaf=is_box)
    metas = jax.tree.map(lambda box: box.meta, tree, is_leaf=is_box)
    return arrays, metas


def num_params(metas) -> int:
    """Total number of scalars in the tree of ParamMeta."""
    return sum(math.prod(meta.sizes) for meta in jax.tree.leaves(metas))
