"""The report: in a browser, from hostile and odd rows, from several sweeps, and from the published
tables of others."""

import base64
import csv
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_mujax
from laws import GRIDS, WIDTHS, draws
from scipy import stats

from mujax.errors import UserError
from mujax.main import run
from mujax.report import figures
from mujax.report.report import report
from mujax.report.summary import compare, make_studies, measure
from mujax.report.tables import parse_columns, read_table
from mujax.transfer.phase import PhasePoint, main_effects, switches

QUICKSTART = ROOT / "experiments/quickstart"
LINGLE, KALRA = (
    str(ROOT / f"experiments/{name}/published.csv") for name in ("lingle2024", "kalra2026")
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HOSTILE = "</script><script>document.title='broken'</script><b>%{x}"


def row(name, width, x, loss, seed=0, **changes):
    decay = changes.pop("weight_decay", 0.0)
    own = {"model.d_model": width, "optim.learning_rate": 2.0**x, "optim.weight_decay": decay}
    return {
        "id": f"{name}-{width}-{x}-{seed}-{decay}".replace("/", "|"),
        "status": "diverged" if loss is None else "ok",
        "diverged_at_step": 7 if loss is None else None, "parameterization": name, "width": width,
        "learning_rate": 2.0**x, "weight_decay": decay, "seed": seed, "final_loss": loss,
        "tokens": 1000,
        "data_fingerprint": "abc", "overrides": own, **changes,
    }  # fmt: skip


def laws(name, seed=0, widths=WIDTHS[5], grid=GRIDS[9], noise=0.003, shift=0.0, **more):
    """Rows of one study drawn from the laws of tests/laws.py."""
    (losses,) = draws(1, widths, grid, noise, seed, seeds=1)
    return [
        row(name, n, x, y + shift, **more)
        for n, curve in zip(widths, losses, strict=True)
        for x, (y,) in zip(grid, curve, strict=True)
    ]


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """The page alone: matplotlib takes most of the time."""
    monkeypatch.setattr(figures, "save_figures", lambda *args: [])


def browse(page, folder, probe="", *flags, size="1280,900"):
    """(what the expression `probe` gives in the opened page, console messages); nothing may be
    fetched."""
    copy = folder / "probed.html"
    script = f"""<script>(() => {{ let said; try {{ said = (() => {{ {probe} }})(); }} catch (e) {{ said = String(e); }}
    const pre = document.createElement('pre'); pre.id = 'probe'; pre.textContent = btoa(unescape(encodeURIComponent(
    JSON.stringify(said ?? null)))); document.body.append(pre); }})()</script></body>"""
    copy.write_text(page.read_text().replace("</body>\n</html>", script + "\n</html>"))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    command += [
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size}",
    ]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", *flags, "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">([^<]*)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(base64.b64decode(found[1])), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


PROBE = """
mujaxReport.drawAll();
const tick = (name, value) => document.querySelector(`input[name="${name}"][value="${value}"]`).click();
const traces = () => document.getElementById("curves").data.length;
const hover = (id, point) => { Plotly.Fx.hover(id, [point]);
  return [...document.querySelectorAll(`#${id} .hovertext`)].map((n) => n.textContent).join("|"); };
const found = { traces: [traces()], hover: hover("curves", { curveNumber: 0, pointNumber: 1 }) };
found.law = hover("law-optimum", { curveNumber: 1, pointNumber: 0 });
found.phase = hover("phase-0", { curveNumber: 0, pointNumber: 0 });
found.training = hover("training", { curveNumber: 0, pointNumber: 1 });
document.getElementById("curves").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
found.said = document.getElementById("said").textContent;
tick("parameterization", "sp"); mujaxReport.drawAll(); found.traces.push(traces());
found.cards = [...document.querySelectorAll(".verdicts > li")].filter((n) => !n.hidden).length;
tick("weight decay", "0.1"); mujaxReport.drawAll(); found.traces.push(traces());
found.points = document.getElementById("phase-0").data.length;
tick("parameterization", "sp"); tick("weight decay", "0.1"); mujaxReport.drawAll(); found.traces.push(traces());
document.querySelector("#points").open = true; document.querySelector("#points").dispatchEvent(new Event("toggle"));
found.rows = document.querySelectorAll("#points tr").length;
found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.ink = getComputedStyle(document.body).color;
found.usable = +document.documentElement.dataset.usableMs;
return found;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_page_of_a_real_sweep_in_a_browser(tmp_path):
    """Trains 2 x 3 x 4 x 2 tiny runs and opens their report on a small, in the dark and on a
    phone."""
    (tmp_path / "config.py").write_text(
        "from configs import base\n"
        "def get_config():\n"
        "    c = base.get_config('mlp')\n"
        "    c.train.steps, c.schedule.warmup_steps, c.train.eval_batches, c.train.log_interval = "
        "12, 2, 1, 2\n"
        "    c.train.batch_size, c.parameterization.base_width = 8, 16\n"
        "    c.sweep.model = {'d_model': (16, 32, 64)}\n"
        "    c.sweep.parameterization = {'name': ('sp', 'mup')}\n"
        "    c.sweep.optim = {'learning_rate': (0.004, 0.016, 0.06, 0.25), 'weight_decay': (0.0, "
        "0.1)}\n"
        "    return c\n"
    )
    done = run_mujax("sweep", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 0, done.stderr
    done = run_mujax("report", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "w/report.html"
    probe = PROBE.replace('found.phase = hover("phase-0", { curveNumber: 0, pointNumber: 0 });', "")
    probe = probe.replace('found.points = document.getElementById("phase-0").data.length;', "")
    for size, flags in (
        ("1280,900", ()),
        ("1280,900", ("--blink-settings=preferredColorScheme=0",)),
        ("500,844", ()),
    ):
        found, console = browse(page, tmp_path, probe, *flags, size=size)
        assert console == []  # no error, and nothing that the content security policy had to stop
        assert found["traces"] == [12, 6, 3, 12], found
        assert found["cards"] == 2
        assert "loss" in found["hover"] or "diverged" in found["hover"]
        assert "step" in found["training"] and "width 16" in found["said"]
        assert found["rows"] == 1 + 48
        assert found["wide"] <= 0  # nothing scrolls sideways but tables in their boxes
        assert (found["ink"] == "rgb(230, 232, 234)") == bool(flags)
    text = page.read_text()
    assert re.search(
        r"<summary>mup, width 64 \(base width 16\).*<td>unembed</td><td>output</td>", text, re.S
    )
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"']?(?!data:)", text)
    assert "default-src 'none'" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_page_with_laws_and_hostile_names_in_a_browser(tmp_path, no_figures):
    rows = [*laws("sp"), *laws("sp", 1, weight_decay=0.1), *laws("mup", 2, weight_decay=0.1)]
    rows += laws(HOSTILE, 3)
    write(tmp_path / "w", rows)
    for r in rows[:20]:
        (tmp_path / "w/points" / r["id"]).mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss": 3 - step / 10}) + "\n" for step in range(1, 9)]
        (tmp_path / "w/points" / r["id"] / "metrics.jsonl").write_text("".join(lines))
    text = report(tmp_path / "w")
    assert "sp, weight_decay=0.0: " in text and HOSTILE in text
    page = tmp_path / "w/report.html"
    assert "<script>document.title" not in page.read_text()
    data = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S
    )
    assert data and "<" not in data[1]
    assert json.loads(data[1])["studies"][-1]["facets"]["parameterization"] == HOSTILE
    probe = PROBE.replace("return found;", "found.title = document.title; return found;")
    found, console = browse(page, tmp_path, probe)
    assert console == []
    assert found["title"] == "mujax transfer report"
    # 4 studies of 5 widths; without sp 2; of these 1 without decay
    assert found["traces"] == [20, 10, 5, 20]
    assert found["points"] == 1
    assert re.search(r"width 128.*LR 0.0\d+ = 2\^.*best point|loss \d\.\d{4}", found["hover"])
    assert re.search(r"68%: .* to .*law: beta = ", found["law"])
    assert all(part in found["phase"] for part in ("κ", "R(∞)", "weight decay: 0"))
    assert re.search(r"E \(nats²\) [\d.e-]+ \(68%: ", found["phase"])
    names = "return document.getElementById('curves').layout.annotations.map((a) => a.text)"
    found, _ = browse(page, tmp_path, names)
    assert any("&lt;/script&gt;" in name for name in found)


def many(number, decays):
    """Rows of `number` runs: 16 tables x `decays` x 5 widths x 8 learning rates, then more
    seeds."""
    for i in range(number):
        rest, x = divmod(i, 8)
        rest, w = divmod(rest, 5)
        rest, name = divmod(rest, 16)
        seed, decay = divmod(rest, decays)
        loss = 2 + 2.0**-w + 0.05 * (x - 4 + 0.1 * name) ** 2 + 0.01 * math.sin(i)
        yield row(
            f"t{name}", 64 << w, x - 9, None if x == 7 else loss, seed, weight_decay=decay / 100
        )


def test_five_thousand_rows_fit_and_open(tmp_path, no_figures):
    rows = list(many(5000, 2))
    write(tmp_path, rows)
    lines = "".join(
        json.dumps({"step": step, "loss": 3 + math.sin(step)}) + "\n" for step in range(0, 1000, 10)
    )
    for r in rows:
        (tmp_path / "points" / r["id"]).mkdir(parents=True)
        (tmp_path / "points" / r["id"] / "metrics.jsonl").write_text(lines)
    report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 7e6
    if CHROMIUM:  # how fast it opens is no business of a test; that it does is
        usable, console = browse(
            tmp_path / "report.html", tmp_path, "return +document.documentElement.dataset.usableMs"
        )
        assert console == []
        assert 0 < usable < 20_000


@pytest.mark.slow
def test_a_hundred_thousand_rows(tmp_path):
    report(write(tmp_path, many(100_000, 8)))
    assert (tmp_path / "report.html").stat().st_size < 16e6


ODD = {
    "one row": ([row("sp", 64, -4, 2.0)], "at the edge of the grid"),
    "one width": (laws("mup", widths=[128]), "fewer than two widths"),
    "all diverged": (
        [row("sp", n, x, None) for n in (32, 64) for x in (-5, -4)],
        "every point diverged",
    ),
    "duplicated": ([*laws("mup"), *laws("mup")], "Warning: 45 rows repeat the id of another"),
    "mixed": (
        [
            *laws("mup"),
            *(r | {"data_fingerprint": "other", "id": r["id"] + "b"} for r in laws("sp")),
        ],
        "Warning: studies differ in text, tokens or steps",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_give_a_page_that_says_so(tmp_path, name):
    rows, said = ODD[name]
    assert said in report(write(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    assert said.removeprefix("Warning: ") in page
    assert json.loads((tmp_path / "transfer.json").read_text())["studies"]
    if CHROMIUM:
        assert browse(tmp_path / "report.html", tmp_path)[1] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"final_loss": math.nan}, "line 3 is not JSON: NaN is no number of JSON"),
        ({"final_loss": "2.5"}, "row 3, field 'final_loss' is '2.5'"),
        ({"learning_rate": "fast"}, "row 3, field 'learning_rate' is 'fast'"),
        ({"weight_decay": math.inf}, "line 3 is not JSON: Infinity is no number of JSON"),
        ({"width": 64.5}, "row 3, field 'width' is 64.5"),
    ],
)
def test_what_is_no_number_is_one_line_and_exit_code_2(tmp_path, change, said, capsys):
    rows = [row("sp", 64, x, 2.0) for x in range(-6, -2)]
    rows[2] |= change
    write(tmp_path, rows)
    assert run(["report", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_laws_phase_points_and_everything_in_transfer_json(tmp_path):
    """Known exponents come back: tests/laws.py draws with alpha 0.4, beta 0.6, gamma 0.05."""
    text = report(
        write(tmp_path, [*laws("sp", noise=0.0005), *laws("mup", 1, noise=0.0005, shift=0.1)])
    )
    assert re.search(r"^Does it transfer\?\nsp: \w+\n  ", text, re.M)
    told = json.loads((tmp_path / "transfer.json").read_text())
    study = told["studies"]["mup"]
    for kind, truth in (("loss", 0.4), ("optimum", 0.6), ("curvature", 0.05)):
        assert study["laws"][kind]["exponent"]["value"] == pytest.approx(truth, abs=0.1), kind
    assert study["kappa"]["value"] == pytest.approx(0.4 - 1.2 + 0.05, abs=0.2)
    assert study["r_inf"]["value"] == pytest.approx(0.1, abs=0.05)
    assert study["phase"]["e"]["value"] == pytest.approx(0.0005**2, rel=0.5)
    assert [p["name"] for p in told["phase"]] == ["sp", "mup"]
    assert {
        "verdict",
        "argmin",
        "penalties",
        "stable",
        "fast",
        "joint",
        "loss_gap",
        "regret",
    } <= set(study)
    for name in ("transfer", "optimum", "loss", "curvature", "phase"):
        assert all(
            (tmp_path / f"figures/{name}.{suffix}").stat().st_size > 5000
            for suffix in ("png", "pdf")
        )


def test_loss_gap_to_tuned_sp_on_the_same_budget():
    """muP with the narrow optimum at 2^-5 costs 2.1 at width 64; SP tuned there costs 2.0."""
    bowl = lambda name, n, best, low, **more: [  # noqa: E731
        row(name, n, x, low + 0.05 * (x - best) ** 2, **more) for x in range(-8, -2)
    ]
    mup = bowl("mup", 32, -5, 2.2) + bowl("mup", 64, -5, 2.1)
    sp = bowl("sp", 32, -5, 2.2) + bowl("sp", 64, -6, 2.0)
    gaps = lambda rows: {  # noqa: E731
        m.study.facets["parameterization"]: m.loss_gap
        for m in compare([measure(study) for study in make_studies({"a": rows})])[0]
    }
    found = gaps(mup + sp)
    assert found["mup"] == {64: pytest.approx(0.1, abs=1e-6)}
    assert found["sp"] == {64: pytest.approx(0.05, abs=1e-6)}  # a grid step off
    assert gaps(mup + [r | {"tokens": 2000} for r in sp])["mup"] == {}
    assert gaps(mup + [r | {"data_fingerprint": "other"} for r in sp])["mup"] == {}


def test_sources_are_compared_side_by_side(tmp_path, no_figures):
    write(tmp_path / "a", laws("mup"))
    write(tmp_path / "b", laws("mup", 1))
    text = report(tmp_path / "out", [str(tmp_path / "?")])
    assert re.search(r"^a: mup +128 ", text, re.M) and re.search(r"^b: mup +128 ", text, re.M)
    told = json.loads((tmp_path / "out/transfer.json").read_text())["studies"]
    assert [study["facets"]["source"] for study in told.values()] == ["a", "b"]
    with pytest.raises(UserError, match="--sources: no folder"):
        report(tmp_path / "out", [str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="has no results.jsonl"):
        (tmp_path / "empty").mkdir()
        report(tmp_path / "out", [str(tmp_path / "empty")])


def test_published_losses_of_lingle_2024(tmp_path):
    done = run_mujax(
        "report", f"--workdir={tmp_path}", f"--input={LINGLE}", "--noise=0.02",
        "--columns=study=group,log2_learning_rate=log2_lr",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^sp +2048 +0.0009766 +-10 +- +2.7380 +5 +0 +at the edge of the grid", done.stdout, re.M
    )
    told = json.loads((tmp_path / "transfer.json").read_text())["studies"]
    assert {name: s["argmin"]["word"] for name,
    s in told.items() if s["argmin"]["word"] == "Yes"} == {
        "baseline": "Yes", "biases": "Yes", "combined_large_scale": "Yes",
    }  # fmt: skip
    assert (tmp_path / "report.html").exists()


def test_published_metrics_of_kalra_2026(tmp_path, no_figures):
    """Their main effects are geometric means over pairs."""
    text = report(tmp_path, input=KALRA, columns="parameterization=display,R_inf=R_inf_unscaled")
    assert "124 points of the phase diagrams" in text
    points = read_table(
        KALRA, parse_columns("parameterization=display,R_inf=R_inf_unscaled")
    ).points
    effects = {
        e.switch: (float(f"{e.factor:.2g}"), e.better, e.pairs) for e in main_effects(points)
    }
    assert effects == {
        "embd": (0.14, 58, 60), "ln": (3.9, 14, 60), "attn": (0.46, 45, 60), "last": (0.79, 35, 60),
    }  # fmt: skip
    # The interval is of a mean of logarithms: by scipy's, from the file's own numbers
    rows = list(csv.DictReader(Path(KALRA).read_text().splitlines()))
    e = {(r["display"].replace("μ", "mu"), r["weight_decay"]): float(r["E"]) for r in rows}
    without = {
        "SP+Embd": "SP",
        "SP+Embd+Last": "SP+Last",
        "SP+Attn+Embd": "SP+Attn",
        "muP-LN": "SP+Attn+Last",
    }
    without |= {
        "SP+Embd+LN": "SP+LN",
        "muP-Attn": "SP+LN+Last",
        "muP-Last": "SP+Attn+LN",
        "muP": "muP-Embd",
    }
    by_setting = [
        [math.log(e[on, d] / e[off, d]) for o, d in e if o == on and (off, d) in e]
        for on, off in without.items()
    ]
    embd = next(effect for effect in main_effects(points) if effect.switch == "embd")
    assert sum(map(len, by_setting)) == embd.pairs
    ratios = [np.mean(own) for own in by_setting]  # decays of one setting are no independent draws
    expected = stats.t.interval(
        stats.norm.cdf(1) - stats.norm.cdf(-1), len(ratios) - 1, np.mean(ratios), stats.sem(ratios)
    )
    assert np.log(embd.interval) == pytest.approx(expected, rel=1e-6)
    assert "embd: E x0.144 (" in text
    told = json.loads((tmp_path / "transfer.json").read_text())
    assert len(told["phase"]) == 124 and told["main_effects_on_E"][1]["factor"] == pytest.approx(
        0.144, abs=5e-4
    )
    if CHROMIUM:
        probe = (
            "mujaxReport.drawAll(); return [0, 1, 2].map((k) => document.getElementById('phase-' "
            "+ k).data.length)"
        )
        assert browse(tmp_path / "report.html", tmp_path, probe) == ([16, 16, 16], [])


def test_a_published_sweep_with_seeds(tmp_path, no_figures):
    """Its best points by a plain mean over three seeds; curves whose shape cannot be told decide
    nothing (SP)."""
    source = ROOT / "experiments/nanogpt_mup/published.csv"
    means: dict[tuple[str, int], dict[float, float]] = {}
    for r in csv.DictReader(source.read_text().splitlines()):
        cell = means.setdefault((r["parameterization"], int(r["width"])), {})
        cell[float(r["log2_lr"])] = cell.get(float(r["log2_lr"]), 0.0) + float(r["val_loss"]) / 3
    report(tmp_path, input=str(source), columns="loss=val_loss,log2_learning_rate=log2_lr")
    told = json.loads((tmp_path / "transfer.json").read_text())["studies"]
    found = {(name, o["width"]): o["log2_lr"] for name, s in told.items() for o in s["optima"]}
    assert found == {key: min(cell, key=cell.__getitem__) for key, cell in means.items()}
    assert [found[name, n] for name in ("sp", "mup") for n in (128, 8192)] == [-10, -13, -10, -9]
    assert {name: s["verdict"]["word"] for name, s in told.items()} == {
        "mup": "transfers",
        "sp": "undecided",
    }


def test_phase_figure_of_published_points(tmp_path):
    points = [
        PhasePoint.plain(f"SP, {i}", {"parameterization": "SP"}, 10.0**-i, i - 1.0, -i)
        for i in range(3)
    ]
    paths = figures.save_figures([], points, tmp_path)
    assert [path.name for path in paths] == ["phase.png", "phase.pdf"]


def test_names_of_switches():
    known = ("attn", "embd", "ln")
    assert (
        switches("SP+Embd+LN", known)
        == switches("muP-Attn", known)
        == switches("μP-Attn", known)
        == {"embd", "ln"}
    )
    assert switches("factorial+sqrt_embd", known) == {"sqrt_embd"}
    assert switches("mup_table8") is None


# What an object of JavaScript has before it is given anything
OWN_NAMES = ("constructor", "__proto__", "toString", "hasOwnProperty")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_fields_and_studies_called_like_the_parts_of_an_object(tmp_path, no_figures):
    """Filters and figures are there, and filter."""
    rows = []
    for name in ("valueOf", "__proto__"):
        for value in ("constructor", "b"):
            for r in laws(name, len(rows)):
                own = {**r["overrides"], **{f"model.{field}": value for field in OWN_NAMES}}
                rows.append({**r, "id": f"{r['id']}-{value}", "overrides": own})
    write(tmp_path / "w", rows)
    report(tmp_path / "w")
    probe = """
    mujaxReport.drawAll();
    const count = () => document.getElementById("curves").data.length;
    const names = [...document.querySelectorAll("legend")].map((n) => n.textContent), before = count();
    document.querySelector('input[name="constructor"][value="constructor"]').click(); mujaxReport.drawAll();
    return { names, before, after: count(), laws: document.getElementById("law-optimum").data.length };"""
    found, console = browse(tmp_path / "w/report.html", tmp_path, probe)
    assert console == []
    assert {*found["names"]} >= {"parameterization", "constructor", "toString", "hasOwnProperty"}, (
        found
    )
    assert any("proto" in name for name in found["names"]), found
    assert (found["before"], found["after"]) == (20, 10), found


def test_legends_name_every_study_as_it_is_written():
    """Matplotlib leaves a label out that begins with an underscore, and reads dollars as
    formulas."""
    names = ["_hidden", "$5 and $6", "__", "a_b^c", "plain"]
    seen = []
    rows = [r for i, name in enumerate(names) for r in laws(name, i, (32, 64), range(-8, -3))]
    measured = [measure(study) for study in make_studies({"": rows})]
    for draw in (
        lambda: figures._draw_law(measured, "optimum", "x"),
        lambda: figures._draw_phase(
            [PhasePoint.plain(name, {"parameterization": name}, 0.1, 0.2, 0.3) for name in names]
        ),
    ):
        figure = draw()
        figure.canvas.draw()
        legend = figure.axes[-1].get_legend()
        seen.append([text.get_text().replace(r"\$", "$") for text in legend.get_texts()])
        assert all(text.get_window_extent().width > 5 for text in legend.get_texts())
    assert seen == [names, names]


@pytest.mark.parametrize(
    ("column", "cell"),
    [("loss", "1e308"), ("loss", "-1e39"), ("width", "1" * 300), ("width", "1" * 5000)],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_numbers_of_a_table_beyond_what_is_fitted(tmp_path, column, cell, suffix, capsys):
    cells = [{"width": "32", "learning_rate": str(2.0**-k), "loss": "2.5"} for k in range(5)]
    cells[3][column] = cell
    file = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        file.write_text(
            "\n".join([",".join(cells[0]), *(",".join(row.values()) for row in cells)]) + "\n"
        )
    else:
        numbers = [", ".join(f'"{name}": {value}' for name, value in row.items()) for row in cells]
        file.write_text("".join(f"{{{row}}}\n" for row in numbers))
    assert run(["report", f"--input={file}", f"--workdir={tmp_path / 'w'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "line" in said and len(said) < 400, said
