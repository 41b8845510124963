"""Several processes are one run: the same numbers, files written once, and an end together, however
it comes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import flags_of, left_by

from mujax import main
from mujax.errors import UserError
from mujax.storage.files import read_jsonl
from mujax.training import distributed

MESH = {
    "model": "mlp",  # of what is sharded test_sharding asks; this one compiles in half the time
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
    "train__steps": 20,
    "checkpoint__interval": 5,
}


# Commands one after the other, of processes that join in the first; in the last one, this process
# strikes itself before a step: once that there is a checkpoint of step 5, and with time for JAX to
# see a signal, which it looks for once a second
COMMANDS = """
import json, os, sys, time
from mujax import main
from mujax.training.observer import Observer
commands, signum, step, checkpoint = json.loads(sys.argv[1])
commands[0] += sys.argv[2:]
for command in commands[:-1]:
    print(main.run(command), flush=True)
begin_step = Observer.begin_step
def struck(self, t, state):
    if t == step and signum:
        while not os.path.exists(checkpoint):
            time.sleep(0.01)
        os.kill(os.getpid(), signum)
        time.sleep(3)
    begin_step(self, t, state)
Observer.begin_step = struck
sys.argv = ["mujax", *commands[-1]]
main.main()
"""


class Processes:
    """Two processes with four devices each, as the hosts of a pod."""

    def __init__(self, first: list[str], second: list[str]):
        """first, second: their arguments, but for those by which they join."""
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        joining = [f"--coordinator=localhost:{port}", "--num_processes=2"]
        self.members = [
            subprocess.Popen(
                [sys.executable, *args, *joining, f"--process_id={i}"],
                cwd=ROOT,
                env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i, args in enumerate((first, second))
        ]

    def end(self, timeout: float = 300) -> list[tuple[int, str, str]]:
        """Returns (exit code, output, messages) of each."""
        ends = []
        for process in self.members:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
            out = "\n".join(line for line in out.splitlines() if "[Gloo]" not in line)
            ends.append((process.returncode, out, err))
        return ends


def run_commands(
    first: list[list[str]], second: list[list[str]], signum: int, step: int, workdir: Path
) -> list[tuple[int, str, str]]:
    """Runs the commands of each of two processes; the second is struck by a signal in the last."""
    checkpoint = str(workdir / "checkpoints" / "latest" / "5")
    plans = (first, 0, step, checkpoint), (second, signum, step, checkpoint)
    return Processes(*(["-c", COMMANDS, json.dumps(plan)] for plan in plans)).end()


def codes(out: str) -> list[str]:
    """Returns the exit codes that COMMANDS has printed."""
    return [line for line in out.splitlines() if line.isdigit()]


def losses(workdir: Path) -> np.ndarray:
    """Of the first 20 steps, with evaluations."""
    records = [
        r for r in read_jsonl(workdir / "metrics.jsonl") if r["step"] < 20 and "tensors" not in r
    ]
    assert [r["step"] for r in records if "loss" in r] == [*range(20)]
    return np.array([r.get("loss", r.get("eval_loss")) for r in records])


@pytest.fixture(scope="module")
def joined(text_file, tmp_path_factory) -> tuple[Path, list[tuple[int, str, str]]]:
    """The folder and the ends of two processes: after three mistakes and a whole run, one of them
    is killed in another run."""
    root = tmp_path_factory.mktemp("joined")
    (root / "other").mkdir()
    (root / "other" / "manifest.json").write_text("{}")
    first = [
        flags_of(text_file, root / "run", **{**MESH, "mesh__data": 1}),
        flags_of(text_file, root / "other", **MESH),
        *(flags_of(text_file, root / name, **MESH) for name in ("run", "whole", "killed")),
    ]
    second = [*first]
    second[2] = [*first[2], "--config.data.path=/elsewhere", "--config.checkpoint.keep=3"]
    start = time.monotonic()
    ends = run_commands(first, second, signal.SIGKILL, 8, root / "killed")
    assert time.monotonic() - start < 200
    return root, ends


def test_two_processes_are_one_run(joined, text_file, tmp_path, capsys):
    """FSDP and tensor axes on: as one process with the same eight devices; after one of two was
    killed, and later asked to stop, bit by bit as if nothing had been; and what they save goes on
    on other numbers of processes and devices."""
    root, ((code, out, err), (dead, *_)) = joined
    assert dead == -signal.SIGKILL and code in (70, -signal.SIGABRT), err
    assert "has failed, or lost another, and ends" in err or "another task died" in err
    assert codes(out) == ["2", "2", "2", "0"]
    whole, killed = root / "whole", root / "killed"
    expected = left_by(whole, 20)
    assert expected[0]["device"] == "8 x cpu"

    copies = {"eight devices": {}, "one": {"mesh__data": 1, "mesh__fsdp": 1, "mesh__tensor": 1}}
    for name in copies:
        shutil.copytree(killed, tmp_path / name)

    args = flags_of(text_file, killed, **MESH)
    ends = run_commands([args], [args], signal.SIGINT, 12, killed)
    assert [code for code, *_ in ends] == [75, 75], ends
    # What one of them has saved is gone, of the newest: both take the one before
    latest = killed / "checkpoints" / "latest"
    newest = max(map(int, os.listdir(latest)))
    shutil.rmtree(latest / f"{newest}" / "params" / "ocdbt.process_1")
    command = ["-m", "mujax", *args]
    ends = Processes(command, command).end()
    assert [code for code, *_ in ends] == [0, 0], ends
    assert re.search(f"{latest}/{newest} is damaged .*; going on from step \\d", ends[0][2]), ends
    assert "going on" not in ends[1][2]
    assert left_by(killed, 20) == expected

    for name, mesh in copies.items():
        assert main.run(flags_of(text_file, tmp_path / name, **{**MESH, **mesh})) == 0
        assert "going on from step" in capsys.readouterr().err
        np.testing.assert_allclose(losses(tmp_path / name), losses(whole), rtol=1e-5)

    alone = tmp_path / "alone"
    assert main.run(flags_of(text_file, alone, **MESH)) == 0
    np.testing.assert_allclose(losses(alone), losses(whole), rtol=1e-6)


@pytest.mark.slow
def test_divergence_ends_all_with_3(text_file, tmp_path):
    mesh = {
        "mesh__fsdp": 8,
        "train__batch_size": 8,
        "optim__learning_rate": 1e4,
        "optim__grad_clip": 0,
    }
    command = ["-m", "mujax", *flags_of(text_file, tmp_path / "run", **mesh)]
    ends = Processes(command, command).end()
    assert [code for code, *_ in ends] == [3, 3], ends
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"


def test_mistakes_are_told_by_all(joined, text_file, tmp_path, capsys):
    """A mesh that is not all devices, a workdir of another run, another command for one: exit code
    2 on both."""
    root, ends = joined
    for _, out, err in ends:
        assert codes(out)[:3] == ["2", "2", "2"], err
        assert "= 4 must be the 8 devices of the 2 processes" in err
        assert "holds manifest.json, the record of another verb" in err
    assert "process 1 of this run cannot go on" in ends[0][2]
    assert (
        "process 1 was given another command than process 0: checkpoint.keep: 2 -> 3, data.path: "
        in ends[1][2]
    )
    assert not (root / "run" / "checkpoints").exists()
    args = flags_of(text_file, tmp_path / "run", **MESH)
    assert main.run([*args, "--coordinator=localhost:1"]) == 2
    assert "--num_processes is missing" in capsys.readouterr().err
    for coordinator, message in (
        ("localhost", "is not HOST:PORT"),
        ("localhost:x", "is not HOST:PORT"),
        ("no-such-host.invalid:1", "there is no such host"),
    ):
        assert (
            main.run([*args, f"--coordinator={coordinator}", "--num_processes=2", "--process_id=1"])
            == 2
        )
        assert f"--coordinator={coordinator}" in (err := capsys.readouterr().err) and message in err
    assert (
        main.run([*args, "--coordinator=localhost:1", "--num_processes=2", "--process_id=2"]) == 2
    )
    assert "--process_id=2 must be at least 0, at most 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "here, there, kind",
    [
        (ConnectionError("503"), None, ConnectionError),
        (None, ConnectionError("503"), ConnectionError),
        (ConnectionError("503"), UserError("no right"), UserError),
        (PermissionError(13, "Permission denied"), ConnectionError("503"), UserError),
        (None, None, None),
    ],
)
def test_what_may_pass_is_so_for_all(here, there, kind, monkeypatch):
    """As one of two processes sees it: a launcher tries again only what nobody has to fix."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    others = iter([there is None or isinstance(there, ConnectionError), there is None])
    gather = lambda own: np.array([own, next(others)])  # noqa: E731
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", lambda own: own)

    def work():
        if here is not None:
            raise here
        return "done"

    def kind_of(call):
        try:
            assert call(work) == "done"
        except (UserError, ConnectionError) as e:
            return type(e)

    assert kind_of(distributed.everywhere) is kind
    of_primary = (
        None
        if here is None
        else ConnectionError
        if isinstance(here, ConnectionError)
        else UserError
    )
    assert kind_of(distributed.agreed) is of_primary


def test_stopping_with_others(monkeypatch):
    """Ctrl-C is SIGTERM, which JAX tells the others; the grace ends with the run, and Python's
    handler is back."""
    received, ended = [], []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        distributed.multihost_utils, "reached_preemption_sync_point", lambda step: bool(received)
    )
    monkeypatch.setattr(distributed.os, "_exit", ended.append)
    handlers = [
        signal.signal(signum, lambda *args: received.append(args[0])) for signum in STOPPING
    ]
    try:
        before = signal.getsignal(signal.SIGINT)
        with distributed.stop_requests(grace_seconds=0.2) as is_stopping:
            assert not is_stopping(1)
            signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGTERM] and is_stopping(2)
            signal.raise_signal(signal.SIGINT)
            assert ended == [75]
        assert signal.getsignal(signal.SIGINT) is before
        time.sleep(0.4)
        assert ended == [75]  # what comes after the run has its time
    finally:
        for signum, handler in zip(STOPPING, handlers, strict=True):
            signal.signal(signum, handler)


STOPPING = signal.SIGINT, signal.SIGTERM
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
}


@pytest.mark.parametrize(
    "environment, joins",
    [
        ({}, False),
        ({**SLURM, "SLURM_LOCALID": "0"}, True),
        ({**SLURM, "SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # a batch script, not a step of it
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, True),
    ],
)
def test_the_environment_says_who_is_there(environment, joins, monkeypatch):
    calls = []
    for name in [name for name in os.environ if name.startswith(("SLURM_", "JAX_COORDINATOR"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    distributed.initialize()
    assert len(calls) == joins and all("coordinator_address" not in options for options in calls)
    monkeypatch.setattr(
        distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else []
    )
    distributed.initialize()  # on a TPU VM JAX asks its metadata
    assert len(calls) == joins + 1

    def fail(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    distributed.initialize()  # a TPU of no cluster
    with pytest.raises(UserError, match="cannot be joined: coordinator_address"):
        distributed.initialize("localhost:1", 2, 0)
