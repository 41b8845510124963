"""A sweep as jobs of an existing engine: this machine, TPU VMs, GKE or Slurm.

mujax has no scheduler of its own.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.errors import UserError, suggest
from mujax.launch import jobset, local, slurm, tpu_vm
from mujax.launch.job import Launch, make_launch, write_folder
from mujax.launch.slices import Slice, parse_topology

# engine -> (required flags, optional flags)
FLAGS = {
    "local": ((), ("parallel",)),
    "tpu_vm": (("out", "topology", "zone"), ("project", "runtime_version", "spot")),
    "jobset": (("out", "topology", "image", "mount"), ("queue", "spot", "parallel")),
    "slurm": (("out",), ("partition", "time", "parallel")),
}


def launch(
    tree: Mapping[str, Any],
    config_flags: Sequence[str],
    workdir: str,
    engine: str,
    name: str | None,
    shards: int,
    retries: int,
    flags: Mapping[str, Any],
) -> int:
    """Writes the files that `engine` needs to run the sweep, and prints what to do with them.

    Engine local runs the sweep.

    Args:
      config_flags: see make_launch.
      flags: flag of an engine -> its value, None or False if not given.

    Returns:
      The exit code: that of the jobs for engine local, else 0.

    Raises:
      UserError: a flag, config, name or folder is not right; nothing has been run or written.
    """
    if engine not in FLAGS:
        raise UserError(f"--engine={engine}: there is no such engine{suggest(engine, FLAGS)}")
    required, optional = FLAGS[engine]
    given = {flag: value for flag, value in flags.items() if value}
    for flag in given:
        if flag not in (*required, *optional):
            raise UserError(f"--{flag} is not a flag of --engine={engine}")
    for flag in required:
        if flag not in given:
            raise UserError(f"--engine={engine} needs --{flag}; see mujax launch --help")
    tpu = parse_topology(given["topology"]) if "topology" in given else None
    num_devices = tpu.chips if tpu else None
    plan = make_launch(tree, config_flags, workdir, name, shards, retries, num_devices)
    get = given.get
    if engine == "local":
        code = local.run(plan, get("parallel", 1))
        if code == 0:
            print(f"\nall {len(plan.jobs)} jobs have finished; go on with\n{plan.next_steps}")
        return code
    if tpu is not None:
        files = _render_tpu(engine, plan, tpu, given)
    else:
        files = slurm.render(plan, get("partition"), get("time"), get("parallel"))
    record = {"engine": engine, "flags": given, "launch": _as_dict(plan)}
    out = write_folder(given["out"], record, files)
    print(_instructions(engine, plan, out, tpu))
    return 0


def _render_tpu(engine: str, plan: Launch, tpu: Slice, given: Mapping[str, Any]) -> dict[str, str]:
    get, spot = given.get, bool(given.get("spot"))
    if engine == "jobset":
        return jobset.render(
            plan, tpu, given["image"], given["mount"], get("queue"), spot, get("parallel")
        )
    return tpu_vm.render(plan, tpu, given["zone"], get("project"), get("runtime_version"), spot)


def _as_dict(plan: Launch) -> dict[str, Any]:
    jobs = [{"name": job.name, "argv": list(job.argv), "workdir": job.workdir} for job in plan.jobs]
    return {"name": plan.name, "source": plan.source, "retries": plan.retries, "jobs": jobs}


def _instructions(engine: str, plan: Launch, out: Path, tpu: Slice | None) -> str:
    folder = shlex.quote(str(out))
    if engine == "slurm":
        steps = f"cd {folder} && sbatch {plan.name}.sbatch"
    elif engine == "jobset":
        queue = f"kubectl apply -f {folder}/kueue.yaml      # where the queue does not exist yet\n"
        steps = f"kubectl apply -f {folder}/jobsets.yaml"
        steps = (queue if (out / "kueue.yaml").exists() else "") + steps
    elif len(plan.jobs) == 1:
        steps = f"tpu_scripts/recreate.sh {folder}/{plan.name}.env"
    else:
        each = 'tpu_scripts/recreate.sh "$env" >"$env.log" 2>&1 &'
        steps = f"for env in {folder}/*.env; do {each} done; wait"
    text = f"{len(plan.jobs)} jobs in {out}; run them with\n{steps}\nand then\n{plan.next_steps}"
    if tpu is not None and tpu.hosts > 1:
        text += (
            f"\n\nnote: this slice has {tpu.hosts} hosts, each of which runs the command; a sweep "
            "cannot run across "
            "hosts, so choose slices of one host (docs/tpu.md)"
        )
    return text
