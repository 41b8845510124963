"""Optax chains from traced hyperparameters and per-tensor scalings.

The chain is built inside the training step: construction costs nothing at run time, and every
number in it may be traced or vmapped. It maps gradients of effective weights (forward factor times
stored weight) to updates of the stored weights. Clipping, l2 and decoupled decay act on effective
weights, so two forms of one parameterization, with equal effective weights, train alike.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from mujax.hps import Hps
from mujax.parameterization import is_scaling
from mujax.params import ParamMeta

# Where the decay term enters the chain. With w the weight, lr its tensor's learning rate (of the
# effective weight) and schedule the multiplier of the step, one step without gradient changes w by
#   l2           nothing directly: weight_decay * w is added to the gradient, before the optimizer
#   decoupled    -lr * schedule * weight_decay * w
#                AdamW as in optax and PyTorch; see Optimizer.decay_gauge
#   independent  -schedule * weight_decay * w
#                AdamW as in its paper (1711.05101, Algorithm 2)
#   constant     -weight_decay * w
DECAY_FORMS = ("l2", "decoupled", "independent", "constant")


def _no_tensor(meta: ParamMeta) -> bool:
    del meta
    return False


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer family: what it computes, and all that other modules must know about it.

    core: (metas, hps, dtype of the first moment) -> the transformation of gradients into updates at
      a learning rate of 1.
    column: the tables' column of learning rates.
    gauge: storing theta * W in place of W leaves the run as it is if the learning rate grows as
      theta^gauge. 2 if updates grow with the gradient, 1 if they do not depend on its size, 0 if
      they grow with the weight (2407.05872, section 2). The learning rate of the effective weight
      is lr * forward^gauge.
    hps: the fields of Hps that this optimizer reads, beside those that every optimizer reads.
    has_first_moment: whether it keeps an average of gradients, whose dtype can be chosen.
    orthogonalizes: (meta) -> whether the update of that tensor is an orthogonal matrix, of spectral
      norm 1. Such an update has no average of squares in which eps matters, and the table's
      learning rate holds the factor for shape, sqrt(fan_out / fan_in).
    """

    core: Callable[..., optax.GradientTransformation]
    column: str
    gauge: int
    hps: tuple[str, ...]
    has_first_moment: bool = True
    orthogonalizes: Callable[[ParamMeta], bool] = _no_tensor

    def decay_gauge(self, meta: ParamMeta, scaling):
        """Returns the factor that turns learning rate x weight decay into a stored weight's decay.

        With it the effective weight decays as the table says. For an orthogonalized matrix the
        factor takes back the tables' factor for shape. In the original Muon (KellerJordan/Muon,
        muon.py) a factor for shape multiplies the update alone, and every matrix shrinks by
        learning rate x weight decay. Otherwise wi and wo of an MLP, 1 to 4 and 4 to 1, would decay
        4x apart.
        """
        forward = scaling.forward**self.gauge
        return (
            forward * (meta.fan_in / meta.fan_out) ** 0.5 if self.orthogonalizes(meta) else forward
        )


def _adam(metas, hps: Hps, momentum_dtype):
    """Makes Adam (1412.6980)."""
    del metas
    return optax.scale_by_adam(hps.b1, hps.b2, hps.eps, mu_dtype=momentum_dtype)


def _sgd(metas, hps: Hps, momentum_dtype):
    """Makes SGD with undamped heavy-ball momentum b1: an update sums b1^k times past gradients."""
    del metas
    return optax.trace(hps.b1, accumulator_dtype=momentum_dtype)


def _lion(metas, hps: Hps, momentum_dtype):
    """Makes Lion (2302.06675): the update is the sign of an average of gradients."""
    del metas
    return optax.scale_by_lion(hps.b1, hps.b2, mu_dtype=momentum_dtype)


def _adafactor(metas, hps: Hps, momentum_dtype):
    """Makes Adafactor (1804.04235) without momentum, for each matrix of a stack by itself.

    Its constants are its own: decay 1 - t^-0.8, update clipping at 1, and updates relative to the
    RMS of the weight, of at least 1e-3.
    """
    del hps, momentum_dtype
    one_matrix = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=2),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    )
    return _per_matrix(one_matrix, metas)


def _muon(metas, hps: Hps, momentum_dtype):
    """Makes Muon (kellerjordan.github.io/posts/muon) for hidden matrices, and Adam for the rest.

    A matrix is [fan_in, fan_out] as the signature says; each matrix of a stack is orthogonalized by
    itself. The momentum is b1. The factor for shape is in the table, not here.
    """

    def axes(meta: ParamMeta):
        first, last = len(meta.batch), len(meta.axes)
        middle = first + len(meta.ins)
        return contrib.MuonDimensionNumbers(tuple(range(first, middle)), tuple(range(middle, last)))

    def dimension_numbers(params):
        # optax.partition masks the tensors that Adam updates.
        is_hidden = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        return jax.tree.map(
            lambda w, m: w if is_hidden(w) else axes(m), params, metas, is_leaf=is_hidden
        )

    muon = contrib.scale_by_muon(
        beta=hps.b1,
        eps=hps.eps,
        mu_dtype=momentum_dtype,
        weight_dimension_numbers=dimension_numbers,
    )
    labels = jax.tree.map(lambda m: "muon" if _is_hidden(m) else "adam", metas)
    return optax.partition({"muon": muon, "adam": _adam(metas, hps, momentum_dtype)}, labels)


def _is_hidden(meta: ParamMeta) -> bool:
    return meta.role in ("hidden", "kv")


def _per_matrix(
    transformation: optax.GradientTransformation, metas
) -> optax.GradientTransformation:
    """Applies a transformation to each matrix, as [fan_in, fan_out], or [fan_out] for a vector."""
    leaves, treedef = jax.tree.flatten(metas)

    def split(tree):
        def matrices(x, meta: ParamMeta):
            copies = math.prod(meta.sizes[: len(meta.batch)])
            return x.reshape(
                copies, *((meta.fan_in, meta.fan_out) if meta.ins else (meta.fan_out,))
            )

        return [matrices(x, meta) for x, meta in zip(jax.tree.leaves(tree), leaves, strict=True)]

    def init(params):
        return [jax.vmap(transformation.init)(x) for x in split(params)]

    def update(updates, state, params=None):
        each = zip(split(updates), state, split(params), strict=True)
        done = [jax.vmap(transformation.update)(*matrix) for matrix in each]
        joined = [
            jnp.reshape(cast(jax.Array, u), meta.sizes)
            for (u, _), meta in zip(done, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, joined), [matrix_state for _, matrix_state in done]

    return optax.GradientTransformation(init, update)


OPTIMIZERS = {
    "adamw": Optimizer(_adam, column="adam", gauge=1, hps=("b1", "b2", "eps")),
    "sgd": Optimizer(_sgd, column="sgd", gauge=2, hps=("b1",)),
    "lion": Optimizer(_lion, column="adam", gauge=1, hps=("b1", "b2")),
    "adafactor": Optimizer(_adafactor, column="adafactor", gauge=0, hps=(), has_first_moment=False),
    "muon": Optimizer(
        _muon, column="muon", gauge=1, hps=("b1", "b2", "eps"), orthogonalizes=_is_hidden
    ),
}


def make_optimizer(
    optimizer: Optimizer,
    decay_form: str,
    metas,
    hps: Hps,
    scalings,
    multiplier,
    momentum_dtype: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes the optax chain of an optimizer, with per-tensor learning rate, eps and decay.

    The chain maps gradients of the effective weights, given the stored weights, to updates of the
    stored weights. Adam with eps * s on gradient g is Adam with eps on g / s, so a tensor's eps
    factor is applied by dividing its gradient: optax's own optimizer then serves every tensor. The
    stored weight's gradient is `forward` times the gradient of the effective weight.

    Args:
      optimizer: one of OPTIMIZERS; static.
      decay_form: one of DECAY_FORMS; static.
      metas: tree of ParamMeta beside the parameters.
      hps: hyperparameters, possibly traced.
      scalings: tree of Scaling beside the parameters, possibly traced.
      multiplier: the schedule's value at this step.
      momentum_dtype: dtype of the first moment, where the optimizer has one; static. None for the
        dtype of the weights.
    """

    def per_tensor(f):
        return jax.tree.map(f, scalings, is_leaf=is_scaling)

    def scale(f):
        factors = per_tensor(f)
        return optax.stateless(
            lambda updates, _: jax.tree.map(lambda u, x: u * x, updates, factors)
        )

    def decay(f):
        """Returns the stage that adds f(scaling, meta) * weight decay * weight to the updates."""
        coefficients = jax.tree.map(
            lambda s, meta: hps.weight_decay * s.weight_decay * f(s, meta),
            scalings,
            metas,
            is_leaf=is_scaling,
        )
        return optax.stateless(
            lambda updates, params: jax.tree.map(
                lambda u, w, c: u + c * w, updates, params, coefficients
            )
        )

    def clip(grads, _):
        factor = jnp.minimum(1.0, hps.grad_clip / optax.tree.norm(grads))
        return jax.tree.map(lambda g: g * factor, grads)

    core = optimizer.core(metas, hps, momentum_dtype)
    if optimizer.gauge == 0:
        core = _on_effective_weights(core, scalings)
    elif "eps" in optimizer.hps:
        core = optax.chain(scale(lambda s: s.forward / s.eps), core)
    else:
        core = optax.chain(scale(lambda s: s.forward), core)
    stages = [
        ("clip", optax.stateless(clip)),
        ("l2", decay(lambda s, _: s.forward)),  # gradient of weight_decay / 2 |effective|^2
        ("core", core),
        ("learning_rate", scale(lambda s: hps.learning_rate * s.lr)),
        (
            "decoupled",
            decay(lambda s, meta: hps.learning_rate * s.lr * optimizer.decay_gauge(meta, s)),
        ),
        ("independent", decay(lambda s, _: 1.0)),
        ("schedule", optax.scale(multiplier)),
        ("constant", decay(lambda s, _: 1.0)),
        ("descend", optax.scale(-1.0)),
    ]
    return optax.chain(
        *(
            stage
            for stage_name, stage in stages
            if stage_name == decay_form or stage_name not in DECAY_FORMS
        )
    )


def _on_effective_weights(
    transformation: optax.GradientTransformation, scalings
) -> optax.GradientTransformation:
    """Wraps an optimizer that reads weights: it sees effective weights, and updates stored ones."""

    def effective(params):
        return jax.tree.map(lambda w, s: w * s.forward, params, scalings)

    def update(updates, state, params=None):
        updates, state = transformation.update(updates, state, effective(params))
        return jax.tree.map(lambda u, s: u / s.forward, updates, scalings), state

    return optax.GradientTransformation(
        lambda params: transformation.init(effective(params)), update
    )
