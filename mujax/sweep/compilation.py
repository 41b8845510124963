"""Ahead-of-time compilation of a chunk of lanes, as many as fit in memory by the compiler's own
count."""

import concurrent.futures
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mujax.config import TrainConfig
from mujax.errors import UserError
from mujax.hardware import check_devices
from mujax.sweep.lanes import abstract_lanes, make_lane_fns
from mujax.training.run import Run
from mujax.training.sharding import Layout, make_layout
from mujax.training.steps import Program, example_numbers

# A signal is served, and progress is shown, between two calls of the compiled program.
MAX_STEPS_PER_CALL = 25
# Of what a device has, so that fragments and the runtime itself find room
MEMORY_SHARE = 0.9


class Executables(NamedTuple):
    """The compiled functions of mujax.sweep.lanes for one number of lanes."""

    num_lanes: int
    layout: Layout
    vmapped: bool
    init: Callable
    replace: Callable
    train: Callable
    evaluate: Callable
    bytes_per_device: int
    compile_seconds: float


def steps_per_call(train: TrainConfig) -> int:
    return min(train.eval_interval, train.steps, MAX_STEPS_PER_CALL)


def num_row_sets(runs: Sequence[Run], num_lanes: int, vmapped: bool) -> int:
    """Counts the different batches that the lanes of a chunk may train on at once.

    Vmapped lanes mostly start together and share the batches of their seed: hundreds of copies
    would cost memory and transfer, a few let some start later. Lanes one after the other are few,
    and have their own each.
    """
    return min(num_lanes, 4 * len({run.cfg.seed for run in runs})) if vmapped else num_lanes


def choose_lanes(runs: Sequence[Run], validation: np.ndarray, vmapped: bool) -> Executables:
    """Compiles for as many lanes as there are runs, or as fit into memory by what the compiler
    says.

    Raises:
      UserError: not even one lane a slot fits.
    """
    mesh = runs[0].cfg.mesh
    vmapped = vmapped or mesh.num_devices > 1
    check_devices(mesh.num_devices, jax.device_count(), "here")
    num_slots = jax.device_count() // mesh.num_devices
    if vmapped:
        num_slots = min(num_slots, len(runs))
        per_slot = math.ceil(len(runs) / num_slots)
    else:
        # On CPU nothing was measured to be faster than a lane a core (experiments/benchmarks). As
        # many for few
        # runs as for many: the executable is the same then, and a sweep that goes on repeats every
        # bit.
        per_slot = 1
    while True:
        layout = make_layout(
            num_slots, mesh.data, mesh.fsdp, mesh.tensor, mesh.slices, mesh.axis_rules
        )
        available = available_memory(layout.mesh)
        # if the compiler gives up, as it does for TPUs, it does not say how much it needs
        needed = 2 * available
        try:
            executables = compile_lanes(runs, validation, layout, num_slots * per_slot, vmapped)
            needed = executables.bytes_per_device
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
        else:
            if needed <= available:
                return executables
        if per_slot > 1:
            fitting = max(1, min(per_slot - 1, int(per_slot * available / needed)))
            chunks = math.ceil(len(runs) / (num_slots * fitting))
            per_slot = math.ceil(len(runs) / (num_slots * chunks))
        elif num_slots > 1 and not vmapped:  # CPU devices share one memory
            num_slots -= 1
        else:
            raise UserError(
                f"one run of width {runs[0].cfg.model.d_model} needs about {needed / 2**30:.2f} "
                f"GiB a device and {available / 2**30:.2f} GiB are free: split it with mesh.fsdp "
                "or mesh.tensor, or lower train.batch_size"
            )


def available_memory(mesh: Mesh) -> int:
    """Returns the bytes that a program may take on each device of a mesh."""
    stats = [device.memory_stats() for device in mesh.devices.flat]
    if stats[0] is None:  # CPU: all devices share the machine's
        return int(
            MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / mesh.size
        )
    return int(MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats))


def compile_lanes(
    runs: Sequence[Run], validation: np.ndarray, layout: Layout, num_lanes: int, vmapped: bool
) -> Executables:
    """Compiles the functions of a chunk ahead of time, so that their memory is known before
    anything runs."""
    train = runs[0].cfg.train
    num_sets = num_row_sets(runs, num_lanes, vmapped)
    rows = (num_sets, steps_per_call(train), *validation.shape[1:])
    abstract_rows = jax.ShapeDtypeStruct(rows, validation.dtype)
    abstract_validation = jax.ShapeDtypeStruct(validation.shape, validation.dtype)
    return _compile(runs[0].program, layout, num_lanes, vmapped, abstract_rows, abstract_validation)


@functools.lru_cache(maxsize=4)  # groups that differ in lengths alone share a program
def _compile(
    program: Program, layout: Layout, num_lanes: int, vmapped: bool, rows, validation
) -> Executables:
    start = time.monotonic()
    fns = make_lane_fns(program, layout, vmapped)
    lanes = abstract_lanes(program, layout, num_lanes)
    per_lane = NamedSharding(layout.mesh, P("sweep"))

    def of_lanes(dtype):
        return jax.ShapeDtypeStruct((num_lanes,), dtype, sharding=per_lane)

    def shared(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.whole)

    numbers = jax.tree.map(lambda _: of_lanes(np.float32), example_numbers(program))
    step_args = (shared(jax.ShapeDtypeStruct((), np.int32)), *numbers, of_lanes(np.float32))
    functions = (
        (fns.init, (of_lanes(np.uint32), *numbers)),
        (fns.replace, (lanes, lanes, of_lanes(bool))),
        (fns.train, (lanes, shared(rows), of_lanes(np.int32), of_lanes(bool), *step_args)),
        (fns.evaluate, (lanes, shared(validation), of_lanes(bool), *numbers)),
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda f: f[0].lower(*f[1]).compile(), functions))
    needed = max(_bytes_needed(c) for c in compiled)
    init, replace, train, evaluate = compiled
    return Executables(
        num_lanes, layout, vmapped, init, replace, train, evaluate, needed, time.monotonic() - start
    )


def _bytes_needed(compiled: Any) -> int:
    """Returns the peak memory of a compiled program on one device: arguments, results and
    temporaries, without the arguments that results share."""
    m = compiled.memory_analysis()
    return (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
        + m.temp_size_in_bytes
    )
