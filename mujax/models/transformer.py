"""Decoder-only transformer: pre-norm blocks, with the options of two papers and of common practice.

Lingle 2024 (2404.05728): RMSNorm without gains, RoPE, ReLU, no biases, untied. The GPT of Kalra &
Barkeshli 2026 (2605.21486): LayerNorm with gains, learned positions, GELU. No module holds a
standard deviation or a width-dependent constant: sizes of weights come from the parameterization,
the attention scale from `hps`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mujax.errors import UserError, not_one_of
from mujax.fields import DEPTH, NOT_NEGATIVE, Range, declare
from mujax.hps import Hps
from mujax.models.attention import IMPLEMENTATIONS, NONLINEARITIES, Cache, cached
from mujax.models.layers import (
    ACTIVATIONS,
    GATED,
    LanguageModel,
    Norm,
    exact_product,
    rope,
    scaled,
    with_bias,
)
from mujax.models.module import MuModule
from mujax.models.protocol import CachedMixer, Context

CHOICES = {
    "norm": ("rms", "layer"),
    "norm_gain": ("none", "vector", "scalar"),
    "position": ("rope", "learned", "none"),
    "activation": (*ACTIVATIONS, *GATED),
    "attention": tuple(NONLINEARITIES),
    "attention_impl": tuple(IMPLEMENTATIONS),
    "remat": ("none", "dots", "full"),
}


def check_options(cfg, *ratios: str) -> None:
    """Checks that a config's options exist, and that ratios of d_model make whole numbers.

    Raises:
      UserError: the message names the field.
    """
    for name, allowed in CHOICES.items():
        value = getattr(cfg, name, allowed[0])
        if value not in allowed:
            raise UserError(f"model.{name} = {value!r} {not_one_of(value, allowed)}")
    for name in ratios:
        if (size := exact_product(getattr(cfg, name), cfg.d_model)) % 1:
            raise UserError(
                f"model.{name} = {getattr(cfg, name):g} times model.d_model = {cfg.d_model} is "
                f"{size:g}: it must be a whole number"
            )


def num_mlp_matrices(activation: str) -> int:
    return 3 if activation in GATED else 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shapes and options; see each field."""

    d_model: int = declare(64, "width; a multiple of d_head")
    num_layers: int = declare(2, "blocks", DEPTH)
    d_head: int = declare(
        16, "size of an attention head; even; the number of heads is d_model / d_head"
    )
    mlp_ratio: float = declare(4.0, "MLP width / d_model")
    num_kv_heads: int = declare(
        0,
        "key and value heads, a divisor of the number of heads; 0: one for every query head",
        NOT_NEGATIVE,
    )
    tied: bool = declare(False, "the embedding is the readout too; a table needs a rule for that")
    bias: bool = declare(False, "on every projection, on the readout, and on LayerNorms")
    norm: str = declare("rms", "rms (RMSNorm) or layer (LayerNorm)")
    norm_gain: str = declare(
        "none", "trainable gains of every norm: none, vector (one a coordinate) or scalar"
    )
    norm_eps: float = declare(1e-6, "added to the mean square")
    embedding_norm: bool = declare(False, "a norm on the embedded tokens")
    qk_norm: bool = declare(False, "a norm on every head's queries and keys, before RoPE")
    position: str = declare(
        "rope", "rope, learned (added to the embedding; the sum over sqrt 2) or none"
    )
    rope_base: float = declare(10_000.0, "RoPE wavelengths go from 2 pi to 2 pi * rope_base tokens")
    activation: str = declare(
        "relu", "relu, sqrelu, gelu or silu; swiglu or geglu: gated, with a third matrix"
    )
    attention: str = declare("softmax", "softmax, sqrelu, elu, normalized_sqrelu or normalized_elu")
    attention_impl: str = declare(
        "plain", "plain, dot_product (jax.nn's; cuDNN on GPU in bfloat16) or splash (TPU)"
    )
    parallel: bool = declare(
        False, "attention and MLP of a block read the same, rather than one after the other"
    )
    remat: str = declare(
        "none", "recompute in the backward pass: none, full (all), or dots (all but the matmuls)"
    )
    scan_layers: bool = declare(
        True, "one copy of the layers' code, compiled once; False: one a layer, slower to compile"
    )
    dtype: str = declare(
        "float32", "of compute: float32 or bfloat16; master weights are always float32"
    )
    low_precision: bool = declare(False, "norms and softmax in dtype too, rather than in float32")
    separator_id: int = declare(
        -1,
        "where documents are packed in a row: the token between two of them, which no attention "
        "looks beyond; -1: it does",
        Range(-1),
    )
    vocab_size: int
    seq_len: int

    def __post_init__(self):
        check_options(self, "mlp_ratio")
        if self.d_model % self.d_head:
            raise UserError(
                f"model.d_head = {self.d_head} does not divide model.d_model = {self.d_model}: "
                f"d_model must be a multiple of d_head"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide the {self.num_heads} "
                "heads of model.d_model / model.d_head: query heads share keys in groups of equal "
                "size"
            )
        if self.position == "rope" and self.d_head % 2:
            raise UserError(
                f"model.d_head = {self.d_head} is odd: RoPE rotates pairs, so it must be even"
            )
        if self.attention_impl != "plain" and self.attention != "softmax":
            raise UserError(
                f"model.attention_impl = {self.attention_impl!r} with model.attention = "
                f"{self.attention!r}: only the plain implementation has other nonlinearities than "
                "softmax"
            )
        if self.attention_impl == "splash" and (self.d_head % 128 or self.seq_len % 128):
            raise UserError(
                f"model.attention_impl = 'splash' with model.d_head = {self.d_head}, data.seq_len "
                f"= {self.seq_len}: both must be multiples of 128"
            )
        if self.separator_id >= self.vocab_size:
            raise UserError(
                f"model.separator_id = {self.separator_id} is no token of data.vocab_size = "
                f"{self.vocab_size}"
            )
        if self.low_precision and self.attention_impl != "plain":
            raise UserError(
                f"model.low_precision with model.attention_impl = {self.attention_impl!r}: only "
                "the plain implementation computes its softmax in model.dtype"
            )

    @property
    def num_heads(self) -> int:
        return self.d_model // self.d_head

    @property
    def max_length(self) -> int | None:
        """Tokens that a sequence may have; None: any number, since training lengths bound no
        weight."""
        return self.seq_len if self.position == "learned" else None

    @property
    def dims(self) -> dict[str, int]:
        """Logical axis -> size."""
        return {
            "embed": self.d_model,
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads or self.num_heads,
            "head_dim": self.d_head,
            "mlp": int(exact_product(self.mlp_ratio, self.d_model)),
            "vocab": self.vocab_size,
            "positions": self.seq_len,
            "layers": self.num_layers,
        }

    def flops_per_token(self, seq_len: int) -> float:
        """Returns forward and backward matmul FLOPs per token without remat: 6 N + 12 L D T
        (2204.02311, appendix B)."""
        shared = (self.num_kv_heads or self.num_heads) / self.num_heads
        matrices = 2 + 2 * shared + num_mlp_matrices(self.activation) * self.mlp_ratio
        weights = self.num_layers * matrices * self.d_model**2 + self.vocab_size * self.d_model
        return 6 * weights + 12 * self.num_layers * self.d_model * seq_len


class Attention(MuModule):
    """Causal attention of several heads: a mixer that caches keys and values."""

    def __call__(self, x_BTD, context: Context):
        return self._attend(x_BTD, context)[0]

    def extend(self, x_BTD, context: Context, cache: Cache):
        return self._attend(x_BTD, context, cache)

    @nn.nowrap
    def empty_cache(self, batch_size: int, window: int) -> Cache:
        dims = self.cfg.dims
        shape = (batch_size, window, dims["kv_heads"], dims["head_dim"])
        return Cache(*(jnp.zeros(shape, self.cfg.dtype) for _ in Cache._fields))

    @nn.compact
    def _attend(self, x_BTD, context: Context, cache: Cache | None = None):
        cfg = self.cfg
        kv, kv_heads = ("kv", "kv_heads") if cfg.num_kv_heads else ("hidden", "heads")
        wq_DHK = self.weight("wq", "hidden", "embed -> heads head_dim")
        wk_DGK, wv_DGK = (
            self.weight(name, kv, f"embed -> {kv_heads} head_dim") for name in ("wk", "wv")
        )
        wo_HKD = self.weight("wo", "hidden", "heads head_dim -> embed")
        q_BTHK, k_BTGK, v_BTGK = (
            jnp.einsum("BTD,DHK->BTHK", x_BTD, w) for w in (wq_DHK, wk_DGK, wv_DGK)
        )
        q_BTHK = with_bias(self, q_BTHK, "bq", "heads head_dim")
        k_BTGK = with_bias(self, k_BTGK, "bk", f"{kv_heads} head_dim")
        v_BTGK = with_bias(self, v_BTGK, "bv", f"{kv_heads} head_dim")
        if cfg.qk_norm:
            q_BTHK = Norm(cfg, axis="head_dim", name="q_norm")(q_BTHK)
            k_BTGK = Norm(cfg, axis="head_dim", name="k_norm")(k_BTGK)
        if cfg.position == "rope":
            q_BTHK, k_BTGK = (rope(x, cfg.rope_base, context.position) for x in (q_BTHK, k_BTGK))
        for name, x in (("q", q_BTHK), ("k", k_BTGK), ("v", v_BTGK)):
            self.record(name, x)
        # Half of the scale on each, so that their product stays small in bfloat16 too
        q_BTHK, k_BTGK = (
            scaled(x, jnp.sqrt(context.hps.attention_scale)) for x in (q_BTHK, k_BTGK)
        )
        if cache is None:
            mixed_BTHK = IMPLEMENTATIONS[cfg.attention_impl](
                q_BTHK, k_BTGK, v_BTGK, cfg, context.document_BT, self.record
            )
        else:
            mixed_BTHK, cache = cached(q_BTHK, k_BTGK, v_BTGK, cache, context.position, cfg)
        self.record("mixed", mixed_BTHK)
        return with_bias(
            self, jnp.einsum("BTHK,HKD->BTD", mixed_BTHK, wo_HKD), "bo", "embed"
        ), cache


class MLP(MuModule):
    """Two matrices around an activation; where that is one of GATED, three."""

    copies = ""  # "experts |" in front of a signature, where there are several

    @nn.compact
    def __call__(self, x_BTD, context: Context):
        del context
        return self.mlp(x_BTD)

    def mlp(self, x_TD):
        """Applies the MLP to [..., T, D], or to copies [B, E, T, D] with weights of their own."""
        wi_DF = self.weight("wi", "hidden", f"{self.copies} embed -> mlp")
        wo_FD = self.weight("wo", "hidden", f"{self.copies} mlp -> embed")
        h_TF = with_bias(self, x_TD @ wi_DF, "bi", "mlp")
        name = self.cfg.activation
        if name in GATED:
            wg_DF = self.weight("wg", "hidden", f"{self.copies} embed -> mlp")
            h_TF = GATED[name](with_bias(self, x_TD @ wg_DF, "bg", "mlp")) * h_TF
        else:
            h_TF = ACTIVATIONS[name](h_TF)
        self.record("hidden", h_TF)
        return with_bias(self, h_TF @ wo_FD, "bo", "embed")


class Block(MuModule):
    """One layer, in the shape nn.scan wants: carry and own cache in, both out.

    An architecture may put other mixers (mujax.models.protocol) in the place of attention and MLP.
    """

    mixer_class, mixer_name = Attention, "attention"
    mlp_class = MLP

    @nn.compact
    def __call__(self, x_BTD, context: Context, cache):
        mixer, mlp = (
            self.mixer_class(self.cfg, name=self.mixer_name),
            self.mlp_class(self.cfg, name="mlp"),
        )
        normed_BTD = Norm(self.cfg, name=f"{self.mixer_name}_norm")(x_BTD)
        if cache is None:
            out_BTD = mixer(normed_BTD, context)
        else:
            out_BTD, cache = mixer.extend(normed_BTD, context, cache)
        self.record(f"{self.mixer_name}_out", out_BTD)
        x_BTD += scaled(out_BTD, context.hps.residual_scale)
        if not self.cfg.parallel:  # else both branches read the same (GPT-J; 2204.02311)
            normed_BTD = Norm(self.cfg, name="mlp_norm")(x_BTD)
        out_BTD = mlp(normed_BTD, context)
        self.record("mlp_out", out_BTD)
        x_BTD += scaled(out_BTD, context.hps.residual_scale)
        self.record("residual", x_BTD)
        return self.constrain(x_BTD, "batch length embed"), cache


def _remat(block, policy: str):
    """Returns the block with its activations recomputed in the backward pass: all, or all but its
    matmuls."""
    if policy == "none":
        return block
    saved = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}[policy]
    return nn.remat(block, policy=saved, prevent_cse=False)  # inside a scan nothing can be merged


class Transformer(LanguageModel):
    """Blocks stacked over the axis `layers`, between an embedding and a readout."""

    block_class = Block

    def setup(self):
        cfg = self.cfg
        self.embed_VD = self.weight("embed", "tied" if cfg.tied else "input", "vocab -> embed")
        self.unembed_DV = (
            self.embed_VD.T if cfg.tied else self.weight("unembed", "output", "embed -> vocab")
        )
        if cfg.position == "learned":
            self.position_TD = self.weight("position", "input", "positions -> embed")
        if cfg.embedding_norm:
            self.embedding_norm = Norm(cfg)
        self.blocks = nn.scan(
            _remat(self.block_class, cfg.remat),
            variable_axes={"params": 0, "activations": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),  # pyright: ignore[reportArgumentType] # context, cache
            length=cfg.num_layers,
            unroll=1 if cfg.scan_layers else cfg.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers", "size": cfg.num_layers},
        )(cfg)
        self.final_norm = Norm(cfg)
        if cfg.bias:
            self.unembed_bias_V = self.weight("unembed_bias", "vector", "-> vocab", dist="zeros")

    def features(self, tokens_BT, hps: Hps):
        return self.extend(tokens_BT, hps, None, 0)[0]

    @nn.nowrap
    def empty_cache(self, batch_size: int, window: int):
        """Returns the cache of its mixer, stacked by layer; None where the mixer has none."""
        mixer = self.block_class.mixer_class(self.cfg, parent=None)
        if not isinstance(mixer, CachedMixer):
            return None
        num_layers = self.cfg.num_layers
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (num_layers, *x.shape)),
            mixer.empty_cache(batch_size, window),
        )

    def extend(self, tokens_BT, hps: Hps, cache, position):
        # So its gradient is whole too before it is cut into shares: a scatter right into them
        # gathers the activations of the whole batch
        embed_VD = self.constrain(self.embed_VD, "vocab embed")
        x_BTD = jnp.take(embed_VD, tokens_BT, axis=0)
        if self.cfg.position == "learned":  # the sum as large as either
            position_TD = jax.lax.dynamic_slice_in_dim(
                self.position_TD, position, tokens_BT.shape[1]
            )
            x_BTD = (x_BTD + position_TD[None]) * jnp.asarray(0.5**0.5, x_BTD.dtype)
        x_BTD = self.constrain(scaled(x_BTD, hps.embedding_scale), "batch length embed")
        self.record("embedding", x_BTD)
        if self.cfg.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        document_BT = None
        if self.cfg.separator_id >= 0 and cache is None:  # what is sampled is one document
            document_BT = jnp.cumsum(tokens_BT == self.cfg.separator_id, axis=1)
        x_BTD, cache = self.blocks(x_BTD, Context(hps, position, document_BT), cache)
        x_BTD = self.final_norm(x_BTD)
        self.record("final", x_BTD)
        return x_BTD, cache

    def logits(self, x_BTD, hps: Hps):
        logits_BTV = jnp.einsum("BTD,DV->BTV", x_BTD, self.unembed_DV)
        if self.cfg.bias:
            logits_BTV = logits_BTV + self.unembed_bias_V[None, None]
        logits_BTV = scaled(logits_BTV, hps.logits_scale)
        self.record("logits", logits_BTV)
        return self.constrain(logits_BTV, "batch length vocab")


MODEL = (TransformerConfig, Transformer)
