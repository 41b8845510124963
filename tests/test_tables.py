"""Tables of other people: what is read, what is told apart, what is averaged, and what is refused
with its cause."""

import csv
import io
import json
import math

import pytest

from mujax.errors import UserError
from mujax.main import run
from mujax.report import figures
from mujax.report.report import report
from mujax.report.tables import parse_columns, read_table

WIDTHS, LOG2_RATES = (64, 128, 256, 512), range(-9, -2)


@pytest.fixture
def no_figures(monkeypatch):
    """The page alone: matplotlib takes most of the time."""
    monkeypatch.setattr(figures, "save_figures", lambda *args: [])


def bowl(width, log2_rate, drift=0.0, shift=0.0):
    """A loss whose best learning rate is 2^-6 at width 128 and moves by `drift` per doubling."""
    best = -6 + drift * (math.log2(width) - 7)
    return 2 + 3 / math.sqrt(width) + 0.03 * (log2_rate - best) ** 2 + shift


def sweep(**columns):
    """Rows of one study by the names of their columns; a column is a constant or a function of
    (width, log2 rate)."""
    columns = {"loss": bowl} | columns
    return [
        {"width": n, "learning_rate": 2.0**x}
        | {name: v(n, x) if callable(v) else v for name, v in columns.items()}
        for n in WIDTHS
        for x in LOG2_RATES
    ]


def written(rows, delimiter=","):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def read(folder, content, columns="", name="a.csv"):
    content = content if isinstance(content, str) else written(content)
    (folder / name).write_text(content, encoding="utf-8")
    return read_table(str(folder / name), parse_columns(columns))


def told(folder, content, columns=""):
    """The text of the report of a table, and its studies as in transfer.json."""
    content = content if isinstance(content, str) else written(content)
    (folder / "a.csv").write_text(content, encoding="utf-8")
    text = report(folder / "out", input=str(folder / "a.csv"), columns=columns)
    return text, json.loads((folder / "out/transfer.json").read_text())["studies"]


def refused(folder, content, columns="", name="a.csv"):
    with pytest.raises(UserError) as error:
        read(folder, content, columns, name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_each_budget_is_a_study_of_its_own(tmp_path, no_figures):
    """Two budgets that drift by -0.3 and +0.3 are pooled to a drift of 0."""
    rows = sweep(tokens=10**6, steps=500, loss=lambda n, x: bowl(n, x, -0.3))
    rows += sweep(tokens=2 * 10**6, steps=1000, loss=lambda n, x: bowl(n, x, 0.3))
    _, studies = told(tmp_path, rows)
    drifts = {name: study["drift"]["value"] for name, study in studies.items()}
    assert drifts == {
        "all, tokens=1000000": pytest.approx(-0.3, abs=0.02),
        "all, tokens=2000000": pytest.approx(0.3, abs=0.02),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "flag", "names"),
    [
        # these go along with the width
        ({"steps": lambda n, x: 10 * n, "n_params": lambda n, x: n * n}, "", {"all"}),
        ({"steps": 100, "tokens": 100}, "", {"all"}),
        (
            {"steps": lambda n, x: n * (1 + x % 2)},
            "",
            {f"all, steps={n * k}" for n in WIDTHS for k in (1, 2)},
        ),
        ({"steps": lambda n, x: n * (1 + x % 2)}, "steps=", {"all"}),
        ({"n_params": lambda n, x: x % 2, "tokens": 7}, "study=n_params", {"0", "1"}),
        ({"a": lambda n, x: x % 2, "b,c": ""}, 'study=a+"b,c"', {"a=0, no b,c", "a=1, no b,c"}),
    ],
)
def test_what_is_a_study(tmp_path, columns, flag, names):
    rows = read(tmp_path, sweep(**columns), flag).rows
    found = {
        ", ".join([r["parameterization"], *(f"{k}={v}" for k, v in r["overrides"].items())])
        for r in rows
    }
    assert found == names and len(rows) == len(WIDTHS) * len(LOG2_RATES)


def test_steps_of_a_diverged_run_are_no_budget(tmp_path):
    rows = sweep(
        steps=lambda n, x: 37 if x == -3 else 1000,
        loss=lambda n, x: math.inf if x == -3 else bowl(n, x),
    )
    table = read(tmp_path, rows)
    assert [row["status"] for row in table.rows[:7]] == ["ok"] * 6 + ["diverged"]
    assert {(row["steps"], len(row["overrides"])) for row in table.rows} == {(1000, 0)}


def test_rates_that_went_through_float32_are_the_same_points(tmp_path):
    rows = sweep(seed=0, learning_rate=lambda n, x: 10.0**x)
    rows += sweep(seed=1, learning_rate=lambda n, x: float(f"{10.0**x:.9e}") * (1 + 4e-8))
    table = read(tmp_path, rows)
    assert {row["learning_rate"] for row in table.rows} == {10.0**x for x in LOG2_RATES}
    assert table.averaged == "28 points are means of 2 runs each, which differ in 'seed'"
    assert "two losses" in refused(
        tmp_path, "width,learning_rate,loss\n64,0.001,2\n64,0.0010000000474974513,3\n"
    )


@pytest.mark.parametrize("empty", ["", "-", "?", "NA", "n/a", "#N/A", "#DIV/0!", "NULL", "None"])
def test_a_row_without_a_loss_is_a_hole_that_is_said(tmp_path, empty):
    table = read(tmp_path, sweep(loss=lambda n, x: empty if (n, x) == (128, -4) else bowl(n, x)))
    assert len(table.rows) == 27 and {row["status"] for row in table.rows} == {"ok"}
    assert table.warnings == [
        "1 rows have no loss in column 'loss' and are left out: line 14 (width 128, learning_rate "
        "0.0625); where a run diverged write nan"
    ]
    said = refused(tmp_path, f"width,learning_rate,loss\n64,0.1,{empty}\n64,0.2,{empty}\n")
    assert said.endswith("column 'loss' holds no loss, in none of 2 rows")


@pytest.mark.parametrize(
    "word", ["nan", "inf", "-inf", "-Infinity", "-nan(ind)", "1.#QNAN", "Diverged", "NaN"]
)
def test_a_run_that_diverged_is_no_hole(tmp_path, word):
    table = read(tmp_path, sweep(loss=lambda n, x: word if x == -3 else bowl(n, x)))
    assert [row["status"] for row in table.rows] == [
        "diverged" if x == -3 else "ok" for _ in WIDTHS for x in LOG2_RATES
    ]
    assert table.warnings == []


def test_a_status_says_which_runs_diverged(tmp_path):
    rows = sweep(
        status=lambda n, x: "diverged" if x == -3 else "finished",
        loss=lambda n, x: "" if x > -5 else bowl(n, x),
    )
    table = read(tmp_path, rows)
    assert [row["status"] for row in table.rows[:7]] == ["ok"] * 5 + ["diverged", "ok"]
    assert (
        "4 rows have no loss" in table.warnings[0]
        and "line 14 (width 128, learning_rate 0.0625)" in table.warnings[0]
    )


@pytest.mark.parametrize(
    ("seeds", "numbers", "unnamed"),
    [
        (["a", "run-3", "a"], [0, 1, 0], 0),
        (["3", "", "3.0"], [3, 0, 3], 1),
        (["0", "nan", "2"], [0, 1, 2], 1),
        (["", "", ""], [0, 0, 0], 0),
        (["9" * 400, "1", "0"], [0, 1, 2], 0),
    ],
)
def test_seeds_are_numbers_words_or_empty(tmp_path, seeds, numbers, unnamed):
    lines = [f"64,{2.0**-i},{2 + i},{seed}\n" for i, seed in enumerate(seeds)]
    table = read(tmp_path, "width,learning_rate,loss,seed\n" + "".join(lines))
    assert [row["seed"] for row in table.rows] == numbers
    assert table.warnings == ["1 of 3 rows have no seed; they count as one seed more"] * unnamed


def test_what_is_averaged_is_said_with_the_columns_that_differ(tmp_path, no_figures):
    rows = [row | {"seed": f"s{k}", "run": f"r{k}"} for k in range(3) for row in sweep(time=k)]
    rows = [row | {"loss": row["loss"] + 0.001 * int(row["run"][1:])} for row in rows]
    text, _ = told(tmp_path, rows)
    assert (
        "\n28 points are means of 3 runs each, which differ in 'seed'\n" in text
        and "Warning: 28" not in text
    )
    # two seeds at one batch size, and one at another
    text, _ = told(
        tmp_path, [row | {"batch_size": 64 if row["seed"] == "s0" else 128} for row in rows]
    )
    assert (
        "Warning: 28 points are means of 3 runs each, which differ in 'seed', but also in "
        "'batch_size', which "
        "--columns does not name; where that makes them other runs, tell studies apart by it: "
        "--columns=study=COLUMN" in text
    )
    _, studies = told(tmp_path, [row | {"batch_size": 64} for row in rows], "study=batch_size")
    assert list(studies) == ["64"]


def test_runs_that_contradict_each_other_are_refused_with_the_columns_that_differ(tmp_path):
    rows = [
        row | {"batch": k, "host": "x", "id": i}
        for k in (1, 2)
        for i, row in enumerate(sweep(shift=k))
    ]
    rows = [row | {"loss": row["loss"] + row["batch"]} for row in rows]
    said = refused(tmp_path, rows, "study=host")
    assert (
        "lines 2 and 30 give two losses (3.645 and 4.645) for x, width 64 and learning rate "
        "0.001953" in said
    )
    assert (
        "(and so at 27 more points). They differ in 'shift', 'batch': --columns=seed=COLUMN "
        "averages them" in said
    )
    assert "--columns=study=host+COLUMN tells studies apart by it" in said
    assert {row["parameterization"] for row in read(tmp_path, rows, "study=host+batch").rows} == {
        "host=x, batch=1", "host=x, batch=2",
    }  # fmt: skip
    assert len({row["seed"] for row in read(tmp_path, rows, "seed=batch").rows}) == 2
    assert "and no other column tells them apart" in refused(
        tmp_path, "width,learning_rate,loss\n1,1,2\n1,1,3\n"
    )


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_decimal_commas_of_a_spreadsheet(tmp_path, delimiter):
    rows = sweep(study="a,b", tokens=1000)
    plain = read(tmp_path, rows).rows
    commas = [
        {k: f"{v}" if k == "study" else f"{v}".replace(".", ",") for k, v in row.items()}
        for row in rows
    ]
    assert read(tmp_path, "\ufeff" + written(commas, delimiter)).rows == plain
    # with decimal points
    assert read(tmp_path, written(rows, delimiter), name="a.tsv").rows == plain
    mixed = [row | {"tokens": "1,000"} for row in rows]
    assert "'1,000', not a finite number; are its commas decimal ones?" in refused(
        tmp_path, written(mixed, delimiter)
    )
    thousands = "width;learning_rate;loss;tokens\n64;1;2;10,000\n"
    assert "'10,000', not a finite number" in refused(tmp_path, thousands.replace(";", delimiter))
    assert "decimal commas are read from" in refused(
        tmp_path, 'width,learning_rate,loss\n64,"0,1",2\n'
    )


def test_columns_with_awkward_names(tmp_path):
    assert parse_columns('loss="loss, val", study=a+"b+""c""",tokens=,width="x"') == {
        "loss": ("loss, val",), "study": ("a", 'b+"c"'), "tokens": (), "width": ("x",),
    }  # fmt: skip
    rows = [
        {"loss, val": row["loss"], **row, "loss": "?", "tokens": "1B", "SP+Last": "y"}
        for row in sweep()
    ]
    table = read(tmp_path, rows, 'tokens=,loss="loss, val",study=SP+Last')
    assert [row["final_loss"] for row in table.rows] == [
        bowl(n, x) for n in WIDTHS for x in LOG2_RATES
    ]
    assert {row["parameterization"] for row in table.rows} == {"y"}


def test_names_of_studies_are_one_line(tmp_path):
    assert read(tmp_path, sweep(study="two\n lines")).rows[0]["parameterization"] == "two lines"


def test_shifted_losses_same_verdict(tmp_path, no_figures):
    _, studies = told(tmp_path, sweep())
    _, shifted = told(tmp_path, sweep(loss=lambda n, x: bowl(n, x, shift=-6.0)))
    assert shifted["all"]["verdict"]["word"] == studies["all"]["verdict"]["word"]
    assert [o["vertex"] for o in shifted["all"]["optima"]] == pytest.approx(
        [o["vertex"] for o in studies["all"]["optima"]]
    )


def test_a_refusal_is_one_line_with_code_2(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("width,learning_rate,loss,loss\n64,1,2,3\n")
    assert run(["report", f"--workdir={tmp_path / 'w'}", f"--input={tmp_path / 'a.csv'}"]) == 2
    said = capsys.readouterr().err
    assert (
        "columns 3 and 4 are both named 'loss'; rename one of them" in said
        and said.count("\n") == 1
    )
    assert not (tmp_path / "w").exists()


def test_inputs_in_plain_and_log2_learning_rates_are_the_same_rows(tmp_path):
    (tmp_path / "a.csv").write_text(
        "n,log2_lr,val,s\n64,-3,2.5,0\n64,-4,NaN,0\n64,-3,2.7,1\n64,-3,2.7,1\n"
    )
    lines = [
        {"n": 64, "lr": 0.125, "val": 2.5, "s": 0},
        {"n": 64, "lr": "0.0625", "val": math.nan, "s": 0},
    ]
    lines += [{"n": 64.0, "lr": 0.125, "val": "2.7", "s": 1}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = lambda name, rate: read_table(  # noqa: E731
        str(tmp_path / name), parse_columns(f"width=n,{rate},loss=val,seed=s")
    )
    a, b = again("a.csv", "log2_learning_rate=log2_lr"), again("b.jsonl", "learning_rate=lr")
    drop = lambda rows: [{k: v for k, v in r.items() if k != "id"} for r in rows]  # noqa: E731
    assert drop(a.rows) == drop(b.rows)
    assert [len(table.warnings) for table in (a, b)] == [1, 0] and "1 rows of" in a.warnings[0]
    assert [(r["status"], r["final_loss"], r["seed"]) for r in a.rows] == [
        ("ok", 2.5, 0), ("diverged", None, 0), ("ok", 2.7, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        (
            "width,lr,loss\n64,fast,2\n",
            "learning_rate=lr",
            "line 2: column 'lr' (learning_rate) is 'fast', not a fini",
        ),
        (
            "width,lr,loss\n64,0,2\n",
            "learning_rate=lr",
            "line 2: column 'lr' (learning_rate) is '0', not above 0",
        ),
        (
            "width,lr,loss\n64,nan,2\n",
            "learning_rate=lr",
            "column 'lr' (learning_rate) is 'nan', not a finite number",
        ),
        (
            "width,lr,loss\nbig,1,2\n",
            "learning_rate=lr",
            "line 2: column 'width' is 'big', not a whole number",
        ),
        (
            "width,lr,loss\n64,1,low\n",
            "learning_rate=lr",
            "line 2: column 'loss' is 'low', not a finite number",
        ),
        ("width,lr,loss\n64,1\n", "learning_rate=lr", "line 2: 2 cells, where the header has 3"),
        ("width,lr,loss\n64,1,2\n64,1,3\n", "learning_rate=lr", "lines 2 and 3 give two losses"),
        (
            "width,lr,loss\n64,1,2\n",
            "",
            "which column is the learning_rate? --columns=learning_rate=COLUMN; there",
        ),
        (
            "width,lr,loss\n64,1,2\n",
            "learning_rate=rate",
            "has no column 'rate', which --columns names for learning",
        ),
        ("width,lr,loss\n64,1,2\n", "withd=n", "'withd' is nothing we know; did you mean width?"),
        ("width,lr,loss\n64,1,2\n", "width", "'width' is not NAME=COLUMN"),
        ("width,lr,loss\n", "learning_rate=lr", "holds no rows"),
        ("E,R_inf,kappa\n-1,0,0\n", "", "line 2: column 'E' is '-1', not above 0"),
        (
            "width,learning_rate,loss\n64,1,1e308\n",
            "",
            "'1e308', not a finite number that a run may have",
        ),
        (
            f"width,learning_rate,loss\n{'9' * 300},1,2\n",
            "",
            "(302 characters), not a whole number",
        ),
        (
            "width,learning_rate,loss,tokens\n64,1,2,\n",
            "",
            "'', not a finite number; --columns=tokens= reads the tab",
        ),
        ("width,learning_rate,loss\n64,1,2\n", "loss=", "which column is the loss?"),
        ("width,learning_rate,loss\n64,1,2\n", "loss=width+loss", "loss is in one column; several"),
        ("width,learning_rate,loss\n64,1,2\n", "seed=width++loss", "neither a column nor several"),
        ("width,learning_rate,loss\n64,1,2\n", 'loss="a,width=b', "'loss=\"a' is not NAME=COLUMN"),
        ("width|loss\n64|2\n", "width=width|loss", "no comma, semicolon or tab divides its cells"),
        ('width,learning_rate,loss\n64,1,"2\n', "", "line 2: unexpected end of data"),
    ],
)
def test_bad_inputs_are_one_clear_line(tmp_path, content, columns, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError) as error:
        read_table(str(tmp_path / "a.csv"), parse_columns(columns))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"width": 64, "loss": 1, "loss": 2}', "line 1 has 'loss' twice"),
        (
            '{"width": %s, "learning_rate": 1, "loss": 2}' % ("9" * 400),
            "(400 characters), not a whole number",
        ),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
    ],
)
def test_bad_json_lines_are_one_clear_line(tmp_path, line, said):
    assert said in refused(tmp_path, line + "\n", name="a.jsonl")
