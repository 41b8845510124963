"""Every JSON and array file that mujax reads, through every kind of damage: one clear line, and
nothing is changed.

To add a file: a function that makes a small valid one in a folder, and the call that reads it, in
CASES. To add a kind
of damage: one more entry of `damages`.
"""

import copy
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny_tree

from mujax import main
from mujax.config import canonical, hashed, make_run_config
from mujax.data.images import load_images
from mujax.data.prepare.dataset import COUNTS, _begin, _describe
from mujax.data.prepare.parts import Recipe, record_file
from mujax.data.shards import check_files, fingerprint, load_shards, sealed
from mujax.data.tokenizers import make, of_dataset
from mujax.errors import UserError
from mujax.explain.export import read_shapes
from mujax.report.rows import load_rows, load_training, warnings
from mujax.report.studies import Naming
from mujax.report.tables import read_table
from mujax.storage.files import open_workdir, read_jsonl, write_json, write_jsonl
from mujax.storage.locks import locked
from mujax.storage.records import is_name, read_config
from mujax.sweep import study
from mujax.sweep.engine import Progress, Snapshot
from mujax.sweep.lanes import abstract_lane
from mujax.sweep.merge import merge
from mujax.sweep.points import make_points
from mujax.sweep.snapshots import Unusable, load_snapshots, save_snapshots
from mujax.training.checkpoint import Checkpoints, _Damaged, _digest
from mujax.training.logs import RunLog
from mujax.training.outcome import Outcome
from mujax.training.ownership import Ownership
from mujax.training.results import code_version
from mujax.training.steps import METRICS

ROW = {
    "id": "0123456789ab", "group": "ba9876543210", "status": "ok", "diverged_at_step": None,
    "stopped_at_step": None,
    "model": "transformer", "width": 16, "depth": 2, "parameterization": "mup",
    "optimizer": "adamw",
    "learning_rate": 0.01, "weight_decay": 0.0, "seed": 0, "steps": 12, "tokens": 768,
    "final_loss": 5.25,
    "best_loss": 5.25, "best_step": 12, "bits_per_byte": 7.5, "eval_losses": [[0, 5.5], [12, 5.25]],
    "n_params": 9000,
    "overrides": {"optim.learning_rate": 0.01}, "table_hash": "aaaaaaaaaaaa",
    "data_fingerprint": "bbbbbbbbbbbb",
    "code_version": "1", "jax_version": "1", "device": "1 x cpu", "seconds": 1.5,
}  # fmt: skip
METRIC_LINES = [
    {"step": 0, "eval_loss": 5.5},
    {"step": 0, "loss": 5.5, "grad_norm": 1.0, "learning_rate": 0.01},
]


class Trains(Exception):
    """Stands for training, which a damage that leaves a file valid may come to."""


@pytest.fixture(scope="module")
def tree(text_file):
    made = tiny_tree(data__name="text", data__path=str(text_file))
    made["sweep"] = {"optim": {"learning_rate": (0.01,)}}
    return made


@pytest.fixture(scope="module")
def point(tree):
    return make_points(tree)[0]


@pytest.fixture(autouse=True)
def one_point(monkeypatch, point):
    """A sweep begins in a millisecond."""
    monkeypatch.setattr(study, "make_points", lambda tree: [point])


def no_training(*args):
    raise Trains


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, and who reads it. `make` writes a folder of valid files, `read` reads it, given what
    `make` returned."""

    file: str
    make: Callable[[Path, Any, Any], Any]
    read: Callable[[Path, Any], Any]


def make_sweep(root, tree, point):
    """A finished sweep of one point."""
    (root / "points" / point.id).mkdir(parents=True)
    corpus = study.load_batches(point.run.cfg, ())[2].fingerprint
    data = hashed(canonical(point.run.cfg.data))
    entry = {"overrides": point.overrides, "table_hash": point.run.table_hash}
    write_json(
        root / "manifest.json",
        {
            "config": tree,
            "part": "",
            "data": {data: corpus},
            "points": {point.id: entry},
            "refinement": ["a: settled"],
        },
    )
    row = {**ROW, "id": point.id, "table_hash": point.run.table_hash, "data_fingerprint": corpus}
    write_jsonl(root / "results.jsonl", [row])
    write_jsonl(root / "points" / point.id / "metrics.jsonl", METRIC_LINES)
    return tree


def go_on(root, tree):
    study.sweep(tree, root, train_runs=no_training)


def merge_from(root, tree):
    merge(str(root.parent / "merged"), [str(root)])


def report_on(root, tree):
    rows, repeated = load_rows(root)
    warnings(root, rows, repeated)
    load_training(rows, {}, Naming(rows))


def make_run(root, tree, point):
    """A finished run."""
    ownership = Ownership(root, point.run, "bbbbbbbbbbbb", ())
    write_json(root / "config.json", point.run.cfg.as_dict())
    write_json(root / "result.json", {**ROW, "id": point.id, "table_hash": point.run.table_hash})
    write_jsonl(root / "metrics.jsonl", METRIC_LINES)
    write_jsonl(root / "performance.jsonl", [{"step": 12}])
    return ownership


def train_again(root, ownership):
    open_workdir(root, "config.json", ownership.run.cfg.as_dict(), ())
    with locked(root):
        ownership.finished_row()
        ownership.take()
        RunLog(root, is_writer=True).go_on_from(12, [0])


def make_log(root, tree, point):
    make_run(root, tree, point)


def read_log(root, _):
    RunLog(root, is_writer=True).go_on_from(12, [0])


def shard(file, split):
    content = bytes(np.arange(200, dtype="<u2"))
    counts = dict.fromkeys(COUNTS, 400)
    return {
        "file": file,
        "split": split,
        **counts,
        "sha256": hashlib.sha256(content).hexdigest(),
    }, content


def make_dataset(root, tree, point):
    shards = []
    for split in ("train", "validation"):
        entry, content = shard(f"{split}-00000.bin", split)
        (root / entry["file"]).write_bytes(content)
        shards.append(entry)
    description = {
        "format": 1, "layout": "packed", "seq_len": 0, "dtype": "uint16", "shards": shards,
        "tokenizer": {"kind": "bytes", "vocab_size": 256, "eos_id": 0, "start_id": 0, "file": "",
        "sha256": "",
                      "options": {}},
        "splits": dict.fromkeys(("train", "validation"), {"tokens_per_byte": 1.0}), "recipe": {},
    }  # fmt: skip
    write_json(
        root / "dataset.json", sealed({"fingerprint": fingerprint(description), **description})
    )
    write_json(root / ".verified.json", {})


def read_dataset(root, _):
    load_shards(root, 16, 256, -1, -1, 2)


RECIPE = Recipe("embedded", "bytes", "packed", validation="hash:0.1")


def make_preparation(root, tree, point):
    (root / "preparing").mkdir(parents=True)
    write_json(
        root / "preparing" / "recipe.json", {"recipe": dataclasses.asdict(RECIPE), "parts": []}
    )
    shards = [shard(f"{split}-00000.bin", split)[0] for split in ("train", "validation")]
    write_json(record_file(root, 0), {"empty_documents": 0, "shards": shards})


def read_preparation(root, _):
    _begin(root, RECIPE, [])
    _describe(root, RECIPE, make("bytes", b"", {}), 1, {})


def make_checkpoint(root, tree, point):
    folder = root / "latest" / "7" / "record"
    folder.mkdir(parents=True)
    arrays = {"params/w": {"shape": [2], "dtype": "float32", "checksum": 3}}
    record = {
        "config": {},
        "table": "",
        "table_hash": "a",
        "data_fingerprint": "b",
        "evals": [[0, 5.5]],
    }
    record = {
        **record,
        "seconds": 1.5,
        "code_version": "1",
        "jax_version": "1",
        "step": 7,
        "arrays": arrays,
    }
    write_json(folder / "metadata", {**record, "digest": _digest(record)})


def read_checkpoint(root, _):
    """As what it is told to be: damaged is what a run says of it, and takes the one before."""
    checkpoints = object.__new__(Checkpoints)  # without Orbax' manager, which takes a second
    checkpoints._folder = root / "latest"
    try:
        checkpoints._read_record(7)
    except _Damaged as e:
        raise UserError(str(e)) from e


def make_lock(root, tree, point):
    (root / "lock").write_text("process 1 on host")


def hold(root, _):
    with locked(root):
        pass


def make_table(root, tree, point):
    write_jsonl(
        root / "t.jsonl",
        [{"width": 16, "learning_rate": 0.1 * (i + 1), "loss": 3.0} for i in range(3)],
    )


def make_shapes(root, tree, point):
    write_json(root / "shapes.json", {"embed": [8, None], "head": [None, 8]})


def read_again(root, _):
    make_run_config(read_config(root / "config.json"))


def read_rows_of(root, _):
    read_table(str(root / "t.jsonl"), {})


def read_shapes_of(root, _):
    read_shapes(str(root / "shapes.json"), "shapes")


CASES = {
    "manifest: sweep": Case("manifest.json", make_sweep, go_on),
    "manifest: merge": Case("manifest.json", make_sweep, merge_from),
    "manifest: report": Case("manifest.json", make_sweep, report_on),
    "rows: sweep": Case("results.jsonl", make_sweep, go_on),
    "rows: merge": Case("results.jsonl", make_sweep, merge_from),
    "rows: report": Case("results.jsonl", make_sweep, report_on),
    "curve: merge": Case("points/*/metrics.jsonl", make_sweep, merge_from),
    "curve: report": Case("points/*/metrics.jsonl", make_sweep, report_on),
    "config: train": Case("config.json", make_run, train_again),
    "config: sample": Case("config.json", make_run, read_again),
    "result: train": Case("result.json", make_run, train_again),
    "result: report": Case("result.json", make_run, report_on),
    "metrics: train": Case("metrics.jsonl", make_log, read_log),
    "metrics: report": Case("metrics.jsonl", make_run, report_on),
    "performance: train": Case("performance.jsonl", make_log, read_log),
    "checkpoint: train": Case("latest/7/record/metadata", make_checkpoint, read_checkpoint),
    "lock": Case("lock", make_lock, hold),
    "dataset": Case("dataset.json", make_dataset, read_dataset),
    "verified": Case(".verified.json", make_dataset, read_dataset),
    "shard": Case("train-00000.bin", make_dataset, read_dataset),
    "recipe: prepare": Case("preparing/recipe.json", make_preparation, read_preparation),
    "part: prepare": Case("preparing/part-00000.json", make_preparation, read_preparation),
    "table: report": Case("t.jsonl", make_table, read_rows_of),
    "shapes: export": Case("shapes.json", make_shapes, read_shapes_of),
}

VALUES: dict[str, Any] = {
    "null": None, "a list": [1, [2]], "an object": {"a": {"b": 1}}, "text": "x",
    "a path": "../../up", "true": True,
    "minus one": -1, "a huge number": 10**400, "a fraction": 0.5, "1e308": 1e308,
    "half a pair": "\ud800",
}  # fmt: skip
DEEP = b"[" * 2_000 + b"]" * 2_000


def damages(content: bytes, many: int) -> Iterator[tuple[str, bytes | None]]:
    """(name, content), None for what is no file; `many` random ones, and of the values so many at
    each place."""
    yield "empty", b""
    yield "binary", bytes(range(256)) * 3
    yield "deep", DEEP + b"\n"
    yield "deep, an object", b'{"a":' * 300 + b"1" + b"}" * 300 + b"\n"
    yield "a list", b"[]\n"
    yield "null", b"null\n"
    yield "not a number", content.replace(b"5.5", b"NaN").replace(b": 1", b": NaN", 1)
    yield "beyond floats", content.replace(b"5.5", b"1e999").replace(b": 1", b": 1e999", 1)
    yield "a folder", None
    yield "a pipe", None
    rng = random.Random(len(content))
    for _ in range(many):
        yield "truncated", content[: rng.randrange(len(content))]
        i, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        yield f"bit {bit} of byte {i}", content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :]
    try:
        is_lines = content.count(b"\n{") > 0 or b"\n" not in content[:-1]
        documents = (
            [json.loads(line) for line in content.splitlines()]
            if is_lines
            else [json.loads(content)]
        )
    except ValueError:  # not JSON
        return
    values = itertools.cycle([*VALUES.items(), ("missing", ...)])
    for n, document in enumerate(documents):
        for path in paths(document):
            for name, value in itertools.islice(values, min(many, len(VALUES) + 1)):
                changed = copy.deepcopy(documents)
                put(changed[n], path, value)
                text = "".join(json.dumps(d) + "\n" for d in changed)
                yield f"{'.'.join(map(str, path))} is {name}", text.encode()


def paths(document, prefix=(), depth=3) -> Iterator[tuple]:
    """Of all values, a few of each list."""
    items = list(document.items() if isinstance(document, dict) else enumerate(document[:1]))
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict | list) and depth > 1 and key != "config":
            yield from paths(value, (*prefix, key), depth - 1)


def put(document, path, value) -> None:
    node = document
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value


@pytest.mark.parametrize("many", [2, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_damaged_files(name, many, tmp_path, tree, point):
    """One line that says what is wrong, and nothing is changed; or the file is still a valid
    one."""
    case, root, refused = CASES[name], tmp_path / "w", 0
    root.mkdir()
    made = case.make(root, tree, point)
    (file,) = root.glob(case.file)
    valid = file.read_bytes()
    whole = contents(root) | {file.relative_to(root): valid}
    case.read(root, made)  # as it was made, it is read
    for damage, content in damages(valid, many):
        restore(tmp_path, whole)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        else:
            file.mkdir() if damage == "a folder" else os.mkfifo(file)
        before = contents(tmp_path)
        try:
            case.read(root, made)
        except UserError as e:
            refused += 1
            assert (
                len(str(e)) < 600 and main._one_line(str(e)).isprintable() and "\n" not in str(e)
            ), (damage, str(e))
            assert contents(tmp_path) == before, damage
        except Trains:
            pass
        except BaseException as e:
            raise AssertionError(f"{name}, {damage}: {type(e).__name__}: {e}"[:500]) from e
    assert refused >= 2 or name == "verified"  # without which all files are read


def contents(root: Path) -> dict[Path, bytes]:
    """Of all files but locks, which any call writes."""
    return {
        path.relative_to(root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def restore(folder: Path, whole: dict[Path, bytes]) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry)
    for name, content in whole.items():
        (folder / "w" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "w" / name).write_bytes(content)


@pytest.fixture(scope="module")
def in_flight(point, tmp_path_factory):
    """A small file of two runs in flight, as a sweep saves it, without a step of training."""
    snapshots = []
    for i in range(2):
        state = jax.tree.map(
            lambda x, i=i: np.full(x.shape, i + 1, x.dtype), abstract_lane(point.run.program)
        )
        state = state._replace(
            train=state.train._replace(step=np.int32(6)), diverged_at=np.int32(-1)
        )
        history = np.full((len(METRICS), point.run.cfg.train.steps), np.nan, np.float32)
        snapshots.append(
            Snapshot(
                i,
                Progress(6, Outcome(point.run.cfg.train, [(0, 5.5), (5, 5.25)]), history, 1.5),
                state,
            )
        )
    file = tmp_path_factory.mktemp("in_flight") / "it.npz"
    save_snapshots(file, snapshots, ["aaaaaaaaaaaa", "bbbbbbbbbbbb"], "code")
    return file.read_bytes()


def load(file, point, code="code"):
    return load_snapshots(file, point.run, {"aaaaaaaaaaaa": 3, "bbbbbbbbbbbb": 7}, code)


def test_runs_in_flight_are_read_as_saved(in_flight, tmp_path, point):
    (tmp_path / "it.npz").write_bytes(in_flight)
    first, second = load(tmp_path / "it.npz", point)
    assert (first.index, second.index, first.progress.done) == (3, 7, 6)
    assert first.progress.outcome == Outcome(point.run.cfg.train, [(0, 5.5), (5, 5.25)])
    assert all((x == 2).all() for x in jax.tree.leaves(second.state.train.params))
    # the other has its row
    (only,) = load_snapshots(tmp_path / "it.npz", point.run, {"bbbbbbbbbbbb": 0}, "code")
    assert only.index == 0


@pytest.mark.parametrize("many", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_runs_in_flight(many, in_flight, tmp_path, point):
    """A bit flipped anywhere, also in the lengths of headers, and cut anywhere: never believed,
    never another error."""
    file, rng = tmp_path / "it.npz", random.Random(0)
    structure = [
        i
        for name in (b"PK", b"NUMPY")
        for i in range(len(in_flight))
        if in_flight.startswith(name, i)
    ]
    places = [min(i + k, len(in_flight) - 1) for i in structure for k in range(60)]
    for n in range(many):
        i = rng.choice(places) if n % 2 else rng.randrange(len(in_flight))
        damaged = in_flight[:i] + bytes([in_flight[i] ^ 1 << rng.randrange(8)]) + in_flight[i + 1 :]
        file.write_bytes(damaged if n % 5 else in_flight[:i])
        with pytest.raises(Unusable, match="its SHA-256 is not that of its content"):
            load(file, point)
    file.write_bytes(in_flight[:-32])  # of before there was a sum
    with pytest.raises(Unusable, match="or of another version"):
        load(file, point)
    file.write_bytes(in_flight)
    with pytest.raises(Unusable, match="saved by other code"):
        load(file, point, "other")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Unusable, match="not a regular file"):
        load(file, point)


HEADERS: dict[str, Callable[[dict], Any]] = {
    "no runs": lambda h: h.pop("runs"),
    "runs null": lambda h: h.update(runs=None),
    "a run more": lambda h: h["runs"].append(h["runs"][0]),
    "a run less": lambda h: h["runs"].pop(),
    "an id twice": lambda h: h["runs"][1].update(id="aaaaaaaaaaaa"),
    "id null": lambda h: h["runs"][0].update(id=None),
    "done negative": lambda h: h["runs"][0].update(done=-1),
    "done huge": lambda h: h["runs"][0].update(done=10**30),
    "done of other weights": lambda h: h["runs"][0].update(done=7),
    "done text": lambda h: h["runs"][0].update(done="6"),
    "an evaluation less": lambda h: h["runs"][0]["evals"].pop(),
    "an evaluation in the future": lambda h: h["runs"][0]["evals"].append([10, 5.0]),
    "a loss null": lambda h: h["runs"][0].update(evals=[[0, None], [5, None]]),
    "evals null": lambda h: h["runs"][0].update(evals=None),
    "seconds null": lambda h: h["runs"][0].update(seconds=None),
    "seconds negative": lambda h: h["runs"][0].update(seconds=-5.0),
    "a run null": lambda h: h["runs"].__setitem__(0, None),
}
ARRAYS: dict[str, Callable[[dict], Any]] = {
    "no history": lambda a: a.pop("history"),
    "no header": lambda a: a.pop("header"),
    "an array less": lambda a: a.pop("state_1"),
    "an array more": lambda a: a.update(state_99=np.zeros(2)),
    "another type": lambda a: a.update(state_1=a["state_1"].astype(np.float64)),
    "another shape": lambda a: a.update(history=a["history"][:, :, :-1]),
    "a header of numbers": lambda a: a.update(header=np.zeros(3)),
    "a header that is deep": lambda a: a.update(header=np.array("[" * 9999)),
}


@pytest.mark.parametrize("change", [*HEADERS, *ARRAYS])
def test_crafted_runs_in_flight(change, in_flight, tmp_path, point):
    """With a right sum: what the header says must be what can be."""
    file = tmp_path / "it.npz"
    file.write_bytes(in_flight)
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files}
    if change in HEADERS:
        header = json.loads(str(arrays["header"]))
        HEADERS[change](header)
        arrays["header"] = np.array(json.dumps(header))
    else:
        ARRAYS[change](arrays)
    np.savez(file, **arrays)
    content = file.read_bytes()
    file.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(Unusable) as e:
        load(file, point)
    assert str(e.value).isprintable() and len(str(e.value)) < 300


def test_a_file_in_flight_that_is_damaged_is_set_aside(in_flight, tmp_path, tree, point, capsys):
    """In one line; its points start again, and the file is kept."""
    damaged = bytes([*in_flight[:500], in_flight[500] ^ 4, *in_flight[501:]])
    (tmp_path / "in_flight").mkdir()
    (tmp_path / "in_flight" / f"{point.run.group}.npz").write_bytes(damaged)
    with pytest.raises(Trains):
        study.sweep(tree, tmp_path, train_runs=no_training)
    aside = tmp_path / "earlier" / "1" / "in_flight" / f"{point.run.group}.npz"
    assert aside.read_bytes() == damaged and not list((tmp_path / "in_flight").iterdir())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "SHA-256" in line]
    assert f"it was moved to {tmp_path / 'earlier' / '1'}, and its points start again" in line


@pytest.mark.parametrize(
    "id",
    ["../../important/points/abc", "/etc/passwd", "..", ".", "", "a/b", "a\0b", "x" * 300, "a\nb"],
)
def test_no_path_of_data_leaves_its_folder(id, tmp_path, tree, point):
    """Of the ids of rows, and of the files that a dataset names."""
    assert not is_name(id)
    source = tmp_path / "source"
    source.mkdir()
    make_sweep(source, tree, point)
    important = tmp_path / "important" / "points" / "abc" / "metrics.jsonl"
    important.parent.mkdir(parents=True)
    important.write_text('{"step": 0, "loss": 1.0}\n')
    (row,) = read_jsonl(source / "results.jsonl")
    write_jsonl(source / "results.jsonl", [{**row, "id": id}])
    with pytest.raises(UserError, match="row 1, field 'id' is"):
        merge(str(tmp_path / "merged"), [str(source)])
    with pytest.raises(UserError, match="row 1, field 'id' is"):
        load_rows(source)
    with pytest.raises(UserError, match="row 1, field 'id' is"):
        study.sweep(tree, source, train_runs=no_training)
    assert important.read_text() == '{"step": 0, "loss": 1.0}\n'
    with pytest.raises(UserError, match="no name of a file"):
        check_files(source, [{"file": id, "bytes": 3, "sha256": ""}])
    if id:
        with pytest.raises(UserError, match="no name of a file"):
            of_dataset(source, {"kind": "sentencepiece", "file": id, "sha256": "", "options": {}})


def test_images_that_are_damaged(tmp_path):
    """Whatever NumPy and zipfile make of them."""
    images = {"images": np.zeros((200, 2, 2, 3), np.uint8), "labels": np.zeros(200, np.uint8)}
    file, rng = tmp_path / "i.npz", random.Random(0)
    np.savez_compressed(file, **images)
    content = file.read_bytes()
    for n in range(200):
        i = rng.randrange(len(content))
        file.write_bytes(
            content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]
            if n % 4
            else content[:i]
        )
        load_images.cache_clear()
        try:
            load_images("images", str(file), 12, 10, 8)
        except UserError as e:
            assert "\n" not in str(e)
    file.unlink()
    os.mkfifo(file)
    load_images.cache_clear()
    with pytest.raises(UserError, match="not a regular file"):
        load_images("images", str(file), 12, 10, 8)


def test_intervals_are_measured_by_a_clock_that_cannot_be_set_back():
    """time.time() is for dates alone: what a log and a copy for TensorBoard say."""
    calls = {
        (file.relative_to(ROOT / "mujax").as_posix(), line.strip())
        for file in (ROOT / "mujax").rglob("*.py")
        for line in file.read_text().splitlines()
        if "time.time()" in line or "datetime.now(" in line
    }
    assert {name for name, _ in calls} == {
        "training/logs.py",
        "sweep/trackers.py",
        "storage/locks.py",
    }
    assert all(re.search(r'"time": time|now = time.time|isoformat', line) for _, line in calls), (
        calls
    )


def moved(folder: Path) -> Path:
    target = folder.with_name("moved")
    folder.rename(target)
    return target


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_sweep_notices_that_its_workdir_was_moved(is_replaced, tmp_path, tree, point):
    """The sweep saves to the folder under its new name, neither makes nor touches another under the
    old one, and resumes from there."""
    root = tmp_path / "w"
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_lane(point.run.program))
    state = state._replace(diverged_at=np.int32(-1))
    history = np.full((len(METRICS), point.run.cfg.train.steps), 1, np.float32)

    def train_runs(runs, batches, validation, snapshots, trained, interrupt):
        interrupt(list)  # nothing has happened yet
        moved(root)
        if is_replaced:
            root.mkdir()
        # a row
        yield 0, Progress(12, Outcome(runs[0].cfg.train, [(0, 5.5), (12, 5.25)]), history, 1.5)
        interrupt(
            lambda: [
                Snapshot(
                    0, Progress(0, Outcome(runs[0].cfg.train, [(0, 5.5)]), history, 1.5), state
                )
            ]
        )
        raise AssertionError("it goes on training")

    with pytest.raises(
        UserError, match=f"{root} was moved to {tmp_path}/moved while .* go on with --workdir="
    ):
        study.sweep(tree, root, train_runs=train_runs)
    assert not is_replaced or not list(root.iterdir())
    assert is_replaced or not root.exists()
    now = tmp_path / "moved"
    assert [row["id"] for row in read_jsonl(now / "results.jsonl")] == [point.id]
    assert len(list(read_jsonl(now / "points" / point.id / "metrics.jsonl"))) > 2
    (entry,) = load_snapshots(
        now / "in_flight" / f"{point.run.group}.npz", point.run, {point.id: 0}, code_version()
    )
    assert entry.progress.done == 0
    assert study.sweep(tree, now, train_runs=no_training)[0]["final_loss"] == 5.25


def test_a_sweep_whose_workdir_was_deleted_says_so(tmp_path, tree):
    root = tmp_path / "w"

    def train_runs(runs, batches, validation, snapshots, trained, interrupt):
        shutil.rmtree(root)
        interrupt(list)
        yield

    with pytest.raises(UserError, match="was deleted, or moved out of sight, while it was in use"):
        study.sweep(tree, root, train_runs=train_runs)
    assert not root.exists()
