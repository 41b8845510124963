"""Mixture of experts: the transformer with several MLPs a layer, of which each token takes a few.

The router reads the stream into a number of logits that does not grow with the width, so it is an
output; an expert is a matrix of its own among `experts` of them, whose rule is that of any hidden
matrix (2508.09752). Experts and what of them is active are sizes of their own, beside the width:
`num_experts`, and `experts_per_token` times `mlp_ratio`.
Axes: E experts, N choices of a token, C places of an expert, F mlp; others as in
  mujax.models.layers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.errors import UserError
from mujax.fields import NOT_NEGATIVE, declare
from mujax.models.layers import at_least_float32, exact_product
from mujax.models.protocol import Context
from mujax.models.transformer import MLP, Block, Transformer, TransformerConfig, num_mlp_matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig(TransformerConfig):
    """The transformer's config, with mlp_ratio that of one expert."""

    mlp_ratio: float = declare(2.0, "width of an expert / d_model")
    num_experts: int = declare(8, "of every layer")
    experts_per_token: int = declare(
        2,
        "top-k; outputs are added by the router's probabilities, made to add up to 1, but for k = "
        "1",
    )
    capacity_factor: float = declare(
        2.0,
        "places of an expert, over tokens x experts_per_token / num_experts; a token that finds "
        "none left goes without",
    )
    balance_weight: float = declare(
        0.01,
        "alpha of the load-balancing loss (2101.03961, equation 4) of each layer; the reported "
        "loss is without",
        NOT_NEGATIVE,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.experts_per_token > self.num_experts:
            raise UserError(
                f"model.experts_per_token = {self.experts_per_token} is more than "
                f"model.num_experts = {self.num_experts}"
            )
        if self.bias:
            raise UserError(
                "model.bias: the experts of model.name = 'moe' have none; set it to False"
            )

    @property
    def dims(self) -> dict[str, int]:
        return {**super().dims, "experts": self.num_experts}

    def capacity(self, seq_len: int) -> int:
        """Places of an expert for one row's tokens (2101.03961, equation 3, a row at a time); where
        it is full, a token goes without it. A token by itself, as in sampling, always finds a
        place."""
        fair = self.experts_per_token * seq_len / self.num_experts
        return min(seq_len, max(1, math.ceil(exact_product(self.capacity_factor, fair))))

    def flops_per_token(self, seq_len: int) -> float:
        """Returns forward and backward matmul FLOPs per token of the active experts, the router and
        all else.

        Empty places of experts are not counted.
        """
        expert = num_mlp_matrices(self.activation) * self.mlp_ratio * self.d_model**2
        more = (self.experts_per_token - 1) * expert + self.num_experts * self.d_model
        return super().flops_per_token(seq_len) + 6 * self.num_layers * more


@jax.custom_vjp
def with_auxiliary_loss(x, loss):
    """Returns x; training also minimizes `loss`, which is no part of the reported loss."""
    del loss
    return x


with_auxiliary_loss.defvjp(lambda x, loss: (x, loss), lambda loss, g: (g, jnp.ones_like(loss)))


def dispatch(chosen_BTE, capacity: int):
    """Returns [B, T, E, C]: 1 where a token that chose this expert (0 or 1) has this place in it.

    Tokens get places in their order, so that a later token takes no place from an earlier one,
    which must not see it.
    """
    before_BTE = jnp.cumsum(chosen_BTE, axis=1) - chosen_BTE
    place_BTE = jnp.where(chosen_BTE > 0, before_BTE, capacity).astype(jnp.int32)
    # of a place beyond the last: none
    return jax.nn.one_hot(place_BTE, capacity, dtype=chosen_BTE.dtype)


class Experts(MLP):
    """MLPs of which the router gives each token a few."""

    copies = "experts |"

    @nn.compact
    def __call__(self, x_BTD, context: Context):
        del context
        cfg = self.cfg
        router_DE = self.weight("router", "output", "embed -> experts")
        logits_BTE = at_least_float32(jnp.einsum("BTD,DE->BTE", x_BTD, router_DE))
        self.record("router_logits", logits_BTE)
        shares_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        gates_BTN, index_BTN = jax.lax.top_k(shares_BTE, cfg.experts_per_token)
        if cfg.experts_per_token > 1:
            # of one, its share: else the router would learn nothing (2101.03961)
            gates_BTN = gates_BTN / jnp.sum(gates_BTN, axis=-1, keepdims=True)
        chosen_BTNE = jax.nn.one_hot(index_BTN, cfg.num_experts, dtype=jnp.float32)
        chosen_BTE = jnp.sum(chosen_BTNE, axis=2)
        x_BTD = with_auxiliary_loss(
            x_BTD, cfg.balance_weight * load_balancing_loss(shares_BTE, chosen_BTE)
        )

        place_BTEC = dispatch(chosen_BTE, cfg.capacity(x_BTD.shape[1]))
        gate_BTEC = jnp.einsum("BTN,BTNE->BTE", gates_BTN, chosen_BTNE)[..., None] * place_BTEC
        place_BTEC, gate_BTEC = place_BTEC.astype(x_BTD.dtype), gate_BTEC.astype(x_BTD.dtype)
        out_BECD = self.mlp(jnp.einsum("BTEC,BTD->BECD", place_BTEC, x_BTD))
        return jnp.einsum("BTEC,BECD->BTD", gate_BTEC, out_BECD)


def load_balancing_loss(shares_BTE, chosen_BTE):
    """Returns E times the sum over experts of (share of choices) x (mean router probability): 1 if
    all are equal.

    2101.03961, equation 4.
    """
    E, choices = shares_BTE.shape[-1], jnp.sum(chosen_BTE, axis=(0, 1))
    return E * jnp.sum(choices / jnp.sum(choices) * jnp.mean(shares_BTE, axis=(0, 1)))


class MoEBlock(Block):
    """The transformer's, with Experts in the place of its MLP."""

    mlp_class = Experts


class MoETransformer(Transformer):
    """The transformer with such blocks; takes tokens [B, T] and gives logits [B, T, V]."""

    block_class = MoEBlock


MODEL = (MoEConfig, MoETransformer)
