"""Accelerators: their peak FLOP/s, and the memory, links and cloud names of TPUs."""

import dataclasses
import re

from mujax.errors import UserError

GIB = 2**30
MOST_CHIPS = 2**16  # in one slice; the largest one that exists has less than a sixth of this


@dataclasses.dataclass(frozen=True)
class Chip:
    """Speed and memory of a TPU, per JAX device, as `mujax plan` needs them.

    clock: Hz.
    hbm: bytes.
    ici: bytes/s out of all links together, in one direction.
    example: the shape of a slice, for messages.
    """

    clock: float
    hbm: int
    ici: float
    devices_per_chip: int = 1
    megacore: bool = False
    example: str = "4x4"


@dataclasses.dataclass(frozen=True)
class Cloud:
    """Names of a TPU in Google Cloud.

    accelerator: gcloud's accelerator type, before the number.
    cores: cores per chip, as that number counts them.
    dims: how many numbers a slice's shape has.
    runtime: the TPU VM image for JAX.
    gke: the value of the node label gke-tpu-accelerator.
    """

    accelerator: str
    cores: int
    dims: int
    runtime: str
    gke: str
    most_chips_per_host: int


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU generation.

    kinds: its names in jax.Device.device_kind.
    peak: bfloat16 FLOP/s per JAX device. A device is a core on v2, v3 and tpu7x (two per chip), and
      a chip on the others.
    chip: None if `mujax plan` does not support this generation.
    cloud: None if `mujax launch` does not support this generation.
    """

    kinds: tuple[str, ...]
    peak: float
    chip: Chip | None = None
    cloud: Cloud | None = None


# FLOP/s, memory and links are from cloud.google.com/tpu/docs; cloud names are from its pages
# /tpu/docs/runtimes and /kubernetes-engine/docs/concepts/plan-tpus. A clock is the peak FLOP/s over
# the FLOPs per cycle of the matrix units. The clock of tpu7x is not public: with the value below, a
# bfloat16 matmul of 8192^3 reaches 0.93 of the peak by the compiler's cycles, as on v4.
TPUS = {
    "v2": Tpu(("TPU v2",), 22.5e12),
    "v3": Tpu(
        ("TPU v3",), 61.5e12,
        Chip(940e6, 16 * GIB, 164e9, devices_per_chip=2, example="8x8"),
    ),
    "v4": Tpu(
        ("TPU v4",), 275e12,
        Chip(1050e6, 32 * GIB, 300e9, megacore=True, example="4x8x8"),
        Cloud("v4", 2, 3, "tpu-ubuntu2204-base", "tpu-v4-podslice", 4),
    ),
    "v5e": Tpu(
        ("TPU v5 lite", "TPU v5e"), 197e12,
        Chip(1500e6, 16 * GIB, 200e9, example="16x16"),
        Cloud("v5litepod", 1, 2, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 8),
    ),
    "v5p": Tpu(
        ("TPU v5", "TPU v5p"), 459e12,
        Chip(1750e6, 95 * GIB, 600e9, megacore=True, example="4x4x8"),
        Cloud("v5p", 2, 3, "v2-alpha-tpuv5", "tpu-v5p-slice", 4),
    ),
    "v6e": Tpu(
        ("TPU v6 lite", "TPU v6e"), 918e12,
        Chip(1750e6, 32 * GIB, 400e9, example="16x16"),
        Cloud("v6e", 1, 2, "v2-alpha-tpuv6e", "tpu-v6e-slice", 8),
    ),
    "tpu7x": Tpu(
        ("TPU7x",), 1153e12,
        Chip(2540e6, 96 * GIB, 300e9, devices_per_chip=2, example="2x2x2"),
    ),
}  # fmt: skip
# Word in the device's name -> peak bfloat16 FLOP/s from NVIDIA's data sheets (float16 for V100 and
# T4, which have no bfloat16). The first match counts, so the PCIe and NVL forms come before SXM.
GPUS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H100": 989e12,
    "H200": 989e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOP/s of a device, in bfloat16 without sparsity; None if it is unknown.

    Args:
      device_kind: the name in jax.Device.device_kind.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    for tpu in TPUS.values():
        if device_kind in tpu.kinds:
            return tpu.peak
    for name, peak in GPUS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return peak
    return None


def check_devices(mesh_size: int, num_devices: int, where: str) -> None:
    """Raises UserError if one run's mesh is larger than `num_devices`; `where` ends the message."""
    if mesh_size > num_devices:
        raise UserError(
            f"mesh.data * mesh.fsdp * mesh.tensor = {mesh_size} is more than the {num_devices} "
            f"devices {where}"
        )
