"""mujax launch - a sweep as jobs: here, on TPU VMs, on GKE, or through Slurm.

  mujax launch --config=configs/quickstart.py --workdir=runs/local --engine=local --shards=2
  mujax launch --config=configs/quickstart.py --workdir=runs/tpu --engine=tpu_vm --shards=4 \\
      --topology=v4:2x2x1 --zone=us-central2-b --spot --out=runs/tpu-launch
  mujax launch --config=configs/quickstart.py --workdir=/work/gke --engine=jobset --shards=4 \\
      --topology=v5e:2x4 --image=us-docker.pkg.dev/p/r/mujax:1 --mount=work:/work --queue=tpu \\
      --out=runs/gke-launch
  mujax launch --config=configs/quickstart.py --workdir=/work/me/slurm --engine=slurm --shards=8 \\
      --partition=gpu --time=04:00:00 --out=runs/slurm-launch

A job is one shard of the sweep with a workdir of its own, DIR/shard-I: narrow points share a
job's devices, they are not queued one by one. Engine local runs the jobs; the others write scripts
or manifests into a folder and print what to run. Each engine honours the exit codes: 0 and 3 mean
finished, 1 and 2 are never run again, 75 is run again, and any other code up to --retries times.

Flags
{config}
  --workdir=DIR            where results end up, DIR/shard-I per job; for slurm and jobset a folder
                           that all jobs share
  --engine=ENGINE          local, tpu_vm, jobset or slurm
  --shards=N               jobs to split the sweep into (1)
  --name=NAME              name of the jobs: lower-case letters, digits, hyphens, at most 28
                           with the job's number; the workdir's name if not given
  --retries=N              how often a killed job is run again (5)
  --out=DIR                where scripts and manifests are written; a new folder
  --parallel=N             local, slurm, jobset: jobs that run at once (local: 1)
tpu_vm and jobset
  --topology=T             the slice of each job: v4:2x2x1, v5p:2x2x1, v5e:2x4, v6e:2x4; for
                           tpu_vm also v4-8 and the like
  --spot                   spot capacity, which may be preempted
tpu_vm
  --zone=ZONE              and --project=PROJECT, if not gcloud's default
  --runtime_version=V      the VM image, if not the generation's image for JAX
jobset
  --image=IMAGE            a container with mujax and the config in its working directory
  --mount=CLAIM:/PATH      the PersistentVolumeClaim that holds --workdir
  --queue=QUEUE            LocalQueue of Kueue; without it, jobs start at once
slurm
  --partition=P            and --time=T of each job; more options: sbatch's command line

docs/tpu.md leads from a grant of TPUs to a finished sweep.
Exit codes: 0 written (local: all finished), 2 a mistake in the command or config, nothing written;
local also: 75 interrupted, and the code of a job that was given up."""

from collections.abc import Sequence
from typing import Any

from mujax.cli.flags import number
from mujax.cli.verb import Verb
from mujax.errors import UserError


def run(
    config: dict[str, Any],
    workdir: str,
    engine: str,
    name: str | None,
    shards: str | None,
    retries: str | None,
    parallel: str | None,
    argv: Sequence[str],
    **flags: str | bool | None,
) -> int:
    from mujax.launch import launch

    if any(arg.startswith("--flagfile") for arg in argv):
        raise UserError("launch takes no --flagfile: its jobs could not read it")
    return launch(
        config,
        [arg for arg in argv if arg.startswith(("--config", "--noconfig"))],
        workdir,
        engine,
        name,
        number("shards", shards, 1, 1),
        number("retries", retries, 5, 0),
        {**flags, "parallel": None if parallel is None else number("parallel", parallel, 1, 1)},
    )


VERB = Verb(
    "launch",
    __doc__,
    run,
    required=("config", "workdir", "engine"),
    optional=("name", "shards", "retries", "out", "parallel")
    + ("topology", "spot", "zone", "project", "runtime_version")  # tpu_vm
    + ("image", "mount", "queue")  # jobset
    + ("partition", "time"),  # slurm
    switches=("spot",),
    takes_argv=True,
)
