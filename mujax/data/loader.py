"""Batches by random access: batch t is a pure function of (seed, t), so resuming costs nothing."""

from collections.abc import Iterable

import grain
import numpy as np

from mujax.config import DATASETS, DataConfig, TrainConfig
from mujax.data.corpus import load_corpus
from mujax.data.images import load_images
from mujax.errors import UserError


class TrainBatches:
    """Shuffled rows, reshuffled every epoch; `batches[t]` is uint8 [batch_size, seq_len + 1]."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int):
        # Of numbers: an array as grain's source takes three times as long a row
        self._order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
        self._rows, self._batch_size = rows, batch_size

    def __getitem__(self, t: int) -> np.ndarray:
        return self.rows(t, slice(0, self._batch_size))

    def rows(self, t: int, which: slice) -> np.ndarray:
        """Some rows of batch t; no others are read."""
        first = t * self._batch_size
        return self._rows[np.asarray([self._order[first + i] for i in range(which.start, which.stop)])]


def validation_batches(rows: np.ndarray, batch_size: int, num_batches: int) -> np.ndarray:
    """[num_batches, batch_size, seq_len + 1], spread evenly over the split; the same for every run.

    Fewer batches if the split is smaller than asked for.
    """
    num_batches = min(num_batches, len(rows) // batch_size)
    picks = np.linspace(0, len(rows) - 1, num_batches * batch_size).astype(int)
    return rows[picks].reshape(num_batches, batch_size, -1)


def load_batches(
    data: DataConfig, train: TrainConfig, seeds: Iterable[int]
) -> tuple[dict[int, TrainBatches], np.ndarray, str]:
    """({seed: training batches}, validation batches [E, B, T + 1], fingerprint) of a config; text is read once.

    Raises:
      UserError: see mujax.data.corpus.load_corpus.
    """
    if data.name == "shards":
        raise UserError(f"data.path = {data.path!r}: shards of tokens cannot be read yet; use 'text' or 'embedded'")
    if DATASETS[data.name] == "images":
        corpus = load_images(data.name, data.path, data.seq_len, data.vocab_size, train.batch_size)
    else:
        corpus = load_corpus(data.name, data.path, data.glob, seq_len=data.seq_len, batch_size=train.batch_size)
    batches = {seed: TrainBatches(corpus.train, train.batch_size, seed) for seed in seeds}
    return batches, validation_batches(corpus.validation, train.batch_size, train.eval_batches), corpus.fingerprint
