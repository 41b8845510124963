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
from helpers import flags_of, left_by, wait_for

from mujax import main
from mujax.errors import UserError
from mujax.storage.files import read_jsonl
from mujax.training import distributed

MESH = {
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "mesh__tensor": 2,
    "train__steps": 20,
    "checkpoint__interval": 5,
}


class Processes:
    """Two processes with four devices each, as the hosts of a pod."""

    def __init__(self, args: list[str], of_second: tuple[str, ...] = (), program=("-m", "mujax")):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
        self.members = [
            subprocess.Popen(
                [sys.executable, *program, *args, f"--coordinator=localhost:{port}",
                "--num_processes=2"]
                + [f"--process_id={i}", *(of_second if i else ())],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]  # fmt: skip

    def end(self, timeout: float = 300) -> list[tuple[int, str, str]]:
        """(exit code, output, messages) of each."""
        ends = []
        for process in self.members:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
            out = "\n".join(line for line in out.splitlines() if "[Gloo]" not in line)
            ends.append((process.returncode, out, err))
        return ends


def losses(workdir: Path) -> np.ndarray:
    """Of the first 20 steps, with evaluations."""
    records = [
        r for r in read_jsonl(workdir / "metrics.jsonl") if r["step"] < 20 and "tensors" not in r
    ]
    assert [r["step"] for r in records if "loss" in r] == [*range(20)]
    return np.array([r.get("loss", r.get("eval_loss")) for r in records])


def test_two_processes_are_one_run(text_file, tmp_path, capsys):
    """FSDP and tensor axes on: as one process with the same eight devices; after one of two was
    killed, and later asked to stop, bit by bit as if nothing had been; and what they save goes on
    on other numbers of processes and devices."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    args = flags_of(text_file, killed, **MESH)
    assert [code for code, *_ in Processes(flags_of(text_file, whole, **MESH)).end()] == [0, 0]
    expected = left_by(whole, 20)
    assert expected[0]["device"] == "8 x cpu"

    pair = Processes(args)
    wait_for(killed / "checkpoints" / "latest" / "5")
    pair.members[1].kill()
    start = time.monotonic()
    (code, _, err), (dead, *_) = pair.end()
    assert time.monotonic() - start < 60
    assert dead == -signal.SIGKILL and code in (70, -signal.SIGABRT), err
    assert "has failed, or lost another, and ends" in err or "another task died" in err

    copies = {"eight devices": {}, "one": {"mesh__data": 1, "mesh__fsdp": 1, "mesh__tensor": 1}}
    for name in copies:
        shutil.copytree(killed, tmp_path / name)

    (killed / "heartbeat.json").unlink()
    pair = Processes(args)
    wait_for(killed / "heartbeat.json")
    pair.members[1].send_signal(signal.SIGINT)
    time.sleep(0.2)
    # JAX looks once a second whether there was a signal
    pair.members[0].send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    pair.members[0].send_signal(signal.SIGCONT)
    ends = pair.end()
    assert [code for code, *_ in ends] == [75, 75], ends
    # What one of them has saved is gone, of the newest: both take the one before
    latest = killed / "checkpoints" / "latest"
    newest = max(map(int, os.listdir(latest)))
    shutil.rmtree(latest / f"{newest}" / "params" / "ocdbt.process_1")
    ends = Processes(args).end()
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
    ends = Processes(flags_of(text_file, tmp_path / "run", **mesh)).end()
    assert [code for code, *_ in ends] == [3, 3], ends
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"


# Two commands, one after the other, of processes that have joined in the first
TWICE = """
import json, sys
from mujax import main
first, second = json.loads(sys.argv[1])
print(main.run([*first, *sys.argv[2:]]), main.run(second))
"""


def test_mistakes_are_told_by_all(text_file, tmp_path, capsys):
    """A mesh that is not all devices, a workdir of another run, another command for one: exit code
    2 on both."""
    args = flags_of(text_file, tmp_path / "run", **{**MESH, "mesh__data": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    both = json.dumps([args, flags_of(text_file, tmp_path / "other", **MESH)])
    for _, out, err in Processes([both], program=["-c", TWICE]).end():
        assert out == "2 2", err
        assert "= 4 must be the 8 devices of the 2 processes" in err
        assert "holds manifest.json, the record of another verb" in err
    other = "--config.data.path=/elsewhere", "--config.checkpoint.keep=3"
    ends = Processes(flags_of(text_file, tmp_path / "run", **MESH), other).end()
    assert [code for code, *_ in ends] == [2, 2], ends
    assert "process 1 of this run cannot go on" in ends[0][2]
    assert (
        "process 1 was given another command than process 0: checkpoint.keep: 2 -> 3, data.path: "
        in ends[1][2]
    )
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
