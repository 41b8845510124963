"""A small convolutional network that classifies images: is a first layer's learning rate special
outside language?

An image is a row of bytes like a text, and its class the one token that follows (Kalra & Barkeshli
2605.21486 study the first layer's learning rate on CIFAR-10; this architecture is ours).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.errors import UserError
from mujax.fields import DEPTH, declare
from mujax.hps import Hps
from mujax.models.layers import normalize, scaled
from mujax.models.module import MuModule

COLORS, KERNEL = 3, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Shapes; see each field. Every layer has d_model channels."""

    d_model: int = declare(32, "channels of every layer")
    num_layers: int = declare(
        3, "convolutions; each but the first sees images of half the side", DEPTH
    )
    dtype: str = declare(
        "float32", "of compute: float32 or bfloat16; master weights are always float32"
    )
    vocab_size: int
    seq_len: int

    # No fields: which data it can learn from, and which it does by default
    reads = "images"
    data = {"name": "synthetic_images", "seq_len": 3 * 16 * 16, "vocab_size": 10}

    def __post_init__(self):
        if self.side**2 * COLORS != self.seq_len or self.side % 2 ** (self.num_layers - 1):
            raise UserError(
                f"data.seq_len = {self.seq_len} with model.num_layers = {self.num_layers}: it must "
                f"be 3 side^2, of images whose side can be halved {self.num_layers - 1} times"
            )

    @property
    def side(self) -> int:
        return round((self.seq_len / COLORS) ** 0.5)

    @property
    def init_length(self) -> int:
        """Tokens that a first call must have: the kernels need a whole image."""
        return self.seq_len

    @property
    def dims(self) -> dict[str, int]:
        """Logical axis -> size. `embed` and `channels` are both d_model: an axis may appear once in
        a signature."""
        return {
            "rows": KERNEL,
            "columns": KERNEL,
            "colors": COLORS,
            "embed": self.d_model,
            "channels": self.d_model,
            "vocab": self.vocab_size,
        }

    def flops_per_token(self, seq_len: int) -> float:
        """Returns forward and backward matmul FLOPs per byte of an image: 6 per weight and place of
        its use."""
        places = [(self.side // 2**i) ** 2 for i in range(self.num_layers)]
        kernels = [
            KERNEL**2 * (self.d_model if i else COLORS) * self.d_model
            for i in range(self.num_layers)
        ]
        readout = self.d_model * self.vocab_size
        return 6 * (sum(p * k for p, k in zip(places, kernels, strict=True)) + readout) / seq_len


class CNN(MuModule):
    """Axes: Y and X of the image, C colors, D channels."""

    @nn.compact
    def __call__(self, tokens_BT, hps: Hps):
        """Maps bytes of images [B, T] to logits of their classes [B, 1, V], in cfg.dtype."""
        cfg = self.cfg
        first_YXCD = self.weight("first", "input", "rows columns colors -> embed")
        x_BYXC = (tokens_BT.reshape(-1, cfg.side, cfg.side, COLORS) / 127.5 - 1).astype(
            first_YXCD.dtype
        )
        # By its fan-in, which is no width, so that unit weights make unit activations
        x_BYXD = scaled(
            _convolve(x_BYXC, first_YXCD), hps.embedding_scale * (KERNEL**2 * COLORS) ** -0.5
        )
        self.record("embedding", x_BYXD)
        for i in range(1, cfg.num_layers):
            # Every layer maps embed -> embed; the second name keeps the axes of one signature
            # distinct
            w_YXDE = self.weight(f"w{i}", "hidden", "rows columns embed -> channels")
            x_BYXD = _convolve(_halve(normalize(jax.nn.relu(x_BYXD), "rms", 1e-6)), w_YXDE)
            x_BYXD = self.constrain(x_BYXD, "batch height width channels")
            self.record(f"hidden{i}", x_BYXD)
        x_BD = jnp.mean(normalize(jax.nn.relu(x_BYXD), "rms", 1e-6), axis=(1, 2))
        unembed_DV = self.weight("unembed", "output", "embed -> vocab")
        logits_B1V = scaled(jnp.einsum("BD,DV->BV", x_BD, unembed_DV), hps.logits_scale)[:, None]
        self.record("logits", logits_B1V)
        return logits_B1V


def _convolve(x_BYXC, w_YXCD):
    return jax.lax.conv_general_dilated(
        x_BYXC, w_YXCD, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _halve(x_BYXD):
    """Averages each two by two pixels."""
    B, Y, X, D = x_BYXD.shape
    return jnp.mean(x_BYXD.reshape(B, Y // 2, 2, X // 2, 2, D), axis=(2, 4))


MODEL = (CNNConfig, CNN)
