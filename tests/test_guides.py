"""The guides in docs/: links lead somewhere, every command is right, and, slowly, runs; the notebook is executed."""

import re
import shlex

import nbclient
import nbformat
import pytest
from conftest import ROOT, run_mujax
from test_readme import grouped, run_group

from mujax.cli.flags import parse
from mujax.config import make_run_config
from mujax.main import VERBS, run
from mujax.training.run import make_run

DOCS = ROOT / "docs"
GUIDES = sorted(DOCS.glob("*.md"))
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").glob("*/README.md"))]


def commands(guide):
    """Its mujax commands as (verb, *flags), in order, but for those that show a part of one."""
    blocks = re.findall(r"```bash\n(.*?)```", guide.read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("mujax ")]


def heading_ids(page):
    """As GitHub makes them: lower case, hyphens for blanks, no other signs."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, heading = target.strip().partition("#")
        if not file.startswith("http"):
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), target
            assert not heading or heading in heading_ids(there), target


def test_every_guide_is_found_from_the_start():
    start = (DOCS / "start.md").read_text()
    for guide in GUIDES:
        assert guide.name == "start.md" or f"({guide.name})" in start, guide
    assert "(docs/start.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_command_is_right(guide, tmp_path, monkeypatch, capsys):
    """Those that read are run; of those that train, the flags are parsed and the run is built, without a step."""
    monkeypatch.chdir(ROOT)
    found = commands(guide)
    for verb, *flags in found:
        flags = [flag.replace("=runs/", f"={tmp_path}/") for flag in flags]
        reads = verb in ("explain", "export", "launch") or "--help" in flags or "experiments/" in " ".join(flags)
        if reads or verb == "sweep":
            dry = ["--dry_run"] if verb == "sweep" and "--dry_run" not in flags else []
            assert run([verb, *flags, *dry]) == 0, capsys.readouterr().err
        else:
            asked = parse(VERBS[verb], flags)
            if "config" in asked and asked["config"]["data"]["name"] != "shards":
                asked["config"].pop("sweep")
                make_run(make_run_config(asked["config"]))


GROUPS = [
    pytest.param(group, id=f"{guide.stem}-{group[0][0]}")
    for guide in GUIDES
    for group in grouped(commands(guide))
    if not any(verb == "merge" for verb, *_ in group)  # of what jobs elsewhere have left
]
WRONG = ("my_table.py", "gated.py:broken", "gated.py:better")


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_command_runs(group, tmp_path, monkeypatch, capsys, quick_processes):
    run_group(group, tmp_path, monkeypatch, capsys, check=(), fails=WRONG)


FORK = DOCS / "is-my-fork-right.md"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["broken", "better", "right"])
def test_guide_shows_what_check_prints(stage, tmp_path, quick_processes):
    """The verdict of each stage of the worked example, word for word."""
    assert ["check", f"--config=docs/examples/gated.py:{stage}", "--workdir=runs/gated", "--fast"] in commands(FORK)
    done = run_mujax("check", f"--config=docs/examples/gated.py:{stage}", f"--workdir={tmp_path}", "--fast")
    shown = {"broken": "FAIL: mlp0/wo, mlp1/wo, embedding", "better": "FAIL: embedding", "right": "pass"}[stage]
    assert done.returncode == (stage != "right"), done.stderr
    assert f"\n{shown}\n" in done.stdout
    if stage != "right":
        failures = done.stdout.partition("\nfail\n")[2].partition("\n\n")[0]
        assert failures in FORK.read_text()


@pytest.mark.parametrize("steps", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_the_notebook_goes_from_two_configs_to_a_figure(steps, quick_processes):
    """As it stands in 100 steps, where SP's optimum falls and muP's stays; in 4, every cell still runs."""
    notebook = nbformat.read(DOCS / "transfer.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("c.train.steps = 100", f"c.train.steps = {steps}")
        if steps < 100:
            cell.source = cell.source.replace("(32, 64, 128)", "(16, 32)").replace("range(-9, -2)", "range(-6, -3)")
            cell.source = cell.source.replace("warmup_steps = 20", "warmup_steps = 2")
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(DOCS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    if steps == 100:
        text = "".join(output.get("text", "") for output in outputs)
        moved = {
            name: float(wide) - float(narrow)
            for name, narrow, wide in re.findall(r"^(\w+): .*{32: (\S+), .*128: (\S+)}", text, re.M)
        }
        assert moved["sp"] <= -2 and abs(moved["mup"]) <= 1
