"""The plan of every point of a config on one topology: a table, plan.json, and a verdict."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mujax.columns import align
from mujax.config import leaves, make_run_config
from mujax.hardware import GIB
from mujax.plan.estimate import Estimate, estimate
from mujax.plan.topology import CHIPS, load_topology
from mujax.storage import files
from mujax.sweep.points import Point, group_points, make_points
from mujax.training.run import Run, make_run

SPARE = 0.25  # share of a device's memory that --search leaves free
HEADER = (
    "width", "depth", "points", "at once", "mesh", "remat", "memory", "step", "compute", "exposed",
    "MFU", "tokens/day", "hours", "chip-hours", "verdict",
)  # fmt: skip
ASSUMPTIONS = (
    "compute is the TPU compiler's own estimate of cycles, loops times their trip counts; gathers, "
    "scatters, sorts, random numbers and custom calls (Pallas kernels) have none and count as "
    "nothing; loops of unknown length count once",
    "memory is that of the training program; putting a run into a lane holds two states of it for "
    "a moment",
    "communication is the bytes of ring collectives over all ICI links of a device, a lower bound; "
    "links between slices are taken for ICI",
    "a step is the longer of compute and asynchronous communication, plus synchronous "
    "communication; latency, the host and evaluations are not in it",
    "measured against hardware, such estimates are within about 10% on v3 and v4, 15% on v5e and "
    "v5p, 25% on v6e, 30% at width 128 (tpu7x: never compared); two similar programs compare to a "
    "few percent",
    "MFU: (6 N + 12 L D T) a token over the bfloat16 peak, N the weights of matmuls, so without "
    "the input embedding; nothing for what remat repeats",
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Points that share one program and one mesh."""

    run: Run
    num_points: int
    estimate: Estimate

    @property
    def hours(self) -> float | None:
        """The hours that the steps of all its points take, one lot after the other."""
        if self.estimate.step_s is None:
            return None
        return (
            math.ceil(self.num_points / self.estimate.lanes)
            * self.run.cfg.train.steps
            * self.estimate.step_s
            / 3600
        )

    @property
    def chip_hours(self) -> float | None:
        return None if self.hours is None else self.hours * self.estimate.chips


def plan(
    tree: Mapping[str, Any],
    topology_name: str,
    workdir: str | None = None,
    search: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Compiles each group of points of a sweep, or a config's single run, for a topology.

    Prints a table with `say`, and writes plan.json into `workdir`.

    search: tries other meshes and remat policies for each group, and takes the fastest with room to
      spare.

    Returns:
      Whether every group fits.

    Raises:
      UserError: the config or the topology is not right, or libtpu is missing; nothing has been
        compiled.
    """
    folder = files.local_path(workdir) if workdir else None
    is_sweep = any(leaves(tree.get("sweep", {})))
    members = group_points(
        make_points(tree) if is_sweep else [Point({}, make_run(make_run_config(tree)))]
    )
    topologies = {
        n: load_topology(topology_name, n)
        for n in {points[0].run.cfg.mesh.slices for points in members}
    }
    root = files.make_writable(folder) if folder else None
    groups, tried = [], []
    for points in members:
        run = points[0].run
        topology = topologies[run.cfg.mesh.slices]
        found = Group(run, len(points), estimate(run, topology, len(points)))
        if search:
            others = [found]
            for other in candidates(run, len(topology.devices), len(points)):
                others.append(Group(other, len(points), estimate(other, topology, len(points))))
                say(f"  tried {settings(other)}: {_outcome(others[-1].estimate)}")
            tried += [group_json(group) for group in others]
            found = best(others)
            say(f"  taken {settings(found.run)}")
        groups.append(found)
        say(
            f"width {run.cfg.model.d_model}: {_outcome(found.estimate)}; compiled in "
            f"{found.estimate.compile_s:.0f} s"
        )
    table = format_plan(groups)
    say(f"\n{table}")
    if root is not None:
        document = {
            "topology": topology_name, "groups": [group_json(group) for group in groups],
            "tried": tried, "assumptions": ASSUMPTIONS,
        }  # fmt: skip
        files.write_json(root / "plan.json", document)
    return all(group.estimate.fits for group in groups)


def candidates(run: Run, num_devices: int, num_points: int) -> Iterator[Run]:
    """Yields other ways to train the same run over its share of the devices.

    Weights are split over all devices, half, a quarter or none, with each remat policy; layers are
    unrolled where nothing is recomputed.
    """
    share = max(1, num_devices // num_points)
    while run.program.batch_size // run.program.accumulation % share:
        share -= 1
    options: list[dict[str, Any]] = [{}]
    if hasattr(run.cfg.model, "remat"):
        options = [
            {"remat": remat, "scan_layers": remat != "none"} for remat in ("none", "dots", "full")
        ]
    for fsdp in dict.fromkeys((share, share // 2, share // 4, 1)):
        if not fsdp or share % fsdp or share // fsdp % run.cfg.mesh.slices:
            continue
        mesh = dataclasses.replace(run.cfg.mesh, data=share // fsdp, fsdp=fsdp, tensor=1)
        for changes in options:
            model = dataclasses.replace(run.cfg.model, **changes)
            if (mesh, model) != (run.cfg.mesh, run.cfg.model):
                yield make_run(dataclasses.replace(run.cfg, mesh=mesh, model=model))


def best(groups: Sequence[Group]) -> Group:
    """Returns the group with most tokens/s among those with room to spare.

    If none has room to spare, returns the one that takes the least memory.
    """
    roomy = [
        group
        for group in groups
        if group.estimate.fits
        and (group.estimate.memory_bytes or 0) <= (1 - SPARE) * group.estimate.hbm_bytes
    ]
    if roomy:
        return max(roomy, key=lambda group: group.estimate.tokens_per_s or 0)
    return min(groups, key=lambda group: group.estimate.memory_bytes or math.inf)


def settings(run: Run) -> str:
    """Returns the fields that a search changes, as flags."""
    flags = [
        f"--config.mesh.{name}={getattr(run.cfg.mesh, name)}" for name in ("data", "fsdp", "tensor")
    ]
    for name in ("remat", "scan_layers"):
        if hasattr(run.cfg.model, name):
            flags.append(f"--config.model.{name}={getattr(run.cfg.model, name)}")
    return " ".join(flags)


def advice(group: Group) -> str:
    """Returns what to change in a config that does not fit."""
    run, found = group.run, group.estimate
    cfg, ways = run.cfg, []
    per_device = cfg.train.batch_size // cfg.train.accumulation // (cfg.mesh.data * cfg.mesh.fsdp)
    generation = found.topology.split()[-1].partition(":")[0]
    devices = found.chips * CHIPS[generation].devices_per_chip
    if cfg.mesh.data > cfg.mesh.slices:
        ways.append(
            f"mesh.fsdp={cfg.mesh.fsdp * cfg.mesh.data // cfg.mesh.slices} with "
            f"mesh.data={cfg.mesh.slices}"
        )
    elif cfg.mesh.fsdp * cfg.mesh.tensor < devices and per_device % 2 == 0:
        ways.append(f"mesh.fsdp={2 * cfg.mesh.fsdp}")
    if getattr(cfg.model, "remat", "full") != "full":
        ways.append("model.remat=" + ("full" if cfg.model.remat == "dots" else "dots"))
    if per_device > 1:
        ways.append(f"train.accumulation={2 * cfg.train.accumulation}")
    return ", ".join(ways) or "a larger topology"


def _outcome(found: Estimate) -> str:
    if found.step_s is None or not found.fits:
        return f"does not fit: {found.why}"
    return (
        f"{found.step_s:.4g} s a step, {(found.memory_bytes or 0) / GIB:.1f} of "
        f"{found.hbm_bytes / GIB:.0f} GiB"
    )


def format_plan(groups: Sequence[Group]) -> str:
    lines: list[tuple[str, ...]] = [HEADER]
    notes = []
    for group in groups:
        e, model, mesh = group.estimate, group.run.cfg.model, group.run.cfg.mesh
        shape = f"{e.mesh['sweep']}x{mesh.data}x{mesh.fsdp}x{mesh.tensor}"
        remat = getattr(model, "remat", "-") + (
            "" if getattr(model, "scan_layers", True) else ", unrolled"
        )
        memory = (
            "-"
            if e.memory_bytes is None
            else f"{e.memory_bytes / GIB:.2f}/{e.hbm_bytes / GIB:.0f} GiB"
        )
        numbers = ("-",) * 7
        if e.step_s is not None and e.tokens_per_s and e.mfu is not None:
            numbers = (
                _seconds(e.step_s), _seconds(e.compute_s), _seconds(e.exposed_s),
                f"{100 * e.mfu:.1f}%", f"{86400 * e.tokens_per_s:.3g}", f"{group.hours:.3g}",
                f"{group.chip_hours:.4g}",
            )  # fmt: skip
        verdict = "fits" if e.fits else "does not fit"
        lines.append((
            f"{model.d_model}", f"{model.num_layers}", f"{group.num_points}", f"{e.lanes}", shape,
            remat, memory, *numbers, verdict,
        ))  # fmt: skip
        if not e.fits:
            notes.append(
                f"width {model.d_model} does not fit ({e.why}): try {advice(group)}, or --search"
            )
        if getattr(model, "attention_impl", "") == "splash":
            notes.append(
                f"width {model.d_model}: splash attention has no estimate and counts as nothing "
                "here"
            )
    text = align(lines, ">")
    total = [group.chip_hours for group in groups]
    if None not in total:
        hours = math.fsum(hours for hours in total if hours)
        where = ", ".join(dict.fromkeys(group.estimate.topology for group in groups))
        text.append(f"\n{hours:.4g} chip-hours on {where}, evaluations not counted")
    text.append(
        "mesh: sweep x data x fsdp x tensor devices; memory, compute and exposed communication: "
        "of a device"
    )
    return "\n".join([*text, *notes])


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.4g} ms" if value < 1 else f"{value:.4g} s"


def group_json(group: Group) -> dict[str, Any]:
    cfg = group.run.cfg
    return {
        "width": cfg.model.d_model, "depth": cfg.model.num_layers, "num_points": group.num_points,
        "n_params": group.run.num_params, "tokens_per_step": group.run.tokens_per_step,
        "steps": cfg.train.steps, "model": dataclasses.asdict(cfg.model), "hours": group.hours,
        "chip_hours": group.chip_hours, **dataclasses.asdict(group.estimate),
    }  # fmt: skip
