"""Curves and optima from rows with known answers; the page, figures and JSON of a report."""

import json
import math
import re

import numpy as np
import pytest

from mujax.errors import UserError
from mujax.report.curves import make_curves
from mujax.report.report import report
from mujax.report.rows import load_rows
from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import drift_per_doubling


def row(name, width, x, loss, seed=0, **overrides):
    """A row with only what the report reads; loss None is a diverged run."""
    return {
        "id": f"{name}-{width}-{x}-{seed}-{overrides}".replace("/", "|"),
        "status": "ok" if loss is not None else "diverged",
        "parameterization": name, "width": width, "learning_rate": 2.0**x, "seed": seed,
        "final_loss": loss,
        "diverged_at_step": None if loss is not None else 7,
        "overrides": {"model.d_model": width, "optim.learning_rate": 2.0**x, **overrides},
    }  # fmt: skip


def find_optimum(curve):
    return fit_optima([curve.log2_lrs], [curve.seed_losses])[0]


def parabolas(vertex_of_width, name="mup", grid=range(-10, -2), **overrides):
    """Rows on exact parabolas in log2 learning rate."""
    return [
        row(name, width, x, 2 + 1 / width + 0.05 * (x - vertex) ** 2, **overrides)
        for width, vertex in vertex_of_width.items()
        for x in grid
    ]


def test_optimum_and_drift_of_exact_parabolas():
    """Vertices falling by 0.7 a doubling are found although the grid's argmin moves in whole
    steps."""
    curves = make_curves(parabolas({32: -4.2, 64: -4.9, 128: -5.6}))["mup"]
    assert [curve.width for curve in curves] == [32, 64, 128]
    optima = fit_optima(
        [curve.log2_lrs for curve in curves], [curve.seed_losses for curve in curves]
    )
    assert [optimum.log2_lr for optimum in optima] == [-4, -5, -6]
    np.testing.assert_allclose(
        [optimum.vertex for optimum in optima], [-4.2, -4.9, -5.6], atol=1e-6
    )
    assert math.isclose(drift_per_doubling([32, 64, 128], optima).value, -0.7, abs_tol=1e-6)


def test_diverged_points_are_never_numbers():
    """A point with one diverged seed has no loss, however good its other seed; the optimum is
    elsewhere."""
    rows = parabolas({32: -5.0}) + parabolas({32: -5.0}, seed=1)
    rows = [
        r | {"final_loss": None, "status": "diverged"}
        if r["learning_rate"] == 2.0**-5 and r["seed"]
        else r
        for r in rows
    ]
    (curve,) = make_curves(rows)["mup"]
    at = curve.log2_lrs.index(-5)
    assert (curve.losses[at], curve.diverged[at], curve.num_seeds[at]) == (None, 1, 2)
    optimum = find_optimum(curve)
    assert optimum.log2_lr in (-6, -4)
    assert optimum.vertex is None
    assert not optimum.on_edge
    assert find_optimum(make_curves([row("sp", 32, x, None) for x in (-3, -2)])["sp"][0]) is None


def test_optimum_at_the_edge_is_flagged():
    (curve,) = make_curves(parabolas({32: -3.4}, grid=range(-8, -4)))["mup"]
    optimum = find_optimum(curve)
    assert (optimum.log2_lr, optimum.vertex, optimum.on_edge) == (-5, None, True)


def test_drift_of_optima_at_the_edge_is_not_reported_as_transfer(tmp_path):
    """A grid that ends before every optimum shows the same best point at each width: that is not a
    drift of 0."""
    rows = parabolas({32: -2.0, 64: -2.5, 128: -3.0}, name="sp", grid=range(-8, -3))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = report(tmp_path)
    assert "sp: not measured, the optimum is at the edge of the grid at width 32, 64, 128" in text
    assert "per doubling" not in text


def test_report_warns_of_what_does_not_belong_together_and_counts_a_row_once(tmp_path):
    rows = [{**r, "data_fingerprint": "abc"} for r in parabolas({32: -5.0, 64: -5.0})]
    rows[3]["data_fingerprint"] = "def"
    (tmp_path / "results.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, *rows[:2]])
    )
    (tmp_path / "manifest.json").write_text(
        json.dumps({"config": {}, "points": {str(i): {} for i in range(20)}})
    )
    text = report(tmp_path)
    loaded, repeated = load_rows(tmp_path)
    assert (len(loaded), repeated) == (len(rows), 2)
    assert "Warning: 16 of 20 points have finished" in text
    assert "Warning: rows differ in data fingerprint: abc, def" in text
    assert "rows differ in data fingerprint" in (tmp_path / "report.html").read_text()


def test_studies_split_by_what_else_varies():
    rows = parabolas({32: -5.0}, **{"optim.weight_decay": 0.1}) + parabolas(
        {32: -6.0}, **{"optim.weight_decay": 0.0}
    )
    curves = make_curves(rows)
    assert list(curves) == ["mup, weight_decay=0.1", "mup, weight_decay=0.0"]
    assert [find_optimum(members[0]).log2_lr for members in curves.values()] == [-5, -6]


def test_report_is_one_page_with_everything(tmp_path):
    hostile = "<script>alert('x')</script>"
    rows = parabolas({32: -4.0, 64: -4.0}, name="mup") + parabolas(
        {32: -4.0, 64: -5.0}, name=hostile
    )
    rows += [row("mup", 64, -2, None)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "manifest.json").write_text('{"config": {"note": "' + hostile + '"}}')
    text = report(tmp_path)
    assert re.search(r"^mup +64 +0\.0625 +-4 +-4\.00 +2\.0156 +9 +1$", text, re.M)
    assert "mup: x1.00 per doubling of width (-0.00" in text.replace("+0.00", "-0.00")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"""<(script|link|img|iframe)[^>]*(src|href)=""", page)  # needs no network
    assert "<script>alert" not in page
    # in the drift, the table and the config
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)") >= 3
    assert "Plotly.react" in page
    assert len(page) < 8e6
    summary = json.loads((tmp_path / "transfer.json").read_text())["studies"]
    assert [o["vertex"] for o in summary["mup"]["optima"]] == pytest.approx([-4, -4])
    for name in ("transfer.png", "transfer.pdf", "optimum.png", "optimum.pdf"):
        assert (tmp_path / "figures" / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([row("mup", 32, -4, 2.0)], "at the edge of the grid"),
        ([row("sp", 32, x, None) for x in (-4, -3)], "every point diverged"),
    ],
)
def test_report_of_one_point_or_of_nothing_that_converged(tmp_path, rows, line):
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert line in report(tmp_path)
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "results.jsonl is empty"),
        ('{"id": "a"}\n', "row 1, field 'status' is missing"),
        (
            json.dumps(row("sp", 32, -4, 2.0) | {"learning_rate": 0}) + "\n",
            "row 1, field 'learning_rate' is 0",
        ),
        ("3\n", "line 1 is not a JSON object"),
        ("not json\n", "line 1 is not JSON"),
        (None, "has no results.jsonl and no result.json"),
    ],
)
def test_bad_results_are_one_clear_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(UserError, match=complaint):
        load_rows(tmp_path)
