"""A dataset.json that was edited and sealed again: read, or one line that says what is wrong with
it."""

import hashlib
import json
import math

import numpy as np
import pytest

from mujax.data.shards import fingerprint, load_shards, sealed
from mujax.errors import UserError

WILD = (
    None, True, -1, 0, 3, 2**31, 2**64, 10**400, 0.5, 1e308, math.nan, "", "x", "../x",
    "/etc/passwd", "a\0b", "object",
    "uint64", "<u2,<u4", [], [None], [{}], {}, {"train": None}, [[]],
)  # fmt: skip


def dataset(folder):
    """A dataset of two files, as mujax prepare writes it."""
    shards = []
    for split in ("train", "validation"):
        content = np.arange(100, dtype="<u2").tobytes()
        (folder / f"{split}-00000.bin").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        shards.append(
            {"file": f"{split}-00000.bin", "split": split, "bytes": len(content), "sha256": sha256}
        )
    tokenizer = {
        "kind": "bytes",
        "options": {},
        "vocab_size": 256,
        "eos_id": 0,
        "start_id": 0,
        "file": "",
        "sha256": "",
    }
    return {
        "format": 1, "layout": "packed", "seq_len": 0, "dtype": "uint16", "tokenizer": tokenizer,
        "shards": shards,
        "splits": {split: {"tokens_per_byte": 1.0} for split in ("train", "validation")},
        "recipe": {},
    }  # fmt: skip


def places(tree, path=()):
    """The path of every value in nested dicts and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(tree, path, value):
    copy = json.loads(json.dumps(tree))
    *sections, last = path
    node = copy
    for key in sections:
        node = node[key]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return copy


def load(folder, description):
    try:
        description = {**description, "fingerprint": fingerprint(description)}
    except KeyError:
        description = {**description, "fingerprint": "x"}
    (folder / "dataset.json").write_text(json.dumps(sealed(description)))
    return load_shards(folder, 8, 256, -1, -1, 2)


def test_every_field_of_a_dataset_with_every_value(tmp_path):
    description = dataset(tmp_path)
    assert len(load(tmp_path, description).train) == 12
    loaded = set()
    for path in places(description):
        for value in (KeyError, *WILD):
            try:
                corpus = load(tmp_path, changed(description, path, value))
                corpus.train[np.arange(2)], corpus.validation[np.arange(2)]
                loaded.add(path[0])
            except UserError as e:
                assert (
                    "\n" not in str(e)
                    and len(str(e)) < 600
                    and "dataset" in str(e)
                    or path[0] == "layout"
                ), (
                    path,
                    value,
                )
    assert loaded <= {"format", "seq_len", "splits", "tokenizer", "recipe"}, loaded  # True is 1


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "[" * 10**5, '{"format": 1}', "\0", "{" * 3, "NaN", "1" * 5000]
)
def test_a_dataset_json_that_is_none(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset.json") as e:
        load_shards(tmp_path, 8, 256, -1, -1, 2)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
