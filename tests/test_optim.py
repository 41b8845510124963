"""The optax chain against a second implementation in numpy, and schedules against closed forms."""

import jax
import numpy as np
import optax
import pytest

from mujax.hps import Hps
from mujax.optim import DECAY_FORMS, make_adamw
from mujax.parameterization import Scaling
from mujax.schedules import SCHEDULES

HPS = Hps(
    learning_rate=0.1, weight_decay=0.03, b1=0.8, b2=0.95, eps=0.01, grad_clip=1.5,
    warmup_steps=4, decay_steps=5, total_steps=20, final_ratio=0.1, attention_scale=0.0,
)  # fmt: skip
SCALINGS = {"a": Scaling(lr=0.25, eps=0.5, weight_decay=2.0), "b": Scaling(lr=3.0, eps=4.0)}


def numpy_adamw(params, grads_per_step, multipliers, decay_form):
    """Textbook AdamW, one tensor and one step at a time; no trick for eps."""
    params = {k: v.copy() for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, (grads, multiplier) in enumerate(zip(grads_per_step, multipliers, strict=True), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        clip = min(1.0, HPS.grad_clip / norm)
        for k, s in SCALINGS.items():
            decay, old = HPS.weight_decay * s.weight_decay, params[k].copy()
            g = grads[k] * clip + (decay * old if decay_form == "l2" else 0)
            m[k] = HPS.b1 * m[k] + (1 - HPS.b1) * g
            v[k] = HPS.b2 * v[k] + (1 - HPS.b2) * g**2
            m_hat, v_hat = m[k] / (1 - HPS.b1**t), v[k] / (1 - HPS.b2**t)
            lr = HPS.learning_rate * s.lr
            params[k] -= multiplier * lr * m_hat / (np.sqrt(v_hat) + HPS.eps * s.eps)
            params[k] -= {
                "l2": 0.0,
                "decoupled": lr * multiplier * decay * old,
                "independent": multiplier * decay * old,
                "constant": decay * old,
            }[decay_form]
    return params


@pytest.mark.parametrize("decay_form", DECAY_FORMS)
def test_adamw_equals_numpy(decay_form):
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (5,)}
    params = {k: rng.normal(size=s) for k, s in shapes.items()}
    # From far below the clip norm to far above it, and from below eps to above it
    grads = [{k: rng.normal(size=s) * 10.0 ** (i / 2 - 2) for k, s in shapes.items()} for i in range(8)]
    multipliers = np.linspace(0.2, 1.0, 8)
    with jax.enable_x64(True):
        state = make_adamw(decay_form, HPS, SCALINGS, 0.0).init(params)
        ours = params
        for g, multiplier in zip(grads, multipliers, strict=True):
            updates, state = make_adamw(decay_form, HPS, SCALINGS, multiplier).update(g, state, ours)
            ours = optax.apply_updates(ours, updates)
        for name, expected in numpy_adamw(params, grads, multipliers, decay_form).items():
            np.testing.assert_allclose(ours[name], expected, rtol=1e-12)


def test_decay_forms_differ():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=3), "b": rng.normal(size=3)}
    ends = [numpy_adamw(params, [{"a": np.ones(3), "b": np.ones(3)}] * 3, [0.5] * 3, form)["a"] for form in DECAY_FORMS]
    assert all(not np.allclose(x, y) for i, x in enumerate(ends) for y in ends[:i])


@pytest.mark.parametrize(
    ("name", "expected"),  # at steps 0, 3, 4, 12, 15, 20; warm-up 4, decay 5, total 20, final 0.1
    [
        ("constant", [0.25, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 1, 1, 0.55, 1 - 0.9 * 11 / 16, 0.1]),
        ("cosine", [0.25, 1, 1, 0.55, 0.1 + 0.45 * (1 + np.cos(np.pi * 11 / 16)), 0.1]),
        ("wsd", [0.25, 1, 1, 1, 1, 0.1]),
    ],
)
def test_schedule_at_its_corners(name, expected):
    values = [float(SCHEDULES[name](step, HPS)) for step in (0, 3, 4, 12, 15, 20)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_schedules_equal_optax_after_warmup():
    steps = np.arange(4, 20)
    linear = optax.linear_schedule(1.0, 0.1, 16)
    cosine = optax.cosine_decay_schedule(1.0, 16, alpha=0.1)
    for name, theirs in (("linear", linear), ("cosine", cosine)):
        np.testing.assert_allclose(SCHEDULES[name](steps, HPS), jax.vmap(theirs)(steps - 4), rtol=1e-5)


def test_no_warmup_starts_at_the_peak():
    assert float(SCHEDULES["linear"](0, HPS._replace(warmup_steps=0))) == 1.0
