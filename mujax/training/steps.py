"""The pure functions of training: init, step and evaluate; no I/O, no mesh, no flags.

Static things (shapes, the family of the optimizer) are fixed by `make_train_fns`; every number
(hyperparameters, scalings, seed) is an argument and may be traced, batched or sharded.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mujax.hps import Hps, as_float32
from mujax.models.layers import reads_out_apart
from mujax.models.module import MuModule, unbox
from mujax.models.protocol import ModelConfig
from mujax.optimizers import Optimizer, make_optimizer
from mujax.parameterization import Scaling
from mujax.schedules import SCHEDULES
from mujax.training.loss import mean_cross_entropy, until_first
from mujax.training.sharding import ONE_DEVICE, Layout


class TrainState(NamedTuple):
    """The state of a run.

    step: int32 number of finished updates.
    params: float32 masters.
    opt_state: state of the optax chain.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


# Measurements of a step: the loss before the update (nats per token), the global norm of the
# gradient of the effective weights before clipping, and the learning rate of a tensor whose table
# factor is 1.
METRICS: tuple[str, ...] = ("loss", "grad_norm", "learning_rate")


class TrainFns(NamedTuple):
    """The functions of one program, with B batch and T seq_len; see make_train_fns."""

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[..., jax.Array]
    activations: Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a run; runs with equal programs share an executable.

    model_class, optimizer: the objects themselves; a fork that is edited in a notebook keeps its
      name.
    model: the model's config.
    batch_size, seq_len: shapes of the rows, in sequences and tokens.
    momentum_dtype: dtype of the first moment; None for that of the weights, float32.
    accumulation: number of parts into which a batch is cut for its gradient.
    eos_id: the loss counts tokens up to the first of these in a row; None: all.
    """

    model_class: type[MuModule]
    model: ModelConfig
    optimizer: Optimizer
    decay_form: str
    momentum_dtype: str | None
    schedule: str
    accumulation: int
    eos_id: int | None
    batch_size: int
    seq_len: int


@functools.lru_cache(maxsize=256)  # tracing would take most of the time of resolving a run
def abstract_metas(model_class: type[MuModule], model_cfg: ModelConfig) -> dict[str, Any]:
    """Returns the tree of ParamMeta of a model; allocates and compiles nothing.

    Raises:
      UserError: a parameter of the model has no role, or an unknown one.
    """
    module = model_class(model_cfg)
    hps = Hps(*(0.0 for _ in Hps._fields))  # shapes do not depend on values
    variables = jax.eval_shape(
        lambda tokens: module.init(jax.random.key(0), tokens, hps), _first_tokens(model_cfg)
    )
    return unbox(variables["params"])[1]


def _first_tokens(model_cfg: ModelConfig) -> jax.ShapeDtypeStruct:
    """Returns the tokens that a module is initialized on: one, or init_length if its config has it.

    No parameter's shape depends on batch or sequence.
    """
    return jax.ShapeDtypeStruct((1, getattr(model_cfg, "init_length", 1)), jnp.int32)


def example_numbers(program: Program) -> tuple[Hps, dict[str, Any]]:
    """Returns (hps, scalings) of a run of this program: float32 scalars with arbitrary values."""
    metas = abstract_metas(program.model_class, program.model)
    return as_float32(Hps(*(1.0 for _ in Hps._fields))), jax.tree.map(
        lambda _: as_float32(Scaling()), metas
    )


@functools.lru_cache(maxsize=8)
def abstract_state(program: Program) -> TrainState:
    """Returns the shapes and types of the state of a run."""
    return jax.eval_shape(make_train_fns(program).init, np.uint32(0), *example_numbers(program))


def state_shardings(program: Program, layout: Layout) -> TrainState:
    """Returns the shardings of a run's state.

    Parameters, and optimizer state with the structure of the parameters, follow their axes; the
    rest is replicated.
    """
    state = abstract_state(program)
    structure = jax.tree.structure(state.params)
    of_params = jax.tree.map(layout.stored, abstract_metas(program.model_class, program.model))

    def is_like_params(x):
        return jax.tree.structure(x) == structure

    return jax.tree.map(
        lambda x: of_params if is_like_params(x) else layout.whole, state, is_leaf=is_like_params
    )


def init_options() -> dict[str, Any] | None:
    """Returns XLA options for compiling an initialization, which runs once.

    On CPU compilation takes half the time, and the program is as fast.
    """
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None
    return {"xla_backend_optimization_level": 1}


def effective(params, scalings, dtype) -> dict[str, Any]:
    """Returns a module's variables: masters times their forward factors, in `dtype`."""
    return {"params": jax.tree.map(lambda w, s: (w * s.forward).astype(dtype), params, scalings)}


def tensor_rms(before, after, scalings) -> dict[str, Any]:
    """Returns what an update has done, from the weights before and after it.

    These are the global norm of the update (of stored weights); and by tensor the root mean squares
    of stored weights, of their update, and of effective weights, all after it.
    """

    def rms(x):
        return jnp.sqrt(jnp.mean(jnp.square(x)))

    updates = jax.tree.map(jnp.subtract, after, before)
    tensors = {
        jax.tree_util.keystr(path, simple=True, separator="/"): {
            "rms": rms(w),
            "update_rms": rms(update),
            "effective_rms": jnp.abs(s.forward) * rms(w),
        }
        for (path, w), update, s in zip(
            jax.tree.leaves_with_path(after),
            jax.tree.leaves(updates),
            jax.tree.leaves(scalings, is_leaf=lambda x: isinstance(x, Scaling)),
            strict=True,
        )
    }
    return {"update_norm": optax.tree.norm(updates), "tensors": tensors}


def make_train_fns(program: Program, layout: Layout = ONE_DEVICE) -> TrainFns:
    """Returns the functions of a program.

    layout: placement of a run's arrays.

    init(seed, hps, scalings) -> TrainState: draws scaled by the table; a tensor's draw depends only
    on the seed and the tensor's place in its module.
    step(state, rows, hps, scalings) -> (TrainState, METRICS): one update on integer rows [B, T +
    1]; loss: mean in nats over the tokens that count.
    evaluate(params, rows, hps, scalings) -> the same loss of integer rows [any, T + 1].
    activations(params, rows, hps, scalings) -> tree of the arrays that the model records by name.
    """
    module = program.model_class(program.model, layout=layout)
    # For weights that are gathered already, see Layout
    gathered = program.model_class(program.model, layout=dataclasses.replace(layout, gathered=True))
    schedule = SCHEDULES[program.schedule]
    dtype, vocab_size, eos_id = (
        jnp.dtype(program.model.dtype),
        program.model.vocab_size,
        program.eos_id,
    )
    metas = abstract_metas(program.model_class, program.model)
    is_apart = reads_out_apart(module)

    def optimizer(step, hps, scalings):
        numbers = hps, scalings, schedule(step, hps)
        return make_optimizer(
            program.optimizer, program.decay_form, metas, *numbers, program.momentum_dtype
        )

    def objective(weights, readout, rows, hps):
        """Returns the mean cross-entropy over all positions, 0 where masked, to differentiate.

        weights, readout: effective weights; those of the readout may be in another dtype.
        """
        tokens = rows.astype(jnp.int32)
        if is_apart:
            features_BTD = cast(
                jax.Array, module.apply(weights, tokens[:, :-1], hps, method="features")
            )
            features_BTD = features_BTD.astype(jax.tree.leaves(readout)[0].dtype)
            # Weights are gathered once, not per chunk of the loss; XLA drops those that are unused.
            readout = {"params": jax.tree.map(layout.weight, readout["params"], metas)}
            logits = functools.partial(gathered.apply, readout, hps=hps, method="logits")
            return mean_cross_entropy(
                logits, features_BTD, tokens[:, 1:], vocab_size, eos_id, unrolled=layout.is_split
            )
        logits_BTV = cast(jax.Array, module.apply(weights, tokens[:, :-1], hps))
        # A classifier predicts only the last tokens.
        return mean_cross_entropy(
            lambda x: x, logits_BTV, tokens[:, -logits_BTV.shape[1] :], vocab_size, eos_id
        )

    def gradient(params, rows, hps, scalings):
        """Returns (objective, gradient by the effective weights in the dtype of the stored ones).

        The batch is cut into program.accumulation parts, one after the other.
        """
        weights = effective(params, scalings, dtype)

        def of_part(rows):
            loss, grads = jax.value_and_grad(
                lambda weights: objective(weights, weights, rows, hps)
            )(weights)
            return loss, jax.tree.map(lambda g, w: g.astype(w.dtype), grads["params"], params)

        if program.accumulation == 1:
            return of_part(rows)

        def add(total, part):
            return jax.tree.map(jnp.add, total, of_part(part)), None

        # Every part takes rows from all over the batch, so that a batch split over devices stays
        # split.
        parts = jnp.moveaxis(rows.reshape(-1, program.accumulation, rows.shape[1]), 1, 0)
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, parts[0])
        )
        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x / program.accumulation, total)

    def mask_mean(rows):
        return 1.0 if eos_id is None else jnp.mean(until_first(eos_id, rows[:, 1:]))

    def evaluate(params, rows, hps, scalings):
        # The readout is at least float32, whatever the dtype of the rest, as in 2404.05728's code.
        weights, precise = (
            effective(params, scalings, d) for d in (dtype, jnp.promote_types(dtype, jnp.float32))
        )
        return objective(weights, precise, rows, hps) / mask_mean(rows)

    def activations(params, rows, hps, scalings):
        tokens = rows.astype(jnp.int32)[:, :-1]
        _, recorded = cast(
            Any,
            module.apply(effective(params, scalings, dtype), tokens, hps, mutable=["activations"]),
        )
        return recorded["activations"]

    def init(seed, hps, scalings):
        first = _first_tokens(program.model)
        tokens = jnp.zeros(first.shape, first.dtype)
        # Weights are placed by who compiles this; nothing is computed with them here
        unplaced = program.model_class(program.model)
        draws, _ = unbox(unplaced.init(jax.random.key(seed), tokens, hps)["params"])
        params = jax.tree.map(lambda w, s: w * s.init, draws, scalings)
        step = jnp.int32(0)
        return TrainState(step, params, optimizer(step, hps, scalings).init(params))

    def step(state, rows, hps, scalings):
        loss, grads = gradient(state.params, rows, hps, scalings)
        chain = optimizer(state.step, hps, scalings)
        updates, opt_state = chain.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        learning_rate = hps.learning_rate * schedule(state.step, hps)
        metrics = dict(
            zip(
                METRICS,
                (loss / mask_mean(rows), optax.tree.norm(grads), learning_rate),
                strict=True,
            )
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    return TrainFns(init, step, evaluate, activations)
