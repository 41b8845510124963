"""Where arrays live: the mesh of a sweep, and how the tensors of one run are split over its share of devices.

The axis `sweep` separates runs, which exchange nothing; `data`, `fsdp` and `tensor` split one run.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mujax.params import ParamMeta

# Logical axis of a tensor -> mesh axis that splits it
RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
BATCH = ("data", "fsdp")


def sweep_mesh(num_slots: int, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of the first num_slots * data * fsdp * tensor devices; a slot is the devices that share one run."""
    shape = (num_slots, data, fsdp, tensor)
    devices = jax.devices()[: int(np.prod(shape))]
    names = ("sweep", "data", "fsdp", "tensor")
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def tensor_sharding(meta: ParamMeta, mesh: Mesh) -> NamedSharding:
    """The first axis to claim a mesh axis gets it; what cannot be divided stays whole."""
    used, spec = set(), []
    for axis, size in zip(meta.axes, meta.sizes, strict=True):
        name = RULES.get(axis)
        if name is None or name in used or size % mesh.shape[name]:
            spec.append(None)
        else:
            used.add(name)
            spec.append(name)
    return NamedSharding(mesh, P(*spec))


def batch_sharding(mesh: Mesh, batch_axis: int, ndim: int) -> NamedSharding:
    """Splits one axis of an array, the batch, over `data` and `fsdp`."""
    spec: Sequence = [BATCH if axis == batch_axis else None for axis in range(ndim)]
    return NamedSharding(mesh, P(*spec))


def is_split(mesh: Mesh) -> bool:
    """Whether one run takes more than one device."""
    return mesh.size > mesh.shape["sweep"]
