"""Lanes equal single runs, divergence stays alone, one program a width, and nothing finished is
lost."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, count_compilations, run_mujax
from helpers import Engine, bowl, terminate

from mujax.data.text import load_corpus
from mujax.errors import UserError
from mujax.hps import stack
from mujax.storage.files import append_jsonl, read_jsonl
from mujax.storage.records import Row
from mujax.sweep.grid import expand_sweep
from mujax.sweep.lanes import make_lane_fns
from mujax.sweep.merge import merge
from mujax.sweep.points import Shard
from mujax.sweep.study import sweep
from mujax.training.loop import train
from mujax.training.run import make_run
from mujax.training.sharding import make_layout
from mujax.training.steps import make_train_fns


def sweep_tree(tiny, **axes):
    tree = tiny()
    tree["sweep"] = {"optim": {"learning_rate": (2.0**-8, 2.0**-6, 2.0**-4)}}
    for path, values in axes.items():
        section, _, field = path.partition("__")
        tree["sweep"].setdefault(section, {})[field] = values
    return tree


def test_points_equal_single_runs_and_compile_once_a_width(tiny, tmp_path, monkeypatch):
    """2 widths x {sp, mup} x 3 learning rates x 2 seeds, against the train verb's own loop, to
    1e-5."""
    tree = sweep_tree(tiny, model__d_model=(16, 24), parameterization__name=("sp", "mup"))
    tree["sweep"]["seed"] = (0, 1)
    monkeypatch.setattr(
        "mujax.sweep.compilation.MAX_STEPS_PER_CALL", 3
    )  # of an evaluation's 5 steps: calls of 3, 2, 3, 2, 2
    training, evaluation = count_compilations("train_lane"), count_compilations("evaluate_lane")
    rows = sweep(tree, tmp_path / "sweep")
    assert len(rows) == 24
    assert len(training) == len(evaluation) == 2  # the number of widths
    for overrides, cfg in expand_sweep(tree)[::9]:
        single = train(cfg.as_dict(), tmp_path / cfg.id)
        row = next(row for row in rows if row["id"] == cfg.id)
        assert row["overrides"] == overrides
        for field in ("final_loss", "bits_per_byte", "eval_losses"):
            np.testing.assert_allclose(row[field], single[field], rtol=1e-5)
        same = {
            field: value
            for field, value in row.items()
            if field not in ("overrides", "seconds", "device")
        }
        for field in ("final_loss", "best_loss", "bits_per_byte", "eval_losses"):
            same.pop(field)
        assert same == {field: single[field] for field in same}
        own = list(read_jsonl(tmp_path / "sweep" / "points" / cfg.id / "metrics.jsonl"))
        alone = list(read_jsonl(tmp_path / cfg.id / "metrics.jsonl"))
        assert [sorted(r) for r in own] == [sorted(r) for r in alone]
        assert (
            [r["step"] for r in own]
            == [r["step"] for r in alone]
            == [0, 0, 2, 4, 5, 6, 8, 10, 10, 12]
        )
    assert list(Row.__annotations__) == list(rows[0])
    losses = {
        (r["width"], r["parameterization"], r["learning_rate"], r["seed"]): r["final_loss"]
        for r in rows
    }
    # Base width 16: the same numbers from both tables. Width 24: not.
    for (width, name, lr, seed), loss in losses.items():
        other = losses[width, "sp" if name == "mup" else "mup", lr, seed]
        assert (loss == other) == (width == 16), (width, name, lr, seed)


def run_lanes(runs, rows_NKBT, num_devices=1, vmapped=False):
    fns = make_lane_fns(runs[0].program, make_layout(num_devices), vmapped)
    hps, scalings = stack([run.hps for run in runs]), stack([run.scalings for run in runs])
    lanes = fns.init(np.zeros(len(runs), np.uint32), hps, scalings)
    return fns.train(
        lanes, rows_NKBT, *control(len(runs), rows_NKBT.shape[1]), hps, scalings, bounds(len(runs))
    )


# The same 12 batches for each of three lanes
ROWS_NKBT = (
    np.random.default_rng(0).integers(0, 256, (1, 12, 4, 17), dtype=np.uint8).repeat(3, axis=0)
)


def three_runs(tiny, middle):
    """Three runs that differ in their learning rates, the second of which is `middle`."""
    tree = tiny("mlp", optim__grad_clip=0.0)
    tree["sweep"] = {"optim": {"learning_rate": (0.01, middle, 0.02)}}
    return [make_run(cfg) for _, cfg in expand_sweep(tree)]


def control(num_lanes, num_steps):
    """Each lane on its own rows, all active."""
    return np.arange(num_lanes, dtype=np.int32), np.ones(num_lanes, bool), np.int32(num_steps)


def bounds(num_lanes):
    return np.full(num_lanes, 20.0, np.float32)


@pytest.mark.parametrize(
    ("num_devices", "vmapped"),
    [(3, False), pytest.param(1, False, marks=pytest.mark.slow), (1, True)],
)
def test_divergence_is_recorded_and_leaves_the_neighbours_bitwise_alone(tiny, num_devices, vmapped):
    """Three lanes, the middle one at a learning rate that explodes, against the same with a
    harmless one."""
    calm, calm_metrics = run_lanes(three_runs(tiny, 0.015), ROWS_NKBT, num_devices, vmapped)
    wild, metrics = run_lanes(three_runs(tiny, 1e4), ROWS_NKBT, num_devices, vmapped)
    assert np.array_equal(np.asarray(calm.diverged_at), [-1, -1, -1])
    frozen_at = int(wild.diverged_at[1])
    assert np.array_equal(np.asarray(wild.diverged_at)[[0, 2]], [-1, -1])
    assert 0 < frozen_at < 11
    for a, b in zip(jax.tree.leaves(calm.train), jax.tree.leaves(wild.train), strict=True):
        assert np.array_equal(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]])
    assert np.array_equal(
        np.asarray(calm_metrics["loss"])[[0, 2]], np.asarray(metrics["loss"])[[0, 2]]
    )
    # Frozen: no further step, and no number for it
    assert int(wild.train.step[1]) == frozen_at + 1
    assert np.all(np.isnan(np.asarray(metrics["loss"])[1, frozen_at + 1 :]))


def test_lanes_equal_single_steps_however_they_are_laid_out(tiny):
    """Vmapped (as on accelerators), one after the other, on one device and on three: the losses of
    the bare step."""
    runs = three_runs(tiny, 0.015)
    fns = make_train_fns(runs[0].program)
    init, step = jax.jit(fns.init), jax.jit(fns.step)
    losses = np.zeros((3, 12))
    for lane, run in enumerate(runs):
        state = init(0, run.hps, run.scalings)
        for t, batch in enumerate(ROWS_NKBT[lane]):
            state, metrics = step(state, batch, run.hps, run.scalings)
            losses[lane, t] = metrics["loss"]
    for num_devices, vmapped in ((1, True), (1, False), (3, False)):
        _, metrics = run_lanes(runs, ROWS_NKBT, num_devices, vmapped)
        np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)


@pytest.mark.parametrize("vmapped", [True, False])
def test_lanes_exchange_nothing(tiny, vmapped):
    """The compiled training program over a mesh of 8 devices has no collective."""
    tree = tiny()
    tree["sweep"] = {"optim": {"learning_rate": tuple(0.01 * i for i in range(1, 9))}}
    runs = [make_run(cfg) for _, cfg in expand_sweep(tree)]
    fns = make_lane_fns(runs[0].program, make_layout(8), vmapped)
    hps, scalings = stack([run.hps for run in runs]), stack([run.scalings for run in runs])
    lanes = jax.eval_shape(fns.init, np.zeros(8, np.uint32), hps, scalings)
    rows = np.zeros((8, 3, 4, 17), np.uint8)
    text = (
        fns.train.lower(lanes, rows, *control(8, 3), hps, scalings, bounds(8)).compile().as_text()
    )
    assert "while" in text
    assert not any(
        word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all")
    )


def test_diverged_point_has_a_step_and_no_number(tiny, tmp_path):
    tree = tiny(optim__grad_clip=0.0, train__log_interval=1)
    tree["sweep"] = {"optim": {"learning_rate": (0.01, 1e4)}}
    good, bad = sweep(tree, tmp_path / "s")
    assert (good["status"], good["diverged_at_step"]) == ("ok", None)
    assert (bad["status"], bad["final_loss"], bad["best_loss"], bad["best_step"]) == (
        "diverged",
        None,
        None,
        None,
    )
    assert 0 < bad["diverged_at_step"] <= 12
    # The train verb sees the same divergence at the same step
    tree["optim"]["learning_rate"] = 1e4
    single = train(tree, tmp_path / "single")
    assert (single["id"], single["diverged_at_step"]) == (bad["id"], bad["diverged_at_step"])
    np.testing.assert_allclose(single["eval_losses"], bad["eval_losses"], rtol=1e-5)
    logs = [
        tmp_path / "single" / "metrics.jsonl",
        tmp_path / "s" / "points" / bad["id"] / "metrics.jsonl",
    ]
    steps = [[(record["step"], *sorted(record)) for record in read_jsonl(log)] for log in logs]
    assert steps[0] == steps[1]
    assert steps[0][-1][0] == bad["diverged_at_step"]


def untouched(*args):
    raise AssertionError("nothing is left to train")


def test_finished_points_are_left_alone_and_a_torn_line_is_run_again(tiny, tmp_path, capsys):
    tree, engine = sweep_tree(tiny), Engine(bowl)
    rows = sweep(tree, tmp_path, train_runs=engine)
    assert [row["final_loss"] for row in rows] == [bowl(cfg) for _, cfg in expand_sweep(tree)]
    results = tmp_path / "results.jsonl"
    content = results.read_bytes()
    assert sweep(tree, tmp_path, train_runs=untouched) == rows
    assert results.read_bytes() == content
    results.write_bytes(content[:-20])
    again = sweep(tree, tmp_path, train_runs=engine)
    assert engine.steps == (3 + 1) * 12
    assert "torn" in capsys.readouterr().err
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(row["id"] for row in rows)
    for row, new in zip(rows, again, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in new.items() if k != "seconds"
        }


def test_workdir_of_another_config_is_refused(tiny, tmp_path):
    tree = sweep_tree(tiny)
    sweep(tree, tmp_path / "a", train_runs=Engine(bowl))
    before = (tmp_path / "a" / "results.jsonl").read_bytes()
    tree["optim"]["b2"] = 0.9
    with pytest.raises(
        UserError, match="belongs to another config: optim.b2: 0.95 -> 0.9; choose a new workdir"
    ):
        sweep(tree, tmp_path / "a")
    with pytest.raises(UserError, match="manifest.json, the record of another verb"):
        train(tree, tmp_path / "a")
    assert (tmp_path / "a" / "results.jsonl").read_bytes() == before


def test_text_that_changed_between_two_calls_is_refused(tiny, tmp_path):
    tree = sweep_tree(tiny)
    file = tmp_path / "text.txt"
    file.write_text(Path(tree["data"]["path"]).read_text())
    tree["data"]["path"] = str(file)
    sweep(tree, tmp_path / "s", train_runs=Engine(bowl))
    file.write_text(file.read_text().replace("import", "export"))
    load_corpus.cache_clear()
    with pytest.raises(UserError, match="was begun on other text"):
        sweep(tree, tmp_path / "s")


def test_a_full_disk_tears_no_line(tmp_path, monkeypatch):
    """A short write is undone, so that the next line does not join the fragment."""
    file = tmp_path / "results.jsonl"
    append_jsonl(file, {"id": 1})

    class Full(io.FileIO):
        def write(self, line):
            return super().write(line[:3])

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: Full(path, mode))
    with pytest.raises(OSError, match="No space left"):
        append_jsonl(file, {"id": 2})
    monkeypatch.undo()
    append_jsonl(file, {"id": 3})
    assert list(read_jsonl(file)) == [{"id": 1}, {"id": 3}]


def interrupted_at(monkeypatch, call, signum=signal.SIGTERM):
    """Sends this process a signal in the middle of the given call of the training program; counts
    steps."""
    from mujax.sweep.engine import Chunk

    train_chunk, trained, calls = Chunk.train, [], itertools.count(1)

    def counted(self):
        if next(calls) == call:
            os.kill(os.getpid(), signum)
        num_lanes = len(self.busy)
        steps, ended = train_chunk(self)
        trained.append(steps * num_lanes)
        return steps, ended

    monkeypatch.setattr(Chunk, "train", counted)
    return trained


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_what_is_in_flight(signum, tiny, tmp_path, monkeypatch):
    """No step is trained twice, no row is lost, and losses and curves are those of an undisturbed
    sweep, to the bit."""
    tree = sweep_tree(tiny, seed=())
    tree["sweep"]["seed"] = (0, 1, 2, 3)
    whole = sweep(tree, tmp_path / "whole")
    trained = interrupted_at(monkeypatch, call=2, signum=signum)
    with pytest.raises(KeyboardInterrupt):
        sweep(tree, tmp_path / "cut")
    assert len(list((tmp_path / "cut" / "in_flight").iterdir())) == 1
    assert not list(read_rows(tmp_path / "cut"))
    rows = sweep(tree, tmp_path / "cut")
    assert sum(trained) == 12 * 12
    assert not (tmp_path / "cut" / "in_flight").exists()
    assert len(read_rows(tmp_path / "cut")) == 12
    assert [dict(row, seconds=0) for row in rows] == [dict(row, seconds=0) for row in whole]
    for row in rows:
        curves = [tmp_path / w / "points" / row["id"] / "metrics.jsonl" for w in ("whole", "cut")]
        assert curves[0].read_bytes() == curves[1].read_bytes()


def read_rows(root):
    file = root / "results.jsonl"
    return list(read_jsonl(file)) if file.exists() else []


def test_what_is_in_flight_goes_on_from_its_own_weights(tiny, tmp_path):
    """Two groups, stopped in the middle of the second: no step is trained twice, and the files are
    as if never."""
    tree = sweep_tree(tiny, model__d_model=(16, 32))
    tree["sweep"]["seed"] = (0, 1)
    whole = sweep(tree, tmp_path / "whole", train_runs=Engine(bowl))
    engine = Engine(bowl, at_call={5: terminate})
    with pytest.raises(KeyboardInterrupt):
        sweep(tree, tmp_path / "cut", train_runs=engine)
    (file,) = (tmp_path / "cut" / "in_flight").iterdir()
    assert len(read_rows(tmp_path / "cut")) == 6 and engine.steps == 6 * 12 + 6 * 10
    rows = sweep(tree, tmp_path / "cut", train_runs=engine)
    assert engine.steps == 12 * 12 and not file.exists()
    assert rows == whole
    for row in rows:
        curves = [tmp_path / w / "points" / row["id"] / "metrics.jsonl" for w in ("whole", "cut")]
        assert curves[0].read_bytes() == curves[1].read_bytes()


def test_what_was_in_flight_is_trusted_only_if_it_is_whole_and_of_this_code(
    tiny, tmp_path, monkeypatch, capsys
):
    tree = sweep_tree(tiny)
    with pytest.raises(KeyboardInterrupt):
        sweep(tree, tmp_path, train_runs=Engine(bowl, at_call={2: terminate}))
    file = next((tmp_path / "in_flight").iterdir())
    content = file.read_bytes()
    for damaged, other_code, complaint in (
        (content[: len(content) // 2], False, "its SHA-256 is not that of its content"),
        (content, True, "saved by other code"),
    ):
        engine = Engine(bowl)
        (tmp_path / "results.jsonl").unlink(missing_ok=True)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(damaged)
        with monkeypatch.context() as patch:
            if other_code:
                patch.setattr("mujax.sweep.study.code_version", lambda: "other")
            rows = sweep(tree, tmp_path, train_runs=engine)
        assert engine.steps == 3 * 12  # from the start
        assert len(rows) == 3
        assert complaint in capsys.readouterr().err


def test_runs_in_flight_are_saved_once_a_minute(tiny, tmp_path, monkeypatch):
    """Against being killed without a signal: here in the call after the one in which the minute
    ends."""
    clock = [0.0]
    monkeypatch.setattr("mujax.sweep.study.time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def die():
        raise MemoryError

    tree, engine = (
        sweep_tree(tiny),
        Engine(bowl, at_call={2: lambda: clock.append(clock.pop() + 61), 3: die}),
    )
    with pytest.raises(MemoryError):
        sweep(tree, tmp_path, train_runs=engine)
    assert engine.steps == 3 * 10
    assert len(sweep(tree, tmp_path, train_runs=engine)) == 3
    assert engine.steps == 3 * 12


def test_one_process_a_workdir_and_a_killed_one_does_not_block(tiny, tmp_path, capsys):
    """A process that holds the lock refuses others in one line; once it is killed, the next one
    goes on."""
    tree = sweep_tree(tiny)
    sweep(tree, tmp_path, train_runs=Engine(bowl))
    holder = subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path; from mujax.storage.locks import "
                               "locked\nimport time\n"
         f"with locked(Path({str(tmp_path)!r})):\n  print('held', flush=True); time.sleep(60)"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(
        UserError, match=f"is in use by process {holder.pid} on .*; wait until it has ended"
    ):
        sweep(tree, tmp_path, train_runs=untouched)
    holder.kill()
    holder.communicate()
    capsys.readouterr()
    assert len(sweep(tree, tmp_path, train_runs=untouched)) == 3
    assert f"process {holder.pid}" in (err := capsys.readouterr().err)
    assert "did not end cleanly" in err
    sweep(tree, tmp_path, train_runs=untouched)
    assert "did not end cleanly" not in capsys.readouterr().err


def test_a_workdir_of_another_table_is_refused(tiny, tmp_path, monkeypatch):
    """The same config, but the code's table has changed since: one line, and nothing touched."""
    from mujax.parameterization import PARAMETERIZATIONS

    tree = sweep_tree(tiny, parameterization__name=("mup",), model__d_model=(32,))
    sweep(tree, tmp_path, train_runs=Engine(bowl))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setitem(PARAMETERIZATIONS, "mup", PARAMETERIZATIONS["sp"])
    with pytest.raises(UserError, match="was begun with another parameterization table"):
        sweep(tree, tmp_path, train_runs=untouched)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_rows_copied_from_elsewhere_count_if_table_and_text_are_theirs(tiny, tmp_path):
    """So a study may begin with what another has trained; a row of another table or text under the
    same id ends it."""
    tree = sweep_tree(tiny, parameterization__name=("mup",), model__d_model=(32,))
    rows = sweep(tree, tmp_path / "first", train_runs=Engine(bowl))
    content = (tmp_path / "first" / "results.jsonl").read_text()
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "results.jsonl").write_text(content)
    assert sweep(tree, tmp_path / "second", train_runs=untouched) == rows
    assert (tmp_path / "second" / "results.jsonl").read_text() == content
    for field in ("table_hash", "data_fingerprint"):
        root = tmp_path / field
        root.mkdir()
        (root / "results.jsonl").write_text(content.replace(rows[0][field], "0123456789ab"))
        with pytest.raises(UserError, match="is of another table or text"):
            sweep(tree, root, train_runs=untouched)


def test_shards_merge_into_the_whole_sweep(tiny, tmp_path, monkeypatch, capsys):
    """Three shards, one of them twice, merged: every point once, and the sweep finds nothing left
    to do."""
    tree = sweep_tree(tiny, parameterization__name=("sp", "mup"))
    whole = sweep(tree, tmp_path / "whole", train_runs=Engine(bowl))
    for i in range(3):
        assert len(sweep(tree, tmp_path / f"part{i}", Shard(i, 3), train_runs=Engine(bowl))) == 2
    message = merge(str(tmp_path / "all"), [str(tmp_path / "part*"), str(tmp_path / "part1")])
    assert message.endswith("6 rows added, 2 were there already, 6 in all")
    rows = sweep(tree, tmp_path / "all", train_runs=untouched)
    assert rows == whole
    assert (tmp_path / "all" / "points" / rows[0]["id"] / "metrics.jsonl").exists()
    content = (tmp_path / "all" / "results.jsonl").read_bytes()
    assert merge(str(tmp_path / "all"), [str(tmp_path / "part2")]).endswith(
        "0 rows added, 2 were there already, 6 in all"
    )
    assert (tmp_path / "all" / "results.jsonl").read_bytes() == content
    # Results of another table under the same id are not joined, and nothing is written
    rows = read_rows(tmp_path / "part0")
    (tmp_path / "part0" / "results.jsonl").write_text(
        json.dumps({**rows[0], "table_hash": "x"}) + "\n"
    )
    with pytest.raises(UserError, match="has table_hash x, elsewhere"):
        merge(str(tmp_path / "all"), [str(tmp_path / "part0")])
    with pytest.raises(UserError, match="holds neither manifest.json nor config.json"):
        merge(str(tmp_path / "new"), [str(tmp_path)])
    with pytest.raises(UserError, match="was begun as --shard=2/3, now it is to be --shard=0/3"):
        sweep(tree, tmp_path / "part2", Shard(0, 3))
    manifest = json.loads((tmp_path / "part1" / "manifest.json").read_text())
    manifest["data"] = dict.fromkeys(manifest["data"], "other")
    (tmp_path / "part1" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was trained on other text"):
        merge(str(tmp_path / "new"), [str(tmp_path / "part2"), str(tmp_path / "part1")])
    assert not (tmp_path / "new" / "results.jsonl").exists()
    with pytest.raises(UserError, match="no folder"):
        merge(str(tmp_path / "new"), [str(tmp_path / "nothing*")])


def quickstart_flags(text_file):
    """The quickstart at one small width and few steps, on a small text: 16 points, long enough to
    be cut short."""
    return [
        "--config=configs/quickstart.py", "--config.data.name=text",
        f"--config.data.path={text_file}",
        "--config.sweep.model.d_model=(16,)", "--config.train.steps=200",
        "--config.train.batch_size=4",
        "--config.train.eval_batches=2", "--config.data.seq_len=16",
    ]  # fmt: skip


def undisturbed_rows(flags, workdir):
    assert run_mujax("sweep", *flags, f"--workdir={workdir}").returncode == 0
    return sorted_rows(read_rows(workdir))


def sorted_rows(rows):
    """Rows by id, without what may differ between two runs of one point."""
    return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: row["id"])


# Two commands one after the other, the second as `mujax` runs it
TWICE = """
import json, sys
from mujax import main
first, second = json.loads(sys.argv[1])
print(main.run(first), flush=True)
sys.argv = ["mujax", *second]
main.main()
"""


def run_twice(first, second, results: Path, num_rows: int, signum) -> tuple[int, str, str]:
    """Runs TWICE, with a signal once there are so many results: (exit code, output, messages)."""
    process = [sys.executable, "-c", TWICE, json.dumps([first, second])]
    pipe = subprocess.PIPE
    with subprocess.Popen(process, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as running:
        deadline = time.monotonic() + 200
        while not (results.exists() and results.read_bytes().count(b"\n") >= num_rows):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signum)
        out, err = running.communicate(timeout=200)
    return running.returncode, out, err


def test_interrupted_sweep_goes_on(text_file, tmp_path):
    """By processes, one killed while running, one asked to stop: finished points are kept, and the
    whole equals an undisturbed one."""
    flags, results = quickstart_flags(text_file), tmp_path / "cut" / "results.jsonl"
    whole, cut = (["sweep", *flags, f"--workdir={tmp_path / name}"] for name in ("whole", "cut"))
    code, out, _ = run_twice(whole, cut, results, 2, signal.SIGKILL)
    assert (code, out.splitlines()[-1]) == (-signal.SIGKILL, "0")
    kept = results.read_text().splitlines()
    assert 2 <= len(kept) < 12
    code, out, err = run_twice(cut, cut, results, len(kept) + 4, signal.SIGTERM)
    assert (code, out.splitlines()[0]) == (0, "75"), err
    assert err.count("what was done is kept, the same command goes on") == 1
    assert "Traceback" not in err
    assert results.read_text().splitlines()[: len(kept)] == kept
    undisturbed = sorted_rows(read_rows(tmp_path / "whole"))
    assert len(undisturbed) == 16
    assert sorted_rows(read_rows(tmp_path / "cut")) == undisturbed


def test_a_signal_while_python_shuts_down_does_not_change_the_outcome():
    code = (
        "import atexit, os, signal, sys; from mujax.main import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM)); sys.argv = ['mujax', "
        "'--version']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_interrupted_ends_without_the_shutdown_of_python():
    """Threads that still write, as those of TensorStore, crash an interpreter that goes down; 75
    must come out."""
    code = (
        "import atexit, os, signal, sys; from mujax import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV)); main.run = lambda argv: "
        "print('said') or 75\n"
        "main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (75, "said\n")


def test_a_signal_during_an_import_is_an_interruption_too(tmp_path):
    """There Python runs code by exec, out of which a KeyboardInterrupt ends the process though it
    is caught."""
    file = tmp_path / "config.py"
    file.write_text(
        "import os, signal\ndef get_config():\n  exec('os.kill(os.getpid(), signal.SIGTERM)')\n"
    )
    done = run_mujax("train", f"--config={file}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 75, done.stderr
    assert "interrupted" in done.stderr


@pytest.fixture(scope="module")
def long_sweep(text_file, tmp_path_factory):
    """(flags, rows) of a sweep of 64 points, about a minute of training, undisturbed."""
    flags = [
        *quickstart_flags(text_file),
        "--config.sweep.seed=(0,1,2,3)",
        "--config.train.steps=1000",
    ]
    return flags, undisturbed_rows(flags, tmp_path_factory.mktemp("long"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_twenty_interruptions(signum, long_sweep, tmp_path):
    """Cut short at random moments, restarted each time: every point once, with the losses of an
    undisturbed sweep.

    A sweep that comes to its end before its twentieth interruption is followed by another.
    """
    flags, whole = long_sweep
    random, sweeps, kept = np.random.default_rng(0), 1, []
    while len(kept) < 20:
        workdir = tmp_path / str(sweeps)
        command = [sys.executable, "-m", "mujax", "sweep", *flags, f"--workdir={workdir}"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.5, 15))
        process.send_signal(signum)
        if process.wait(timeout=120) == 0:
            assert sorted_rows(read_rows(workdir)) == whole
            sweeps += 1
        else:
            assert process.returncode in (-signum, 75)
            kept.append(len(read_rows(workdir)))
    assert len(set(kept)) > 5  # in the midst of it, not before it had begun
    assert run_mujax("sweep", *flags, f"--workdir={workdir}").returncode == 0
    assert sorted_rows(read_rows(workdir)) == whole
