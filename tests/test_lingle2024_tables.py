"""The tables of Lingle 2024: the published verdicts from the published losses, and ours beside
them, gaps and all."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from configs.lingle2024.ablations import get_config
from experiments.lingle2024 import tables

# 2404.05728: best loss @ log2 learning rate at widths 128, 512, 2048 (and 8192)
PAPER = {
    "baseline": [(3.695, -6), (2.953, -6), (2.511, -6)],
    "biases": [(3.705, -6), (2.947, -6), (2.529, -6)],
    "gains_vector": [(3.670, -4), (2.950, -4), (2.553, -8)],
    "gains_scalar": [(3.670, -4), (2.959, -4), (2.525, -6)],
    "lion": [(3.708, -10), (2.947, -8), (2.511, -8)],
    "wd_coupled": [(3.679, -8), (2.957, -6), (2.502, -6)],
    "sp": [(3.706, -6), (2.967, -8), (2.738, -10)],
    "combined": [(3.766, -6), (2.983, -6), (2.459, -6), (2.167, -6)],
}


def test_published_optima_and_verdicts():
    studies = tables.published()
    assert studies.keys() == PAPER.keys()
    for name, expected in PAPER.items():
        study = studies[name]
        assert [
            (study.cells[width][x][0], x)
            for width, (_, x) in zip(study.widths, expected, strict=True)
        ] == expected
        verdict = study.argmin()
        assert list(verdict.best) == [x for _, x in expected]
        assert verdict.word == tables.published_verdicts()[name]


def test_a_diverged_cell_is_no_loss():
    assert [tables.published()["lion"].cells[width][-2.0] for width in (128, 512, 2048)] == [
        (None,),
        (10.285,),
        (None,),
    ]


@pytest.fixture
def sweep(tmp_path):
    """Makes the workdir of a sweep whose losses are a parabola: its minimum is at 2^-6, and moves
    by `drift` a doubling of width."""

    def write(
        name, leave_out=(), diverged=(), drift=0.0, seeds=1, rates=(-10, -8, -6, -4, -2), **changes
    ):
        config = get_config(f"{name},scale=small").to_dict()
        config["train"] |= changes
        root = tmp_path / name
        root.mkdir()
        (root / "manifest.json").write_text(json.dumps({"config": config}))
        rows, rng = [], np.random.default_rng(0)
        for width in config["sweep"]["model"]["d_model"]:
            for x, seed in itertools.product(rates, range(seeds)):
                if (width, x) in leave_out:
                    continue
                is_ok, best = (width, x) not in diverged, -6 + drift * math.log2(width / 32)
                loss = (
                    2 + 8 / width + (x - best) ** 2 / 20 + (seeds > 1) * rng.normal(0, 0.002)
                    if is_ok
                    else None
                )
                row = {
                    "id": f"{width}@{x}, {seed}",
                    "width": width,
                    "learning_rate": 2.0**x,
                    "seed": seed,
                }
                row |= {"overrides": {}}
                row |= {
                    "status": "ok" if is_ok else "diverged",
                    "diverged_at_step": None if is_ok else 7,
                }
                rows.append(
                    {
                        **row,
                        "parameterization": name,
                        "final_loss": loss and loss + 1,
                        "best_loss": loss,
                    }
                )
        (root / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return root

    return write


def printed(*arguments):
    """(stdout, stderr, exit code)"""
    command = [sys.executable, ROOT / "experiments" / "lingle2024" / "tables.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr, done.returncode


def test_ours_stand_beside_the_published_ones(sweep, tmp_path):
    """Two ablations that agree with the paper, and one that does not: their optima were made so."""
    folders = [
        sweep("biases", seeds=3, rates=range(-10, -1)), sweep("sp", drift=-1.0, seeds=3,
        rates=range(-11, -2)),
        sweep("cosine", drift=-0.5, seeds=2, rates=range(-11, -2)),
    ]  # fmt: skip
    out, _, code = printed(*folders, f"--out={tmp_path / 'out'}")
    assert code == 0
    assert (tmp_path / "out" / "tables.txt").read_text() == out
    for figure in ("drift.png", "losses.png"):
        assert (tmp_path / "out" / figure).stat().st_size > 10_000
    lines = [line.split() for line in out.splitlines()]
    found = {line[0]: line for line in reversed(lines) if line and line[0] in tables.ABLATIONS}
    assert found["biases"][1:5] == ["Yes", "-6", "-6", "-6"]
    drifts = {}
    for name, word, rest in (
        ("biases", "transfers", "yes Yes 3 3 3 3"),
        ("sp", "drifts", "yes No? 3 3 3 3"),
    ):
        line = next(
            line for line in out.splitlines() if line.startswith(f"{name} ") and word in line
        )
        assert " ".join(line.split()).endswith(rest)
        drifts[name] = float(line.split(word)[1].split("(")[0].split()[-1])
    assert abs(drifts["biases"]) < 0.02 and abs(drifts["sp"] + 1) < 0.02
    cosine = next(line for line in out.splitlines() if line.startswith("cosine "))
    assert "drifts" in cosine and cosine.split()[-6:] == "no No? 2 2 2 2".split()
    cost, end = map(float, re.search(r"(\S+) \((\S+)\) +no", cosine).groups())
    # of three doublings
    assert cost == pytest.approx(1.5**2 / 20, rel=0.05) and cost <= end < 2 * cost
    assert "lion No -10 -8 -8".split() == found["lion"][:5] and found["lion"][-2:] == ["not", "run"]
    assert "\nbiases (profile paper, scale small)\n" in out
    ours = next(line for line in lines if line[:2] == ["64", "ours"])
    assert [round(float(loss), 2) for loss in ours[2:11:2]] == pytest.approx(
        [2.92, 2.32, 2.12, 2.32, 2.92], abs=0.011
    )
    assert "512 published 3.108 2.986 2.947 2.970 3.557 2^-6".split() in [
        line[:8] for line in lines
    ]


def test_gaps_are_marked_and_decide_nothing(sweep):
    root = sweep(
        "baseline",
        leave_out=[(w, -8) for w in (32, 64, 128, 256)],
        diverged=[(128, -2), (128, -4)],
        steps=20,
    )
    study = tables.load_study(str(root))
    assert study.notes == ("profile paper, scale small", "train.steps: 256 -> 20")
    assert study.argmin().word == "undecided"  # though every width lacks the same cell of the grid
    assert study.verdict().word == "undecided"
    text = tables.study_table([study])
    lines = [line.split() for line in text.splitlines()]
    assert lines[2][:8] == ["32", "ours", "3.050", ".", "2.250", "2.450", "3.050", "2^-6"]
    assert lines[4][:8] == ["128", "ours", "2.862", ".", "2.062", "div", "div", "2^-6"]
    flags = next(line for line in text.splitlines() if line.startswith("* ours, width 128: "))
    assert flags.endswith("a neighbour of the best point diverged")


def test_learning_rates_of_a_refinement_are_no_part_of_the_papers_rule(sweep):
    """A width has more of them than another; Yes by the grid that all share, though the best of all
    move."""
    root = sweep(
        "qinit",
        leave_out=[(w, x) for w in (32, 64) for x in (-7,)],
        drift=-0.2,
        rates=(-8, -7, -6, -4),
    )
    study = tables.load_study(str(root))
    assert study.argmin().word == "Yes"
    assert study.best() == [-6, -6, -6, -7]


def test_a_width_that_nobody_ran_is_a_row_of_gaps(sweep):
    root = sweep("sp", leave_out=[(128, x) for x in range(-10, 0, 2)])
    study = tables.load_study(f"sp={root}")
    assert study.verdict().word == "undecided" and study.argmin().best == (-6, -6, None, -6)
    assert tables.study_table([study]).splitlines()[4].split() == ["128", "ours", *"...", "-", "-"]


def test_what_it_cannot_read_is_told_in_one_line(sweep, tmp_path, capsys):
    root = sweep("baseline")
    shutil.copytree(root, tmp_path / "mine")
    (root / "manifest.json").unlink()
    for argument, message in {
        str(tmp_path / "mine"): "no ablation 'mine'; name the folder as one, or write NAME=FOLDER",
        str(root): "no manifest.json",
        f"sp={tmp_path / 'nowhere'}": "no such folder",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            tables.main([argument])
        out, err = capsys.readouterr()
        assert not out and message in err and err.count("\n") == 1
