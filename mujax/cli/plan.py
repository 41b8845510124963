"""mujax plan - does every point fit its pod, and how fast should it be? Needs libtpu, and no TPU.

  pip install libtpu
  mujax plan --config=configs/lingle2024/ablations.py:baseline --topology=v3:8x8
  mujax plan --config=configs/base.py --topology=v4:2x2x1 --workdir=runs/plan --search

Compiles the training program of each width, depth and mesh of config.sweep with the TPU compiler,
from shapes alone, as mujax sweep would run it, with as many points at once as fit the topology.
Prints memory per device, time per step and the part that communication adds, MFU, tokens per day,
chip-hours of the whole sweep, and what to change if a point does not fit.

Flags
{config}
  --topology=NAME          generation:shape, e.g. v3:8x8, v4:4x8x8, v5e:16x16, v5p:4x4x8,
                           v6e:16x16 or tpu7x:2x2x2; config.mesh.slices gives their number
  --search                 also tries other meshes and remat policies, and takes the fastest one
                           that leaves a quarter of the memory free
  --workdir=DIR            where plan.json is written, with bytes of each kind of collective, the
                           costliest operations, and all attempts

Accuracy: compute is the compiler's own estimate of cycles, within about 10% of hardware on v3 and
v4, 15% on v5e and v5p, 25% on v6e, 30% at width 128; on tpu7x nothing was compared. Bytes over
links are a lower bound. Gathers, scatters, sorts and Pallas kernels have no estimate and count as
nothing, as do latency, the host and evaluations.
Exit codes: 0 everything fits, 1 something does not, 2 a mistake in the command or config."""

from typing import Any

from mujax.cli.verb import CHECK_FAILED, FINISHED, Verb


def run(config: dict[str, Any], topology: str, workdir: str | None, search: bool) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # a plan uses no TPU, even if there is one
    from mujax.plan.plan import plan

    fits = plan(config, topology, workdir, search, lambda text: print(text, flush=True))
    return FINISHED if fits else CHECK_FAILED


VERB = Verb(
    "plan",
    __doc__,
    run,
    required=("config", "topology"),
    optional=("workdir", "search"),
    switches=("search",),
)
