"""The devices of JAX: one per core of this machine, and no TPU where there is none.

A missing device is one line of error.
"""

import glob
import importlib.util
import os
import sys
from pathlib import Path

from mujax.errors import UserError

GOOGLE_PCI_VENDOR = "0x1ae0"
# Variables that request a TPU, or describe it to the runtime. JAX itself sets TPU_SKIP_MDS_QUERY if
# it sees no chip.
TPU_VARIABLES = (
    *(
        "TPU_NAME",
        "TPU_WORKER_HOSTNAMES",
        "TPU_WORKER_ID",
        "TPU_ACCELERATOR_TYPE",
        "TPU_LIBRARY_PATH",
        "TPU_TOPOLOGY",
    ),
    *(
        "TPU_VISIBLE_DEVICES",
        "TPU_VISIBLE_CHIPS",
        "TPU_CHIPS_PER_HOST_BOUNDS",
        "TPU_CHIPS_PER_PROCESS_BOUNDS",
    ),
    *(
        "TPU_PROCESS_ADDRESSES",
        "CLOUD_TPU_TASK_ID",
        "MEGASCALE_COORDINATOR_ADDRESS",
        "JAX_FORCE_TPU_INIT",
    ),
)


def num_cores() -> int:
    """Returns how many cores this process may use; macOS cannot tell, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_cores_devices() -> None:
    """Makes each core a device, as lanes of a sweep are split over devices, unless a number is set.

    Accelerators are devices already.
    """
    import jax

    is_set = (
        "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or jax.config.values["jax_num_cpu_devices"] > 0
    )
    if not is_set:
        jax.config.update("jax_num_cpu_devices", num_cores())


def has_tpu() -> bool:
    """Tells whether this machine has a TPU, by its device files."""

    def is_googles(file: str) -> bool:
        try:
            return Path(file).read_text().strip() == GOOGLE_PCI_VENDOR
        except OSError:
            return False

    return bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")) or any(
        map(is_googles, glob.glob("/sys/bus/pci/devices/*/vendor"))
    )


def hide_absent_tpu() -> None:
    """Keeps JAX from looking for an absent TPU that nobody requested, at the start of a process.

    JAX tries every installed platform, and libtpu would report in five lines of errors that it has
    found nothing.
    """
    found = importlib.util.find_spec("libtpu")
    if found and os.environ.get("TPU_LIBRARY_PATH") == str(
        Path(found.origin or "").parent / "libtpu.so"
    ):
        # The import of libtpu in a parent process has left this variable.
        del os.environ["TPU_LIBRARY_PATH"]
    if not (has_tpu() or {"JAX_PLATFORMS", "JAX_PLATFORM_NAME", *TPU_VARIABLES} & set(os.environ)):
        # Without the module JAX skips the TPU. Naming platforms in JAX's config would not do, as
        # all named platforms must be present.
        sys.modules.setdefault("libtpu", None)  # pyright: ignore[reportArgumentType]


def find_devices() -> None:
    """Makes JAX find its devices, so that a missing one is reported before any work."""
    import jax

    jax.devices()


def explained(e: Exception) -> Exception:
    """Returns an error that says what to do, if JAX found no device of a platform, else `e`."""
    text = " ".join(str(e).split())
    if not (
        isinstance(e, RuntimeError) and "Unable to initialize backend" in text or _is_of_backends(e)
    ):
        return e
    import jax

    wanted = f"JAX_PLATFORMS={jax.config.jax_platforms}"  # pyright: ignore[reportAttributeAccessIssue]
    is_absent = (
        not text
        or "not in the list of known backends" in text
        or ("backend 'tpu'" in text and not (has_tpu() and importlib.util.find_spec("libtpu")))
    )
    if is_absent:
        why = f" ({text.partition(' (set JAX_PLATFORMS')[0]})" if text else ""
        return UserError(
            f"{wanted}: that is not on this machine{why}; leave it out, or set it to cpu"
        )
    return ConnectionError(f"{wanted}: {text}")  # may pass, e.g. another process holds the device


def _is_of_backends(e: Exception) -> bool:
    """Tells whether this is JAX's assertion error after it skipped all named platforms."""
    traceback = e.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    if not (isinstance(e, AssertionError) and traceback):
        return False
    return traceback.tb_frame.f_code.co_filename.endswith("xla_bridge.py")
