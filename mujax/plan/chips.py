"""TPU generations: what a jax device has, and topologies of them to compile for."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

from mujax.errors import UserError, cut, shown, suggest
from mujax.peaks import TPUS

GIB = 2**30
MOST_CHIPS = 2**16  # no slice has a sixth of it


@dataclasses.dataclass(frozen=True)
class Chip:
    """Per jax device, which is a core of v2 and v3, half a chip of tpu7x, else a chip.

    clock: Hz. peak: bfloat16 FLOP/s. hbm: bytes. ici: bytes/s out of all its links together, one way.
    """

    clock: float
    peak: float
    hbm: int
    ici: float
    devices_per_chip: int = 1
    megacore: bool = False
    example: str = "4x4"


# Memory and links as cloud.google.com/tpu/docs states them for chips; clocks are the peaks over the FLOPs per
# cycle of the matrix units. The clock of tpu7x is not public: with this one a bfloat16 matmul of 8192^3 reaches 0.93 of
# the peak by the compiler's cycles, as it does on v4.
CHIPS = {
    "v3": Chip(940e6, TPUS["v3"], 16 * GIB, 164e9, devices_per_chip=2, example="8x8"),
    "v4": Chip(1050e6, TPUS["v4"], 32 * GIB, 300e9, megacore=True, example="4x8x8"),
    "v5e": Chip(1500e6, TPUS["v5e"], 16 * GIB, 200e9, example="16x16"),
    "v5p": Chip(1750e6, TPUS["v5p"], 95 * GIB, 600e9, megacore=True, example="4x4x8"),
    "v6e": Chip(1750e6, TPUS["v6e"], 32 * GIB, 400e9, example="16x16"),
    "tpu7x": Chip(2540e6, TPUS["tpu7x"], 96 * GIB, 300e9, devices_per_chip=2, example="2x2x2"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of one shape, e.g. v4:4x8x8; devices are descriptions that the compiler takes for real ones."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    slices: int

    @property
    def num_chips(self) -> int:
        return len(self.devices) // self.chip.devices_per_chip


@functools.cache
def load_topology(name: str, slices: int = 1) -> Topology:
    """'v4:4x8x8' -> the topology.

    Raises:
      UserError: there is none of this name, or libtpu is not installed.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        raise UserError(
            f"--topology={cut(name)}: no TPU generation {shown(generation)}{suggest(cut(generation), CHIPS)}"
        )
    chip = CHIPS[generation]
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", shape):
        raise UserError(f"--topology={cut(name)}: a shape is two or three numbers, e.g. {generation}:{chip.example}")
    if (count := math.prod(map(int, shape.split("x")))) > MOST_CHIPS:
        raise UserError(f"--topology={name} has {count} chips, more than any slice; e.g. {generation}:{chip.example}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("mujax plan needs the TPU compiler: pip install libtpu")
    # No metadata server to ask, no TPU to look for, and others may have the library open
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v4-8", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    for key, value in quiet.items():
        os.environ.setdefault(key, value)
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
        raise UserError(f"--topology={name}: the TPU compiler knows no such shape, {example} ({reason})") from e
    return Topology(name, chip, tuple(found.devices), slices)
