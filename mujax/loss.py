"""Cross-entropy of next tokens, without the float32 logits of a whole batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mujax.models.layers import at_least_float32

# Of the float32 logits of a chunk; more chunks than that leave matmuls too small to be fast
CHUNK_BYTES, MAX_CHUNKS = 2**22, 8


def cross_entropy(logits_BTV, targets_BT):
    """-log p(target) in nats, [B, T], in float32 or better."""
    logits_BTV = at_least_float32(logits_BTV)
    target_logits_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_logits_BT


def until_first(eos_id: int, targets_BT):
    """[B, T] float32: 1 up to the first eos_id of a row and on it, 0 after it (2404.05728)."""
    ends_BT = (targets_BT == eos_id).astype(jnp.int32)
    return (jnp.cumsum(ends_BT, axis=1) - ends_BT == 0).astype(jnp.float32)


def mean_cross_entropy(logits: Callable, x_BTD, targets_BT, vocab_size: int, eos_id: int | None):
    """Mean of the cross-entropy over B and T, where what comes after a row's first eos_id counts as 0.

    Args:
      logits: features [B, any, D] -> logits [B, any, V], each position by itself.
    """
    mask_BT = None if eos_id is None else until_first(eos_id, targets_BT)
    batch_size, seq_len = targets_BT.shape
    num_chunks = _num_chunks(batch_size, seq_len, vocab_size)

    def mean_of(chunk):
        x_BTD, targets_BT, mask_BT = chunk
        losses_BT = cross_entropy(logits(x_BTD), targets_BT)
        return jnp.mean(losses_BT if mask_BT is None else losses_BT * mask_BT)

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:]), 1, 0)

    whole = (x_BTD, targets_BT, mask_BT)
    if num_chunks == 1:
        return mean_of(whole)
    return jnp.mean(jax.lax.map(jax.checkpoint(mean_of), jax.tree.map(cut, whole)))


def _num_chunks(batch_size: int, seq_len: int, vocab_size: int) -> int:
    """Into how many parts along the sequence the readout is cut."""
    divisors = [n for n in range(1, MAX_CHUNKS + 1) if seq_len % n == 0]
    return next((n for n in divisors if 4 * batch_size * seq_len * vocab_size <= n * CHUNK_BYTES), divisors[-1])
