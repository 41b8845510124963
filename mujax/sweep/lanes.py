"""Lanes: many runs of one program, side by side, as pure functions of numbers.

A lane is one run. Lanes are split over the mesh axis `sweep`, with nothing exchanged between them;
the lanes of one slot of that axis run one after the other, or vmapped, which fills an accelerator.
The other axes of the mesh split each single lane, see mujax.training.sharding; such lanes are
always vmapped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mujax.training.outcome import is_sound
from mujax.training.sharding import Layout
from mujax.training.steps import (
    METRICS,
    Program,
    TrainState,
    abstract_state,
    init_options,
    make_train_fns,
    state_shardings,
)

Options = dict[str, Any] | None  # of XLA, for one program
# weights are gathered while the layer before computes
TPU_OPTIONS = {"xla_enable_async_all_gather": "true"}


class LaneState(NamedTuple):
    """The state of a run in flight; diverged_at is the step at which it was frozen, -1 while it
    trains."""

    train: TrainState
    diverged_at: jax.Array


class LaneFns(NamedTuple):
    """Jitted functions over N lanes; see make_lane_fns."""

    init: Callable
    replace: Callable
    train: Callable
    evaluate: Callable


def make_lane_fns(
    program: Program, layout: Layout, vmapped: bool, compiler_options: Options = None
) -> LaneFns:
    """Returns the functions of a program over N lanes; N is a multiple of the mesh axis `sweep`.

    K steps, E batches, B batch, T seq_len; hps and scalings are trees of float32 [N]. The lanes of
    one slot are vmapped, or else run one after the other.

    init(seeds_N, hps, scalings) -> LaneState; a lane's draws depend on its seed alone.
    replace(lanes, new_lanes, is_new_N) -> LaneState: new lanes where is_new, the others untouched.
    train(lanes, rows [U, K, B, T + 1], row_set_N, active_N, num_steps, hps, scalings,
    divergence_loss_N)
      -> (LaneState, {metric: [N, K]}): num_steps <= K updates of each active lane on the rows of
      its set; a lane whose loss is not finite or above its bound is not stepped again.
    evaluate(lanes, rows [E, B, T + 1], active_N, hps, scalings) -> mean loss in nats [N], NaN if
    not active.
    """
    mesh = layout.mesh
    fns = make_train_fns(program, layout)
    shardings = _lane_shardings(program, layout)

    def split_batch(rows):
        sharding = layout.batch(batch_axis=rows.ndim - 2, ndim=rows.ndim)
        return jax.lax.with_sharding_constraint(rows, sharding) if layout.is_split else rows

    def train_lane(
        lane: LaneState, rows_UKBT, row_set, active, num_steps, hps, scalings, divergence_loss
    ):
        def attempt(lane: LaneState, rows_BT):
            new_state, metrics = fns.step(lane.train, split_batch(rows_BT), hps, scalings)
            frozen_at = jnp.where(is_sound(metrics["loss"], divergence_loss), -1, lane.train.step)
            return LaneState(new_state, frozen_at), metrics

        def skip(lane: LaneState, rows_BT):
            del rows_BT
            return lane, dict.fromkeys(METRICS, jnp.float32(jnp.nan))

        def body(k, carry):
            lane, history = carry
            # Under vmap the branch becomes a select; on its own it saves a dead lane's arithmetic.
            alive = active & (lane.diverged_at < 0)
            lane, metrics = jax.lax.cond(alive, attempt, skip, lane, rows_UKBT[row_set, k])
            history = jax.tree.map(lambda h_K, value: h_K.at[k].set(value), history, metrics)
            return lane, history

        empty_K = jnp.full(rows_UKBT.shape[1], jnp.nan, jnp.float32)
        return jax.lax.fori_loop(0, num_steps, body, (lane, dict.fromkeys(METRICS, empty_K)))

    def init_lane(seed, hps, scalings):
        return LaneState(fns.init(seed, hps, scalings), jnp.int32(-1))

    def replace_lane(lane: LaneState, new_lane: LaneState, is_new):
        return jax.tree.map(lambda old, new: jnp.where(is_new, new, old), lane, new_lane)

    def evaluate_lane(lane: LaneState, rows_EBT, active, hps, scalings):
        def mean_loss(rows_EBT):
            losses_E = jax.lax.map(
                lambda rows: fns.evaluate(lane.train.params, rows, hps, scalings), rows_EBT
            )
            return jnp.mean(losses_E)

        return jax.lax.cond(
            active, mean_loss, lambda _: jnp.float32(jnp.nan), split_batch(rows_EBT)
        )

    if mesh.devices.flat[0].platform == "tpu" and compiler_options is None:
        compiler_options = TPU_OPTIONS
    per_lane = NamedSharding(mesh, P("sweep"))
    return LaneFns(
        init=over_lanes(
            init_lane, layout, vmapped, compiler_options or init_options(), out_shardings=shardings
        ),
        replace=over_lanes(
            replace_lane, layout, vmapped, compiler_options, donate=(0,), out_shardings=shardings
        ),
        train=over_lanes(
            train_lane,
            layout,
            vmapped,
            compiler_options,
            shared=(1, 4),
            donate=(0,),
            out_shardings=(shardings, dict.fromkeys(METRICS, per_lane)),
        ),
        evaluate=over_lanes(
            evaluate_lane, layout, vmapped, compiler_options, shared=(1,), out_shardings=per_lane
        ),
    )


def abstract_lanes(program: Program, layout: Layout, num_lanes: int) -> LaneState:
    """Returns shapes, types and shardings of the state of so many lanes; allocates and compiles
    nothing."""
    lane, shardings = abstract_lane(program), _lane_shardings(program, layout)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct((num_lanes, *x.shape), x.dtype, sharding=s),
        lane,
        shardings,
    )


def abstract_lane(program: Program) -> LaneState:
    """Returns shapes and types of the state of one lane."""
    return jax.eval_shape(LaneState, abstract_state(program), jax.ShapeDtypeStruct((), jnp.int32))


def _lane_shardings(program: Program, layout: Layout) -> LaneState:
    """Returns the shardings of the stacked states: those of one run's state, with the leading
    (lane) axis over the mesh axis `sweep`."""
    of_lanes = jax.tree.map(
        lambda s: NamedSharding(layout.mesh, P("sweep", *s.spec)), state_shardings(program, layout)
    )
    return LaneState(of_lanes, cast(Any, NamedSharding(layout.mesh, P("sweep"))))


def over_lanes(
    lane_fn: Callable,
    layout: Layout,
    vmapped: bool,
    compiler_options: Options = None,
    shared: tuple[int, ...] = (),
    donate: tuple[int, ...] = (),
    out_shardings: Any = None,
) -> Callable:
    """Jits lane_fn with a lane axis on its result and on every argument but those numbered in
    `shared`."""

    def batched(*args):
        if jax.tree.leaves(args[0])[0].shape[0] == 1:
            # a branch stays a branch, where vmap would select
            one = (
                arg if i in shared else jax.tree.map(lambda x: x[0], arg)
                for i, arg in enumerate(args)
            )
            return jax.tree.map(lambda x: x[None], lane_fn(*one))
        if vmapped or layout.is_split:
            in_axes = [None if i in shared else 0 for i in range(len(args))]
            return jax.vmap(lane_fn, in_axes, spmd_axis_name="sweep" if layout.is_split else None)(
                *args
            )
        own = {i: arg for i, arg in enumerate(args) if i not in shared}
        return jax.lax.map(
            lambda lane: lane_fn(*(lane.get(i, arg) for i, arg in enumerate(args))), own
        )

    def sharded(*args):
        if layout.is_split:
            # what is split by the compiler cannot be split by hand too: XLA aborts on its gathers
            return batched(*args)
        specs = tuple(P() if i in shared else P("sweep") for i in range(len(args)))
        return jax.shard_map(
            batched, mesh=layout.mesh, in_specs=specs, out_specs=P("sweep"), check_vma=False
        )(*args)

    sharded.__name__ = lane_fn.__name__  # names the executable
    return jax.jit(
        sharded,
        donate_argnums=donate,
        compiler_options=compiler_options,
        out_shardings=out_shardings,
    )
