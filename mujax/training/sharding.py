"""Placement of arrays: the mesh of a sweep, and the split of one run's tensors over its devices.

The axis `sweep` separates runs, which exchange nothing; `data`, `fsdp` and `tensor` split one run.
Rows are split over `data` and `fsdp`, weights by the rules, optimizer state and gradients like
their weights. A weight that `fsdp` splits is gathered, in the compute dtype, when its layer needs
it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mujax.config import RULES, WEIGHT_AXES
from mujax.errors import UserError
from mujax.params import ParamMeta

AXES = ("sweep", "data", "fsdp", "tensor")
BATCH = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with the axes AXES, and rules like RULES.

    gathered: whether modules get weights that are gathered already.

    If runs are not split, each on its own device, it constrains nothing.
    """

    mesh: Mesh
    rules: tuple[tuple[str, str], ...] = RULES
    gathered: bool = False

    @property
    def num_slots(self) -> int:
        """The number of runs side by side; a slot is the devices that share one run."""
        return self.mesh.shape["sweep"]

    @property
    def is_split(self) -> bool:
        """Whether one run takes more than one device."""
        return self.mesh.size > self.num_slots

    @property
    def whole(self) -> NamedSharding:
        """The sharding of a replicated array."""
        return NamedSharding(self.mesh, P())

    def stored(self, meta: ParamMeta) -> NamedSharding:
        """Returns the sharding of a stored weight.

        If two axes have the same mesh axis, the first takes it. An axis that cannot be divided
        evenly stays whole.
        """
        return self._sharding(meta.axes, meta.sizes, WEIGHT_AXES)

    def used(self, meta: ParamMeta) -> NamedSharding:
        """Returns the sharding of a weight in its layer: whole except for tensor parallelism."""
        return self._sharding(meta.axes, meta.sizes, ("tensor",))

    def batch(self, batch_axis: int, ndim: int) -> NamedSharding:
        """Returns the sharding of an array whose batch axis is split over `data` and `fsdp`."""
        spec: Sequence = [BATCH if axis == batch_axis else None for axis in range(ndim)]
        return NamedSharding(self.mesh, P(*spec))

    def place(
        self, shape: tuple[int, int], read: Callable[[slice], np.ndarray]
    ) -> jax.Array | np.ndarray:
        """Places rows [B, T + 1] on the mesh; each process reads only the rows of its devices."""
        if not self.is_split:
            return read(slice(0, shape[0]))
        shares: dict[tuple[int, int], np.ndarray] = {}

        def share(index):
            start, stop, _ = index[0].indices(shape[0])
            if (start, stop) not in shares:
                shares[start, stop] = read(slice(start, stop))
            return shares[start, stop]

        return jax.make_array_from_callback(shape, self.batch(batch_axis=0, ndim=2), share)

    def weight(self, w: jax.Array, meta: ParamMeta) -> jax.Array:
        """Gathers `w` for its layer; the gradient is summed directly into the stored shares."""
        if self.gathered or not self.is_split:
            return w
        stored, used = self.stored(meta), self.used(meta)
        constrain = jax.lax.with_sharding_constraint

        def gather(w):
            return constrain(constrain(w, stored), used)

        gathered = jax.custom_vjp(gather)
        gathered.defvjp(lambda w: (gather(w), None), lambda _, g: (constrain(g, stored),))
        return gathered(w)

    def activation(self, x: jax.Array, axes: Sequence[str]) -> jax.Array:
        """Splits `x` and its gradient: `batch` over `data` and `fsdp`, others by `tensor` rules."""
        if not self.is_split:
            return x
        spec = self._sharding(axes, x.shape, ("tensor",)).spec
        split = P(
            *(BATCH if name == "batch" else entry for name, entry in zip(axes, spec, strict=True))
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, split))

    def _sharding(
        self, axes: Sequence[str], sizes: Sequence[int], names: Sequence[str]
    ) -> NamedSharding:
        used, spec, rules = set(), [], dict(self.rules)
        for axis, size in zip(axes, sizes, strict=True):
            name = rules.get(axis)
            if name not in names or name in used or size % self.mesh.shape[name]:
                spec.append(None)
            else:
                used.add(name)
                spec.append(name)
        return NamedSharding(self.mesh, P(*spec))


# The layout of a run on one device, whichever it is.
ONE_DEVICE = Layout(cast(Any, AbstractMesh((1,) * len(AXES), AXES)))


def make_layout(
    num_slots: int,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int = 1,
    rules: Sequence[tuple[str, str]] = RULES,
    devices: Sequence[Any] | None = None,
) -> Layout:
    """Makes a mesh of num_slots * data * fsdp * tensor devices.

    slices: number of TPU slices, joined by a data-center network; `data` is split over them first,
      so that only the sum of gradients crosses the network.
    devices: None for all devices of this machine.

    Raises:
      UserError: the devices are on another number of slices, if `slices` is more than one.
    """
    run, across = (data // slices, fsdp, tensor), (1, slices, 1, 1)
    of_slices: dict[int, list] = {}
    for device in jax.devices() if devices is None else devices:
        of_slices.setdefault(getattr(device, "slice_index", 0) if slices > 1 else 0, []).append(
            device
        )
    if len(of_slices) != slices:
        raise UserError(
            f"mesh.slices = {slices}, but the slices of the devices here are {len(of_slices)}"
        )
    # The mesh first has all slots that fit: JAX's functions that know the wiring of devices take
    # only whole slices.
    room = min(map(len, of_slices.values())) // math.prod(run)
    used = [device for members in of_slices.values() for device in members[: room * math.prod(run)]]
    if len(used) < sum(map(len, of_slices.values())):
        grid = np.moveaxis(np.asarray(used).reshape(slices, room, *run), 0, 1).reshape(
            room, data, fsdp, tensor
        )
    elif slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (room, *run), across, used, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh((room, *run), used, allow_split_physical_axes=True)
    axis_types = (AxisType.Auto,) * len(AXES)
    return Layout(Mesh(grid[:num_slots], AXES, axis_types=axis_types), tuple(rules))
