"""TPU VMs: the settings of each shard's slice, which tpu_scripts/*.sh read."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mujax.errors import UserError
from mujax.launch.job import Launch
from mujax.launch.slices import Slice


def render(
    launch: Launch,
    tpu: Slice,
    zone: str,
    project: str | None,
    runtime_version: str | None,
    spot: bool,
) -> dict[str, str]:
    """Returns a NAME.env per job: bash to be sourced, with every value quoted.

    On the slice the job works on the first worker's own disk; fetch.sh brings the results to the
    job's workdir here.

    Raises:
      UserError: a zone, project or version with an invalid name, or a config that would not be on
        the slice.
    """
    version = runtime_version or tpu.cloud.runtime
    for flag, value in (("zone", zone), ("project", project), ("runtime_version", version)):
        if value is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.:-]*", value):
            raise UserError(f"--{flag}={value} is no {flag.replace('_', ' ')}")
    for flag in launch.jobs[0].argv:
        if flag.startswith("--config=") and not _is_inside(
            flag.partition("=")[2].partition(":")[0], launch.source
        ):
            raise UserError(
                f"{flag} is not a path below this folder, which is what goes to the slice"
            )
    if not Path(launch.source, "setup.py").exists():
        raise UserError(
            "there is no setup.py here; launch from the root of the repository, which goes to the "
            "slice"
        )
    create = [*tpu.gcloud_flags, f"--runtime-version={version}", *(["--spot"] if spot else [])]
    files = {}
    for job in launch.jobs:
        # On each worker ~/NAME holds `source`, where the command runs, and beside it `work`.
        command = [
            arg if arg != f"--workdir={job.workdir}" else "--workdir=../work" for arg in job.argv
        ]
        files[f"{job.name}.env"] = f"""\
# shellcheck shell=bash disable=SC2034
# Rendered by mujax launch, for tpu_scripts/*.sh.
NAME={job.name}
ZONE={zone}
PROJECT={project or ""}
CREATE={_array(create)}
SOURCE={shlex.quote(launch.source)}
RESULTS={shlex.quote(job.workdir)}
COMMAND={_array(command)}
RETRIES={launch.retries}
POLL_SECONDS=60
FETCH_SECONDS=600
"""
    return files


def _array(words: Sequence[str]) -> str:
    return f"({shlex.join(words)})"


def _is_inside(path: str, folder: str) -> bool:
    return not os.path.isabs(path) and not os.path.relpath(path, ".").startswith(os.pardir)
