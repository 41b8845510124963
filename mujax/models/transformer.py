"""Decoder-only transformer: pre-norm, RoPE, RMSNorm, ReLU MLP, no biases; tied or untied, with GQA if asked.

The baseline of Lingle 2024 (2404.05728), at any size. No module holds a standard deviation or a
width-dependent constant: sizes of weights come from the parameterization, the attention scale from `hps`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.errors import UserError
from mujax.hps import Hps
from mujax.models.layers import RMSNorm, causal_softmax, rope, scaled
from mujax.params import MuModule


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shapes and options; every field is named and explained in configs/base.py."""

    d_model: int
    num_layers: int
    d_head: int
    mlp_ratio: float
    num_kv_heads: int
    tied: bool
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
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide the {self.num_heads} heads of "
                f"model.d_model / model.d_head: query heads share keys in groups of equal size"
            )
        if self.d_head % 2:
            raise UserError(f"model.d_head = {self.d_head} is odd: RoPE rotates pairs, so it must be even")
        if self.mlp_ratio * self.d_model % 1:
            raise UserError(
                f"model.mlp_ratio = {self.mlp_ratio:g} times model.d_model = {self.d_model} is "
                f"{self.mlp_ratio * self.d_model:g}: the MLP width must be a whole number"
            )

    @property
    def num_heads(self) -> int:
        return self.d_model // self.d_head

    @property
    def dims(self) -> dict[str, int]:
        """Logical axis -> size."""
        return {
            "embed": self.d_model,
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads or self.num_heads,
            "head_dim": self.d_head,
            "mlp": int(self.mlp_ratio * self.d_model),
            "vocab": self.vocab_size,
            "layers": self.num_layers,
        }

    def flops_per_token(self, seq_len: int) -> float:
        """Forward and backward matmul FLOPs a token: 6 N + 12 L D T (2204.02311, appendix B), no remat."""
        shared = (self.num_kv_heads or self.num_heads) / self.num_heads
        matrices = 2 + 2 * shared + 2 * self.mlp_ratio
        weights = self.num_layers * matrices * self.d_model**2 + self.vocab_size * self.d_model
        return 6 * weights + 12 * self.num_layers * self.d_model * seq_len


class Attention(MuModule):
    @nn.compact
    def __call__(self, x_BTD, hps: Hps):
        wq_DHK = self.weight("wq", "hidden", "embed -> heads head_dim")
        if self.cfg.num_kv_heads:
            wk_DHK, wv_DHK = (self.weight(name, "kv", "embed -> kv_heads head_dim") for name in ("wk", "wv"))
        else:
            wk_DHK, wv_DHK = (self.weight(name, "hidden", "embed -> heads head_dim") for name in ("wk", "wv"))
        wo_HKD = self.weight("wo", "hidden", "heads head_dim -> embed")
        q_BTHK, k_BTHK, v_BTHK = (jnp.einsum("BTD,DHK->BTHK", x_BTD, w) for w in (wq_DHK, wk_DHK, wv_DHK))
        q_BTHK, k_BTHK = (rope(x, self.cfg.rope_base) for x in (q_BTHK, k_BTHK))
        if self.cfg.num_kv_heads:  # query heads in groups of neighbours share keys and values
            group = self.cfg.num_heads // self.cfg.num_kv_heads
            k_BTHK, v_BTHK = (jnp.repeat(x, group, axis=2) for x in (k_BTHK, v_BTHK))
        logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BTHK)
        logits_BHTS = scaled(logits_BHTS, hps.attention_scale)
        for name, x in (("q", q_BTHK), ("k", k_BTHK), ("v", v_BTHK), ("attention_logits", logits_BHTS)):
            self.record(name, x)
        probs_BHTS = causal_softmax(logits_BHTS)
        mixed_BTHK = jnp.einsum("BHTS,BSHK->BTHK", probs_BHTS, v_BTHK)
        self.record("mixed", mixed_BTHK)
        return jnp.einsum("BTHK,HKD->BTD", mixed_BTHK, wo_HKD)


class MLP(MuModule):
    @nn.compact
    def __call__(self, x_BTD):
        wi_DF = self.weight("wi", "hidden", "embed -> mlp")
        wo_FD = self.weight("wo", "hidden", "mlp -> embed")
        h_BTF = jax.nn.relu(jnp.einsum("BTD,DF->BTF", x_BTD, wi_DF))
        self.record("hidden", h_BTF)
        return jnp.einsum("BTF,FD->BTD", h_BTF, wo_FD)


class Block(MuModule):
    """One layer, in the shape nn.scan wants: carry in, (carry, nothing) out."""

    @nn.compact
    def __call__(self, x_BTD, hps: Hps):
        out_BTD = Attention(self.cfg, name="attention")(RMSNorm(self.cfg, name="attention_norm")(x_BTD), hps)
        self.record("attention_out", out_BTD)
        x_BTD += scaled(out_BTD, hps.residual_scale)
        out_BTD = MLP(self.cfg, name="mlp")(RMSNorm(self.cfg, name="mlp_norm")(x_BTD))
        self.record("mlp_out", out_BTD)
        x_BTD += scaled(out_BTD, hps.residual_scale)
        self.record("residual", x_BTD)
        return x_BTD, None


class Transformer(MuModule):
    @nn.compact
    def __call__(self, tokens_BT, hps: Hps):
        """Int tokens [B, T] -> logits [B, T, V] in cfg.dtype; position t sees tokens 0..t."""
        embed_VD = self.weight("embed", "tied" if self.cfg.tied else "input", "vocab -> embed")
        unembed_DV = embed_VD.T if self.cfg.tied else self.weight("unembed", "output", "embed -> vocab")
        x_BTD = scaled(jnp.take(embed_VD, tokens_BT, axis=0), hps.embedding_scale)
        self.record("embedding", x_BTD)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "activations": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # hps: the same for every layer  # pyright: ignore[reportArgumentType]
            length=self.cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers", "size": self.cfg.num_layers},
        )
        x_BTD, _ = blocks(self.cfg, name="blocks")(x_BTD, hps)
        x_BTD = RMSNorm(self.cfg, name="final_norm")(x_BTD)
        self.record("final", x_BTD)
        logits_BTV = scaled(jnp.einsum("BTD,DV->BTV", x_BTD, unembed_DV), hps.logits_scale)
        self.record("logits", logits_BTV)
        return logits_BTV
