"""Cross-entropy of next tokens, without the float32 logits of a whole batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mujax.models.layers import at_least_float32

# Bytes of a chunk's logits, and the number of chunks beyond which matmuls are too small to be fast:
# 8 in float32, 4 in bfloat16. A chunk then has an eighth of the whole batch's float32 logits.
CHUNK_BYTES, CHUNKS_PER_BYTE = 2**22, 2


def cross_entropy(logits_BTV, targets_BT):
    """Returns -log p(target) in nats, [B, T], in float32 or better."""
    logits_BTV = at_least_float32(logits_BTV)
    target_logits_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_logits_BT


def until_first(eos_id: int, targets_BT):
    """Returns [B, T] float32: 1 up to and with a row's first eos_id, 0 after it (2404.05728)."""
    ends_BT = (targets_BT == eos_id).astype(jnp.int32)
    return (jnp.cumsum(ends_BT, axis=1) - ends_BT == 0).astype(jnp.float32)


def mean_cross_entropy(
    logits: Callable, x_BTD, targets_BT, vocab_size: int, eos_id: int | None, unrolled: bool = False
):
    """Returns the mean cross-entropy over B and T; tokens after a row's first eos_id count as 0.

    Differentiable in x_BTD and in the weights that `logits` closes over. A chunk's gradient is
    computed with its loss, since the gradient from above only multiplies it: its logits are
    computed once, and are freed before those of the next chunk. Gradients of the weights are summed
    in the dtype of the weights.

    Args:
      logits: features [B, any, D] -> logits [B, any, V], each position by itself.
      unrolled: compiles chunks as consecutive code, not as a loop. If rows are split over devices,
        XLA then sums the gradients of all chunks before it exchanges them.
    """
    mask_BT = None if eos_id is None else until_first(eos_id, targets_BT)
    batch_size, seq_len = targets_BT.shape
    num_chunks = _num_chunks(batch_size * vocab_size, seq_len, x_BTD.dtype.itemsize)

    def mean_of(logits_BTV, targets_BT, mask_BT):
        losses_BT = cross_entropy(logits_BTV, targets_BT)
        return jnp.mean(losses_BT if mask_BT is None else losses_BT * mask_BT)

    if num_chunks == 1:
        return mean_of(logits(x_BTD), targets_BT, mask_BT)

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:]), 1, 0)

    labels = jax.tree.map(cut, (targets_BT, mask_BT))
    # `weights` are only those that `logits` uses. For others, gradients of zero would be added,
    # too.
    of_chunk, weights = jax.closure_convert(logits, jax.eval_shape(lambda x: cut(x)[0], x_BTD))

    @jax.custom_vjp
    def mean(x_BTD, *weights):
        def of(chunk):
            x_BTD, *labels = chunk
            return mean_of(of_chunk(x_BTD, *weights), *labels)

        return jnp.mean(jax.lax.map(of, (cut(x_BTD), *labels)))

    def forward(x_BTD, *weights):
        def add(total, chunk):
            x_BTD, targets_BT, mask_BT = chunk
            logits_BTV, pull = jax.vjp(of_chunk, x_BTD, *weights)
            share_BT = (
                jnp.full(targets_BT.shape, 1 / targets_BT.size)
                if mask_BT is None
                else mask_BT / mask_BT.size
            )
            loss, of_logits_BTV = _loss_and_gradient(logits_BTV, targets_BT, share_BT)
            of_x_BTD, *of_weights = pull(of_logits_BTV)
            return jax.tree.map(jnp.add, total, (loss, of_weights)), of_x_BTD

        zero = [jnp.zeros_like(w) for w in weights]
        chunks = (cut(x_BTD), *labels)
        start = jnp.zeros((), jnp.promote_types(x_BTD.dtype, jnp.float32)), zero
        (loss, of_weights), of_x_NBTD = jax.lax.scan(add, start, chunks, unroll=unrolled or 1)
        of_x_BTD = jnp.moveaxis(of_x_NBTD, 0, 1).reshape(x_BTD.shape)
        return loss / num_chunks, [g / num_chunks for g in (of_x_BTD, *of_weights)]

    mean.defvjp(forward, lambda gradient, g: tuple(x * g.astype(x.dtype) for x in gradient))
    return mean(x_BTD, *weights)


def _loss_and_gradient(logits_BTV, targets_BT, share_BT):
    """Returns the sum of cross-entropies times share_BT, and its gradient by the logits.

    The gradient is softmax - one-hot times share_BT, in the dtype of the logits.
    """
    precise_BTV = at_least_float32(logits_BTV)
    is_target_BTV = (
        jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    )
    log_sum_BT1 = jax.nn.logsumexp(precise_BTV, axis=-1, keepdims=True)
    target_BT = jnp.sum(jnp.where(is_target_BTV, precise_BTV, 0), axis=-1)
    gradient_BTV = (jnp.exp(precise_BTV - log_sum_BT1) - is_target_BTV) * share_BT[..., None]
    return jnp.sum((log_sum_BT1[..., 0] - target_BT) * share_BT), gradient_BTV.astype(
        logits_BTV.dtype
    )


def _num_chunks(logits_per_position: int, seq_len: int, itemsize: int) -> int:
    """Returns into how many chunks along the sequence the readout is cut."""
    divisors = [n for n in range(1, CHUNKS_PER_BYTE * itemsize + 1) if seq_len % n == 0]
    fitting = (n for n in divisors if 4 * logits_per_position * seq_len <= n * CHUNK_BYTES)
    return next(fitting, divisors[-1])
