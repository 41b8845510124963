"""Lanes: many runs of one program, side by side, as a pure function of numbers.

A lane is one run. Lanes are split over the devices of a `sweep` mesh axis, with nothing exchanged
between them; the lanes of one device run one after the other, or vmapped, which fills an accelerator.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from mujax.steps import METRICS, Program, TrainState, make_train_fns

Options = dict[str, Any] | None  # of XLA, for one program


class LaneState(NamedTuple):
    """A run in flight; diverged_at is the step at which it was frozen, -1 while it is alive."""

    train: TrainState
    diverged_at: jax.Array


class LaneFns(NamedTuple):
    """Jitted functions over N lanes; K steps, E batches, B batch, T seq_len. See make_lane_fns."""

    init: Callable
    train: Callable
    evaluate: Callable


def sweep_mesh(num_devices: int) -> Mesh:
    """A mesh of the first devices along the axis `sweep`."""
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("sweep",), axis_types=(AxisType.Auto,), devices=devices)


def make_lane_fns(program: Program, mesh: Mesh, vmapped: bool, compiler_options: Options = None) -> LaneFns:
    """Returns the functions of a program over lanes split along the mesh axis `sweep`.

    The lanes of one device are vmapped, or else run one after the other.

    init(seeds_N, hps, scalings) -> LaneState.
    train(lanes, rows [N, K, B, T + 1], num_steps, hps, scalings, divergence_loss_N)
      -> (LaneState, {metric: [N, K]}): num_steps <= K updates of each lane; a lane whose
      loss is not finite or above its bound keeps the state it had, and is not stepped again.
    evaluate(lanes, rows [E, B, T + 1], hps, scalings) -> mean loss in nats [N].
    hps and scalings are trees of float32 [N]; N is a multiple of the mesh axis.
    """
    fns = make_train_fns(program)

    def train_lane(lane: LaneState, rows_KBT, num_steps, hps, scalings, divergence_loss):
        def attempt(lane: LaneState, rows_BT):
            new_state, metrics = fns.step(lane.train, rows_BT, hps, scalings)
            diverged = ~(metrics["loss"] <= divergence_loss)  # also true at NaN
            state = jax.tree.map(lambda old, new: jnp.where(diverged, old, new), lane.train, new_state)
            return LaneState(state, jnp.where(diverged, lane.train.step, -1)), metrics

        def skip(lane: LaneState, rows_BT):
            del rows_BT
            return lane, dict.fromkeys(METRICS, jnp.float32(jnp.nan))

        def body(k, carry):
            lane, history = carry
            # Under vmap the branch becomes a select; on its own it saves a dead lane's arithmetic.
            lane, metrics = jax.lax.cond(lane.diverged_at < 0, attempt, skip, lane, rows_KBT[k])
            history = jax.tree.map(lambda h_K, value: h_K.at[k].set(value), history, metrics)
            return lane, history

        empty_K = jnp.full(rows_KBT.shape[0], jnp.nan, jnp.float32)
        return jax.lax.fori_loop(0, num_steps, body, (lane, dict.fromkeys(METRICS, empty_K)))

    def init_lane(seed, hps, scalings):
        return LaneState(fns.init(seed, hps, scalings), jnp.int32(-1))

    def evaluate_lane(lane: LaneState, rows_EBT, hps, scalings):
        losses_E = jax.lax.map(lambda rows: fns.evaluate(lane.train.params, rows, hps, scalings), rows_EBT)
        return jnp.mean(losses_E)

    return LaneFns(
        init=over_lanes(init_lane, mesh, vmapped, compiler_options),
        train=over_lanes(train_lane, mesh, vmapped, compiler_options, shared=(2,), donate=(0,)),
        evaluate=over_lanes(evaluate_lane, mesh, vmapped, compiler_options, shared=(1,)),
    )


def over_lanes(
    lane_fn: Callable,
    mesh: Mesh,
    vmapped: bool,
    compiler_options: Options = None,
    shared: tuple[int, ...] = (),
    donate: tuple[int, ...] = (),
) -> Callable:
    """lane_fn, jitted, with a lane axis on its result and on every argument but those numbered in `shared`."""

    def batched(*args):
        if vmapped:
            return jax.vmap(lane_fn, in_axes=[None if i in shared else 0 for i in range(len(args))])(*args)
        own = {i: arg for i, arg in enumerate(args) if i not in shared}
        return jax.lax.map(lambda lane: lane_fn(*(lane.get(i, arg) for i, arg in enumerate(args))), own)

    def sharded(*args):
        specs = tuple(P() if i in shared else P("sweep") for i in range(len(args)))
        return jax.shard_map(batched, mesh=mesh, in_specs=specs, out_specs=P("sweep"), check_vma=False)(*args)

    sharded.__name__ = lane_fn.__name__  # names the executable
    return jax.jit(sharded, donate_argnums=donate, compiler_options=compiler_options)
