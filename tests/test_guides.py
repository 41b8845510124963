"""The guides in docs/: links and paths lead somewhere, every command is right and, slowly, runs;
the notebook too."""

import csv
import functools
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import nbclient
import nbformat
import pytest
from conftest import ROOT, run_mujax
from documents import (
    DOCS,
    GUIDES,
    PAGES,
    README,
    commands,
    grouped,
    heading_ids,
    links,
    name,
    run_alone,
    run_group,
    run_here,
    shell_lines,
)
from helpers import Engine, bowl, train_by

from configs import base
from mujax.cli.flags import parse
from mujax.config import make_run_config
from mujax.main import VERBS, run
from mujax.models import MODELS
from mujax.optimizers import OPTIMIZERS
from mujax.parameterization import PARAMETERIZATIONS
from mujax.sweep.grid import expand_sweep
from mujax.training.run import make_run

INDEX = DOCS / "README.md"
SWEEPS = DOCS / "sweeps.md"


@pytest.fixture(autouse=True)
def nothing_of_an_example_stays():
    """What configs of the guides add to the tables, the optimizers and the models is gone after the
    test."""
    registries = (PARAMETERIZATIONS, OPTIMIZERS, MODELS)
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in links(page):
        file, _, heading = target.partition("#")
        if not file.startswith("http"):
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), target
            assert not heading or heading in heading_ids(there), target


# What names files and modules of the repository: pages, examples and configs
NAMING = [*PAGES, *sorted(DOCS.glob("*.ipynb")), *sorted(DOCS.glob("examples/*.py"))]
NAMING += sorted((ROOT / "configs").rglob("*.py"))


def is_of_module(dotted: str) -> bool:
    """Whether mujax.a.b is a module or a package of mujax, or a name that one defines."""
    *path, last = dotted.split(".")
    for parts, wanted in (([*path, last], ""), (path, rf"\b{last}\b")):
        file = ROOT.joinpath(*parts)
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if file.exists() and re.search(wanted, file.read_text()):
            return True
    return False


@pytest.mark.parametrize("page", NAMING, ids=name)
def test_no_path_is_stale(page):
    """Nothing names a file, a folder or a module that has moved."""
    text = page.read_text()
    for path in re.findall(
        r"(?<![\w/.-])(?:mujax|tests|experiments|configs|docs|tpu_scripts)/[\w./*-]*\w", text
    ):
        assert glob.glob(path, root_dir=ROOT), path
    for defined, file in re.findall(r"`(\w+)` in\s+`?(mujax/[\w/]+\.py)", text):
        assert re.search(rf"\b{defined}\b", (ROOT / file).read_text()), (defined, file)
    for dotted in re.findall(r"(?<![\w/.])mujax(?:\.[A-Za-z_]\w*)+", text):
        assert is_of_module(dotted), dotted


def test_every_guide_is_found_from_the_index():
    assert {guide.name for guide in GUIDES} - {INDEX.name} <= {*links(INDEX)}
    assert {"docs/README.md", "docs/start.md"} <= {*links(README)}


def test_the_table_of_commands_has_every_verb():
    rows = re.findall(r"^\| `mujax (\w+)`", (DOCS / "commands.md").read_text(), re.M)
    assert sorted(rows) == sorted(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_shell_line_is_one_we_know(page):
    """mujax and make, and in the guide to TPUs what its scripts and Google's tool are called
    with."""
    for line in shell_lines(page):
        first = line.split()[0]
        if first == "make":
            subprocess.run([*line.split(), "-n"], cwd=ROOT, check=True, capture_output=True)
        elif first.startswith("tpu_scripts/"):
            assert shutil.which(ROOT / first), line
        elif first != "mujax":
            assert page.name == "tpu.md", line


def each_command():
    """Commands, each where it is shown first."""
    seen = []
    for guide in GUIDES:
        for i, (verb, *flags) in enumerate(commands(guide)):
            if [verb, *flags] not in seen:
                seen.append([verb, *flags])
                yield pytest.param(verb, flags, id=f"{guide.stem}-{i}-{verb}")


@pytest.mark.parametrize("verb, flags", [*each_command()])
def test_every_command_is_right(verb, flags, tmp_path, monkeypatch, capsys):
    """What reads is run; of what trains, the flags are parsed and the run is built, without a
    step."""
    monkeypatch.chdir(ROOT)
    flags = [flag.replace("=runs/", f"={tmp_path}/") for flag in flags]
    reads = (
        verb in ("explain", "export", "launch")
        or "--help" in flags
        or "experiments/" in " ".join(flags)
    )
    if reads or verb == "sweep":
        dry = ["--dry_run"] if verb == "sweep" and not {"--dry_run", "--help"} & {*flags} else []
        assert run([verb, *flags, *dry]) == 0, capsys.readouterr().err
    else:
        asked = parse(VERBS[verb], flags)
        if "config" in asked and asked["config"]["data"]["name"] != "shards":
            asked["config"].pop("sweep")
            make_run(make_run_config(asked["config"]))


def groups():
    """Commands that belong together, once each. Quick are those of which one reads another's work,
    but for reports."""
    seen = []
    for guide in GUIDES:
        for group in grouped(commands(guide)):
            verbs = {verb for verb, *_ in group}
            if {"launch", "merge"} <= verbs or group in seen:
                continue  # merges what jobs elsewhere have left; an earlier guide shows the same
            seen.append(group)
            marks = [] if {"merge", "sample"} & verbs else [pytest.mark.slow]
            yield pytest.param(
                group, id=f"{guide.stem}-{'-'.join(verb for verb, *_ in group)}", marks=marks
            )


WRONG = ("my_table.py", "gated.py:broken", "gated.py:better")


@pytest.mark.parametrize("group", [*groups()])
def test_every_command_runs(group, tmp_path, request, monkeypatch, capsys):
    """Slowly, what trains as it would; quickly in this process, and sweeps with losses by a law."""
    with (tmp_path / "losses.csv").open("w") as file:  # a table of somebody else
        table = csv.writer(file)
        table.writerow(["n", "learning_rate", "loss, val", "optimizer", "depth", "run"])
        for width in (32, 64):
            table.writerows(
                [width, 2.0**k, 2 + (k + 6) ** 2 / 10, "adam", 2, "a"] for k in range(-9, -3)
            )
    group = [
        [word.replace("=losses.csv", f"={tmp_path}/losses.csv") for word in command]
        for command in group
    ]
    here = functools.partial(run_here, capsys)
    is_slow = request.node.get_closest_marker("slow")
    if not is_slow:
        train_by(Engine(bowl), monkeypatch)
    run_group(group, tmp_path, here, run_alone if is_slow else here, check=(), fails=WRONG)
    if any("--workdir=runs/wider" in command for command in group):
        lines = (tmp_path / "wider" / "results.jsonl").read_text().splitlines()
        assert (
            sorted(json.loads(line)["width"] for line in lines) == [48] * 6 + [96] * 6 + [192] * 6
        )


def test_the_algebra_it_shows():
    c = base.get_config()
    exec(
        re.search(r"```python\n(from mujax.sweep.grid.*?)```", SWEEPS.read_text(), re.S)[1],
        {"c": c},
    )
    points = [cfg for _, cfg in expand_sweep(c.to_dict())]
    assert len(points) == (4 + 2) * 8
    assert {(cfg.model.d_model, cfg.mesh.fsdp) for cfg in points} == {(64, 1), (512, 1), (1024, 4)}


FORK = DOCS / "is-my-fork-right.md"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["broken", "better", "right"])
def test_guide_shows_what_check_prints(stage, tmp_path):
    """The verdict of each stage of the worked example, word for word."""
    assert [
        "check",
        f"--config=docs/examples/gated.py:{stage}",
        "--workdir=runs/gated",
        "--fast",
    ] in commands(FORK)
    done = run_mujax(
        "check", f"--config=docs/examples/gated.py:{stage}", f"--workdir={tmp_path}", "--fast"
    )
    shown = {
        "broken": "FAIL: mlp0/wo, mlp1/wo, embedding",
        "better": "FAIL: embedding",
        "right": "pass",
    }[stage]
    assert done.returncode == (stage != "right"), done.stderr
    assert f"\n{shown}\n" in done.stdout
    if stage != "right":
        failures = done.stdout.partition("\nfail\n")[2].partition("\n\n")[0]
        assert failures in FORK.read_text()


NOTEBOOK = nbformat.read(DOCS / "transfer.ipynb", as_version=4)


def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch):
    """With losses by a law, whose optimum is what it finds, and a figure in the end."""
    train_by(Engine(bowl), monkeypatch)
    monkeypatch.chdir(DOCS)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(os.environ, "XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    names = {}
    for cell in NOTEBOOK.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    found = [optimum.log2_lr for m in names["measured"] for optimum in m.optima]
    assert found == pytest.approx([-6] * 6)
    names["figure"].savefig(tmp_path / "figure.png")


@pytest.mark.slow
def test_the_notebook_goes_from_two_configs_to_a_figure():
    """SP's optimum falls and muP's stays."""
    nbclient.NotebookClient(
        NOTEBOOK, timeout=1200, resources={"metadata": {"path": str(DOCS)}}
    ).execute()
    outputs = [output for cell in NOTEBOOK.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    moved = {
        name: float(wide) - float(narrow)
        for name, narrow, wide in re.findall(r"^(\w+): .*{32: (\S+), .*128: (\S+)}", text, re.M)
    }
    assert moved["sp"] <= -2 and abs(moved["mup"]) <= 1
