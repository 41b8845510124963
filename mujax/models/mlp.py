"""A window language model: the embeddings of the last `context` tokens, then ReLU layers (Bengio et
al. 2003).

Small on purpose: it shows what a fork has to write, and its biases exercise the `vector` role.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.fields import DEPTH, TAPS, declare
from mujax.hps import Hps
from mujax.models.layers import scaled
from mujax.models.module import MuModule


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Shapes; see each field. Hidden layers are d_model wide."""

    d_model: int = declare(64, "width of the embedding and of every hidden layer")
    num_layers: int = declare(2, "hidden layers", DEPTH)
    context: int = declare(8, "tokens seen", TAPS)
    dtype: str = declare(
        "float32", "of compute: float32 or bfloat16; master weights are always float32"
    )
    vocab_size: int

    @property
    def dims(self) -> dict[str, int]:
        """Logical axis -> size. `embed` and `mlp` are both d_model: an axis may appear once in a
        signature."""
        return {
            "embed": self.d_model,
            "mlp": self.d_model,
            "context": self.context,
            "vocab": self.vocab_size,
        }

    def flops_per_token(self, seq_len: int) -> float:
        """Returns forward and backward matmul FLOPs per token: 6 per weight used."""
        del seq_len  # no operation grows with the sequence
        layers = (self.context + self.num_layers - 1) * self.d_model**2
        return 6 * (layers + self.vocab_size * self.d_model)


class MLPLanguageModel(MuModule):
    """An MLP on the embeddings of the last `context` tokens."""

    @nn.compact
    def __call__(self, tokens_BT, hps: Hps):
        """Maps int tokens [B, T] to logits [B, T, V], in cfg.dtype; position t sees tokens
        t-context+1..t."""
        embed_VD = self.weight("embed", "input", "vocab -> embed")
        # and so its gradient, as in the transformer
        embed_VD = self.constrain(embed_VD, "vocab embed")
        x_BTD = scaled(jnp.take(embed_VD, tokens_BT, axis=0), hps.embedding_scale)
        self.record("embedding", x_BTD)
        # Slot c holds the embedding of c tokens ago, zero before the sequence starts.
        seq_len = x_BTD.shape[1]
        shifted = [
            jnp.pad(x_BTD, ((0, 0), (c, 0), (0, 0)))[:, :seq_len] for c in range(self.cfg.context)
        ]
        w0_CDF = self.weight("w0", "hidden", "context embed -> mlp")
        h_BTF = jnp.einsum("BTCD,CDF->BTF", jnp.stack(shifted, axis=2), w0_CDF)
        h_BTF = self._activate(h_BTF, 0)
        for i in range(1, self.cfg.num_layers):
            # Every layer maps mlp -> mlp; the second name keeps the axes of one signature distinct.
            w_EF = self.weight(f"w{i}", "hidden", "embed -> mlp")
            h_BTF = self._activate(jnp.einsum("BTE,EF->BTF", h_BTF, w_EF), i)
        unembed_FV = self.weight("unembed", "output", "mlp -> vocab")
        logits_BTV = scaled(jnp.einsum("BTF,FV->BTV", h_BTF, unembed_FV), hps.logits_scale)
        self.record("logits", logits_BTV)
        return logits_BTV

    def _activate(self, h_BTF, layer: int):
        b_F = self.weight(f"b{layer}", "vector", "-> mlp", dist="zeros")
        h_BTF = self.constrain(jax.nn.relu(h_BTF + b_F[None, None]), "batch length mlp")
        self.record(f"hidden{layer}", h_BTF)
        return h_BTF


MODEL = (MLPConfig, MLPLanguageModel)
