"""The jobs of a sweep: shards, each one idempotent command with a workdir of its own."""

import dataclasses
import glob
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.config import MeshConfig
from mujax.errors import UserError
from mujax.hardware import check_devices
from mujax.storage.files import local_path, read_json, write_json

# Exit codes of mujax (docs/commands.md). After any other code, the same command is run again.
FINISHED = (0, 3)  # 3: finished, but a run diverged
NEVER_AGAIN = (1, 2)  # a failed check; a mistake in the command or config
SAVED = 75  # interrupted with its state saved; running the same command costs no retry

MAX_NAME = 28  # characters; engines append to a name, and it must remain a DNS label
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclasses.dataclass(frozen=True)
class Job:
    """One command.

    name: a DNS label.
    workdir: where the results end up, for mujax merge.
    """

    name: str
    argv: tuple[str, ...]
    workdir: str


@dataclasses.dataclass(frozen=True)
class Launch:
    """The jobs of a sweep, and what every engine needs to know about them."""

    name: str
    workdir: str
    jobs: tuple[Job, ...]
    retries: int  # allowed per killed job; runs after exit code 75 do not count
    source: str  # folder in which the commands run

    @property
    def next_steps(self) -> str:
        """The instructions for when all jobs have finished."""
        report = shlex.join(["mujax", "report", f"--workdir={self.workdir}"])
        if len(self.jobs) == 1:
            return report
        parts = f"{glob.escape(self.workdir)}/shard-*"
        return (
            shlex.join(["mujax", "merge", f"--workdir={self.workdir}", f"--sources={parts}"])
            + f"\n{report}"
        )


def make_launch(
    tree: Mapping[str, Any],
    config_flags: Sequence[str],
    workdir: str,
    name: str | None,
    shards: int,
    retries: int,
    num_devices: int | None = None,
) -> Launch:
    """Makes the jobs of a config's sweep.

    Args:
      config_flags: --config=FILE and the fields that the command line sets; each job gets them
        unchanged.
      name: name of the jobs; None for the last part of the workdir.
      num_devices: devices of the one TPU slice that each job gets; None if unknown.

    Raises:
      UserError: the sweep would be refused, has fewer points than shards, or has a point that takes
        more devices than a job gets; or the name is not a DNS label.
    """
    from mujax.sweep.points import Shard, make_points  # imported here because they import JAX
    from mujax.sweep.refine import refine_config

    grid = make_points(tree)
    if num_devices is not None:
        for mesh in {point.run.cfg.mesh for point in grid}:
            _check_mesh(mesh, num_devices)
    refinement = refine_config(tree, grid)
    field = refinement.field if refinement else None
    if not Shard(shards - 1, shards).take(grid, field):
        together = f", and those of a curve along {field} stay together" if field else ""
        raise UserError(
            f"--shards={shards}: the sweep has {len(grid)} points{together}; ask for fewer shards"
        )
    root = os.path.abspath(local_path(workdir))
    if "," in root:
        raise UserError(
            f"--workdir={workdir} has a comma, at which mujax merge would split it; choose another"
        )
    label = _label(name, Path(root).name, shards)
    jobs = []
    for i in range(shards):
        own = root if shards == 1 else f"{root}/shard-{i}"
        part = [] if shards == 1 else [f"--shard={i}/{shards}"]
        argv = ("mujax", "sweep", *config_flags, f"--workdir={own}", *part)
        jobs.append(Job(label if shards == 1 else f"{label}-{i}", argv, own))
    return Launch(label, root, tuple(jobs), retries, os.getcwd())


def _check_mesh(mesh: MeshConfig, num_devices: int) -> None:
    if mesh.slices > 1:
        raise UserError(
            f"mesh.slices = {mesh.slices}: each job has one slice, whose hosts know of no other"
        )
    check_devices(mesh.num_devices, num_devices, "of --topology")


def _label(name: str | None, folder: str, shards: int) -> str:
    label = re.sub("[^a-z0-9]+", "-", folder.lower()).strip("-") if name is None else name
    given = (
        f"--name={name}"
        if name is not None
        else f"the workdir's name {folder!r}, which jobs are called by,"
    )
    if not _LABEL.fullmatch(label):
        raise UserError(
            f"{given} makes no DNS label: lower-case letters, digits and hyphens, a letter first; "
            "give another --name"
        )
    longest = label if shards == 1 else f"{label}-{shards - 1}"
    if len(longest) > MAX_NAME:
        raise UserError(
            f"{given} is too long: {longest} has {len(longest)} characters, at most {MAX_NAME} "
            "are allowed"
        )
    return label


def write_folder(out: str, record: Mapping[str, Any], files: Mapping[str, str]) -> Path:
    """Writes a launch's files, and launch.json, by which a later call recognizes the folder.

    The same launch may be written again.

    Raises:
      UserError: the folder holds anything else; nothing has been written.
    """
    root = Path(os.path.expanduser(out))
    mark = root / "launch.json"
    if root.exists():
        if not root.is_dir():
            raise UserError(f"--out={out} is a file; choose a new folder")
        if not mark.exists() and any(root.iterdir()):
            raise UserError(f"--out={out} holds other files; choose a new folder")
        if mark.exists() and read_json(mark) != json.loads(json.dumps(record)):
            raise UserError(
                f"--out={out} holds another launch, in launch.json; choose a new folder"
            )
    root.mkdir(parents=True, exist_ok=True)
    write_json(mark, record)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def as_child(signal: str) -> str:
    """Returns POSIX sh that runs "$@" and leaves its exit code in $code.

    The command runs as a child, because a shell that waits would keep signals from it: it gets
    SIGTERM when the shell gets `signal`. A `wait` that a signal ended does not tell the child's
    code, so the child is waited for again.
    """
    return f"""\
child='' stop=0
trap 'stop=1; [ -z "$child" ] || kill -TERM "$child"' {signal}
"$@" &
child=$!
[ "$stop" = 0 ] || kill -TERM "$child"
stop=1 code=129
while [ "$stop" = 1 ] && [ "$code" -gt 128 ]; do
  stop=0
  wait "$child"
  code=$?
done
"""
