"""Pieces shared by the architectures. Axes: B batch, T query, S key, D embed, H heads, K head_dim, F mlp."""

import jax
import jax.numpy as jnp

from mujax.params import MuModule


def at_least_float32(x):
    """bfloat16 -> float32; float32 and float64 as they are."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def scaled(x, factor):
    """x times a traced factor, in the dtype of x."""
    return x * jnp.asarray(factor, x.dtype)


def rms_norm(x, eps: float):
    """x / RMS(x) over the last axis (1910.07467), computed in float32 or better, returned in x's dtype."""
    precise = at_least_float32(x)
    mean_square = jnp.mean(precise * precise, axis=-1, keepdims=True)
    return (precise * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)


class RMSNorm(MuModule):
    """RMSNorm over embed; with cfg.norm_gain a trainable gain per coordinate, initially one."""

    def __call__(self, x_BTD):
        x_BTD = rms_norm(x_BTD, self.cfg.norm_eps)
        if self.cfg.norm_gain:
            # A vector broadcasts over batch and time; written out, so that no rank is promoted silently.
            x_BTD = jnp.einsum("BTD,D->BTD", x_BTD, self.gain_D)
        return x_BTD

    def setup(self):
        if self.cfg.norm_gain:
            self.gain_D = self.weight("gain", "vector", "-> embed", dist="ones")


def rope(x_BTHK, base: float):
    """Rotary position embedding (2104.09864) over the whole head; pairs are (k, k + K/2)."""
    seq_len, d_head = x_BTHK.shape[1], x_BTHK.shape[3]
    freqs_K = base ** (-jnp.arange(0, d_head, 2, dtype=jnp.float32) / d_head)
    angles_TK = jnp.outer(jnp.arange(seq_len, dtype=jnp.float32), freqs_K)
    cos_TK, sin_TK = (f(angles_TK)[None, :, None, :].astype(x_BTHK.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([first * cos_TK - second * sin_TK, second * cos_TK + first * sin_TK], axis=-1)


def causal_softmax(logits_BHTS):
    """Softmax over keys S at or before query T, in float32 or better, returned in the dtype of the logits."""
    seq_len = logits_BHTS.shape[-1]
    mask_TS = jnp.tril(jnp.ones((1, 1, seq_len, seq_len), bool))
    logits = jnp.where(mask_TS, at_least_float32(logits_BHTS), -jnp.inf)
    return jax.nn.softmax(logits, axis=-1).astype(logits_BHTS.dtype)
