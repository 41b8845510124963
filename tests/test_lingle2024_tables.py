"""The tables of Lingle 2024: the published verdicts from the published losses, and ours beside them, gaps and all."""

import json
import math
import shutil
import subprocess
import sys

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
        assert [(study.cells[width][x][0], x) for width, (_, x) in zip(study.widths, expected, strict=True)] == expected
        verdict = study.verdict()
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
    """Makes the workdir of a sweep whose losses are a parabola with its minimum at 2^-6 at every width."""

    def write(name, leave_out=(), diverged=(), **changes):
        config = get_config(f"{name},scale=desk").to_dict()
        config["train"] |= changes
        root = tmp_path / name
        root.mkdir()
        (root / "manifest.json").write_text(json.dumps({"config": config}))
        rows = []
        for width in config["sweep"]["model"]["d_model"]:
            for rate in config["sweep"]["optim"]["learning_rate"]:
                x = math.log2(rate)
                if (width, x) in leave_out:
                    continue
                is_ok = (width, x) not in diverged
                loss = 2 + 8 / width + (x + 6) ** 2 / 20 if is_ok else None
                row = {"id": f"{width}@{x}", "width": width, "learning_rate": rate, "seed": 0, "overrides": {}}
                row |= {"status": "ok" if is_ok else "diverged", "diverged_at_step": None if is_ok else 7}
                rows.append({**row, "parameterization": name, "final_loss": loss and loss + 1, "best_loss": loss})
        (root / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return root

    return write


def printed(*arguments):
    """(stdout, stderr, exit code)"""
    command = [sys.executable, ROOT / "experiments" / "lingle2024" / "tables.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr, done.returncode


def test_ours_stand_beside_the_published_ones(sweep, tmp_path):
    out, _, code = printed(sweep("biases"), f"--out={tmp_path / 'out'}")
    assert code == 0
    assert (tmp_path / "out" / "tables.txt").read_text() == out
    assert (tmp_path / "out" / "losses.png").stat().st_size > 10_000
    lines = [line.split() for line in out.splitlines()]
    assert "biases Yes 2^-6, 2^-6, 2^-6 Yes 2^-6, 2^-6, 2^-6 32, 64, 128".split() in lines
    assert "lion No 2^-10, 2^-8, 2^-8 . . not run".split() in lines
    assert "baseline_abs . . . . not run".split() in lines
    assert "\nbiases (profile paper, scale desk)\n" in out
    ours = next(line for line in lines if line[:2] == ["64", "ours"])
    assert ours[2:9] == ["2.925", "2.325", "2.125", "2.325", "2.925", "2^-6", "-6.00"]
    assert "512 published 3.108 2.986 2.947 2.970 3.557 2^-6".split() in [line[:8] for line in lines]


def test_gaps_are_marked_and_decide_nothing(sweep):
    root = sweep("baseline", leave_out=[(w, -10) for w in (32, 64, 128)], diverged=[(128, -2), (128, -4)], steps=20)
    study = tables.load_study(str(root))
    assert study.notes == ("profile paper, scale desk", "train.steps: 500 -> 20")
    assert study.verdict().word == "undecided"  # though every width lacks the same cell
    text = tables.study_table([study])
    lines = [line.split() for line in text.splitlines()]
    assert lines[2][:8] == ["32", "ours", ".", "2.450", "2.250", "2.450", "3.050", "2^-6"]
    assert lines[4][:8] == ["128", "ours", ".", "2.263", "2.062", "div", "div", "2^-6"]
    assert "* ours, width 128: a neighbour of the best point diverged; fewer than 3 points to fit" in text


def test_a_width_that_nobody_ran_is_a_row_of_gaps(sweep):
    root = sweep("sp", leave_out=[(128, x) for x in range(-10, 0, 2)])
    study = tables.load_study(f"sp={root}")
    assert study.verdict().word == "undecided" and study.verdict().best == (-6, -6, None)
    assert tables.study_table([study]).splitlines()[4].split() == ["128", "ours", *".....", "-", "-"]


def test_what_it_cannot_read_is_told_in_one_line(sweep, tmp_path):
    root = sweep("baseline")
    shutil.copytree(root, tmp_path / "mine")
    (root / "manifest.json").unlink()
    for argument, message in {
        str(tmp_path / "mine"): "no ablation 'mine'; name the folder as one, or write NAME=FOLDER",
        str(root): "no manifest.json",
        f"sp={tmp_path / 'nowhere'}": "no such folder",
    }.items():
        out, err, code = printed(argument)
        assert code == 2 and not out and message in err and err.count("\n") == 1
