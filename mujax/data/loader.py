"""Batches by random access: batch t is a pure function of (seed, t), so resuming costs nothing."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import grain
import numpy as np

from mujax.config import DATASETS, DataConfig, RunConfig
from mujax.data.embedded import load_pieces
from mujax.data.images import load_images
from mujax.data.shards import load_shards
from mujax.data.text import Corpus, Rows, load_corpus
from mujax.errors import UserError
from mujax.fields import NUM_BYTES

T = TypeVar("T")
# Threads and batches of read-ahead, which waits for a disk more than it computes
NUM_THREADS, NUM_AHEAD = 2, 4


class TrainBatches:
    """Shuffled rows, reshuffled every epoch; `batches[t]` is unsigned [batch_size, seq_len + 1]."""

    def __init__(self, rows: Rows, batch_size: int, seed: int):
        # Row numbers: rows as grain's source take three times as long per row. An index beyond the
        # length is in a later epoch.
        self._order = grain.MapDataset.range(len(rows)).seed(seed).shuffle()
        self._rows, self._batch_size = rows, batch_size

    def __getitem__(self, t: int) -> np.ndarray:
        return self.rows(t, slice(0, self._batch_size))

    def rows(self, t: int, which: slice) -> np.ndarray:
        """Reads some rows of batch t, and no others."""
        first = t * self._batch_size
        return self._rows[
            np.asarray([self._order[first + i] for i in range(which.start, which.stop)])
        ]


def ahead(read: Callable[[int], T], first: int, end: int) -> Iterator[T]:
    """Yields read(t) for each t in [first, end), read ahead by threads."""
    options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=NUM_AHEAD)
    return iter(grain.MapDataset.range(first, end).map(read).to_iter_dataset(options))


def validation_batches(rows: Rows, batch_size: int, num_batches: int) -> np.ndarray:
    """Returns [num_batches, batch_size, seq_len + 1], evenly spread over the split, for all runs.

    Fewer batches if the split is smaller than requested.
    """
    num_batches = min(num_batches, len(rows) // batch_size)
    picks = np.linspace(0, len(rows) - 1, num_batches * batch_size).astype(int)
    return rows[picks].reshape(num_batches, batch_size, -1)


def load_batches(
    cfg: RunConfig, seeds: Iterable[int]
) -> tuple[dict[int, TrainBatches], np.ndarray, Corpus]:
    """Returns ({seed: training batches}, validation batches [E, B, T + 1], corpus) of a config.

    A source is read once.

    Raises:
      UserError: the source is missing or damaged, or does not fit the config.
    """
    corpus, train = _load(cfg), cfg.train
    batches = {seed: TrainBatches(corpus.train, train.batch_size, seed) for seed in seeds}
    return (
        batches,
        validation_batches(corpus.validation, train.batch_size, train.eval_batches),
        corpus,
    )


def _load(cfg: RunConfig) -> Corpus:
    data, batch_size = cfg.data, cfg.train.batch_size
    if DATASETS[data.name] == "images":
        return load_images(data.name, data.path, data.seq_len, data.vocab_size, batch_size)
    if data.name != "shards" and data.vocab_size == NUM_BYTES:
        return load_corpus(data.name, data.path, data.glob, data.seq_len, batch_size)
    separator_id = getattr(cfg.model, "separator_id", -1)
    return load_shards(
        shards_folder(data), data.seq_len, data.vocab_size, data.eos_id, separator_id, batch_size
    )


def shards_folder(data: DataConfig) -> Path:
    """Returns the folder of a config's token shards, made first for text without a tokenizer.

    Raises:
      UserError: they cannot be made, or are not on a local disk.
    """
    if data.name != "shards":
        return load_pieces(data.name, data.path, data.glob, data.vocab_size)
    if "://" in data.path:
        raise UserError(
            f"data.path = {data.path!r}: shards are read from a local disk; copy them first "
            "(gcloud storage rsync -r), or mount the bucket (gcsfuse)"
        )
    return Path(os.path.expanduser(data.path))
