"""The numbers of a run that are traced, so that one compiled program serves every point of a
sweep."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np


class Hps(NamedTuple):
    """Hyperparameters as numbers: Python floats, scalars in jit, or a batch with a leading axis.

    learning_rate: peak LR of a tensor whose table factor is 1.
    weight_decay, b1, b2, eps: see mujax.optimizers; those of a tensor whose table factors are 1.
    grad_clip: global-norm bound on the gradient of the effective weights; inf for none.
    warmup_steps, decay_steps, total_steps, final_ratio: see mujax.schedules.
    attention_scale, residual_scale, logits_scale, embedding_scale: the forward scales of the
      parameterization, on q.k before the softmax, on what a branch adds to the residual stream, on
      the logits, and on the embedded tokens.
    """

    learning_rate: float | jax.Array
    weight_decay: float | jax.Array
    b1: float | jax.Array
    b2: float | jax.Array
    eps: float | jax.Array
    grad_clip: float | jax.Array
    warmup_steps: float | jax.Array
    decay_steps: float | jax.Array
    total_steps: float | jax.Array
    final_ratio: float | jax.Array
    attention_scale: float | jax.Array
    residual_scale: float | jax.Array
    logits_scale: float | jax.Array
    embedding_scale: float | jax.Array


def stack(trees: Sequence):
    """[tree of numbers] -> the same tree of float32 arrays with a leading axis, one entry a run."""
    return jax.tree.map(lambda *leaves: np.asarray(leaves, np.float32), *trees)


def as_float32(tree):
    """Tree of numbers -> tree of float32 scalars, so that every run presents jit with the same
    types."""
    return jax.tree.map(np.float32, tree)
