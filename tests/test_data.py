"""The corpus cuts real text without losing or repeating a byte; batches are functions of (seed,
t)."""

import ast

import numpy as np
import pytest

from mujax.data import text as corpus
from mujax.data.loader import TrainBatches, ahead, validation_batches
from mujax.data.shards import StreamRows
from mujax.data.text import load_corpus
from mujax.errors import UserError


def test_embedded_corpus_is_the_standard_library():
    """About 11 MB of text; a known sentence is in it, and no test file is."""
    files = corpus.embedded_files()
    loaded = load_corpus("embedded", "", "", 64, 8)
    total = sum(file.stat().st_size for file in files)
    assert 8e6 < total < 16e6
    assert abs((len(loaded.train) + len(loaded.validation)) * 64 / total - 1) < 0.01
    assert 0.01 < len(loaded.validation) / len(loaded.train) < 0.2
    text = loaded.train[:, :-1].tobytes() + loaded.validation[:, :-1].tobytes()
    # this.py, in rot13
    assert b"Beautiful is better than ugly" in text or b"Ornhgvshy vf orggre guna htyl" in text
    assert not any("test" in file.parts for file in files)


def test_rows_make_every_byte_a_target_once(tmp_path):
    text = bytes(np.random.default_rng(0).integers(1, 128, 5000, dtype=np.uint8))
    (tmp_path / "a.txt").write_bytes(text)
    rows = load_corpus("text", str(tmp_path / "a.txt"), "", 16, 2)
    cut = int(len(text) * 0.95)
    for split, stream in ((rows.train, text[:cut]), (rows.validation, text[cut:])):
        targets = split[:, 1:].reshape(-1).tobytes()
        assert targets == stream[1 : 1 + len(targets)]
        assert len(stream) - len(targets) <= 16
        assert np.array_equal(split[1:, 0], split[:-1, -1])


def test_folder_is_split_by_file_whatever_the_order(tmp_path):
    """Validation holds whole files, and the fingerprint follows their content."""
    names = [f"{i:02d}.txt" for i in range(40)]
    for name in names:
        (tmp_path / name).write_text(f"<{name}>" * 60)
    (tmp_path / "skipped.bin").write_bytes(b"\xff" * 100)
    first = load_corpus("text", str(tmp_path), "*.txt", 8, 2)
    train, validation = first.train.tobytes(), first.validation.tobytes()
    held_out = [name for name in names if f"<{name}>".encode() in validation]
    assert len(held_out) == 2
    assert held_out not in (names[:2], names[-2:])  # drawn by hash, not from an end of the alphabet
    assert not any(f"<{name}>".encode() in train for name in held_out)
    load_corpus.cache_clear()
    assert load_corpus("text", str(tmp_path), "*.txt", 8, 2).fingerprint == first.fingerprint
    (tmp_path / names[0]).write_text("changed" * 60)
    load_corpus.cache_clear()
    assert load_corpus("text", str(tmp_path), "*.txt", 8, 2).fingerprint != first.fingerprint


def test_batches_are_pure_functions_of_seed_and_step():
    rows = np.arange(37 * 5, dtype=np.uint8).reshape(37, 5)
    batches, again, other = (
        TrainBatches(rows, 4, 0),
        TrainBatches(rows, 4, 0),
        TrainBatches(rows, 4, 1),
    )
    forward = [batches[t] for t in range(30)]
    backward = [again[t] for t in reversed(range(30))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not all(np.array_equal(a, other[t]) for t, a in enumerate(forward))
    # Each epoch of 37 rows holds every row once, in another order
    order = np.concatenate(forward)[:, 0] // 5
    assert sorted(order[:37]) == sorted(order[37:74]) == list(range(37))
    assert list(order[:37]) != list(order[37:74])


@pytest.mark.parametrize("num_processes", [1, 2, 4, 8])
def test_processes_read_the_same_global_batch(num_processes):
    """Each reads its own rows alone; together they are the batch, at any step, also after a
    restart."""
    streams = [np.arange(n, dtype=np.uint16) for n in (1000, 7, 333, 1)]
    rows = StreamRows(streams, 9, 8)
    whole, share = TrainBatches(rows, 16, 5), 16 // num_processes
    for t in (0, 3, 10, 11, 50):  # 167 rows: a batch may have some of two epochs
        shares = [
            TrainBatches(rows, 16, 5).rows(t, slice(i, i + share)) for i in range(0, 16, share)
        ]
        assert np.array_equal(np.concatenate(shares), whole[t])


def test_rows_across_files_are_those_of_one_stream():
    """Against slices of the streams joined; a split of an epoch has every row once."""
    rng = np.random.default_rng(0)
    streams = [rng.integers(0, 2**16, size=n, dtype=np.uint16) for n in (40, 1, 2, 100, 3, 11)]
    joined = np.concatenate(streams)
    for length, stride in ((9, 8), (4, 4), (60, 59), (1, 1)):
        rows = StreamRows(streams, length, stride)
        expected = [joined[i : i + length] for i in range(0, len(joined) - length + 1, stride)]
        assert len(rows) == len(expected)
        picked = rng.permutation(len(rows))
        assert np.array_equal(rows[picked], np.stack([expected[i] for i in picked]))
    assert len(StreamRows(streams, 158, 1)) == 0


def test_reading_ahead_changes_nothing():
    """From any step on, in order; what fails there fails here; and the end is where it was."""
    batches = TrainBatches(np.arange(37 * 5, dtype=np.uint8).reshape(37, 5), 4, 0)
    for first in (0, 7):
        found = list(ahead(batches.__getitem__, first, 20))
        assert np.array_equal(found, [batches[t] for t in range(first, 20)])
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda t: 1 // (3 - t), 0, 9))


def test_validation_batches_spread_over_the_split():
    rows = np.arange(100, dtype=np.uint8)[:, None]
    picked = validation_batches(rows, 5, 4)
    assert picked.shape == (4, 5, 1)
    assert (picked.min(), picked.max()) == (0, 99)
    assert len(np.unique(picked)) == 20
    assert validation_batches(rows, 30, 8).shape == (3, 30, 1)  # no more than there are


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file or folder"),
        (b"", "is empty"),
        (b"short", "is too small: 4 training bytes"),
        (b"caf\xe9" * 1000, "is not UTF-8 text \\(byte 3\\)"),
    ],
)
def test_bad_source_is_one_clear_line(tmp_path, content, complaint):
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load_corpus("text", str(file), "", 16, 4)


def test_folder_without_a_match_and_python_without_sources(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no file matches data.glob = '\*.txt'"):
        load_corpus("text", str(tmp_path), "*.txt", 16, 4)
    monkeypatch.setattr(corpus, "embedded_files", list)
    with pytest.raises(UserError, match="no standard library sources on disk"):
        load_corpus("embedded", "", "", 17, 4)


def test_source_files_parse_as_what_they_claim():
    """The corpus is whole files: one taken at random still parses as Python."""
    file = next(file for file in corpus.embedded_files() if file.name == "dataclasses.py")
    assert ast.parse(file.read_text())
