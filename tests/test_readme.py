"""Every command of the README runs; and, slowly, the quickstart finds what the README says it finds."""

import importlib.util
import json
import re
import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import ROOT, run_mujax

from configs import base
from mujax.cli.verb import CHECK_FAILED, FINISHED
from mujax.main import run
from mujax.sweep.grid import expand_sweep

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
MUJAX = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("mujax ")]

# The same commands at a size that a test can afford
SMALL = ["--config.train.steps=3", "--config.schedule.warmup_steps=1", "--config.train.eval_batches=1"]
SMALL += ["--config.train.batch_size=4", "--config.refine.log2_step=0.0"]


def grouped(commands):
    """Those that name a folder in common, so that a report finds the sweep before it, in the order of the README."""
    groups = []  # (folders, numbers of the commands)
    for i, (_, *flags) in enumerate(commands):
        folders = set(re.findall(r"=(runs/[\w*-]+)", " ".join(flags)))
        near = [g for g in groups if any(fnmatch(earlier, folder) for earlier in g[0] for folder in folders)]
        groups = [g for g in groups if g not in near]
        groups.append((folders.union(*(g[0] for g in near)), sorted(sum((g[1] for g in near), [i]))))
    return [[commands[i] for i in numbers] for _, numbers in groups]


def test_nothing_it_points_to_is_missing():
    assert not re.findall(r"@[A-Z]+@", README)
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target.partition("#")[0]).exists(), target


def test_stated_tables_are_the_committed_ones():
    """Word for word, verdicts too: the mean of three seeds at the top, and both in the account of the experiment."""
    account = ROOT / "experiments" / "quickstart"
    one, three = ((account / name).read_text() for name in ("report.txt", "seeds/report.txt"))
    assert f"```\n{three}```" in README
    assert all(f"```\n{text}```" in (account / "README.md").read_text() for text in (one, three))


def test_every_command_is_one_we_know():
    assert len(COMMANDS) >= 7
    assert all(line.startswith(("mujax ", "make ")) for line in COMMANDS)
    assert sum(map(len, grouped(MUJAX)), 0) == len(MUJAX)
    workdirs = {(verb, flag) for verb, *flags in MUJAX for flag in flags}
    assert {("report", "--workdir=runs/quickstart"), ("sweep", "--workdir=runs/wider")} <= workdirs


def run_here(monkeypatch, capsys, *args):
    """The command line in this process: importing JAX would be most of what reading results takes."""
    monkeypatch.chdir(ROOT)
    code = run(args)
    return code, capsys.readouterr().err


TAKE_MINUTES = ("prepare", "plan", "check")  # which have tests of their own


def named(group):
    verbs = [verb for verb, *_ in group]
    return pytest.param(group, id="-".join(verbs), marks=[pytest.mark.slow] * bool({*verbs} & {*TAKE_MINUTES}))


@pytest.mark.parametrize("group", [named(group) for group in grouped(MUJAX)])
def test_mujax_commands_run(group, tmp_path, monkeypatch, capsys, quick_processes):
    run_group(group, tmp_path, monkeypatch, capsys)


def run_group(group, tmp_path, monkeypatch, capsys, check=("--widths=16,32,48,64",), fails=()):
    """In folders of their own. What trains does so in a process of its own, as on the two cores of a reader.

    check: more flags of that verb. fails: configs of which it says that they are wrong.
    """
    for verb, *flags in group:
        if verb == "plan" and importlib.util.find_spec("libtpu") is None:
            continue  # test_plan has it
        extra = SMALL if verb in ("train", "sweep") and "--dry_run" not in flags else []
        if verb == "check":
            extra = [*check]
        if extra and any("kalra2026" in flag for flag in flags):
            extra = [*extra, "--config.schedule.decay_steps=1"]
        if verb == "sweep" and extra and not any("d_model" in flag for flag in flags):
            extra = [*extra, "--config.sweep.model.d_model=(48,)"]
        flags = [flag.replace("=runs/", f"={tmp_path}/") for flag in flags]
        if verb in ("explain", "launch", "merge", "report") or "--dry_run" in flags:
            code, said = run_here(monkeypatch, capsys, verb, *flags, *extra)
        else:
            done = run_mujax(verb, *flags, *extra)
            code, said = done.returncode, done.stderr
        is_wrong = any(config in flag for config in fails for flag in flags)
        assert code == (CHECK_FAILED if is_wrong and verb == "check" else FINISHED), (verb, flags, said[-500:])
        if verb == "report":
            (workdir,) = (flag.partition("=")[2] for flag in flags if flag.startswith("--workdir="))
            assert (Path(workdir) / "report.html").exists()
        if f"--workdir={tmp_path}/wider" in flags:
            lines = (tmp_path / "wider" / "results.jsonl").read_text().splitlines()
            assert sorted(json.loads(line)["width"] for line in lines) == [48] * 6 + [96] * 6 + [192] * 6


def test_the_algebra_it_shows():
    c = base.get_config()
    exec(re.search(r"```python\n(from mujax.sweep.grid.*?)```", README, re.S)[1], {"c": c})
    points = [cfg for _, cfg in expand_sweep(c.to_dict())]
    assert len(points) == (4 + 2) * 8
    assert {(cfg.model.d_model, cfg.mesh.fsdp) for cfg in points} == {(64, 1), (512, 1), (1024, 4)}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(line):
    subprocess.run([*line.split(), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_make_quickstart_is_the_two_commands():
    recipe = subprocess.run(["make", "-n", "quickstart"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line.partition("bin/mujax ")[2] for line in recipe.splitlines() if "bin/mujax" in line]
    assert [shlex.split(line) for line in lines] == MUJAX[:2]


@pytest.mark.slow
def test_quickstart_finds_what_it_says(tmp_path):
    """The real thing, some minutes: muP's optimum moves at most one grid step, SP's falls by about 4x."""
    for verb, *flags in MUJAX[:2]:
        done = run_mujax(
            verb, *[flag for flag in flags if "workdir" not in flag], f"--workdir={tmp_path}", timeout=1200
        )
        assert done.returncode == 0, done.stderr[-500:]
    summary = json.loads((tmp_path / "transfer.json").read_text())["studies"]
    moves = {name: s["optima"][-1]["log2_lr"] - s["optima"][0]["log2_lr"] for name, s in summary.items()}
    assert abs(moves["mup"]) <= 1
    assert -3 <= moves["sp"] <= -2


@pytest.mark.slow
def test_full_check_of_sp_and_mup(tmp_path):
    """Five widths, five seeds, 30 steps: muP passes; SP fails and names every hidden tensor."""
    hidden = {f"blocks/attention/w{x}" for x in "qkvo"} | {"blocks/mlp/wi", "blocks/mlp/wo"}
    for name, culprits in (("mup", set()), ("sp", hidden | {"unembed"})):
        args = (f"--workdir={tmp_path / name}", f"--config.parameterization.name={name}")
        done = run_mujax("check", "--config=configs/quickstart.py", *args, timeout=1800)
        assert done.returncode == bool(culprits), done.stdout
        assert set(json.loads((tmp_path / name / "check.json").read_text())["culprits"]) == culprits
