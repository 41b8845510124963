"""Edges of the command line: outputs that fail, and devices that are not there. The exit code is
that of the work."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT, run_mujax

from mujax.cli import devices


@pytest.fixture
def merge(tmp_path):
    """A command that writes files, prints a line, and is quick."""
    for name in "ab":
        (tmp_path / name).mkdir()
        row = {
            "id": name * 12,
            "status": "ok",
            "final_loss": 2.0,
            "overrides": {},
            "diverged_at_step": None,
            "seed": 0,
        }
        row |= {"width": 16, "parameterization": "sp", "learning_rate": 0.1}
        (tmp_path / name / "results.jsonl").write_text(json.dumps(row) + "\n")
        manifest = {"config": {}, "points": {name * 12: {"overrides": {}}}, "data": {}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    return ["merge", f"--sources={tmp_path / 'a'},{tmp_path / 'b'}", f"--workdir={tmp_path / 'ñ'}"]


def run_shell(args: list[str], redirection: str, **variables: str) -> subprocess.CompletedProcess:
    command = f'exec "$0" -m mujax "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *args],
        capture_output=True, env={**os.environ, **variables}, cwd=ROOT, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("redirection", [">/dev/full", "2>/dev/full", ">&- 2>&-", "> >(exec true)"])
def test_what_was_done_stands_whatever_becomes_of_the_output(redirection, merge, tmp_path):
    done = run_shell(merge, redirection)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert len((tmp_path / "ñ" / "results.jsonl").read_text().splitlines()) == 2
    assert (b"No space left" in done.stderr) == (redirection == ">/dev/full")


def test_what_is_only_printed_is_lost_with_the_output():
    done = run_shell(["--help"], ">/dev/full")
    assert (done.returncode, done.stderr.count(b"\n")) == (
        2,
        1,
    ) and b"No space left on device" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -1` does when it has its line
    done = subprocess.run(
        [sys.executable, "-m", "mujax", "--help"], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_ascii_console(merge, tmp_path):
    done = run_shell(merge, "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"") and rb"\xf1" in done.stdout
    assert (tmp_path / "ñ" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("variable", "file", "is_hidden"),
    [
        ("", "", True),
        ("JAX_PLATFORMS", "", False),
        ("TPU_NAME", "", False),
        ("", "/dev/accel0", False),
        ("", "/dev/vfio/0", False),
    ],
)
def test_a_tpu_is_looked_for_where_it_is_or_was_asked_for(variable, file, is_hidden, monkeypatch):
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", *devices.TPU_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "tpu")
    monkeypatch.setattr(
        devices.glob, "glob", lambda pattern: [file] if pattern[:8] == file[:8] else []
    )
    modules = {}
    monkeypatch.setattr(devices.sys, "modules", modules)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    devices.hide_absent_tpu()
    assert modules == ({"libtpu": None} if is_hidden else {})


@pytest.mark.skipif(not find_spec("libtpu") or devices.has_tpu(), reason="needs libtpu and no TPU")
def test_nothing_is_said_of_a_tpu_that_nobody_asked_for(monkeypatch):
    """Also below a process that has imported libtpu, which leaves its path in the environment."""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv(
        "TPU_LIBRARY_PATH", os.path.join(os.path.dirname(find_spec("libtpu").origin), "libtpu.so")
    )
    done = run_mujax("version")
    assert (done.returncode, done.stderr) == (0, "") and "libtpu 0" in done.stdout


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
@pytest.mark.skipif(devices.glob.glob("/dev/nvidia*") != [], reason="needs a machine without GPU")
def test_a_platform_that_is_not_there(platform, tmp_path, monkeypatch):
    """cuda is known to JAX and skipped without a GPU, rocm is known to its plugin alone."""
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    done = run_mujax("sweep", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"JAX_PLATFORMS={platform}: that is not on this machine" in done.stderr
    assert not (tmp_path / "run").exists()
