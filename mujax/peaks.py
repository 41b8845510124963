"""Peak FLOP/s of accelerators, in bfloat16 without sparsity, by the names that JAX has for their kinds."""

import re

# Of one JAX device, which is a core of v2, v3 and tpu7x (two a chip) and a chip of the others. As
# cloud.google.com/tpu/docs states them; mujax.plan uses the same.
TPUS = {
    "v2": 22.5e12,
    "v3": 61.5e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
    "tpu7x": 1153e12,
}
TPU_KINDS = {
    "TPU v2": "v2",
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
# A word of the device's name -> peak, as NVIDIA's data sheets state it; of V100 and T4, which have no bfloat16, in
# float16. Those of other forms than SXM come first.
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
    """Peak of a device by jax.Device.device_kind; None if it is not known, as of CPUs.

    >>> peak_flops("NVIDIA H100 80GB HBM3")
    989000000000000.0
    """
    if device_kind in TPU_KINDS:
        return TPUS[TPU_KINDS[device_kind]]
    for name, peak in GPUS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return peak
    return None
