"""An architecture of one's own: the transformer with the mean of the tokens so far in the place of
attention. See docs/add-an-architecture.md.

Copied into mujax/models, with a line "running_mean" in NAMES there, it is
--config=configs/base.py:running_mean.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from mujax.models.module import MuModule
from mujax.models.protocol import Context
from mujax.models.transformer import Block, Transformer, TransformerConfig, num_mlp_matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningMeanConfig(TransformerConfig):
    """Shapes of the transformer; its options of attention mean nothing here."""

    def flops_per_token(self, seq_len: int) -> float:
        del seq_len
        matrices = 2 + num_mlp_matrices(self.activation) * self.mlp_ratio
        return 6 * (self.num_layers * matrices * self.d_model**2 + self.vocab_size * self.d_model)


class RunningMean(MuModule):
    """The mean of the tokens so far, between two matrices: a mixer without a cache."""

    @nn.compact
    def __call__(self, x_BTD, context: Context):
        del context
        wi_DHK = self.weight("wi", "hidden", "embed -> heads head_dim")
        wo_HKD = self.weight("wo", "hidden", "heads head_dim -> embed")
        h_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, wi_DHK)
        count_T = jnp.arange(1, x_BTD.shape[1] + 1).astype(x_BTD.dtype)
        mean_BTHK = jnp.cumsum(h_BTHK, axis=1) / count_T[None, :, None, None]
        self.record("mean", mean_BTHK)
        return jnp.einsum("BTHK,HKD->BTD", mean_BTHK, wo_HKD)


class RunningMeanBlock(Block):
    mixer_class, mixer_name = RunningMean, "mean"


class RunningMeanModel(Transformer):
    block_class = RunningMeanBlock


MODEL = (RunningMeanConfig, RunningMeanModel)
