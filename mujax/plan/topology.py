"""Topologies of absent TPUs, to compile for."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

from mujax.errors import UserError, cut, shown, suggest
from mujax.hardware import MOST_CHIPS, TPUS, Chip

# Generations that `mujax plan` supports
CHIPS = {name: tpu.chip for name, tpu in TPUS.items() if tpu.chip}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A topology of `slices` slices of one shape, e.g. v4:4x8x8.

    peak: bfloat16 FLOP/s per device.
    devices: descriptions that the compiler accepts as real devices.
    """

    name: str
    chip: Chip
    peak: float
    devices: tuple[Any, ...]
    slices: int

    @property
    def num_chips(self) -> int:
        return len(self.devices) // self.chip.devices_per_chip


@functools.cache
def load_topology(name: str, slices: int = 1) -> Topology:
    """Returns the topology of a name such as 'v4:4x8x8'.

    Raises:
      UserError: there is none of this name, or libtpu is not installed.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        raise UserError(
            f"--topology={cut(name)}: no TPU generation "
            f"{shown(generation)}{suggest(cut(generation), CHIPS)}"
        )
    chip = CHIPS[generation]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", shape):
        raise UserError(
            f"--topology={cut(name)}: a shape is two or three numbers, e.g. "
            f"{generation}:{chip.example}"
        )
    if (count := math.prod(map(int, shape.split("x")))) > MOST_CHIPS:
        raise UserError(
            f"--topology={name} has {count} chips, more than any slice; e.g. "
            f"{generation}:{chip.example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("mujax plan needs the TPU compiler: pip install libtpu")
    # Asks no metadata server, looks for no TPU, and lets other processes have the library open.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8",
        "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    for key, value in quiet.items():
        os.environ.setdefault(key, value)
    # libtpu aborts, at any time, at flags that it does not know: those of CPUs and GPUs
    if flags := os.environ.get("XLA_FLAGS"):
        known = [f for f in flags.split() if not f.startswith(("--xla_cpu_", "--xla_gpu_"))]
        os.environ["XLA_FLAGS"] = " ".join(known)
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if chip.megacore else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as e:
        reason = str(e).splitlines()[0][:200]
        example = f"e.g. {generation}:{chip.example}"
        raise UserError(
            f"--topology={name}: the TPU compiler knows no such shape, {example} ({reason})"
        ) from e
    return Topology(name, chip, TPUS[generation].peak, tuple(found.devices), slices)
