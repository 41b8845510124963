"""A row has one schema: the writer, the reader and tables from elsewhere agree on its fields."""

import types

import pytest

from configs import quickstart
from mujax.config import leaves, make_run_config
from mujax.errors import UserError
from mujax.report.tables import parse_columns, read_table
from mujax.storage import files
from mujax.storage.records import FACTS, Row, load_rows
from mujax.sweep.settings import Settings, run_fields
from mujax.training.outcome import Outcome
from mujax.training.results import make_row
from mujax.training.run import make_run


@pytest.fixture(scope="module")
def run():
    tree = quickstart.get_config().to_dict()
    return make_run(make_run_config({**tree, "sweep": {}}))


def row_of(run, **ended):
    outcome = Outcome(run.cfg.train, [(0, 4.0), (5, 2.5), (9, 3.0)], **ended)
    corpus = types.SimpleNamespace(fingerprint="f" * 12, bits_per_byte=lambda loss: 2 * loss)
    return make_row(run, outcome, overrides={}, seconds=1.23456, corpus=corpus)


def test_a_row_has_the_fields_of_the_schema_in_their_order(run, tmp_path):
    row = row_of(run)
    assert list(row) == list(Row.__annotations__)
    assert (row["final_loss"], row["best_loss"], row["best_step"], row["bits_per_byte"]) == (
        3.0,
        2.5,
        5,
        6.0,
    )
    files.write_json(tmp_path / "result.json", row)
    assert load_rows(tmp_path) == [row]
    files.append_jsonl(tmp_path / "results.jsonl", row_of(run, diverged_at=7))
    (lost,) = load_rows(tmp_path)
    assert {lost[name] for name in ("final_loss", "best_loss", "best_step", "bits_per_byte")} == {
        None
    }


def test_a_folder_without_results_has_no_rows(tmp_path):
    assert load_rows(tmp_path) is None
    (tmp_path / "results.jsonl").touch()
    assert load_rows(tmp_path) == []


def test_what_a_row_repeats_of_its_config_is_as_configured(run):
    fields, row = dict(leaves(run.cfg.as_dict())), row_of(run)
    assert [(name, row[name]) for name in FACTS.values()] == [
        (name, fields[field]) for field, name in FACTS.items()
    ]


def test_rows_of_a_table_are_rows_of_results(tmp_path):
    (tmp_path / "a.csv").write_text(
        "study,parameterization,seed,weight_decay,width,learning_rate,loss,tokens,steps,n_params\n"
        "one,mup,3,0.1,64,0.5,2.5,1e6,100,5000\none,mup,3,0.1,64,0.25,nan,1e6,100,5000\n"
    )
    rows = read_table(str(tmp_path / "a.csv"), parse_columns("")).rows
    assert set().union(*rows) <= set(Row.__annotations__)
    files.write_jsonl(tmp_path / "results.jsonl", rows)
    assert load_rows(tmp_path) == rows


def test_old_rows_may_lack_what_is_not_needed(run, tmp_path):
    needed = (
        "id",
        "status",
        "diverged_at_step",
        "width",
        "parameterization",
        "learning_rate",
        "seed",
        "final_loss",
    )
    for name in Row.__annotations__:
        files.write_json(
            tmp_path / "result.json", {k: v for k, v in row_of(run).items() if k != name}
        )
        if name in (*needed, "overrides"):
            with pytest.raises(UserError, match=f"result.json: row 1, field '{name}' is missing"):
                load_rows(tmp_path)
        else:
            assert name not in load_rows(tmp_path)[0]


@pytest.mark.parametrize("is_sweep", [True, False])
def test_which_single_runs_are_points_of_a_workdir(is_sweep):
    """Of a sweep what a curve plots and its points set may differ; of single runs any number, and
    the table."""
    tree = quickstart.get_config().to_dict()
    point = {"overrides": {"optim.b1": 0.5}, "table_hash": ""}
    record = {
        "config": {**tree, "sweep": tree["sweep"] if is_sweep else {}},
        "points": {"known": point},
    }
    settings, fields = Settings(record), run_fields(tree)

    def place(id="other", **changed):
        own = {**fields, **{name.replace("__", "."): value for name, value in changed.items()}}
        return settings.place({"id": id}, own, settings.own_fields([]))

    assert place("known") == (0, {"optim.b1": 0.5})
    assert place() == (0, {})
    assert place(optim__learning_rate=3.0, seed=9) == (0, {"optim.learning_rate": 3.0, "seed": 9})
    assert place(optim__b1=0.25) == (0, {"optim.b1": 0.25})
    assert place(optim__weight_decay=7.0) == (
        None if is_sweep else (0, {"optim.weight_decay": 7.0})
    )
    assert place(optim__name="sgd") is None
    assert place(optim__new_field=1) is None
