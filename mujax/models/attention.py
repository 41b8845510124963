"""Causal attention: its nonlinearities, and its implementations by name. Axes as in
mujax.models.layers.

Every implementation takes q [B, T, H, K] and k, v [B, S, G, K] with S = T; H is a multiple of G,
neighbouring query heads share keys. The attention scale is in q and k already. With document_BT,
the number of each token's document in its row, a query sees keys of its own document alone.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from mujax.models.layers import at_least_float32, squared_relu


def causal_mask(seq_len: int):
    """Returns [T, S]: whether a query sees a key, which it does at its own position and before."""
    return jnp.tril(jnp.ones((seq_len, seq_len), bool))


def softmax(logits, mask):
    return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)


def _positive(activation, normalized: bool):
    def weights(logits, mask):
        weights = jnp.where(mask, activation(logits), 0)
        if normalized:  # at least a little, for a query that no key activates
            weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)
        return weights

    return weights


def _elu(x):
    return 1 + jax.nn.elu(x)


# (logits [..., T, S], mask) -> weights of the values. elu is shifted by one, to be positive
# (2006.16236).
NONLINEARITIES = {
    "softmax": softmax,
    "sqrelu": _positive(squared_relu, normalized=False),
    "elu": _positive(_elu, normalized=False),
    "normalized_sqrelu": _positive(squared_relu, normalized=True),
    "normalized_elu": _positive(_elu, normalized=True),
}


def logits_of(q_BTHK, k_BSGK):
    """Returns the products of queries and keys, [B, H, T, S]."""
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    if G == H:  # no axis of size one, which makes XLA slower on CPU
        return jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSGK)
    grouped = jnp.einsum("BTGJK,BSGK->BGJTS", q_BTHK.reshape(B, T, G, H // G, K), k_BSGK)
    return grouped.reshape(B, H, T, S)


def mix(logits_BHTS, v_BSGK, nonlinearity: str, mask, low_precision: bool):
    """Returns the values weighted by the nonlinearity of the logits, [B, T, H, K].

    mask: [T, S] or [B, 1, T, S].
    """
    B, H, T, S = logits_BHTS.shape
    G = v_BSGK.shape[2]
    logits = logits_BHTS if low_precision else at_least_float32(logits_BHTS)
    mask = mask.reshape((1,) * (logits.ndim - mask.ndim) + mask.shape)
    weights_BHTS = NONLINEARITIES[nonlinearity](logits, mask).astype(v_BSGK.dtype)
    if G == H:
        return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSGK)
    weights_BGJTS = weights_BHTS.reshape(B, G, H // G, T, S)
    return jnp.einsum("BGJTS,BSGK->BTGJK", weights_BGJTS, v_BSGK).reshape(B, T, H, -1)


def same_document(document_BT):
    """Returns [B, 1, T, S]: whether a query and a key are of one document."""
    return (document_BT[:, :, None] == document_BT[:, None, :])[:, None]


def plain(q_BTHK, k_BSGK, v_BSGK, cfg: Any, document_BT=None, record=lambda name, x: None):
    """Computes attention with all logits at once; `record` is given the logits, [B, H, T, S]."""
    logits_BHTS = logits_of(q_BTHK, k_BSGK)
    record("attention_logits", logits_BHTS)
    mask = causal_mask(q_BTHK.shape[1])
    if document_BT is not None:
        mask = mask[None, None] & same_document(document_BT)
    return mix(logits_BHTS, v_BSGK, cfg.attention, mask, cfg.low_precision)


def dot_product(q_BTHK, k_BSGK, v_BSGK, cfg: Any, document_BT=None, record=lambda name, x: None):
    """Calls jax.nn.dot_product_attention: cuDNN's flash attention on GPU in bfloat16, XLA's
    elsewhere."""
    del record  # no logits to see
    is_flash = jax.default_backend() == "gpu" and cfg.dtype == "bfloat16"
    implementation = "cudnn" if is_flash else "xla"
    mask = None if document_BT is None else same_document(document_BT)
    return jax.nn.dot_product_attention(
        q_BTHK, k_BSGK, v_BSGK, mask=mask, scale=1.0, is_causal=True, implementation=implementation
    )


def splash(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    cfg: Any,
    document_BT=None,
    record=lambda name, x: None,
    interpret: bool = False,
):
    """Calls the splash attention kernel for TPUs, or interprets it; d_head and T are multiples of
    128.

    Other lengths, such as the one token that models are initialized on, go to `plain`.
    """
    if q_BTHK.shape[1] % 128:
        return plain(q_BTHK, k_BSGK, v_BSGK, cfg, document_BT, record)
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    seq_len, num_heads = q_BTHK.shape[1:3]
    mask = masks.MultiHeadMask([masks.CausalMask((seq_len, seq_len))] * num_heads)
    # mha serves heads that share keys as well
    attend = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)
    q_BHTK, k_BGSK, v_BGSK = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    segments = None if document_BT is None else kernel.SegmentIds(document_BT, document_BT)
    mixed_BHTK = cast(jax.Array, jax.vmap(attend)(q_BHTK, k_BGSK, v_BGSK, segments))
    return jnp.swapaxes(mixed_BHTK, 1, 2).astype(v_BSGK.dtype)


class Cache(NamedTuple):
    """Keys and values of the last W positions, [B, W, G, K]; those of position p are in slot p mod
    W."""

    k_BWGK: jax.Array
    v_BWGK: jax.Array


def cached(q_BTHK, k_BTGK, v_BTGK, cache: Cache, position, cfg: Any):
    """Computes attention of the T tokens from `position` on, each to the W positions that end with
    its own.

    Returns:
      (mixed [B, T, H, K], the cache with these tokens).
    """
    T, W = k_BTGK.shape[1], cache.k_BWGK.shape[1]
    new_T = position + jnp.arange(T)
    # A slot holds the last position before these that is congruent to it; a negative one is still
    # empty
    old_W = position - 1 - (position - 1 - jnp.arange(W)) % W
    key_S = jnp.concatenate([old_W, new_T])
    mask_TS = (
        (key_S[None] >= 0) & (key_S[None] > new_T[:, None] - W) & (key_S[None] <= new_T[:, None])
    )
    k_BSGK = jnp.concatenate([cache.k_BWGK, k_BTGK], axis=1)
    v_BSGK = jnp.concatenate([cache.v_BWGK, v_BTGK], axis=1)
    mixed_BTHK = mix(logits_of(q_BTHK, k_BSGK), v_BSGK, cfg.attention, mask_TS, cfg.low_precision)
    slots = new_T[-W:] % W  # of more tokens than W, the last ones stay
    k_BWGK, v_BWGK = (
        old.at[:, slots].set(new[:, -W:])
        for old, new in ((cache.k_BWGK, k_BTGK), (cache.v_BWGK, v_BTGK))
    )
    return mixed_BTHK, Cache(k_BWGK, v_BWGK)


IMPLEMENTATIONS = {"plain": plain, "dot_product": dot_product, "splash": splash}
