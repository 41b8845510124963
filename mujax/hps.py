"""The traced numbers of a run, so that one compiled program serves every point of a sweep."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np


class Hps(NamedTuple):
    """Hyperparameters as numbers: Python floats, scalars in jit, or a batch with a leading axis.

    learning_rate: peak LR of a tensor whose table factor is 1.
    weight_decay, b1, b2, eps: values for a tensor whose table factors are 1; see mujax.optimizers.
    grad_clip: global-norm bound on the gradient of the effective weights; inf for none.
    warmup_steps, decay_steps, total_steps, final_ratio: see mujax.schedules.
    attention_scale, residual_scale, logits_scale, embedding_scale: the forward scales of the
      parameterization. They multiply q.k before the softmax, the output of a residual branch, the
      logits, and the embedded tokens.
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
    """Stacks trees of numbers into one tree of float32 arrays with a leading axis, one entry per
    run.
    """
    return jax.tree.map(lambda *leaves: np.asarray(leaves, np.float32), *trees)


def as_float32(tree):
    """Converts a tree of numbers to float32 scalars: jit then sees the same types in every run."""
    return jax.tree.map(np.float32, tree)
