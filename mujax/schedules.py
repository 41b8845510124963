"""Learning-rate schedules: pure functions of the step, between 0 and 1, with traced lengths.

Every schedule warms up linearly over `warmup_steps`: step 0 trains at 1 / warmup_steps of the peak.
After that it stays at 1 until it decays to `final_ratio`, reached at step `total_steps`, one after
the last update.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mujax.hps import Hps

Schedule = Callable[[Any, Hps], jax.Array]  # (step, hps) -> multiplier of the learning rate


def _with_warmup(after_warmup):
    def schedule(step, hps: Hps):
        step = jnp.asarray(step, jnp.float32)
        warm = (step + 1) / jnp.maximum(hps.warmup_steps, 1)
        return jnp.where(step < hps.warmup_steps, warm, after_warmup(step, hps))

    return schedule


def _decayed(step, first, hps: Hps):
    """Returns the decayed share: 0 up to step `first`, 1 from total_steps on, linear between."""
    return jnp.clip((step - first) / jnp.maximum(hps.total_steps - first, 1), 0, 1)


def _constant(step, hps: Hps):
    return jnp.ones_like(step)


def _linear(step, hps: Hps):
    return 1 - (1 - hps.final_ratio) * _decayed(step, hps.warmup_steps, hps)


def _cosine(step, hps: Hps):
    half = 0.5 * (1 + jnp.cos(jnp.pi * _decayed(step, hps.warmup_steps, hps)))
    return hps.final_ratio + (1 - hps.final_ratio) * half


def _wsd(step, hps: Hps):
    """Returns the multiplier of warm-up, stable, decay (2404.06395), linear over the last
    decay_steps.
    """
    return 1 - (1 - hps.final_ratio) * _decayed(step, hps.total_steps - hps.decay_steps, hps)


SCHEDULES: dict[str, Schedule] = {
    "constant": _with_warmup(_constant),
    "linear": _with_warmup(_linear),
    "cosine": _with_warmup(_cosine),
    "wsd": _with_warmup(_wsd),
}
