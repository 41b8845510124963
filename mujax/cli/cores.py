"""The cores of this machine as devices of JAX."""

import os


def num_cores() -> int:
    """Cores this process may use; macOS cannot tell, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_cores_devices() -> None:
    """Lanes of a sweep are split over devices, so each core is made one, unless the number is set already.

    Accelerators are devices as they are.
    """
    import jax

    is_set = (
        "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_num_cpu_devices"] > 0
    )
    if not is_set:
        jax.config.update("jax_num_cpu_devices", num_cores())
