"""Protocols of an architecture (its config and its module) and of the parts of a transformer's
block.

The rest of mujax knows nothing else of them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax

from mujax.hps import Hps


@runtime_checkable
class ModelConfig(Protocol):
    """The shapes and options of a model: a frozen dataclass, whose fields a config names and gives
    values.

    Fields `vocab_size` and, where there is one, `seq_len` are those of the data. __post_init__
    raises UserError, in one line, for what cannot be. A config may say besides, where the default
    does not hold:

      reads: "images" of a model that classifies them; without it, "text".
      max_length: the most tokens of a sequence that it can be called with; without it or at None,
        any number.
      init_length: the fewest tokens that a first call must have; without it, one.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def d_model(self) -> int:
        """The width: what a sweep over widths changes, and what sizes that grow follow."""
        ...

    @property
    def num_layers(self) -> int:
        """The depth."""
        ...

    @property
    def dtype(self) -> str:
        """The type that the model computes in; a check asks for "float64" as well."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of tokens, or of classes."""
        ...

    @property
    def dims(self) -> Mapping[str, int]:
        """The size of each logical axis that a signature names."""
        ...

    def flops_per_token(self, seq_len: int) -> float:
        """Returns the matmul FLOPs of a forward and a backward pass over one token among
        seq_len."""
        ...


@runtime_checkable
class Model(Protocol):
    """A MuModule (mujax.models.module), made of its config and, where a run is split over devices,
    of a layout.

    One whose logits stand apart from its features is a LanguageModel (mujax.models.layers).
    """

    cfg: Any

    def __call__(self, tokens_BT: jax.Array, hps: Hps, /) -> jax.Array:
        """Returns logits [B, T, V] in cfg.dtype: of position t from tokens 0..t. Of a classifier
        [B, 1, V]."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A LanguageModel that can go on from a cache, so that each token of a text is read once.

    Text is drawn from any other model too, which then reads the last tokens anew for each.
    """

    def empty_cache(self, batch_size: int, window: int, /) -> Any:
        """Returns the cache of the last `window` tokens before there is any, a tree of arrays; None
        where nothing is cached."""
        ...

    def extend(
        self, tokens_BT: jax.Array, hps: Hps, cache: Any, position: Any, /
    ) -> tuple[jax.Array, Any]:
        """Returns (features [B, T, D] of the tokens at `position` and on, the cache with them). At
        a time, features see as many tokens as the window has."""
        ...


class Context(NamedTuple):
    """The arguments that every part of a block is given beside the stream.

    hps: the traced numbers of the run. position: of the first token. document_BT: the number of
    each token's document in its row; None: all tokens of a row are one document.
    """

    hps: Hps
    position: Any = 0
    document_BT: jax.Array | None = None


@runtime_checkable
class Mixer(Protocol):
    """A part of a block, in the place of attention or of the MLP: a MuModule made of the model's
    config."""

    def __call__(self, x_BTD: jax.Array, context: Context, /) -> jax.Array:
        """Returns what the block adds to the stream [B, T, D]: at position t from tokens 0..t."""
        ...


@runtime_checkable
class CachedMixer(Protocol):
    """A Mixer that can go on from a cache as well."""

    def empty_cache(self, batch_size: int, window: int, /) -> Any:
        """Returns one layer's cache of the last `window` tokens before there is any: a tree of
        arrays."""
        ...

    def extend(self, x_BTD: jax.Array, context: Context, cache: Any, /) -> tuple[jax.Array, Any]:
        """Returns (what a call returns of the tokens at context.position and on, which see those in
        the cache too; the cache with these tokens)."""
        ...
