"""The optax chain against a second implementation in numpy, and schedules against closed forms."""

import functools

import jax
import numpy as np
import optax
import pytest

from mujax.hps import Hps
from mujax.optimizers import DECAY_FORMS, OPTIMIZERS, make_optimizer
from mujax.parameterization import PARAMETERIZATIONS, Scaling, assign_rows, resolve
from mujax.params import signature
from mujax.schedules import SCHEDULES

HPS = Hps(
    learning_rate=0.1, weight_decay=0.03, b1=0.8, b2=0.95, eps=0.01, grad_clip=1.5,
    warmup_steps=4, decay_steps=5, total_steps=20, final_ratio=0.1, attention_scale=0.0,
    residual_scale=0.0,
    logits_scale=0.0, embedding_scale=0.0,
)  # fmt: skip
# Stored weights of `a` are half of the effective ones, and their gradients twice as large
SCALINGS = {
    "a": Scaling(forward=2.0, lr=0.25, eps=0.5, weight_decay=2.0),
    "b": Scaling(lr=3.0, eps=4.0),
}
DIMS = {"embed": 3, "mlp": 4, "vocab": 5, "layers": 2, "heads": 2, "head_dim": 2}
METAS = {"a": signature("hidden", "embed -> mlp", DIMS), "b": signature("vector", "-> vocab", DIMS)}


def by_effective(grads):
    """What the chain takes, from gradients by stored weights."""
    return {k: g / SCALINGS[k].forward for k, g in grads.items()}


def numpy_adamw(params, grads_per_step, multipliers, decay_form):
    """Textbook AdamW, one tensor and one step at a time; no trick for eps; clip and decay see
    effective weights."""
    params = {k: v.copy() for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for t, (grads, multiplier) in enumerate(zip(grads_per_step, multipliers, strict=True), start=1):
        norm = np.sqrt(sum(((g / SCALINGS[k].forward) ** 2).sum() for k, g in grads.items()))
        clip = min(1.0, HPS.grad_clip / norm)
        for k, s in SCALINGS.items():
            decay, old = HPS.weight_decay * s.weight_decay, params[k].copy()
            # The gradient of decay / 2 |effective|^2 with respect to what is stored
            g = grads[k] * clip + (decay * s.forward**2 * old if decay_form == "l2" else 0)
            m[k] = HPS.b1 * m[k] + (1 - HPS.b1) * g
            v[k] = HPS.b2 * v[k] + (1 - HPS.b2) * g**2
            m_hat, v_hat = m[k] / (1 - HPS.b1**t), v[k] / (1 - HPS.b2**t)
            lr = HPS.learning_rate * s.lr
            params[k] -= multiplier * lr * m_hat / (np.sqrt(v_hat) + HPS.eps * s.eps)
            params[k] -= {
                "l2": 0.0,
                "decoupled": lr * s.forward * multiplier * decay * old,
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
    grads = [
        {k: rng.normal(size=s) * 10.0 ** (i / 2 - 2) for k, s in shapes.items()} for i in range(8)
    ]
    multipliers = np.linspace(0.2, 1.0, 8)
    with jax.enable_x64(True):
        state = make_optimizer(OPTIMIZERS["adamw"], decay_form, METAS, HPS, SCALINGS, 0.0).init(
            params
        )
        ours = params
        for g, multiplier in zip(grads, multipliers, strict=True):
            chain = make_optimizer(
                OPTIMIZERS["adamw"], decay_form, METAS, HPS, SCALINGS, multiplier
            )
            updates, state = chain.update(by_effective(g), state, ours)
            ours = optax.apply_updates(ours, updates)
        for name, expected in numpy_adamw(params, grads, multipliers, decay_form).items():
            np.testing.assert_allclose(ours[name], expected, rtol=1e-12)


def one_step(name, params, grads, metas, **scaling):
    """-update / learning rate of each tensor, no clip, no decay, at the first step from
    `params`."""
    scalings = dict.fromkeys(params, Scaling(**scaling))
    hps = HPS._replace(learning_rate=1.0, weight_decay=0.0, grad_clip=np.inf, eps=1e-12)
    chain = make_optimizer(OPTIMIZERS[name], "decoupled", metas, hps, scalings, 1.0)
    updates, _ = jax.jit(chain.update)(grads, chain.init(params), params)
    return jax.tree.map(lambda u: -np.asarray(u), updates)


def test_muon_orthogonalizes_logical_matrices():
    """By singular values: each layer of a stack by itself, heads merged into one side; the rest is
    Adam's."""
    rng = np.random.default_rng(0)
    metas = {
        "wo": signature("hidden", "layers | heads head_dim -> embed", DIMS),
        "unembed": signature("output", "embed -> vocab", DIMS),
    }
    grads = {name: rng.normal(size=meta.sizes) for name, meta in metas.items()}
    grads["wo"][1] *= 100.0
    with jax.enable_x64(True):
        updates = one_step("muon", jax.tree.map(np.zeros_like, grads), grads, metas)
    for layer in range(2):
        u, _, vt = np.linalg.svd(grads["wo"][layer].reshape(4, 3), full_matrices=False)
        ours = updates["wo"][layer].reshape(4, 3)
        values = np.diag(u.T @ ours @ vt.T)  # the same singular vectors ...
        np.testing.assert_allclose(ours, u @ np.diag(values) @ vt, atol=1e-12)
        # ... all values near 1, as Newton-Schulz leaves them
        assert np.all((values > 0.6) & (values < 1.3))
    np.testing.assert_allclose(updates["unembed"], np.sign(grads["unembed"]), rtol=1e-6)


def test_muon_decays_every_matrix_alike():
    """As KellerJordan/Muon, whose factor for shape multiplies the update alone: at a gradient of 0,
    1 to 4 and 4 to 1 shrink by learning rate x weight decay."""
    sizes = {"embed": 4, "mlp": 16, "vocab": 8, "heads": 2, "head_dim": 2, "kv_heads": 1}
    metas = {
        "wi": signature("hidden", "embed -> mlp", sizes),
        "wo": signature("hidden", "mlp -> embed", sizes),
        "wk": signature("kv", "embed -> kv_heads head_dim", sizes),
        "unembed": signature("output", "embed -> vocab", sizes),
    }
    scalings = resolve(assign_rows(PARAMETERIZATIONS["mup"], metas), metas, metas, "muon")
    params = {name: np.full(meta.sizes, 2.0) for name, meta in metas.items()}
    zero = jax.tree.map(np.zeros_like, params)
    with jax.enable_x64(True):
        chain = make_optimizer(OPTIMIZERS["muon"], "decoupled", metas, HPS, scalings, 0.5)
        updates, _ = jax.jit(chain.update)(zero, chain.init(params), params)
    for name, update in updates.items():
        np.testing.assert_allclose(
            update, -0.5 * HPS.learning_rate * HPS.weight_decay * params[name], err_msg=name
        )
    for name, meta in metas.items():  # the learning rate keeps the factor for shape
        shape = (meta.fan_out / meta.fan_in) ** 0.5 if meta.role in ("hidden", "kv") else 1
        assert np.isclose(scalings[name].lr, shape)


def test_adafactor_factors_each_logical_matrix():
    """First step, written out: g / sqrt(row mean x column mean / mean), clipped to RMS 1, times RMS
    of the weight."""
    rng = np.random.default_rng(0)
    metas = {"wo": signature("hidden", "layers | heads head_dim -> embed", DIMS)}
    grads, params = (
        {"wo": rng.normal(size=(2, 2, 2, 3)) * np.array([1.0, 50.0]).reshape(2, 1, 1, 1)}
        for _ in "gp"
    )
    with jax.enable_x64(True):
        ours = one_step("adafactor", params, grads, metas, forward=1.0)["wo"]
        half = one_step("adafactor", {"wo": params["wo"] / 2}, grads, metas, forward=2.0)["wo"]
    for layer in range(2):
        g, w = grads["wo"][layer].reshape(4, 3), params["wo"][layer].reshape(4, 3)
        v = np.outer((g**2).mean(1), (g**2).mean(0)) / (g**2).mean()
        u = g / np.sqrt(v)
        u /= max(1.0, np.sqrt((u**2).mean()))
        np.testing.assert_allclose(ours[layer].reshape(4, 3), u * np.sqrt((w**2).mean()), rtol=1e-6)
    # the effective update, whatever is stored
    np.testing.assert_allclose(2 * half, ours, rtol=1e-10)


def test_lion_and_sgd_equal_textbook():
    rng = np.random.default_rng(0)
    grads = [{"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)} for _ in range(4)]
    params = jax.tree.map(np.zeros_like, grads[0])
    hps = HPS._replace(weight_decay=0.0, grad_clip=np.inf)
    with jax.enable_x64(True):
        for name in ("lion", "sgd"):
            state = make_optimizer(OPTIMIZERS[name], "decoupled", METAS, hps, SCALINGS, 1.0).init(
                params
            )
            momentum = jax.tree.map(np.zeros_like, params)
            for g in grads:
                chain = make_optimizer(OPTIMIZERS[name], "decoupled", METAS, hps, SCALINGS, 1.0)
                updates, state = chain.update(by_effective(g), state, params)
                for k, s in SCALINGS.items():
                    if name == "sgd":
                        momentum[k] = hps.b1 * momentum[k] + g[k]
                        expected = momentum[k]
                    else:
                        expected = np.sign(hps.b1 * momentum[k] + (1 - hps.b1) * g[k])
                        momentum[k] = hps.b2 * momentum[k] + (1 - hps.b2) * g[k]
                    np.testing.assert_allclose(
                        updates[k], -hps.learning_rate * s.lr * expected, rtol=1e-12
                    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_says_of_itself_is_what_it_does(name):
    """Each fact in OPTIMIZERS against updates: of three steps, and with one thing changed at a
    time."""
    optimizer, rng = OPTIMIZERS[name], np.random.default_rng(0)
    texts = {
        "hidden": "embed -> mlp",
        "kv": "embed -> mlp",
        "input": "vocab -> mlp",
        "output": "embed -> vocab",
    }
    metas = {role: signature(role, text, DIMS) for role, text in texts.items()}
    metas["vector"] = signature("vector", "-> mlp", DIMS)
    params, *grads = (
        {role: rng.normal(size=meta.sizes) for role, meta in metas.items()} for _ in range(4)
    )
    plain = HPS._replace(weight_decay=0.0, grad_clip=np.inf)
    scalings = dict.fromkeys(metas, Scaling())

    @functools.partial(jax.jit, static_argnames="dtype")
    def run(params, factor, hps, dtype):
        chain = make_optimizer(OPTIMIZERS[name], "decoupled", metas, hps, scalings, 1.0, dtype)
        state = chain.init(params)
        for each in grads:
            updates, state = chain.update(
                {role: factor * grad for role, grad in each.items()}, state, params
            )
        return updates, state

    with jax.enable_x64(True):
        updates, _ = run(params, 1.0, plain, None)
        dtypes = {str(x.dtype) for x in jax.tree.leaves(run(params, 1.0, plain, "bfloat16")[1])}
        assert ("bfloat16" in dtypes) == optimizer.has_first_moment
        for role, meta in metas.items():
            if meta.ins:
                values = np.linalg.svd(-updates[role] / plain.learning_rate, compute_uv=False)
                # as Newton-Schulz leaves them
                is_orthogonal = 0.6 < values.min() and values.max() < 1.3
                assert is_orthogonal == optimizer.orthogonalizes(meta), (role, values)
        small = plain._replace(eps=1e-12)
        (before, _), (larger, _), (heavier, _) = (
            run(params, 1.0, small, None),
            run(params, 8.0, small, None),
            run(jax.tree.map(lambda w: 8.0 * w, params), 1.0, small, None),
        )
        by_gauge = {0: (1, 8), 1: (1, 1), 2: (8, 1)}[optimizer.gauge]
        for role in metas:
            found = (larger[role] / before[role]).mean(), (heavier[role] / before[role]).mean()
            np.testing.assert_allclose(found, by_gauge, rtol=1e-5, err_msg=role)
        for field in ("b1", "b2", "eps"):
            halved = plain._replace(**{field: 0.5 * getattr(plain, field)})
            changed, _ = run(params, 1.0, halved, None)
            is_read = any(
                not np.allclose(changed[role], updates[role], rtol=1e-9) for role in metas
            )
            assert is_read == (field in optimizer.hps), field


@functools.partial(jax.jit, static_argnames="name")
def after_five_steps(start, name):
    """Parameters after five steps down half their squares."""
    hps = HPS._replace(learning_rate=0.02, weight_decay=0.0)
    scalings = dict.fromkeys(start, Scaling())
    chain = make_optimizer(OPTIMIZERS[name], "decoupled", METAS, hps, scalings, 1.0)

    def step(_, carry):
        params, state = carry
        updates, state = chain.update(params, state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 5, step, (start, chain.init(start)))[0]


def test_every_optimizer_lowers_a_quadratic():
    start = {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float32)}
    for name in OPTIMIZERS:
        params = after_five_steps(start, name)
        assert all(np.abs(params[k]).sum() < np.abs(start[k]).sum() for k in params), name


def test_decay_forms_differ():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=3), "b": rng.normal(size=3)}
    ends = [
        numpy_adamw(params, [{"a": np.ones(3), "b": np.ones(3)}] * 3, [0.5] * 3, form)["a"]
        for form in DECAY_FORMS
    ]
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
        np.testing.assert_allclose(
            SCHEDULES[name](steps, HPS), jax.vmap(theirs)(steps - 4), rtol=1e-5
        )


def test_no_warmup_starts_at_the_peak():
    assert float(SCHEDULES["linear"](0, HPS._replace(warmup_steps=0))) == 1.0
