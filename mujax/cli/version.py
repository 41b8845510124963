"""mujax version - the versions of mujax and its dependencies, and the devices, for a bug report.

  mujax version

Exit code: 0."""

import importlib.metadata
import platform

from mujax.cli.verb import FINISHED, Verb

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "ml_collections",
    "numpy",
    "libtpu",
)


def run() -> int:
    import jax

    from mujax.cli.devices import explained
    from mujax.training.results import code_version

    print(f"mujax {code_version()}")
    print(f"Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as e:
        # Another process holds a device, or a driver is missing.
        print(f"no devices: {' '.join(str(explained(e)).split())}")
    else:
        print(f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    return FINISHED


VERB = Verb("version", __doc__, run, required=())
