"""A fork: the transformer with a gated MLP, and two deliberate mistakes.

    mujax check --config=docs/examples/gated.py:broken --workdir=runs/gated --fast

See docs/is-my-fork-right.md.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from configs import base
from mujax.models import MODELS
from mujax.models.layers import Norm, scaled
from mujax.models.module import MuModule
from mujax.models.protocol import Context
from mujax.models.transformer import Attention, TransformerConfig


class GatedMLP(MuModule):
    out_role = "output"  # mistake 1: "out" is the tensor's place, not its role

    @nn.compact
    def __call__(self, x_BTD):
        wi_DF, wg_DF = (self.weight(name, "hidden", "embed -> mlp") for name in ("wi", "wg"))
        wo_FD = self.weight("wo", self.out_role, "mlp -> embed")
        gate_BTF = jax.nn.silu(jnp.einsum("BTD,DF->BTF", x_BTD, wg_DF))
        h_BTF = gate_BTF * jnp.einsum("BTD,DF->BTF", x_BTD, wi_DF)
        self.record("hidden", h_BTF)
        return jnp.einsum("BTF,FD->BTD", h_BTF, wo_FD)


class GatedTransformer(MuModule):
    mlp = GatedMLP

    def embedding_factor(self) -> float:
        # mistake 2: as in the first transformer paper (1706.03762, section 3.4)
        return self.cfg.d_model**0.5

    @nn.compact
    def __call__(self, tokens_BT, hps):
        embed_VD = self.weight("embed", "input", "vocab -> embed")
        unembed_DV = self.weight("unembed", "output", "embed -> vocab")
        x_BTD = scaled(
            jnp.take(embed_VD, tokens_BT, axis=0), hps.embedding_scale * self.embedding_factor()
        )
        self.record("embedding", x_BTD)
        for i in range(self.cfg.num_layers):
            attention = Attention(self.cfg, name=f"attention{i}")
            out_BTD = attention(Norm(self.cfg)(x_BTD), Context(hps))
            x_BTD += scaled(out_BTD, hps.residual_scale)
            out_BTD = self.mlp(self.cfg, name=f"mlp{i}")(Norm(self.cfg)(x_BTD))
            x_BTD += scaled(out_BTD, hps.residual_scale)
            self.record(f"residual{i}", x_BTD)
        logits_BTV = scaled(
            jnp.einsum("BTD,DV->BTV", Norm(self.cfg)(x_BTD), unembed_DV), hps.logits_scale
        )
        self.record("logits", logits_BTV)
        return logits_BTV


class RightRole(GatedMLP):
    out_role = "hidden"


class OneMistake(GatedTransformer):
    mlp = RightRole


class NoMistake(OneMistake):
    def embedding_factor(self) -> float:
        return 1.0


for name, module in {"broken": GatedTransformer, "better": OneMistake, "right": NoMistake}.items():
    MODELS[f"gated_{name}"] = (TransformerConfig, module)


def get_config(stage: str = "broken"):
    c = base.get_config()
    c.model.name = f"gated_{stage}"
    c.parameterization.base_width = 32
    return c
