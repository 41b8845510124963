"""Small runs of every architecture, their weights, and the transformer written anew in NumPy."""

import math

import jax
import numpy as np
from conftest import tiny_tree

from mujax.config import make_run_config
from mujax.training.run import make_run

# Architecture -> what a small run of it needs beside tiny_tree
SMALL = {"moe": {"model__d_head": 8}, "cnn": {"data__seq_len": 3 * 8**2}}


def make(model, **overrides):
    """A small run of an architecture, 16 tokens a row; of images of 8 by 8."""
    tree = tiny_tree(model, **{**SMALL.get(model, {}), **overrides})
    tree.pop("sweep")
    return make_run(make_run_config(tree))


def apply(run):
    """Jitted (params, tokens, hps) -> logits."""
    module = run.program.model_class(run.cfg.model)
    return jax.jit(lambda params, tokens, hps: module.apply({"params": params}, tokens, hps))


def initial_params(run, seed=0):
    """Weights as large as at initialization, drawn with NumPy, so that nothing is compiled for
    them."""
    rng = np.random.default_rng(seed)
    draws = {"normal": rng.standard_normal, "zeros": np.zeros, "ones": np.ones}
    return jax.tree.map(
        lambda meta, s: np.float32(draws[meta.dist](meta.sizes) * s.init), run.metas, run.scalings
    )


# One or more options each, on three layers of width 32 with four heads
OPTIONS = {
    "baseline": {},
    "gains and biases": {"norm_gain": "vector", "bias": True},
    "scalar gains": {"norm_gain": "scalar"},
    "layer norm": {"norm": "layer", "norm_gain": "vector", "bias": True, "embedding_norm": True},
    "gpt": {"norm": "layer", "norm_gain": "vector", "position": "learned", "activation": "gelu"},
    "no positions, shared keys": {"position": "none", "num_kv_heads": 2, "activation": "silu"},
    "qk norm, one key head, swiglu": {
        "qk_norm": True, "norm_gain": "vector", "num_kv_heads": 1, "activation": "swiglu",
        "mlp_ratio": 2.5,
    },
    "biases, geglu, shared keys": {"bias": True, "activation": "geglu", "num_kv_heads": 2},
    "parallel": {"parallel": True, "activation": "sqrelu"},
    "squared relu attention": {"attention": "sqrelu"},
    "elu attention": {"attention": "elu"},
    "normalized squared relu attention": {"attention": "normalized_sqrelu"},
    "normalized elu attention": {"attention": "normalized_elu"},
}  # fmt: skip


def make_with(options, **overrides):
    model = {
        f"model__{name}": value
        for name, value in {"d_model": 32, "num_layers": 3, **options}.items()
    }
    return make("transformer", **model, **overrides)


def shaken(params):
    """Weights that are off zero and one too."""
    return jax.tree.map(
        lambda x: x + np.float32(0.1 * np.cos(np.arange(x.size)).reshape(x.shape)), params
    )


def in_numpy(cfg, params, tokens, attention_scale, window=10**6):
    """The logits of a transformer, from its definition: float64, one sequence and one head at a
    time.

    window: positions that a query sees, its own included.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, gains):
        x = x - x.mean(-1, keepdims=True) if cfg.norm == "layer" else x
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * gains.get(
            "gain", 1
        ) + gains.get("bias", 0)

    def rotate(x_TK):  # pairs as complex numbers
        half = x_TK.shape[1] // 2
        angles = np.outer(np.arange(len(x_TK)), cfg.rope_base ** (-np.arange(half) / half))
        z = (x_TK[:, :half] + 1j * x_TK[:, half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], 1)

    def cdf(x):
        return np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))(x)

    act = {
        "relu": lambda x: x * (x > 0),
        "sqrelu": lambda x: x**2 * (x > 0),
        "gelu": lambda x: x * cdf(x),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
        "exp": np.exp,
    }
    gates = {"swiglu": act["silu"], "geglu": act["gelu"]}

    def project(w, name, h, x_TD):
        weight = w[f"w{name}"]
        own = h * weight.shape[1] // cfg.num_heads  # neighbouring query heads share a key head
        bias = w[f"b{name}"][own] if cfg.bias else 0
        return x_TD @ weight[:, own] + bias

    def head(w, h, x_TD):
        q, k, v = (project(w, n, h, x_TD) for n in "qkv")
        if cfg.qk_norm:
            q, k = norm(q, w.get("q_norm", {})), norm(k, w.get("k_norm", {}))
        if cfg.position == "rope":
            q, k = rotate(q), rotate(k)
        mixed = np.zeros_like(v)
        kind = {"softmax": "exp", "normalized_sqrelu": "sqrelu", "normalized_elu": "elu"}.get(
            cfg.attention, cfg.attention
        )
        for t in range(len(q)):
            seen = slice(max(t + 1 - window, 0), t + 1)
            weights = act[kind](k[seen] @ q[t] * attention_scale)
            if cfg.attention == "softmax" or cfg.attention.startswith("normalized"):
                weights = weights / max(weights.sum(), 1e-6)
            mixed[t] = weights @ v[seen]
        return mixed @ w["wo"][h]

    def mlp(w, x_TD):
        h = x_TD @ w["wi"] + w.get("bi", 0)
        if cfg.activation in gates:
            h = gates[cfg.activation](x_TD @ w["wg"] + w.get("bg", 0)) * h
        else:
            h = act[cfg.activation](h)
        return h @ w["wo"] + w.get("bo", 0)

    def logits(ids):
        x = p["embed"][ids]
        if cfg.position == "learned":
            x = (x + p["position"][: len(ids)]) / np.sqrt(2)
        if cfg.embedding_norm:
            x = norm(x, p.get("embedding_norm", {}))
        for layer in range(cfg.num_layers):
            w = jax.tree.map(lambda x, i=layer: x[i], p["blocks"])
            read = norm(x, w.get("attention_norm", {}))
            x = (
                x
                + sum(head(w["attention"], h, read) for h in range(cfg.num_heads))
                + w["attention"].get("bo", 0)
            )
            x = x + mlp(w["mlp"], read if cfg.parallel else norm(x, w.get("mlp_norm", {})))
        return norm(x, p.get("final_norm", {})) @ p["unembed"] + p.get("unembed_bias", 0)

    return np.stack([logits(ids) for ids in tokens])
