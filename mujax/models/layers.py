"""Pieces shared by the architectures. Axes: B batch, T query, S key, D embed, H heads, K head_dim,
F mlp."""

import functools
import math

import jax
import jax.numpy as jnp

from mujax.errors import UserError
from mujax.hps import Hps
from mujax.models.module import MuModule


def exact_product(ratio: float, size: float) -> float:
    """Returns ratio x size, rounded where it is a whole number but for the rounding of floats (2.2
    x 200)."""
    product = ratio * size
    # From 2^53 on every float is whole. 1e-15: a rounding of the ratio and one of the product are
    # 2.2e-16.
    is_whole = product < 2**53 and math.isclose(product, round(product), rel_tol=1e-15)
    return round(product) if is_whole else product


def at_least_float32(x):
    """Casts bfloat16 to float32; float32 and float64 stay."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def scaled(x, factor):
    """Multiplies x by a traced factor, in the dtype of x."""
    return x * jnp.asarray(factor, x.dtype)


def along_last(x, like):
    """Reshapes x so that it broadcasts over the first axes of `like`; JAX promotes no rank by
    itself here."""
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def with_bias(module: MuModule, x, name: str, outs: str):
    """Adds a bias over the last axes of x, `outs`, where module.cfg.bias asks for one."""
    if not module.cfg.bias:
        return x
    return x + along_last(module.weight(name, "vector", f"-> {outs}", dist="zeros"), x)


class LanguageModel(MuModule):
    """An architecture whose readout stands apart, so that training never holds the float32 logits
    of a whole batch.

    features(tokens [B, T], hps) -> [B, T, D]; position t sees tokens 0..t.
    logits(features [B, any, D], hps) -> [B, any, V], each position by itself.
    Any other MuModule with a __call__ of this kind can be trained as well, without that.
    One that can go on from a cache is a Decoder too (mujax.models.protocol).
    """

    def __call__(self, tokens_BT, hps: Hps):
        """Maps int tokens [B, T] to logits [B, T, V], in cfg.dtype."""
        return self.logits(self.features(tokens_BT, hps), hps)

    def features(self, tokens_BT, hps: Hps) -> jax.Array:
        raise self._incomplete("features")

    def logits(self, x_BTD, hps: Hps) -> jax.Array:
        raise self._incomplete("logits")

    def _incomplete(self, method: str) -> UserError:
        return UserError(
            f"{type(self).__name__} has no {method}(); write it, or one __call__ for the whole "
            "model"
        )


def reads_out_apart(module: MuModule) -> bool:
    """Returns whether a module is called by features and logits, rather than by a __call__ of its
    own."""
    return type(module).__call__ is LanguageModel.__call__


def normalize(x, kind: str, eps: float):
    """Normalizes over the last axis in the dtype of x: x / RMS(x) (rms, 1910.07467), of x - mean(x)
    for layer (1607.06450)."""
    if kind == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + jnp.asarray(eps, x.dtype))


class Norm(MuModule):
    """RMSNorm or LayerNorm over the last axis, named `axis`, with the gains that cfg.norm_gain asks
    for.

    A LayerNorm has a bias too where cfg.bias gives one to the projections.
    """

    axis: str = "embed"

    def setup(self):
        if self.cfg.norm_gain != "none":
            outs = self.axis if self.cfg.norm_gain == "vector" else ""
            self.gain = self.weight("gain", "vector", f"-> {outs}", dist="ones")
        if self.cfg.norm == "layer" and self.cfg.bias:
            self.bias = self.weight("bias", "vector", f"-> {self.axis}", dist="zeros")

    def __call__(self, x):
        precise = x if self.cfg.low_precision else at_least_float32(x)
        x = normalize(precise, self.cfg.norm, self.cfg.norm_eps).astype(x.dtype)
        if self.cfg.norm_gain != "none":
            x = x * along_last(self.gain, x)
        if self.cfg.norm == "layer" and self.cfg.bias:
            x = x + along_last(self.bias, x)
        return x


def rope(x_BTHK, base: float, position=0):
    """Rotates pairs (k, k + K/2) of the whole head by their position (2104.09864).

    position: of the first of the T tokens.
    """
    seq_len, d_head = x_BTHK.shape[1], x_BTHK.shape[3]
    freqs_K = base ** (-jnp.arange(0, d_head, 2, dtype=jnp.float32) / d_head)
    angles_TK = jnp.outer((position + jnp.arange(seq_len)).astype(jnp.float32), freqs_K)
    cos_TK, sin_TK = (
        f(angles_TK)[None, :, None, :].astype(x_BTHK.dtype) for f in (jnp.cos, jnp.sin)
    )
    first, second = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate(
        [first * cos_TK - second * sin_TK, second * cos_TK + first * sin_TK], axis=-1
    )


def squared_relu(x):
    return jnp.square(jax.nn.relu(x))


_gelu = functools.partial(jax.nn.gelu, approximate=False)

# Of the MLP; the gated ones multiply a second projection by the activation of the first
# (2002.05202)
ACTIVATIONS = {"relu": jax.nn.relu, "sqrelu": squared_relu, "gelu": _gelu, "silu": jax.nn.silu}
GATED = {"swiglu": jax.nn.silu, "geglu": _gelu}
