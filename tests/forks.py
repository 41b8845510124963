"""A model as somebody else would write it, with names of its own and one mistake at a time, chosen
by a number."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.models.layers import normalize
from mujax.models.module import MuModule

NARROWEST = 16
# Mistake -> the recorded activation that must be named; each multiplies something by sqrt(d_model /
# NARROWEST)
MISTAKES = {
    "none": "",
    "mixer": "blend",
    "attention": "affinity",
    "second branch": "side",
    "gate": "valve",
    "mlp": "inner",
    "skip": "stream",
    "stream": "stream",
    "readout": "guess",
    "noise": "outer",
}


@dataclasses.dataclass(frozen=True)
class ForkConfig:
    d_model: int
    dtype: str
    vocab_size: int
    seq_len: int

    @property
    def dims(self):
        return {"embed": self.d_model, "mlp": self.d_model, "vocab": self.vocab_size}

    def flops_per_token(self, seq_len):
        return 6.0 * self.d_model * seq_len


class Fork(MuModule):
    """One layer: attention of one wide head, a running mean of the tokens so far, a gated side
    branch and an MLP.

    hps.final_ratio, which a constant schedule does not read, is the number of the mistake.
    """

    @nn.compact
    def __call__(self, tokens_BT, hps):
        width = self.cfg.d_model
        ratio = width / NARROWEST

        def wrong(mistake, x):
            is_on = hps.final_ratio == list(MISTAKES).index(mistake)
            return x * jnp.where(is_on, ratio**0.5, 1.0).astype(x.dtype)

        def matrix(name):
            return self.weight(name, "hidden", "embed -> mlp")

        def norm(x):
            return normalize(x, "rms", 1e-6)

        x_BTD = jnp.take(self.weight("table", "input", "vocab -> embed"), tokens_BT, axis=0)
        self.record("tokens", x_BTD)
        n_BTD = norm(x_BTD)
        seq_len = tokens_BT.shape[1]
        a_BTD, b_BTD = n_BTD @ matrix("ask"), n_BTD @ matrix("answer")
        self.record("a", a_BTD)
        self.record("b", b_BTD)
        affinity_BTS = wrong(
            "attention", jnp.einsum("BTD,BSD->BTS", a_BTD, b_BTD) * (NARROWEST**0.5 / width)
        )
        self.record("affinity", affinity_BTS)
        mask_TS = jnp.tril(jnp.ones((seq_len, seq_len), bool))
        weights_BTS = jax.nn.softmax(jnp.where(mask_TS[None], affinity_BTS, -jnp.inf), axis=-1)
        mean_BTD = jnp.einsum("BTS,BSD->BTD", weights_BTS, n_BTD @ matrix("carry"))
        blend_BTD = wrong("mixer", mean_BTD @ matrix("blend_out"))
        self.record("blend", blend_BTD)

        shifted_BTD = jnp.pad(n_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        valve_BTD = wrong("gate", jax.nn.sigmoid(n_BTD @ matrix("valve_in")))
        self.record("valve", valve_BTD)
        side_BTD = wrong("second branch", valve_BTD * (shifted_BTD @ matrix("shift")))
        self.record("side", side_BTD)

        inner_BTF = wrong("mlp", jax.nn.relu(norm(x_BTD + blend_BTD) @ matrix("wide")))
        self.record("inner", inner_BTF)
        outer_BTD = inner_BTF @ matrix("back")
        noise = jnp.where(
            hps.final_ratio == list(MISTAKES).index("noise"), 0.07 * ratio, 0.0
        ).astype(x_BTD.dtype)
        outer_BTD += noise * jax.random.normal(jax.random.key(1), outer_BTD.shape, x_BTD.dtype)
        self.record("outer", outer_BTD)
        x_BTD = wrong("stream", wrong("skip", x_BTD) + blend_BTD + side_BTD + outer_BTD)
        self.record("stream", x_BTD)
        guess_BTV = wrong(
            "readout", norm(x_BTD) @ self.weight("answers", "output", "embed -> vocab")
        )
        self.record("guess", guess_BTV)
        return guess_BTV
