"""Decoder-only transformer: pre-norm, RoPE, RMSNorm, ReLU MLP, untied unembedding, no biases.

The baseline of Lingle 2024 (2404.05728), at any size. No module holds a standard deviation or a
width-dependent constant: sizes of weights come from the parameterization, the attention scale from `hps`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.errors import UserError
from mujax.hps import Hps
from mujax.models.layers import RMSNorm, causal_softmax, rope
from mujax.params import MuModule


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shapes and options; every field is named and explained in configs/base.py."""

    d_model: int
    num_layers: int
    d_head: int
    mlp_ratio: float
    norm_gain: bool
    norm_eps: float
    rope_base: float
    dtype: str
    vocab_size: int

    def __post_init__(self):
        if self.d_model % self.d_head:
            raise UserError(
                f"model.d_head = {self.d_head} does not divide model.d_model = {self.d_model}: "
                f"d_model must be a multiple of d_head"
            )
        if self.d_head % 2:
            raise UserError(f"model.d_head = {self.d_head} is odd: RoPE rotates pairs, so it must be even")
        if self.mlp_ratio * self.d_model % 1:
            raise UserError(
                f"model.mlp_ratio = {self.mlp_ratio:g} times model.d_model = {self.d_model} is "
                f"{self.mlp_ratio * self.d_model:g}: the MLP width must be a whole number"
            )

    @property
    def dims(self) -> dict[str, int]:
        """Logical axis -> size."""
        return {
            "embed": self.d_model,
            "heads": self.d_model // self.d_head,
            "head_dim": self.d_head,
            "mlp": int(self.mlp_ratio * self.d_model),
            "vocab": self.vocab_size,
            "layers": self.num_layers,
        }

    def flops_per_token(self, seq_len: int) -> float:
        """Forward and backward matmul FLOPs a token: 6 N + 12 L D T (2204.02311, appendix B), no remat."""
        weights = self.num_layers * (4 + 2 * self.mlp_ratio) * self.d_model**2 + self.vocab_size * self.d_model
        return 6 * weights + 12 * self.num_layers * self.d_model * seq_len


class Attention(MuModule):
    @nn.compact
    def __call__(self, x_BTD, hps: Hps):
        wq_DHK, wk_DHK, wv_DHK = (self.weight(name, "hidden", "embed -> heads head_dim") for name in ("wq", "wk", "wv"))
        wo_HKD = self.weight("wo", "hidden", "heads head_dim -> embed")
        q_BTHK, k_BTHK, v_BTHK = (jnp.einsum("BTD,DHK->BTHK", x_BTD, w) for w in (wq_DHK, wk_DHK, wv_DHK))
        q_BTHK, k_BTHK = (rope(x, self.cfg.rope_base) for x in (q_BTHK, k_BTHK))
        logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BTHK)
        scale = jnp.asarray(hps.attention_scale, logits_BHTS.dtype)
        probs_BHTS = causal_softmax(logits_BHTS * scale)
        mixed_BTHK = jnp.einsum("BHTS,BSHK->BTHK", probs_BHTS, v_BTHK)
        return jnp.einsum("BTHK,HKD->BTD", mixed_BTHK, wo_HKD)


class MLP(MuModule):
    @nn.compact
    def __call__(self, x_BTD):
        wi_DF = self.weight("wi", "hidden", "embed -> mlp")
        wo_FD = self.weight("wo", "hidden", "mlp -> embed")
        h_BTF = jax.nn.relu(jnp.einsum("BTD,DF->BTF", x_BTD, wi_DF))
        return jnp.einsum("BTF,FD->BTD", h_BTF, wo_FD)


class Block(MuModule):
    """One layer, in the shape nn.scan wants: carry in, (carry, nothing) out."""

    @nn.compact
    def __call__(self, x_BTD, hps: Hps):
        x_BTD += Attention(self.cfg, name="attention")(RMSNorm(self.cfg, name="attention_norm")(x_BTD), hps)
        x_BTD += MLP(self.cfg, name="mlp")(RMSNorm(self.cfg, name="mlp_norm")(x_BTD))
        return x_BTD, None


class Transformer(MuModule):
    @nn.compact
    def __call__(self, tokens_BT, hps: Hps):
        """Int tokens [B, T] -> logits [B, T, V] in cfg.dtype; position t sees tokens 0..t."""
        embed_VD = self.weight("embed", "input", "vocab -> embed")
        unembed_DV = self.weight("unembed", "output", "embed -> vocab")
        x_BTD = jnp.take(embed_VD, tokens_BT, axis=0)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # hps: the same for every layer  # pyright: ignore[reportArgumentType]
            length=self.cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers", "size": self.cfg.num_layers},
        )
        x_BTD, _ = blocks(self.cfg, name="blocks")(x_BTD, hps)
        x_BTD = RMSNorm(self.cfg, name="final_norm")(x_BTD)
        return jnp.einsum("BTD,DV->BTV", x_BTD, unembed_DV)
