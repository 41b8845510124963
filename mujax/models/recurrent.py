"""A linear recurrence in the place of attention: the RG-LRU of Griffin (2402.19427, section 2.4),
by a scan.

Two projections of the stream: one passes a short convolution and the recurrence h_t = a_t h_(t-1) +
sqrt(1 - a_t^2) i_t x_t, whose decay a_t and input gate i_t read its own input; the other, through
GELU, multiplies what comes out. The gates are whole matrices here, not blocks of heads, so that
they grow with the width like every hidden matrix; gates and convolution have no biases, and the
first decays are spaced evenly, not drawn. The kernel and decay belong to
single channels: vectors. Axes: R channels, C taps; others as in mujax.models.layers.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mujax.fields import DEPTH, TAPS, declare, declared_in
from mujax.models.layers import ACTIVATIONS, at_least_float32, exact_product, scaled
from mujax.models.module import MuModule
from mujax.models.protocol import Context
from mujax.models.transformer import (
    Block,
    Transformer,
    TransformerConfig,
    check_options,
    num_mlp_matrices,
)

# decays a step of the channels at first, with the gate fully open
SLOWEST, FASTEST, SHARPNESS = 0.999, 0.9, 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Shapes and options; what else the transformer has is off."""

    d_model: int = declare(64, "width")
    num_layers: int = declare(2, "blocks", DEPTH)
    mlp_ratio: float = declared_in(TransformerConfig, "mlp_ratio")
    recurrent_ratio: float = declare(1.0, "channels of the recurrence / d_model")
    kernel_size: int = declare(4, "taps of the convolution before it", TAPS)
    norm: str = declared_in(TransformerConfig, "norm")
    norm_gain: str = declared_in(TransformerConfig, "norm_gain")
    norm_eps: float = declared_in(TransformerConfig, "norm_eps")
    activation: str = declared_in(TransformerConfig, "activation")
    remat: str = declared_in(TransformerConfig, "remat")
    scan_layers: bool = declared_in(TransformerConfig, "scan_layers")
    dtype: str = declared_in(TransformerConfig, "dtype")
    low_precision: bool = declared_in(TransformerConfig, "low_precision")
    vocab_size: int
    seq_len: int

    # No fields: options of the transformer that make no sense here
    tied, bias, embedding_norm, parallel = False, False, False, False
    position, separator_id, max_length = "none", -1, None

    def __post_init__(self):
        check_options(self, "mlp_ratio", "recurrent_ratio")

    @property
    def dims(self) -> dict[str, int]:
        """Logical axis -> size. `recurrent` and `gates` are the same channels, in and out of a
        gate's matrix."""
        channels = int(exact_product(self.recurrent_ratio, self.d_model))
        return {
            "embed": self.d_model, "recurrent": channels, "gates": channels,
            "taps": self.kernel_size,
            "mlp": int(exact_product(self.mlp_ratio, self.d_model)), "vocab": self.vocab_size,
            "layers": self.num_layers,
        }  # fmt: skip

    def flops_per_token(self, seq_len: int) -> float:
        """Returns forward and backward matmul FLOPs per token, 6 per weight, without the scan and
        the kernel."""
        r = self.recurrent_ratio
        matrices = 3 * r + 2 * r**2 + num_mlp_matrices(self.activation) * self.mlp_ratio
        return 6 * (self.num_layers * matrices * self.d_model**2 + self.vocab_size * self.d_model)


class Memory(NamedTuple):
    """The cache of a layer: its state, and the last inputs of its kernel."""

    h_BR: jax.Array
    x_BCR: jax.Array


class Recurrence(MuModule):
    """RG-LRU with its two projections and kernel: a mixer whose cache is its state. That before the
    first token is zero."""

    def __call__(self, x_BTD, context: Context):
        del context
        return self._recur(x_BTD)[0]

    def extend(self, x_BTD, context: Context, cache: Memory):
        del context
        return self._recur(x_BTD, cache)

    @nn.nowrap
    def empty_cache(self, batch_size: int, window: int) -> Memory:
        """Returns the memory of no tokens, which has the same size for any window."""
        del window
        channels, taps = self.cfg.dims["recurrent"], self.cfg.kernel_size
        return Memory(
            jnp.zeros((batch_size, channels), jnp.float32),
            jnp.zeros((batch_size, taps - 1, channels), self.cfg.dtype),
        )

    @nn.compact
    def _recur(self, x_BTD, cache: Memory | None = None):
        cfg, T = self.cfg, x_BTD.shape[1]
        wx_DR, wy_DR = (self.weight(name, "hidden", "embed -> recurrent") for name in ("wx", "wy"))
        wo_RD = self.weight("wo", "hidden", "recurrent -> embed")
        kernel_CR = self.weight("kernel", "vector", "-> taps recurrent")
        y_BTR = ACTIVATIONS["gelu"](jnp.einsum("BTD,DR->BTR", x_BTD, wy_DR))
        x_BTR = jnp.einsum("BTD,DR->BTR", x_BTD, wx_DR)
        taps = cfg.kernel_size
        past_BCR = jnp.zeros_like(
            x_BTR[:, : taps - 1], shape=(x_BTR.shape[0], taps - 1, x_BTR.shape[2])
        )
        padded = jnp.concatenate([past_BCR if cache is None else cache.x_BCR, x_BTR], axis=1)
        # By the number of taps, so that unit weights make unit activations
        x_BTR = scaled(
            sum(padded[:, i : i + T] * kernel_CR[None, None, i] for i in range(taps)), taps**-0.5
        )

        log_a_BTR, input_BTR = self.gates(x_BTR)
        h_BTR = scan(
            log_a_BTR, input_BTR * at_least_float32(x_BTR), None if cache is None else cache.h_BR
        )
        h_BTR, last_BR = h_BTR.astype(x_BTD.dtype), h_BTR[:, -1]
        self.record("state", h_BTR)
        out_BTD = jnp.einsum("BTR,RD->BTD", h_BTR * y_BTR, wo_RD)
        return out_BTD, None if cache is None else Memory(last_BR, padded[:, T:])

    def gates(self, x_BTR):
        """Returns (log of the decay a_t, the input's factor sqrt(1 - a_t^2) i_t), in float32."""
        wa_RS, wi_RS = (self.weight(name, "hidden", "recurrent -> gates") for name in ("wa", "wi"))
        decay_R = self.weight("decay", "vector", "-> recurrent", dist="zeros")
        opened_BTR, input_BTR = (
            jax.nn.sigmoid(at_least_float32(jnp.einsum("BTR,RS->BTS", x_BTR, w)))
            for w in (wa_RS, wi_RS)
        )
        self.record("decay_gate", opened_BTR)
        first_R = np.linspace(FASTEST, SLOWEST, decay_R.shape[0]) ** (1 / SHARPNESS)
        logit_R = at_least_float32(decay_R) + jnp.asarray(
            np.log(first_R / (1 - first_R)), jnp.float32
        )
        log_a_BTR = SHARPNESS * opened_BTR * jax.nn.log_sigmoid(logit_R)[None, None]
        # A gate that is shut has a_t = 1 in float32, where the root has no derivative
        return log_a_BTR, jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a_BTR), 1e-6)) * input_BTR


def scan(log_a_BTR, x_BTR, h_BR=None):
    """Computes h_t = exp(log_a_t) h_(t-1) + x_t for all t at once; h_BR: the state before the
    first."""
    if h_BR is not None:
        x_BTR = x_BTR.at[:, 0].add(jnp.exp(log_a_BTR[:, 0]) * h_BR)

    def join(left, right):
        (log_a, x), (log_b, y) = left, right
        return log_a + log_b, jnp.exp(log_b) * x + y

    return jax.lax.associative_scan(join, (log_a_BTR, x_BTR), axis=1)[1]


class RecurrentBlock(Block):
    """The transformer's, with Recurrence in the place of attention."""

    mixer_class, mixer_name = Recurrence, "recurrence"


class RecurrentModel(Transformer):
    """The transformer with recurrent blocks; takes tokens [B, T] and gives logits [B, T, V]."""

    block_class = RecurrentBlock


MODEL = (RecurrentConfig, RecurrentModel)
