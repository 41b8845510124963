"""Images and their classes as rows of bytes: the pixels, then the class."""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from mujax.data.text import Corpus
from mujax.errors import UserError
from mujax.storage.records import check_regular

COLORS = 3
NUM_SYNTHETIC = 20_000
# One image in so many is for validation.
VALIDATION_PERIOD = 10


@functools.lru_cache(maxsize=2)
def load_images(name: str, path: str, seq_len: int, num_classes: int, batch_size: int) -> Corpus:
    """Reads or makes images of seq_len = side * side * 3 bytes; every tenth is for validation.

    Args:
      name: images, for a .npz file with `images` uint8 [N, side, side, 3] and `labels` [N] in [0,
        num_classes); or synthetic_images.

    Raises:
      UserError: no such file, arrays of other shapes, types or numbers, or less than a batch.
    """
    side = round((seq_len / COLORS) ** 0.5)
    if name == "synthetic_images":
        images, labels = synthetic_images(NUM_SYNTHETIC, side, num_classes)
    else:
        images, labels = _read(path, side, num_classes)
    rows = np.concatenate(
        [images.reshape(len(images), -1), labels[:, None]], axis=1, dtype=np.uint8, casting="unsafe"
    )
    is_validation = np.arange(len(rows)) % VALIDATION_PERIOD == 0
    train, validation = rows[~is_validation], rows[is_validation]
    if len(validation) < batch_size:
        raise UserError(
            f"data.path = {path!r}: {len(validation)} images for validation make no batch of "
            f"{batch_size}"
        )
    return Corpus(train, validation, hashlib.sha256(rows.tobytes()).hexdigest()[:12], None)


def _read(path: str, side: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    file = Path(os.path.expanduser(path))
    try:
        check_regular(file)
        with open(file, "rb") as stream, np.load(stream) as content:
            # NumPy would leave a damaged file open.
            images, labels = content["images"], content["labels"]
    except Exception as e:  # NumPy and zipfile raise many types for damaged files
        reason = " ".join(str(e).split())
        raise UserError(
            f"data.path = {path!r} is no .npz file with arrays `images` and `labels`: {reason}"
        ) from e
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, COLORS):
        raise UserError(
            f"data.path = {path!r}: images are {images.dtype} {images.shape}; data.seq_len wants "
            f"uint8 (N, {side}, {side}, {COLORS})"
        )
    if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"data.path = {path!r}: labels must be one per image, from 0 to data.vocab_size - 1 = "
            f"{num_classes - 1}"
        )
    return images, labels


def synthetic_images(num_images: int, side: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes (uint8 [N, side, side, 3], labels [N]); the same at every call.

    A class is a smooth pattern. An image shows the pattern of its class at any position (wrapped
    around) and some contrast, under a pattern of no class and noise.
    """
    rng = np.random.default_rng(0)
    patterns = np.stack([_pattern(rng, side) for _ in range(2 * num_classes)])
    labels = rng.integers(num_classes, size=num_images)
    distractors = num_classes + rng.integers(num_classes, size=num_images)
    images = np.empty((num_images, side, side, COLORS), np.uint8)
    for i, (label, distractor) in enumerate(zip(labels, distractors, strict=True)):
        own, other = (
            np.roll(patterns[k], rng.integers(side, size=2), axis=(0, 1))
            for k in (label, distractor)
        )
        image = (
            rng.uniform(0.3, 1) * own
            + rng.uniform(0.3, 1) * other
            + 1.0 * rng.normal(size=own.shape)
        )
        images[i] = np.clip(128 + 40 * image, 0, 255)
    return images, labels


def _pattern(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws waves of up to 3 periods per side, of unit variance in each color."""
    y, x = np.meshgrid(*2 * [np.arange(side) / side], indexing="ij")
    waves = np.zeros((side, side, COLORS))
    for _ in range(4):
        (ky, kx), phases = rng.integers(-3, 4, size=2), rng.uniform(0, 2 * np.pi, size=COLORS)
        waves += np.cos(2 * np.pi * (ky * y + kx * x)[..., None] + phases) * rng.normal(size=COLORS)
    return waves / waves.std(axis=(0, 1))
