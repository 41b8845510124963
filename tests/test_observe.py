"""What a run says of itself: norms and sizes of tensors against NumPy, speed and memory, peaks of
devices, profiles."""

import json

import jax
import numpy as np
import pytest

from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.hardware import peak_flops
from mujax.storage.files import read_jsonl
from mujax.training import logs, loop
from mujax.training.checkpoint import Checkpoints
from mujax.training.logs import RunLog, StepTimer
from mujax.training.loop import train
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns


def test_tensors_and_updates(tiny, tmp_path):
    """At the interval: the root mean square of every tensor, of its update and as the module sees
    it."""
    tree = tiny(
        train__steps=4,
        monitor__tensor_interval=2,
        parameterization__name="mup_table9",
        parameterization__base_width=8,
    )
    train(tree, tmp_path)
    records = {r["step"]: r for r in read_jsonl(tmp_path / "metrics.jsonl") if "tensors" in r}
    assert list(records) == [0, 2]

    run = make_run(make_run_config(tree))
    fns = make_train_fns(run.program)
    batches, _, _ = load_batches(run.cfg, [0])
    is_scaling = lambda s: hasattr(s, "forward")  # noqa: E731
    forward = dict(
        jax.tree.leaves_with_path(
            jax.tree.map(lambda s: s.forward, run.scalings, is_leaf=is_scaling)
        )
    )
    state = jax.jit(fns.init)(np.uint32(0), run.hps, run.scalings)
    step = jax.jit(fns.step)
    for t in range(3):
        before, (state, _) = state, step(state, batches[0][t], run.hps, run.scalings)
        if t not in records:
            continue
        squares = 0.0
        old = dict(jax.tree.leaves_with_path(before.params))
        for path, w in jax.tree.leaves_with_path(state.params):
            name = "/".join(str(key.key) for key in path)
            w, update = (
                np.asarray(w, np.float64),
                np.asarray(w, np.float64) - np.asarray(old[path], np.float64),
            )
            found = records[t]["tensors"].pop(name)
            expected = {
                "rms": np.sqrt(np.mean(w**2)),
                "update_rms": np.sqrt(np.mean(update**2)),
                "effective_rms": np.sqrt(np.mean((float(forward[path]) * w) ** 2)),
            }
            assert found == pytest.approx(expected, rel=1e-3), name
            squares += np.sum(update**2)
        assert records[t]["update_norm"] == pytest.approx(np.sqrt(squares), rel=1e-3)
        assert not records[t]["tensors"]
    factors = {float(x) for x in forward.values()}
    assert factors != {1.0}  # or the last of the three could not be wrong


def test_a_profile_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    """It is told once, and the checkpoints are closed all the same."""
    calls = []

    def deliver(trace, folder):
        calls.append("deliver")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    monkeypatch.setattr(loop.files, "deliver", deliver)
    close = Checkpoints.close
    monkeypatch.setattr(Checkpoints, "close", lambda self: (calls.append("close"), close(self)))
    with pytest.raises(OSError, match="No space left"):
        train(tiny(monitor__profile_step=3, monitor__profile_steps=2), tmp_path)
    assert calls == ["stop", "deliver", "close", "close"]


def test_watching_changes_nothing(tiny, tmp_path):
    rows = [
        train(tiny(monitor__tensor_interval=interval), tmp_path / str(interval))
        for interval in (0, 3)
    ]
    assert rows[0]["id"] == rows[1]["id"] and rows[0]["eval_losses"] == rows[1]["eval_losses"]


def test_speed(tiny, tmp_path, monkeypatch, capsys):
    """Tokens a second, MFU and percentiles from the times of steps alone; of a device of unknown
    peak no number."""
    times = iter([*range(0, 100, 1), 1000, *range(2000, 2003)])
    monkeypatch.setattr(logs.time, "perf_counter", lambda: float(next(times)))
    timer = StepTimer(tokens_per_step=64, flops_per_step=1e12, num_devices=4)
    assert timer.report(0) is None
    for _ in range(101):
        timer.step_ended()
    record = timer.report(100)
    seconds = record["step_seconds"]
    assert (seconds["p50"], seconds["p90"], seconds["max"], record["tokens_per_second"]) == (
        1,
        1,
        901,
        64,
    )
    assert 1 <= seconds["p99"] < 901
    assert (
        record["mfu"] is None
        and record["peak_flops"] is None
        and record["device"] == jax.devices()[0].device_kind
    )
    timer.pause()  # an evaluation is no step
    for _ in range(3):
        timer.step_ended()
    monkeypatch.setattr(logs, "peak_flops", lambda kind: 1e12)
    record = timer.report(103)
    assert (record["mfu"], record["step_seconds"]["max"]) == (0.25, 1)

    monkeypatch.undo()
    train(tiny(), tmp_path)
    assert "no MFU: the peak of device 'cpu' is not known" in capsys.readouterr().err
    records = list(read_jsonl(tmp_path / "performance.jsonl"))
    assert [r["step"] for r in records] == [5, 10, 12]
    assert all(r["process_peak_bytes"] > 1e8 and r["mfu"] is None for r in records)
    assert {"time", "step"} == set(json.loads((tmp_path / "heartbeat.json").read_text()))


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v2", 22.5e12), ("TPU v3", 61.5e12), ("TPU v4", 275e12), ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("TPU7x", 1153e12), ("NVIDIA H100 80GB HBM3",
        989e12),
        ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12), ("Tesla V100-SXM2-16GB", 125e12), ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("cpu", None), ("TPU v9", None), ("NVIDIA X4000", None),
    ],
)  # fmt: skip
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


def test_a_log_that_is_gone_on_with(tmp_path):
    """What a crash tore is cut off; a line of something else is named."""
    (tmp_path / "performance.jsonl").write_text('{"step": 10}\n{"st')
    log = RunLog(tmp_path, is_writer=True)
    log.go_on_from(12, [])
    assert (tmp_path / "performance.jsonl").read_text() == '{"step": 10}\n'
    text = '{"step": 0}\n{"step": 0, "eval_loss": 1}\n{"loss": 3}\n{"st'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match="metrics.jsonl, line 3 has no step"):
        log.go_on_from(12, [0])
    (tmp_path / "metrics.jsonl").write_text(text.replace('"loss"', '"step"'))
    log.go_on_from(3, [])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_a_log_that_is_moved_away(tmp_path):
    """As log rotation does: the next line begins a new file."""
    log = RunLog(tmp_path, is_writer=True)
    log.metrics({"step": 0, "loss": 1.0})
    (tmp_path / "metrics.jsonl").rename(tmp_path / "metrics.jsonl.1")
    log.metrics({"step": 1, "loss": 1.0})
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [1]
    RunLog(tmp_path / "other", is_writer=False).metrics({"step": 0})
    assert not (tmp_path / "other").exists()
