"""Optax chains from traced hyperparameters and per-tensor scalings.

The chain is built inside the training step: construction costs nothing at run time, and every number
in it may be traced or vmapped.
"""

import jax
import optax

from mujax.hps import Hps
from mujax.parameterization import is_scaling

# Where the decay term enters the chain. With w the stored weight, lr its tensor's learning rate and
# schedule the multiplier of the step, one step without gradient changes w by
#   l2           nothing directly: weight_decay * w is added to the gradient, before Adam
#   decoupled    -lr * schedule * weight_decay * w   (AdamW as in optax and PyTorch)
#   independent  -schedule * weight_decay * w        (AdamW as in its paper, 1711.05101, Algorithm 2)
#   constant     -weight_decay * w
DECAY_FORMS = ("l2", "decoupled", "independent", "constant")


def _scale_by_tree(factors) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _add_decay(coefficients) -> optax.GradientTransformation:
    """Adds coefficient * w to each tensor's update."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, w, c: u + c * w, updates, params, coefficients)
    )


def make_adamw(decay_form: str, hps: Hps, scalings, multiplier) -> optax.GradientTransformation:
    """AdamW (1711.05101) with per-tensor learning rate, eps and decay.

    Args:
      decay_form: one of DECAY_FORMS; static.
      hps: hyperparameters, possibly traced.
      scalings: tree of Scaling beside the parameters, possibly traced.
      multiplier: the schedule's value at this step.

    Clipping sees the gradients of the stored weights, and `decoupled` decay a tensor's own learning rate,
    so either makes two forms of one parameterization (equal effective weights, other stored ones) differ.

    Adam with eps * s on gradient g is Adam with eps on g / s, so a tensor's eps factor is applied by
    dividing its gradient: optax's own Adam then serves every tensor.
    """

    def per_tensor(f):
        return jax.tree.map(f, scalings, is_leaf=is_scaling)

    decay = per_tensor(lambda s: hps.weight_decay * s.weight_decay)
    stages = [
        ("clip", optax.clip_by_global_norm(hps.grad_clip)),
        ("l2", _add_decay(decay)),
        ("eps", _scale_by_tree(per_tensor(lambda s: 1 / s.eps))),
        ("adam", optax.scale_by_adam(hps.b1, hps.b2, hps.eps)),
        ("decoupled", _add_decay(decay)),
        ("learning_rate", _scale_by_tree(per_tensor(lambda s: hps.learning_rate * s.lr))),
        ("independent", _add_decay(decay)),
        ("schedule", optax.scale(multiplier)),
        ("constant", _add_decay(decay)),
        ("descend", optax.scale(-1.0)),
    ]
    return optax.chain(*(stage for name, stage in stages if name == decay_form or name not in DECAY_FORMS))


OPTIMIZERS = {"adamw": make_adamw}
