"""Metadata of parameters (role and signature, 'embed -> heads head_dim'), and trees of parameters.

mujax.parameterization decides how large a parameter is; mujax.models.module declares it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from mujax.errors import UserError, suggest

Role = Literal["input", "hidden", "output", "vector", "tied", "kv"]
ROLES: tuple[str, ...] = get_args(Role)

DRAWS = ("normal", "zeros", "ones")  # how an initial value is drawn, see models.module


LONGEST = 2**31 - 1  # size of an axis, which int32 indexes
# So many float32 weights, with gradients and two moments, take 2 PiB. The largest machine on one
# network, 9,216 chips of TPU7x, has 1.7 PiB.
MOST_PARAMS = 2**47


def check_num_params(count: int, what: str) -> None:
    """Raises UserError if no machine could hold `count` parameters."""
    if count > MOST_PARAMS:
        raise UserError(
            f"{what}: {count:.6g} parameters are more than any machine could train, 2^47 = 1.4e14"
        )


@dataclasses.dataclass(frozen=True)
class ParamMeta:
    """Scaling metadata of one parameter; hashable, and a leaf in any pytree.

    Attributes:
      role: input (finite -> width), hidden (width -> width), output (width -> finite), or vector
        (gains and biases), after Yang et al. (2203.03466), Table 3; tied (an input embedding that
        is the readout too); or kv (width -> keys or values shared by several query heads).
      batch: axes that the matrix is repeated over (layers, experts); no fan counts them.
      ins, outs: logical input and output axes; fan_in and fan_out are the products of their sizes.
      sizes: the sizes of batch + ins + outs, in that order, which is also the array's shape.
      dist: the draw, one of DRAWS.
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
        """The signature that the parameter was declared by, e.g. 'layers | embed -> mlp'."""
        head = f"{' '.join(self.batch)} | " if self.batch else ""
        return head + f"{' '.join(self.ins)} -> {' '.join(self.outs)}".strip()

    def size(self, axis: str) -> int:
        return self.sizes[self.axes.index(axis)]

    def _size_of(self, names: tuple[str, ...]) -> int:
        return math.prod(self.size(name) for name in names)


def signature(role: Role, text: str, dims: Mapping[str, int], dist: str = "normal") -> ParamMeta:
    """Parses '[batch |] ins -> outs' into a ParamMeta, with the sizes looked up in `dims`.

    Raises:
      UserError: the role or draw is unknown, the arrow is missing, or an axis repeats or has no
        size.
    """
    if role not in ROLES:
        raise UserError(f"{role!r}, the role of {text!r}, is no role{suggest(role, ROLES)}")
    if dist not in DRAWS:
        raise UserError(f"draw {dist!r} of {text!r} is not one of {', '.join(DRAWS)}")
    batch, _, arrow = text.rpartition("|")
    ins, found, outs = arrow.partition("->")
    if not found:
        raise UserError(
            f"signature {text!r} has no '->'; write 'embed -> mlp', or '-> embed' for a vector"
        )
    axes = tuple(batch.split() + ins.split() + outs.split())
    unknown = [axis for axis in axes if axis not in dims]
    if unknown:
        raise UserError(
            f"signature {text!r}: no size for axis {unknown[0]!r}; known: {', '.join(dims)}"
        )
    if len(set(axes)) < len(axes):
        raise UserError(f"signature {text!r} repeats an axis; give each its own name")
    sizes = tuple(dims[axis] for axis in axes)
    for axis, size in zip(axes, sizes, strict=True):
        if size > LONGEST:
            raise UserError(
                f"signature {text!r}: {axis!r} has size {size:.6g}; an axis is indexed by int32"
            )
    check_num_params(math.prod(sizes), f"signature {text!r}")
    return ParamMeta(
        role, tuple(batch.split()), tuple(ins.split()), tuple(outs.split()), sizes, dist
    )


def map_params(
    function: Callable[..., Any], tree: Mapping[str, Any], *others: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the tree of function(name, leaf, *leaves of the others), e.g. name =
    'blocks/attention/wq'.

    Trees are nested dicts, in JAX's order of keys; every value that is not a dict is a leaf.
    """

    def walk(prefix: str, node, *rest):
        if not isinstance(node, Mapping):
            return function(prefix, node, *rest)
        start = f"{prefix}/" if prefix else ""
        return {
            key: walk(f"{start}{key}", node[key], *(other[key] for other in rest))
            for key in sorted(node)
        }

    return walk("", tree, *others)


def named_leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {tensor name: leaf}, in the order of map_params."""
    leaves: dict[str, Any] = {}
    map_params(leaves.setdefault, tree)
    return leaves


def num_params(metas: Mapping[str, Any]) -> int:
    """Returns the total number of scalars in a tree of ParamMeta."""
    return sum(math.prod(meta.sizes) for meta in named_leaves(metas).values())
