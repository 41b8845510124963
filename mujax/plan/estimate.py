"""One program compiled for one topology: its memory, the time of a step, and what bounds it."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mujax.config import MeshConfig
from mujax.hardware import GIB, check_devices
from mujax.plan.hlo import Cost, read_cost
from mujax.plan.topology import Topology
from mujax.sweep.compilation import MEMORY_SHARE
from mujax.sweep.lanes import abstract_lanes, make_lane_fns
from mujax.training.run import Run
from mujax.training.sharding import Layout, make_layout
from mujax.training.steps import Program, example_numbers

ROW_STEPS = 2  # steps of rows per call here; real calls hold up to 25 steps


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate for a training program of `lanes` runs side by side on a whole topology.

    fits: whether it compiled, within the share of a device's memory that a sweep uses.
    memory_bytes: arguments and temporaries per device, None if the compiler ran out of memory.
    step_s: the longer of compute and overlapped communication, plus exposed communication.
    mfu: model FLOPs of all lanes over what the devices can do in step_s.
    bound: compute or communication.
    collectives: kind -> bytes that a device sends per step.
    unknown: instructions without an estimate.
    """

    topology: str
    chips: int
    mesh: Mapping[str, int]
    slots: int
    lanes: int
    fits: bool
    memory_bytes: int | None
    arguments_bytes: int | None
    temporaries_bytes: int | None
    hbm_bytes: int
    compile_s: float
    why: str = ""
    compute_cycles: float | None = None
    compute_s: float | None = None
    communication_s: float | None = None
    exposed_s: float | None = None
    step_s: float | None = None
    mfu: float | None = None
    tokens_per_s: float | None = None
    bound: str = ""
    collectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)
    top: tuple[tuple[str, float], ...] = ()


def estimate(run: Run, topology: Topology, num_runs: int = 1) -> Estimate:
    """Compiles the training program that mujax sweep would run.

    num_runs: runs that share the program; as many as fit stand side by side, first over slots of
      devices, then in the lanes of each.

    Raises:
      UserError: a run's mesh takes more devices than there are.
    """
    mesh = run.cfg.mesh
    check_devices(mesh.num_devices, len(topology.devices), f"of {topology.name}")
    slots = min(len(topology.devices) // mesh.num_devices, num_runs)
    found = _estimate(run, topology, slots, slots)
    per_slot = -(-num_runs // slots)
    if found.memory_bytes and per_slot > 1:  # as many lanes as fit
        fitting = int(MEMORY_SHARE * found.hbm_bytes / found.memory_bytes)
        chunks = -(-per_slot // max(1, min(per_slot, fitting)))
        if (more := -(-per_slot // chunks)) > 1:
            together = _estimate(run, topology, slots, slots * more)
            found = together if together.fits else found
    return found


def _estimate(run: Run, topology: Topology, slots: int, lanes: int) -> Estimate:
    mesh, chip = run.cfg.mesh, topology.chip
    found = _compile(run.program, mesh, topology, slots, lanes)
    num_devices = slots * mesh.num_devices
    common = {
        "topology": f"{topology.slices} x {topology.name}" if topology.slices > 1
        else topology.name,
        "chips": topology.num_chips, "slots": slots, "lanes": lanes, "hbm_bytes": chip.hbm,
        "mesh": {"sweep": slots, "data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor},
        "compile_s": found.seconds,
    }  # fmt: skip
    if found.cost is None:
        return Estimate(
            **common,
            fits=False,
            memory_bytes=None,
            arguments_bytes=None,
            temporaries_bytes=None,
            why=found.why,
        )
    needed, cost = found.arguments + found.temporaries + found.results, found.cost
    fits = needed <= MEMORY_SHARE * chip.hbm
    compute, hidden, exposed = (
        cost.cycles / chip.clock, cost.bytes_sent("async") / chip.ici,
        cost.bytes_sent("sync") / chip.ici,
    )  # fmt: skip
    step = max(compute, hidden) + exposed
    flops = lanes * run.flops_per_step
    sent: dict[str, float] = {}
    for (kind, _), value in cost.sent.items():
        sent[kind] = sent.get(kind, 0.0) + value
    return Estimate(
        **common, fits=fits, memory_bytes=needed, arguments_bytes=found.arguments,
        temporaries_bytes=found.temporaries,
        why="" if fits
        else f"it needs {needed / GIB:.1f} GiB a device, and {MEMORY_SHARE:.0%} may be used",
        compute_cycles=cost.cycles, compute_s=compute, communication_s=hidden + exposed,
        exposed_s=exposed, step_s=step,
        mfu=flops / (num_devices * topology.peak * step) if step else None,
        tokens_per_s=lanes * run.tokens_per_step / step if step else None,
        bound="compute" if compute >= hidden + exposed else "communication", collectives=sent,
        unknown=dict(cost.unknown), top=tuple(cost.by_source.most_common(12)),
    )  # fmt: skip


class _Compiled(NamedTuple):
    """Bytes per device and cost of a program; `why` and no cost if it ran out of memory.

    results: without results that reuse the memory of arguments.
    """

    seconds: float
    why: str = ""
    arguments: int = 0
    temporaries: int = 0
    results: int = 0
    cost: Cost | None = None


@functools.cache  # runs that differ in numbers alone share a program, also across configs
def _compile(
    program: Program, mesh: MeshConfig, topology: Topology, slots: int, lanes: int
) -> _Compiled:
    sizes = mesh.data, mesh.fsdp, mesh.tensor, mesh.slices
    layout = make_layout(slots, *sizes, rules=mesh.axis_rules, devices=topology.devices)
    start = time.monotonic()
    try:
        compiled = _lower(program, layout, lanes).compile()
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        why = str(e).partition("Ran out of memory")[2].partition("HLO module")[0].strip(" .\n")
        return _Compiled(
            time.monotonic() - start, f"out of memory {why}" if why else "out of memory"
        )
    seconds = time.monotonic() - start
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    cost = read_cost(compiled.as_text(), layout.mesh.size)
    return _Compiled(
        seconds, "", memory.argument_size_in_bytes, memory.temp_size_in_bytes, results, cost
    )


def _lower(program: Program, layout: Layout, lanes: int):
    """Lowers the training program of `lanes` lanes, from shapes alone."""
    per_lane, whole = NamedSharding(layout.mesh, P("sweep")), NamedSharding(layout.mesh, P())

    def of_lanes(dtype):
        return jax.ShapeDtypeStruct((lanes,), dtype, sharding=per_lane)

    def shared(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    numbers = jax.tree.map(lambda _: of_lanes(np.float32), example_numbers(program))
    rows = shared((1, ROW_STEPS, program.batch_size, program.seq_len + 1), np.int32)
    train = make_lane_fns(program, layout, vmapped=True).train
    state, which = abstract_lanes(program, layout, lanes), (of_lanes(np.int32), of_lanes(bool))
    return train.lower(state, rows, *which, shared((), np.int32), *numbers, of_lanes(np.float32))
