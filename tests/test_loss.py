"""The loss in parts against the plain one: the same value and gradients, in a fraction of the
memory."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mujax.plan.topology import load_topology
from mujax.training.loss import cross_entropy, mean_cross_entropy, until_first

B, T, D, V = 8, 64, 32, 8192


def naive(weights, x_BTD, targets_BT, eos_id):
    """All logits at once, differentiated by jax."""
    losses_BT = cross_entropy(x_BTD @ weights["w"] + weights["b"], targets_BT)
    return jnp.mean(losses_BT if eos_id is None else losses_BT * until_first(eos_id, targets_BT))


def in_parts(weights, x_BTD, targets_BT, eos_id):
    return mean_cross_entropy(
        lambda x: x @ weights["w"] + weights["b"], x_BTD, targets_BT, V, eos_id
    )


def example(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    weights = {
        "w": jax.random.normal(keys[0], (D, V), dtype) / 4,
        "b": jax.random.normal(keys[1], (1, 1, V), dtype),
    }
    return (
        weights,
        jax.random.normal(keys[2], (B, T, D), dtype),
        jax.random.randint(keys[3], (B, T), 0, 64),
    )


@pytest.mark.parametrize("eos_id", [None, 7])
@pytest.mark.parametrize(
    ("dtype", "parts", "tolerance"), [("float32", 4, 1e-5), ("bfloat16", 4, 2e-2)]
)
def test_value_and_gradients(dtype, parts, tolerance, eos_id):
    example_of = example(jnp.dtype(dtype))

    def thrice(f):
        return jax.value_and_grad(lambda w, x: 3 * f(w, x, example_of[2], eos_id), (0, 1))

    program = str(jax.make_jaxpr(thrice(in_parts))(*example_of[:2]))
    assert program.count(f"length={parts}") == 1
    (found, of_found), (expected, of_expected) = (
        jax.jit(thrice(f))(*example_of[:2]) for f in (in_parts, naive)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-3)
    for a, b in zip(jax.tree.leaves(of_found), jax.tree.leaves(of_expected), strict=True):
        assert a.dtype == b.dtype == jnp.dtype(dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)
    # Without a gradient the same value, of which a lane axis changes nothing
    value = jax.jit(in_parts, static_argnums=3)(*example_of, eos_id)
    np.testing.assert_allclose(3 * value, expected, rtol=1e-3)
    lanes = jax.tree.map(lambda x: jnp.stack([x, x / 2]), example_of[:2])
    gradient = jax.grad(lambda w, x: in_parts(w, x, example_of[2], eos_id))
    both = jax.jit(jax.vmap(gradient))(*lanes)
    np.testing.assert_allclose(
        3 * both["w"][0].astype("float32"), of_found[0]["w"].astype("float32"), rtol=0.02, atol=1e-5
    )


def test_double_precision():
    """In which `check` compares runs."""
    with jax.enable_x64(True):
        weights, x_BTD, targets_BT = example(jnp.dtype("float64"))
        (found, of_found), (expected, of_expected) = (
            jax.jit(jax.value_and_grad(f, (0, 1)), static_argnums=3)(weights, x_BTD, targets_BT, 7)
            for f in (in_parts, naive)
        )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(of_found), jax.tree.leaves(of_expected), strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


def test_memory_is_at_most_a_quarter():
    """At a vocabulary of 32k, by the compiler's count of temporaries."""
    plain, parts = loss_bytes((16, 256), 64, 32_000, "float32", jax.devices()[0])
    assert plain >= 4 * 16 * 256 * 32_000  # all float32 logits
    assert parts <= plain / 4, (parts, plain)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this platform"
)
def test_memory_in_bfloat16_on_a_tpu():
    plain, parts = loss_bytes(
        (8, 256), 128, 32_100, "bfloat16", load_topology("v4:2x2x1").devices[0]
    )
    assert plain >= 4 * 8 * 256 * 32_100
    assert parts <= plain / 4, (parts, plain)


def loss_bytes(num_tokens, width, vocab, dtype, device):
    """Of (the naive form, the one in parts) and their gradients."""

    def bytes_of(f):
        where = jax.sharding.SingleDeviceSharding(device)
        shapes = (((width, vocab), dtype), ((*num_tokens, width), dtype), (num_tokens, "int32"))
        arrays = (
            jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where) for shape, dtype in shapes
        )
        compiled = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return (
        bytes_of(lambda w, x, t: jnp.mean(cross_entropy(x @ w, t))),
        bytes_of(lambda w, x, t: mean_cross_entropy(lambda x: x @ w, x, t, vocab, None)),
    )
