"""Both papers at small scale: the figures follow from the committed rows, and the rows from the
shipped configs."""

import json
import re
import sys

import pytest
from conftest import ROOT, run_mujax
from matplotlib.testing.compare import compare_images

from experiments import small_scale
from experiments.kalra2026 import account as kalra2026_account
from experiments.lingle2024 import tables as lingle2024_tables
from mujax.sweep.points import make_points

EXPERIMENTS = ROOT / "experiments"
KEPT = [
    (paper, folder.name)
    for paper in small_scale.STUDIES
    for folder in sorted((EXPERIMENTS / paper / "small").glob("*/"))
]

# Paper -> its script, and the folders that it reads
ACCOUNTS = {
    "lingle2024": (
        lingle2024_tables,
        [EXPERIMENTS / paper / "small" / name for paper, name in KEPT if "lingle" in paper],
    ),
    "kalra2026": (kalra2026_account, [EXPERIMENTS / "kalra2026" / "small"]),
}


def test_required_studies_are_there():
    assert {name for paper, name in KEPT if paper == "lingle2024"} >= {
        "baseline", "sp", "sp_simple", "biases", "gains_vector", "gains_scalar", "qkscale", "uinit",
        "qinit",
        "emb_norm", "cosine", "wd_coupled", "lion", "sqrelu", "swiglu", "mqa", "bsz_large",
        "bsz_small",
    }  # fmt: skip
    assert {name for paper, name in KEPT if paper == "kalra2026"} >= {
        "factorial", "embedding_rate", "frozen_embedding", "fixed_tokens", "fixed_tokens_timescale",
        "warmup",
        "first_layer",
    }  # fmt: skip


@pytest.mark.parametrize(("paper", "name"), KEPT)
def test_rows_are_of_the_shipped_configs(paper, name):
    """Every point that a study asks for has its row, of one text and one version of the code; none
    repeats."""
    rows = small_scale.kept_rows(paper, name)
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    points = make_points(small_scale.MODULES[paper].get_config(f"{name},scale=small").to_dict())
    assert {point.id for point in points} <= set(ids)
    assert {row["table_hash"] for row in rows} == {point.run.table_hash for point in points}
    assert len({row["data_fingerprint"] for row in rows}) == 1
    assert len({row["code_version"] for row in rows}) == 1
    assert not any("dirty" in row["code_version"] for row in rows)
    for row in rows:
        assert (row["final_loss"] is None) == (row["status"] != "ok")


@pytest.mark.parametrize("paper", ACCOUNTS)
def test_tables_and_figures_follow_from_the_rows(paper, tmp_path, monkeypatch, capsys):
    script, folders = ACCOUNTS[paper]
    committed = EXPERIMENTS / paper / "figures"
    monkeypatch.setattr(sys, "argv", ["", *map(str, folders), f"--out={tmp_path}"])
    script.main()
    text = capsys.readouterr().out
    (name,) = [file.name for file in committed.glob("*.txt")]
    assert (committed / name).read_text() == text
    figures = sorted(file.name for file in committed.glob("*.png"))
    assert figures == sorted(file.name for file in tmp_path.glob("*.png"))
    for figure in figures:  # fonts and lines differ a little between versions of matplotlib
        assert compare_images(committed / figure, tmp_path / figure, tol=8) is None


def test_a_committed_point_again(tmp_path, as_in_use):
    """A narrow point of the baseline, trained by the command line on this machine, has the
    committed loss.

    With all of XLA's optimizations, as it was trained: rounding of other kernels would show.
    """
    row = next(
        row
        for row in small_scale.kept_rows("lingle2024", "baseline")
        if (row["width"], row["learning_rate"], row["seed"]) == (32, 2**-6, 1)
    )
    done = run_mujax(
        "sweep", f"--config={small_scale.which('lingle2024', 'baseline')}", f"--workdir={tmp_path}",
        "--config.seed=1",
        "--config.sweep.model.d_model=(32,)", f"--config.sweep.optim.learning_rate=({2**-6},)",
        "--config.refine.log2_step=0.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "results.jsonl").read_text())
    if again["data_fingerprint"] != row["data_fingerprint"]:
        pytest.skip(f"the text is that of another Python: fingerprint {again['data_fingerprint']}")
    assert again["id"] == row["id"]
    assert again["final_loss"] == pytest.approx(row["final_loss"], abs=small_scale.TOLERANCE)


def test_a_study_borrows_what_another_has_trained(tmp_path, monkeypatch):
    """Its rows then carry its own overrides, and nothing of the others' points."""
    monkeypatch.setattr(small_scale, "ROOT", tmp_path)
    runs = tmp_path / "runs" / "small" / "lingle2024"
    row = {field: 0 for field in small_scale.KEPT} | {
        "status": "ok",
        "seconds": 1.0,
        "device": "cpu",
    }
    (runs / "sp").mkdir(parents=True)
    (runs / "sp" / "results.jsonl").write_text(
        "".join(json.dumps({**row, "id": i, "overrides": {}}) + "\n" for i in "ab")
    )
    monkeypatch.setattr(
        small_scale.subprocess,
        "run",
        lambda command, **kwargs: type("Done", (), {"returncode": 0})(),
    )
    small_scale.run("lingle2024", "baseline")
    assert (runs / "baseline" / "results.jsonl").read_text() == (
        runs / "sp" / "results.jsonl"
    ).read_text()
    small_scale.run_sweep("lingle2024", "biases", "biases")  # of two that have the same
    assert (runs / "biases" / "results.jsonl").read_text() == (
        runs / "sp" / "results.jsonl"
    ).read_text()
    points = {"b": {"overrides": {"seed": 7}}}
    (runs / "baseline" / "manifest.json").write_text(
        json.dumps({"config": {}, "refinement": [], "points": points})
    )
    small_scale.keep("lingle2024", "baseline")
    (kept,) = small_scale.kept_rows("lingle2024", "baseline")
    assert (kept["id"], kept["overrides"]) == ("b", {"seed": 7})


@pytest.mark.parametrize("paper", ACCOUNTS)
def test_the_account_states_the_tables_of_its_rows(paper):
    """Word for word: every table of the README is among what the rows give."""
    (file,) = (EXPERIMENTS / paper / "figures").glob("*.txt")
    blocks = re.findall(
        r"```\n(.*?)\n```", (EXPERIMENTS / paper / "README.md").read_text(), re.DOTALL
    )
    tables = [block for block in blocks if not block.startswith("python")]
    assert tables and all(f"{table}\n" in file.read_text() for table in tables)
