"""What is read from disk or from the command line is data, never code; and any path will do."""

import hashlib
import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers import Engine, bowl, flags_of, train_by

from mujax import main


def test_no_pickle_is_loaded(text_file, tmp_path, monkeypatch, capsys):
    """Going on, training to the end and sampling: no pickle names a class, without which none runs
    code, and none is begun."""
    workdir, named = tmp_path / "run", []
    args = flags_of(text_file, workdir, train__steps=20)
    assert main.run(args) == 0
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "latest" / "20")

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was to be loaded")

    def watch(event, args):  # hooks stay for the life of a process
        if is_watching and event == "pickle.find_class":
            named.append(args)

    is_watching = True
    sys.addaudithook(watch)
    for name in ("load", "loads", "_load", "_loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert main.run(args) == 0
    assert "going on from step 14" in capsys.readouterr().err
    assert main.run(["sample", f"--workdir={workdir}", "--prompt=a", "--num_tokens=3"]) == 0
    is_watching = False
    assert not named and "was to be loaded" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["in_flight", "images"])
def test_a_planted_pickle_is_refused(what, tmp_path, tiny, capsys):
    """NumPy's files can hold objects, whose reading runs code."""

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    bomb = np.array([Bomb()], dtype=object)
    if what == "images":
        np.savez(tmp_path / "images.npz", images=bomb, labels=bomb)
        flags = ["--config.data.name=images", f"--config.data.path={tmp_path / 'images.npz'}"]
        assert (
            main.run(
                [
                    "train",
                    f"--config={ROOT}/configs/base.py:cnn",
                    f"--workdir={tmp_path / 'run'}",
                    *flags,
                ]
            )
            == 2
        )
        assert "is no .npz file with arrays" in capsys.readouterr().err
    else:
        from mujax.sweep.points import make_points
        from mujax.sweep.study import sweep

        tree = tiny(sweep={"seed": (0,)})
        group = make_points(tree)[0].run.group
        file = tmp_path / "run" / "in_flight" / f"{group}.npz"
        file.parent.mkdir(parents=True)
        np.savez(file, header=bomb, history=bomb, state_0=bomb)
        content = file.read_bytes()  # somebody may know how it is sealed
        file.write_bytes(content + hashlib.sha256(content).digest())
        assert sweep(tree, tmp_path / "run", train_runs=Engine(bowl))[0]["status"] == "ok"
        assert "its points start again" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "flag",
    [
        "--config.sweep.optim.learning_rate=(CODE,)",
        "--config.parameterization.override=(CODE,)",
        "--config.data.path=CODE",
        "--config.optim.learning_rate=CODE",
        "--config={}/configs/lingle2024/ablations.py:CODE",
        "--config={}/configs/base.py:CODE",
        "--workdir=$(touch exploded)",
    ],
)
def test_a_command_line_is_no_code(flag, tmp_path, capsys, monkeypatch):
    """Values of flags, and the argument of a config file, are never evaluated."""
    monkeypatch.chdir(tmp_path)
    flag = flag.replace("CODE", "__import__('os').system('touch exploded')").replace(
        "{}", str(ROOT)
    )
    config = f"--config={ROOT}/configs/quickstart.py"
    rest = [] if flag.startswith("--workdir") else [f"--workdir={tmp_path / 'run'}"]
    code = main.run(["sweep", config, "--dry_run", *rest, flag])
    assert code == (0 if flag.startswith("--workdir") else 2), capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["check", "plan", "sweep"])
def test_who_writes_to_folders_alone_says_so(verb, capsys):
    """Before any work."""
    more = ["--topology=v4:2x2x1"] if verb == "plan" else []
    assert (
        main.run([verb, f"--config={ROOT}/configs/quickstart.py", "--workdir=gs://bucket/x", *more])
        == 2
    )
    assert (
        "gs://bucket/x is not a local folder; only mujax train and sample take buckets"
        in capsys.readouterr().err
    )


def test_any_path_will_do(text_file, tmp_path, monkeypatch):
    """Spaces, quotes, a dollar and letters of other scripts, in workdir and data, of all verbs that
    read and write."""
    folder = tmp_path / 'it\'s a "run" $HOME `x` ñ 日本'
    folder.mkdir()
    text = folder / "my text's.txt"
    shutil.copy(text_file, text)
    small = {
        "train__steps": 8,
        "train__eval_interval": 4,
        "schedule__warmup_steps": 2,
        "checkpoint__interval": 4,
    }
    args = flags_of(text, folder / "the run", **small)
    assert main.run(args) == 0
    assert (
        main.run(["sample", f"--workdir={folder / 'the run'}", "--prompt=a", "--num_tokens=3"]) == 0
    )
    assert json.loads((folder / "the run" / "config.json").read_text())["data"]["path"] == str(text)
    (folder / "the run" / "result.json").unlink()
    assert main.run(args) == 0
    config = folder / "my config.py"
    config.write_text(
        "from configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.sweep.optim = {'learning_rate': (0.01, 0.02)}\n    return c\n"
    )
    flags = [arg for arg in args[2:] if not arg.startswith("--workdir")]
    train_by(Engine(bowl), monkeypatch)
    assert main.run(["sweep", f"--config={config}", f"--workdir={folder / 'a sweep'}", *flags]) == 0
    assert main.run(["report", f"--workdir={folder / 'a sweep'}"]) == 0
    assert (folder / "a sweep" / "report.html").exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        "a sweep",
        "my config.py",
        "my text's.txt",
        "the run",
    ]
