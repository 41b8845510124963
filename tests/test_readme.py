"""README: it is short, its tree is the rooms on disk, its commands run and, slowly, find what it
says they find."""

import functools
import json
import re
import shlex
import subprocess

import pytest
from conftest import ROOT, run_mujax
from documents import README, commands, grouped, run_group, run_here, shell_lines
from helpers import Engine, bowl, train_by

from mujax import main

TEXT = README.read_text()
MUJAX = commands(README)


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 120


def test_stated_tables_are_the_committed_ones():
    """Word for word, verdicts too: the mean of three seeds at the top, and both in the account of
    the experiment."""
    account = ROOT / "experiments" / "quickstart"
    one, three = ((account / name).read_text() for name in ("report.txt", "seeds/report.txt"))
    assert f"```\n{three}```" in TEXT
    assert all(f"```\n{text}```" in (account / "README.md").read_text() for text in (one, three))


def test_its_tree_is_the_rooms_in_the_order_of_their_imports():
    tree = re.search(r"```\nmujax/\n(.*?)```", TEXT, re.S)[1]
    found = re.findall(r"^  ([\w.]+/?)  +([A-Z][^.]*(?:\.\w[^.]*)*\.)$", tree, re.M)
    assert len(found) == len(tree.splitlines())  # each with one sentence
    rooms = [name for name, _ in found]
    package = ROOT / "mujax"
    folders = {f"{init.parent.name}/" for init in package.glob("*/__init__.py")}
    assert sorted(rooms) == sorted(
        folders | {file.name for file in package.glob("*.py")} - {"__init__.py"}
    )
    order = [room.removesuffix("/").removesuffix(".py") for room in rooms]
    for i, (room, name) in enumerate(zip(order, rooms, strict=True)):
        for file in (package / name).rglob("*.py") if name.endswith("/") else [package / name]:
            imported = re.findall(r"^\s*(?:from|import) mujax\.(\w+)", file.read_text(), re.M)
            assert {*imported} <= {*order[: i + 1]}, (room, file)


def test_its_table_of_sp_and_mup_is_what_explain_says(capsys):
    """Each cell, such as `init fan_in^-1/2 m^-1/2, lr 1/m`, against the resolved numbers at four
    base widths."""
    sizes = {"m": 4, "d_head": 32, "base_d_head": 16}

    def value(cell, fan_in=0):
        of = sizes | {"fan_in": fan_in}
        factors = re.sub(
            r"([a-z]\w*)(?:\^(-?\d)/(\d))?",
            lambda f: f"{of[f[1]]}**({f[2] or 1}/{f[3] or 1})",
            cell,
        )
        return eval(factors.replace(" / ", "/").replace(" ", "*"))

    config = ["--config=configs/base.py", "--config.model.d_model=128", "--config.model.d_head=32"]
    config += ["--config.parameterization.base_d_head=16", "--config.model.norm_gain=vector"]
    config += ["--config.optim.learning_rate=1", "--config.optim.eps=1"]
    rows = re.findall(r"^\| [\w ,]+ \| (\w*) *\| ([^|]+) \| ([^|]+) \|$", TEXT, re.M)[1:]
    assert [role for role, *_ in rows] == ["input", "hidden", "output", "vector", ""]
    for column, table in enumerate(("sp", "mup")):
        assert (
            main.run(["explain", *config, f"--config.parameterization.name={table}", "--json"]) == 0
        )
        (found,) = json.loads(capsys.readouterr().out)["runs"]
        for role, *cells in rows:
            if not role:
                assert value(cells[column]) == pytest.approx(found["scales"]["attention"]["value"])
                continue
            told = {"eps": "1"} | dict(entry.split(" ", 1) for entry in cells[column].split(", "))
            for tensor in (
                tensor for tensor in found["tensors"].values() if tensor["role"] == role
            ):
                actual = {
                    "init": tensor["init"] * tensor["forward"],
                    "lr": tensor["learning_rate"],
                    "eps": tensor["eps"],
                }
                assert {name: actual[name] for name in told} == pytest.approx(
                    {name: value(cell, tensor["fan_in"]) for name, cell in told.items()}
                )


def test_every_command_is_one_we_know():
    assert all(line.startswith(("mujax ", "make ")) for line in shell_lines(README))
    assert ["report", "--workdir=runs/quickstart"] in MUJAX


@pytest.mark.parametrize(
    "group", grouped(MUJAX), ids=lambda group: "-".join(verb for verb, *_ in group)
)
def test_mujax_commands_run(group, tmp_path, monkeypatch, capsys):
    """With losses by a law; test_sweep trains the quickstart at a small size, by its process."""
    train_by(Engine(bowl), monkeypatch)
    here = functools.partial(run_here, capsys)
    run_group(group, tmp_path, here, here)


def test_make_quickstart_is_the_two_commands():
    recipe = subprocess.run(
        ["make", "-n", "quickstart"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    lines = [line.partition("bin/mujax ")[2] for line in recipe.splitlines() if "bin/mujax" in line]
    assert [shlex.split(line) for line in lines] == MUJAX


@pytest.mark.slow
def test_quickstart_finds_what_it_says(tmp_path):
    """The real thing, some minutes: muP's optimum moves at most one grid step, SP's falls by about
    4x."""
    for verb, *flags in MUJAX:
        done = run_mujax(
            verb,
            *[flag for flag in flags if "workdir" not in flag],
            f"--workdir={tmp_path}",
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr[-500:]
    summary = json.loads((tmp_path / "transfer.json").read_text())["studies"]
    moves = {
        name: s["optima"][-1]["log2_lr"] - s["optima"][0]["log2_lr"] for name, s in summary.items()
    }
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
