"""Lanes equal single runs, divergence stays alone, one program a width, and nothing finished is lost."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, count_compilations, run_mujax

from mujax.data.corpus import load_corpus
from mujax.errors import UserError
from mujax.grid import expand_sweep
from mujax.hps import stack
from mujax.lanes import make_lane_fns
from mujax.results import Row
from mujax.run import make_run
from mujax.sharding import sweep_mesh
from mujax.steps import make_train_fns
from mujax.sweep import sweep
from mujax.train import train
from mujax.workdir import append_jsonl, read_jsonl


@pytest.fixture
def full_optimization():
    """Numbers here are compared as users get them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def sweep_tree(tiny, **axes):
    tree = tiny()
    tree["sweep"] = {"optim": {"learning_rate": (2.0**-8, 2.0**-6, 2.0**-4)}}
    for path, values in axes.items():
        section, _, field = path.partition("__")
        tree["sweep"].setdefault(section, {})[field] = values
    return tree


def test_points_equal_single_runs_and_compile_once_a_width(tiny, tmp_path, full_optimization, monkeypatch):
    """2 widths x {sp, mup} x 3 learning rates x 2 seeds, against the train verb's own loop, to 1e-5."""
    tree = sweep_tree(tiny, model__d_model=(16, 24), parameterization__name=("sp", "mup"))
    tree["sweep"]["seed"] = (0, 1)
    monkeypatch.setattr("mujax.executables.MAX_STEPS_PER_CALL", 3)  # of an evaluation's 5 steps: calls of 3, 2, 3, 2, 2
    training, evaluation = count_compilations("train_lane"), count_compilations("evaluate_lane")
    rows = sweep(tree, tmp_path / "sweep")
    assert len(rows) == 24
    assert len(training) == len(evaluation) == 2  # the number of widths
    for overrides, cfg in expand_sweep(tree)[::9]:
        single = train(cfg.as_dict(), tmp_path / cfg.id)
        row = next(row for row in rows if row["id"] == cfg.id)
        assert row["overrides"] == overrides
        np.testing.assert_allclose(row["final_loss"], single["final_loss"], rtol=1e-5)
        np.testing.assert_allclose(row["eval_losses"], single["eval_losses"], rtol=1e-5)
        same = {field: value for field, value in row.items() if field not in ("overrides", "seconds", "device")}
        for field in ("final_loss", "best_loss", "eval_losses"):
            same.pop(field)
        assert same == {field: single[field] for field in same}
        own = list(read_jsonl(tmp_path / "sweep" / "points" / cfg.id / "metrics.jsonl"))
        alone = list(read_jsonl(tmp_path / cfg.id / "metrics.jsonl"))
        assert [sorted(r) for r in own] == [sorted(r) for r in alone]
        assert [r["step"] for r in own] == [r["step"] for r in alone] == [0, 0, 2, 4, 5, 6, 8, 10, 10, 12]
    assert set(Row.__dataclass_fields__) == rows[0].keys()
    losses = {(r["width"], r["parameterization"], r["learning_rate"], r["seed"]): r["final_loss"] for r in rows}
    # Base width 16: the same numbers from both tables. Width 24: not.
    for (width, name, lr, seed), loss in losses.items():
        other = losses[width, "sp" if name == "mup" else "mup", lr, seed]
        assert (loss == other) == (width == 16), (width, name, lr, seed)


def run_lanes(runs, rows_NKBT, num_devices=1, vmapped=False):
    fns = make_lane_fns(runs[0].program, sweep_mesh(num_devices), vmapped)
    hps, scalings = stack([run.hps for run in runs]), stack([run.scalings for run in runs])
    lanes = fns.init(np.zeros(len(runs), np.uint32), hps, scalings)
    return fns.train(lanes, rows_NKBT, *control(len(runs), rows_NKBT.shape[1]), hps, scalings, bounds(len(runs)))


def control(num_lanes, num_steps):
    """Each lane on its own rows, all active."""
    return np.arange(num_lanes, dtype=np.int32), np.ones(num_lanes, bool), np.int32(num_steps)


def bounds(num_lanes):
    return np.full(num_lanes, 20.0, np.float32)


@pytest.mark.parametrize(("num_devices", "vmapped"), [(3, False), (1, False), (1, True)])
def test_divergence_is_recorded_and_leaves_the_neighbours_bitwise_alone(tiny, num_devices, vmapped):
    """Three lanes, the middle one at a learning rate that explodes, against the same with a harmless one."""
    tree = tiny(optim__grad_clip=0.0, model__norm_gain=True)

    def runs(middle):
        tree["sweep"] = {"optim": {"learning_rate": (0.01, middle, 0.02)}}
        return [make_run(cfg) for _, cfg in expand_sweep(tree)]

    rows = np.random.default_rng(0).integers(0, 256, (1, 12, 4, 17), dtype=np.uint8).repeat(3, axis=0)
    calm, calm_metrics = run_lanes(runs(0.015), rows, num_devices, vmapped)
    wild, metrics = run_lanes(runs(1e4), rows, num_devices, vmapped)
    assert np.array_equal(np.asarray(calm.diverged_at), [-1, -1, -1])
    frozen_at = int(wild.diverged_at[1])
    assert np.array_equal(np.asarray(wild.diverged_at)[[0, 2]], [-1, -1])
    assert 0 < frozen_at < 11
    for a, b in zip(jax.tree.leaves(calm.train), jax.tree.leaves(wild.train), strict=True):
        assert np.array_equal(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]])
    assert np.array_equal(np.asarray(calm_metrics["loss"])[[0, 2]], np.asarray(metrics["loss"])[[0, 2]])
    # Frozen: no further step, no number for it, and the weights are those before the bad update
    assert int(wild.train.step[1]) == frozen_at
    assert np.all(np.isnan(np.asarray(metrics["loss"])[1, frozen_at + 1 :]))
    assert all(np.all(np.isfinite(np.asarray(x)[1])) for x in jax.tree.leaves(wild.train.params))


def test_lanes_equal_single_steps_however_they_are_laid_out(tiny):
    """Vmapped (as on accelerators), one after the other, on one device and on two: the losses of the bare step."""
    tree = tiny()
    tree["sweep"] = {"optim": {"learning_rate": (0.01, 0.02)}}
    runs = [make_run(cfg) for _, cfg in expand_sweep(tree)]
    fns = make_train_fns(runs[0].program)
    init, step = jax.jit(fns.init), jax.jit(fns.step)
    rows = np.random.default_rng(0).integers(0, 256, (12, 4, 17), dtype=np.uint8)
    losses = np.zeros((2, 12))
    for lane, run in enumerate(runs):
        state = init(0, run.hps, run.scalings)
        for t, batch in enumerate(rows):
            state, metrics = step(state, batch, run.hps, run.scalings)
            losses[lane, t] = metrics["loss"]
    for num_devices, vmapped in ((1, True), (1, False), (2, False)):
        _, metrics = run_lanes(runs, rows[None].repeat(2, axis=0), num_devices, vmapped)
        np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)


def test_lanes_exchange_nothing(tiny):
    """The compiled training program over a mesh of devices has no collective."""
    tree = tiny()
    tree["sweep"] = {"optim": {"learning_rate": (0.01, 0.02)}}
    runs = [make_run(cfg) for _, cfg in expand_sweep(tree)]
    fns = make_lane_fns(runs[0].program, sweep_mesh(2), vmapped=True)
    hps, scalings = stack([run.hps for run in runs]), stack([run.scalings for run in runs])
    lanes = jax.eval_shape(fns.init, np.zeros(2, np.uint32), hps, scalings)
    rows = np.zeros((2, 3, 4, 17), np.uint8)
    text = fns.train.lower(lanes, rows, *control(2, 3), hps, scalings, bounds(2)).compile().as_text()
    assert "while" in text
    assert not any(word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))


def test_diverged_point_has_a_step_and_no_number(tiny, tmp_path):
    tree = tiny(optim__grad_clip=0.0, train__log_interval=1)
    tree["sweep"] = {"optim": {"learning_rate": (0.01, 1e4)}}
    good, bad = sweep(tree, tmp_path / "s")
    assert (good["status"], good["diverged_at_step"]) == ("ok", None)
    assert (bad["status"], bad["final_loss"], bad["best_loss"], bad["best_step"]) == ("diverged", None, None, None)
    assert 0 < bad["diverged_at_step"] <= 12
    # The train verb sees the same divergence at the same step
    tree["optim"]["learning_rate"] = 1e4
    single = train(tree, tmp_path / "single")
    assert (single["id"], single["diverged_at_step"]) == (bad["id"], bad["diverged_at_step"])
    np.testing.assert_allclose(single["eval_losses"], bad["eval_losses"], rtol=1e-5)
    logs = [tmp_path / "single" / "metrics.jsonl", tmp_path / "s" / "points" / bad["id"] / "metrics.jsonl"]
    steps = [[(record["step"], *sorted(record)) for record in read_jsonl(log)] for log in logs]
    assert steps[0] == steps[1]
    assert steps[0][-1][0] == bad["diverged_at_step"]


def test_finished_points_are_left_alone_and_a_torn_line_is_run_again(tiny, tmp_path, capsys):
    tree = sweep_tree(tiny)
    rows = sweep(tree, tmp_path)
    results = tmp_path / "results.jsonl"
    content = results.read_bytes()
    started = count_compilations("train_lane")
    assert sweep(tree, tmp_path) == rows
    assert not started
    assert results.read_bytes() == content
    results.write_bytes(content[:-20])
    again = sweep(tree, tmp_path)
    assert "torn" in capsys.readouterr().err
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(row["id"] for row in rows)
    for row, new in zip(rows, again, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in new.items() if k != "seconds"}


def test_workdir_of_another_config_is_refused(tiny, tmp_path):
    tree = sweep_tree(tiny)
    sweep(tree, tmp_path / "a")
    before = (tmp_path / "a" / "results.jsonl").read_bytes()
    tree["optim"]["b2"] = 0.9
    with pytest.raises(UserError, match="belongs to another config: optim.b2: 0.95 -> 0.9; choose a new workdir"):
        sweep(tree, tmp_path / "a")
    with pytest.raises(UserError, match="manifest.json, the record of another verb"):
        train(tree, tmp_path / "a")
    assert (tmp_path / "a" / "results.jsonl").read_bytes() == before


def test_text_that_changed_between_two_calls_is_refused(tiny, tmp_path):
    tree = sweep_tree(tiny)
    file = tmp_path / "text.txt"
    file.write_text(Path(tree["data"]["path"]).read_text())
    tree["data"]["path"] = str(file)
    sweep(tree, tmp_path / "s")
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


def quickstart_flags(text_file):
    """The quickstart at one small width and few steps, on a small text: 16 points, long enough to be cut short."""
    return [
        "--config=configs/quickstart.py", "--config.data.name=text", f"--config.data.path={text_file}",
        "--config.sweep.model.d_model=(16,)", "--config.train.steps=200", "--config.train.batch_size=4",
        "--config.train.eval_batches=2", "--config.data.seq_len=16",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(text_file, tmp_path_factory):
    """Rows of the sweep that test_interrupted_sweep_goes_on cuts short."""
    workdir = tmp_path_factory.mktemp("whole")
    assert run_mujax("sweep", *quickstart_flags(text_file), f"--workdir={workdir}").returncode == 0
    return list(read_jsonl(workdir / "results.jsonl"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_sweep_goes_on(signum, text_file, tmp_path, undisturbed):
    """Stopped while running, by the real command: finished points are kept, and the whole equals an undisturbed one."""
    flags = quickstart_flags(text_file)
    command = [sys.executable, "-m", "mujax", "sweep", *flags, f"--workdir={tmp_path / 'cut'}"]
    results = tmp_path / "cut" / "results.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signum)
    stderr = process.communicate(timeout=120)[1]
    kept = results.read_text().splitlines()
    assert 2 <= len(kept) < 16
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 75
        assert "what was done is kept, the same command goes on" in stderr
        assert "Traceback" not in stderr
    assert run_mujax("sweep", *flags, f"--workdir={tmp_path / 'cut'}").returncode == 0
    assert results.read_text().splitlines()[: len(kept)] == kept
    cut, whole = (
        sorted(({**row, "seconds": 0} for row in rows), key=lambda row: row["id"])
        for rows in (read_jsonl(results), undisturbed)
    )
    assert len(cut) == 16
    assert cut == whole
