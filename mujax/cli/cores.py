"""The devices of JAX: each core of this machine one, no TPU where there is none, and a line where
one is missing."""

import glob
import importlib.util
import os
import sys
from pathlib import Path

from mujax.errors import UserError

GOOGLE_PCI_VENDOR = "0x1ae0"
# What a TPU is asked for by, or described to the runtime. JAX itself sets TPU_SKIP_MDS_QUERY where
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
    """Cores this process may use; macOS cannot tell, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_cores_devices() -> None:
    """Lanes of a sweep are split over devices, so each core is made one, unless the number is set
    already.

    Accelerators are devices as they are.
    """
    import jax

    is_set = (
        "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or jax.config.values["jax_num_cpu_devices"] > 0
    )
    if not is_set:
        jax.config.update("jax_num_cpu_devices", num_cores())


def has_tpu() -> bool:
    """Whether this machine has a TPU, as far as devices tell."""

    def is_googles(file: str) -> bool:
        try:
            return Path(file).read_text().strip() == GOOGLE_PCI_VENDOR
        except OSError:
            return False

    return bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")) or any(
        map(is_googles, glob.glob("/sys/bus/pci/devices/*/vendor"))
    )


def hide_absent_tpu() -> None:
    """Keeps JAX from looking for a TPU that is neither there nor asked for; for the start of a
    process.

    JAX tries every platform that is installed, and libtpu reports in five lines of errors that it
    has found nothing.
    """
    found = importlib.util.find_spec("libtpu")
    if found and os.environ.get("TPU_LIBRARY_PATH") == str(
        Path(found.origin or "").parent / "libtpu.so"
    ):
        # left by the import of libtpu in a process that has started this one
        del os.environ["TPU_LIBRARY_PATH"]
    if not (has_tpu() or {"JAX_PLATFORMS", "JAX_PLATFORM_NAME", *TPU_VARIABLES} & set(os.environ)):
        # JAX then does without. Platforms named in its config would not do: all of them must be
        # there.
        sys.modules.setdefault("libtpu", None)  # pyright: ignore[reportArgumentType]


def find_devices() -> None:
    """Has JAX find its devices, so that one that is missing is told before any work."""
    import jax

    jax.devices()


def explained(e: Exception) -> Exception:
    """The error that says what a user can do, where JAX found no device of a platform; else the
    same one."""
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
    return ConnectionError(f"{wanted}: {text}")  # as while another process holds the device


def _is_of_backends(e: Exception) -> bool:
    """Whether this is the assertion that JAX ends with where it has skipped all platforms that were
    named."""
    traceback = e.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    if not (isinstance(e, AssertionError) and traceback):
        return False
    return traceback.tb_frame.f_code.co_filename.endswith("xla_bridge.py")
