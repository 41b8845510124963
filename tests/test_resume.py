"""Runs that survive: whatever ends a run and whenever, the same command goes on, and what is left
in the end is bit by bit what an uninterrupted run leaves."""

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import die, each_step_once, flags_of, left_by, strike, terminate, wait_for

from mujax import main
from mujax.data.text import load_corpus
from mujax.training import loop


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, text_file):
    """What the run leaves in this process."""
    root = tmp_path_factory.mktemp("uninterrupted")
    assert main.run(flags_of(text_file, root)) == 0
    each_step_once(root)
    return left_by(root)


def test_sigterm_saves_wherever_it_comes(text_file, tmp_path, uninterrupted, monkeypatch, capsys):
    """While it compiles, in a step, in an evaluation, in a save, and twice in a row."""
    args, killers = flags_of(text_file, tmp_path), []
    loop._jit.cache_clear()  # or there would be nothing to compile

    def terminate_while_compiling():  # tracing takes less, and with compilation more
        killers.append(subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -TERM {os.getpid()}"]))

    for where, call, action in (
        ("begin_step", 1, terminate_while_compiling),
        ("begin_step", 5, terminate),
        ("beat", 1, terminate),
        ("save", 1, terminate),
        ("begin_step", 1, terminate),
    ):
        with monkeypatch.context() as patch:
            strike(patch, where, call, action)
            start = time.monotonic()
            assert main.run(args) == 75
        assert time.monotonic() - start < 25
        assert "the same command goes on" in capsys.readouterr().err
        assert not (tmp_path / "result.json").exists()
    for process in killers:
        process.wait()
    assert main.run(args) == 0
    assert "going on from step" in capsys.readouterr().err
    each_step_once(tmp_path)
    assert left_by(tmp_path) == uninterrupted
    assert main.run(args) == 0  # finished: left alone
    assert left_by(tmp_path) == uninterrupted


def test_killed_right_after_a_save(text_file, tmp_path, uninterrupted, monkeypatch):
    """Nothing of the steps before the checkpoint may be missing in the log then."""
    args = flags_of(text_file, tmp_path)
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 8, die)
        assert main.run(args) == 75
    assert os.listdir(tmp_path / "checkpoints" / "latest") == ["7"]
    assert main.run(args) == 0
    assert left_by(tmp_path) == uninterrupted


def best_of(workdir: Path) -> list[str]:
    return os.listdir(workdir / "checkpoints" / "best")


def test_the_best_after_a_kill(text_file, tmp_path, uninterrupted, monkeypatch):
    """It may be ahead of the latest: killed before the first checkpoint, after stopping at an
    evaluation, or while both are written at once."""
    before_any = flags_of(text_file, tmp_path / "before", checkpoint__interval=500)
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 25, die)
        assert main.run(before_any) == 75
    assert best_of(tmp_path / "before") == ["20"] and not os.listdir(
        tmp_path / "before" / "checkpoints" / "latest"
    )
    assert main.run(before_any) == 0
    assert left_by(tmp_path / "before") == uninterrupted and best_of(tmp_path / "before") == ["40"]

    at_evaluation = flags_of(text_file, tmp_path / "at", checkpoint__interval=500)
    for call, action in ((10, terminate), (3, die)):
        # SIGTERM, noticed before the evaluation at step 10
        with monkeypatch.context() as patch:
            strike(patch, "begin_step", call, action)
            assert main.run(at_evaluation) == 75
    assert main.run(at_evaluation) == 0
    assert left_by(tmp_path / "at") == uninterrupted and best_of(tmp_path / "at") == ["40"]

    both = flags_of(text_file, tmp_path / "both")
    assert main.run(both) == 0
    (tmp_path / "both" / "result.json").unlink()
    shutil.rmtree(tmp_path / "both" / "checkpoints" / "best" / "40")
    assert main.run(both) == 0
    assert left_by(tmp_path / "both") == uninterrupted and best_of(tmp_path / "both") == ["40"]


# A process that may not override permissions, as root may otherwise: it is asked to stop while it
# is profiled, and goes on; then it may not write; and then a save of its hangs
STRUCK = """
import json, os, signal, sys, time
from mujax import main
from mujax.training.checkpoint import Checkpoints
from mujax.training.observer import Observer
profiled, read_only, hanging = json.loads(sys.argv[1])
step, save, calls = Observer.begin_step, Checkpoints.save, []
def struck(*args):
    calls.append(args)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(*args)
Observer.begin_step = struck
print(main.run(profiled), main.run(profiled), flush=True)
print(main.run(read_only), flush=True)
calls.clear()
Observer.begin_step = step
def stuck(*args):
    calls.append(args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)
    save(*args)
Checkpoints.save = stuck
sys.argv = ["mujax", *hanging]
main.main()
"""
# Gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, and becomes another program
LESS = (
    "import ctypes, os, sys; prctl = ctypes.CDLL(None).prctl; [prctl(24, c, 0, 0, 0) for c in "
    "(1, 2)]; os.execv(sys.argv[1], sys.argv[1:])"
)


UNSAVED = "mujax: .*: a checkpoint could not be saved .*{}.*; the last one stands"


@pytest.fixture(scope="module")
def struck(text_file, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder and the end of the process STRUCK, whose runs are in three folders of that."""
    root = tmp_path_factory.mktemp("struck")
    commands = (
        flags_of(text_file, root / "profiled", monitor__profile_step=5, monitor__profile_steps=5),
        flags_of(text_file, root / "read_only"),
        flags_of(
            text_file, root / "hanging", checkpoint__grace_seconds=1, checkpoint__best="False"
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        strike(patch, "begin_step", 12, terminate)
        assert main.run(commands[1]) == 75
    latest = root / "read_only" / "checkpoints" / "latest"
    assert sorted(os.listdir(latest)) == ["12", "7"]
    latest.chmod(0o555)
    process = [sys.executable, "-c", STRUCK, json.dumps(commands)]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LESS, *process], capture_output=True, text=True, cwd=ROOT
    )
    assert time.monotonic() - start < 95  # the save hangs for 100 s
    latest.chmod(0o755)
    return root, done


def test_stopped_while_it_is_profiled(struck, uninterrupted):
    """In a process of its own: JAX's profiler brings down one that has the TPU compiler loaded."""
    root, done = struck
    assert done.stdout.splitlines().count("75 0") == 1, done.stderr
    assert left_by(root / "profiled")[1:] == uninterrupted[1:]  # the row has the number of devices
    assert list((root / "profiled" / "profile").rglob("*.xplane.pb"))


@pytest.mark.skipif(sys.platform != "linux", reason="rights of Linux")
def test_a_workdir_that_cannot_be_written(struck, text_file, uninterrupted):
    """The run says so in one line, ends with 2, and leaves the last good checkpoint, from which it
    goes on."""
    root, done = struck
    assert "2" in done.stdout.splitlines(), done.stderr
    assert re.search(UNSAVED.format("Permission denied"), done.stderr), done.stderr
    assert main.run(flags_of(text_file, root / "read_only")) == 0
    assert left_by(root / "read_only") == uninterrupted


def test_a_save_that_hangs_ends_with_the_grace(struck, text_file, uninterrupted, capsys):
    root, done = struck
    assert done.returncode == 75, done.stderr
    assert "not saved within checkpoint.grace_seconds = 1" in done.stderr
    args = flags_of(text_file, root / "hanging", checkpoint__best="False")
    assert main.run(args) == 0
    assert "going on from step 14" in capsys.readouterr().err
    assert left_by(root / "hanging") == uninterrupted


def test_a_refused_change_changes_nothing(text_file, tmp_path, capsys):
    """Of a finished run: fewer steps, another width, nothing left to train, no such field, other
    data; its result is not that of another."""
    args = flags_of(text_file, tmp_path)
    assert main.run(args) == 0
    before = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != "lock"
    }
    for change, allowed, message in (
        ("train.steps=12", "train.steps", "its checkpoint of step 40 is beyond train.steps = 12"),
        ("model.d_model=32", "model.d_model", "another parameterization table"),
        (
            "model.d_model=32 --config.train.steps=50",
            "model.d_model,table,train.steps",
            "wk is float32 (2, 16, 2, 8), not float32 (2, 32, 4, 8) as here",
        ),
        (
            "optim.learning_rate=0.5",
            "optim.learning_rate",
            "step 40 has had all its training before the change; raise train.steps, which is 40",
        ),
        (
            "optim.b1=0.8",
            "optim.b7",
            "--allow_config_change=optim.b7: the config has no such field; did you mean",
        ),
        (
            "data.glob=*.py",
            "data.path",
            "data.glob: **/*.txt -> *.py; choose a new workdir, or allow it with",
        ),
    ):
        assert (
            main.run([*args, *f"--config.{change}".split(), f"--allow_config_change={allowed}"])
            == 2
        )
        assert message in capsys.readouterr().err
        after = {
            path: path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name != "lock"
        }
        assert after == before
    text = text_file.read_text()
    try:
        text_file.write_text(text.replace("import", "export"))
        load_corpus.cache_clear()
        assert main.run(args) == 2
        assert "its result was trained on other data: fingerprint" in capsys.readouterr().err
    finally:
        text_file.write_text(text)
        load_corpus.cache_clear()
    (tmp_path / "config.json").unlink()
    # what there is is not of this run
    assert main.run([*args, "--config.optim.learning_rate=0.5"]) == 2
    assert "optim.learning_rate: 0.0078125 -> 0.5" in capsys.readouterr().err
    assert main.run(args) == 0


def test_a_workdir_that_is_moved_while_it_trains(
    text_file, tmp_path, uninterrupted, monkeypatch, capsys
):
    """The run notices, saves its state in the folder wherever that is now, and ends with 2; no
    other folder is made."""
    root, now = tmp_path / "run", tmp_path / "moved"

    def move():
        # what Orbax is about to write, it writes by its name
        wait_for(root / "checkpoints" / "latest" / "7")
        wait_for(root / "checkpoints" / "best" / "10")
        root.rename(now)

    args = flags_of(text_file, root)
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 12, move)
        assert main.run(args) == 2
    err = capsys.readouterr().err
    assert (
        f"{root} was moved to {now} while it was in use, and all is saved there; go on with "
        f"--workdir={now}" in err
    )
    assert not root.exists()
    assert sorted(os.listdir(now / "checkpoints" / "latest")) == ["12", "7"]
    assert main.run(flags_of(text_file, now)) == 0
    assert "going on from step 12" in capsys.readouterr().err
    assert left_by(now) == uninterrupted
    each_step_once(now)


@pytest.mark.parametrize(
    ("kills", "steps"), [(1, 60), pytest.param(20, 200, marks=pytest.mark.slow)]
)
def test_killed_at_random_times(kills, steps, text_file, tmp_path):
    """SIGKILL at any time, from the start of the process on; most in training, where it also saves
    and evaluates."""
    workdir, rng, num_killed = tmp_path / "killed", random.Random(0), 0
    args = flags_of(text_file, workdir, train__steps=steps)
    for kill in range(kills):
        # Either after some seconds, or once so many steps more are logged, and then within a few
        # steps
        deadline = time.monotonic() + (rng.uniform(0, 6) if kill % 3 == 1 else 100)
        more, delay = rng.uniform(1, min(1.2 * steps / kills, steps / 2)), rng.uniform(0, 0.03)
        first = last_step(workdir)
        with subprocess.Popen(
            [sys.executable, "-m", "mujax", *args], cwd=ROOT, stderr=subprocess.DEVNULL
        ) as process:
            while (
                process.poll() is None
                and time.monotonic() < deadline
                and last_step(workdir) < first + more
            ):
                time.sleep(0.01)
            time.sleep(delay)
            num_killed += process.poll() is None
            process.kill()
    assert num_killed >= 0.7 * kills
    assert main.run(args) == 0
    assert main.run(flags_of(text_file, tmp_path / "whole", train__steps=steps)) == 0
    assert left_by(workdir, steps) == left_by(tmp_path / "whole", steps)
    each_step_once(workdir, steps)
    assert not list(workdir.rglob("*tmp*"))


def last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl whose loss is there."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return max(
        [
            0,
            *(
                int(line.split()[1][:-1])
                for line in lines
                if line.startswith('{"step"') and '"loss"' in line
            ),
        ]
    )


def test_damaged_checkpoints(text_file, tmp_path, uninterrupted, monkeypatch, capsys):
    """The newest damaged: the one before, with a message. All damaged: exit code 2, and nothing is
    changed."""
    args = flags_of(text_file, tmp_path)
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 30, terminate)
        assert main.run(args) == 75
    latest = tmp_path / "checkpoints" / "latest"
    assert sorted(os.listdir(latest)) == ["28", "30"]
    shutil.rmtree(latest / "30" / "params" / "d")
    shutil.copytree(tmp_path, tmp_path.with_name("all"))
    capsys.readouterr()
    assert main.run(args) == 0
    err = capsys.readouterr().err
    assert f"{latest}/30 is damaged" in err and "going on from step 28" in err
    assert left_by(tmp_path) == uninterrupted
    assert (tmp_path / "checkpoints" / "damaged" / "30").is_dir()

    other = tmp_path.with_name("all")
    (other / "checkpoints" / "latest" / "28" / "record" / "metadata").write_text("{}")
    before = sorted(
        (path, path.read_bytes())
        for path in other.rglob("*")
        if path.is_file() and path.name != "lock"
    )
    assert main.run(flags_of(text_file, other)) == 2
    assert "holds damaged checkpoints only (step 30: " in capsys.readouterr().err
    after = sorted(
        (path, path.read_bytes())
        for path in other.rglob("*")
        if path.is_file() and path.name != "lock"
    )
    assert after == before


def test_another_run_is_refused_by_name(text_file, tmp_path, monkeypatch, capsys):
    """Config, table and data; what is allowed to differ goes on, and the old record is kept."""
    args = flags_of(text_file, tmp_path)
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 12, terminate)
        assert main.run(args) == 75
    capsys.readouterr()
    faster = [*args, "--config.optim.learning_rate=0.02", "--config.optim.b1=0.8"]
    assert main.run(faster) == 2
    message = capsys.readouterr().err
    assert (
        "optim.b1: 0.9 -> 0.8, optim.learning_rate: 0.0078125 -> 0.02; choose a new workdir"
        in message
    )
    assert main.run([*faster, "--allow_config_change=optim.b1"]) == 2
    assert "config: optim.learning_rate: 0.0078125 -> 0.02;" in capsys.readouterr().err

    table = loop.Run.table_hash.fget
    monkeypatch.setattr(loop.Run, "table_hash", property(lambda run: table(run)[::-1]))
    assert main.run(args) == 2
    assert "was saved under another parameterization table" in capsys.readouterr().err
    monkeypatch.undo()

    text = text_file.read_text()
    try:
        text_file.write_text(text.replace("import", "export"))
        load_corpus.cache_clear()
        assert main.run(args) == 2
        assert "was trained on other data: fingerprint" in capsys.readouterr().err
        assert main.run([*faster, "--allow_config_change=optim,data"]) == 0
    finally:
        text_file.write_text(text)
        load_corpus.cache_clear()
    assert (
        json.loads((tmp_path / "earlier" / "1" / "config.json").read_text())["optim"]["b1"] == 0.9
    )
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["b1"] == 0.8
    each_step_once(tmp_path)


def test_a_run_is_made_longer(text_file, tmp_path, capsys):
    """--allow_config_change on a finished run: it goes on from its end, and its result is kept."""
    constant = {
        "model": "mlp",
        "schedule__name": "constant",
        "monitor__tensor_interval": 0,
        "data__path": text_file,
    }
    assert main.run(flags_of(text_file, tmp_path, train__steps=20, **constant)) == 0
    longer = flags_of(text_file, tmp_path, **constant)
    assert main.run(longer) == 2
    assert main.run([*longer, "--allow_config_change=train.steps"]) == 0
    assert "going on from step 20" in capsys.readouterr().err
    assert main.run(flags_of(text_file, tmp_path.with_name("at_once"), **constant)) == 0
    assert left_by(tmp_path) == left_by(tmp_path.with_name("at_once"))
    assert json.loads((tmp_path / "earlier" / "1" / "result.json").read_text())["steps"] == 20


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_full_disk(text_file, tmp_path, uninterrupted, monkeypatch, capsys):
    """Writes fail in the middle of a file: the same."""
    args = flags_of(text_file, tmp_path)
    with monkeypatch.context() as patch:
        strike(patch, "begin_step", 12, terminate)
        assert main.run(args) == 75
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        code = main.run(args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert code == 2, err
    assert re.search(UNSAVED.format("File too large"), err), err
    assert main.run(args) == 0
    assert left_by(tmp_path) == uninterrupted
