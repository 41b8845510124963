"""Ids of earlier schemas: what has been trained under one is found, joined and reported, and never
trained again."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from helpers import Engine, bowl

from mujax import config, main
from mujax.config import OPERATION_SECTIONS, default_config, leaves, make_run_config
from mujax.fields import declare
from mujax.storage import files
from mujax.storage.records import load_rows
from mujax.sweep import migration
from mujax.sweep.merge import merge
from mujax.sweep.points import make_points
from mujax.sweep.study import sweep
from mujax.training.loop import train

LATER = "grad_clip"  # taken out of a record, it is a field that was declared after it


def first_schema(section) -> str:
    """A name under schema 1: 12 hex of the SHA-256 of all fields."""
    return hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:12]


def first_id(cfg) -> str:
    return first_schema({k: v for k, v in cfg.as_dict().items() if k not in OPERATION_SECTIONS})


def differing(tree) -> dict:
    """What makes a run, of a tree that is not at its default, by dotted name."""
    defaults = dict(leaves(default_config(tree["model"]["name"])))
    aside = (*OPERATION_SECTIONS, "sweep", "refine")
    return {
        field: value
        for field, value in leaves({k: v for k, v in tree.items() if k not in aside})
        if value != defaults[field]
    }


def test_ids_name_what_differs_from_the_defaults(tiny):
    """Configs have one id if and only if they differ from the defaults in the same."""
    trees = [tiny()]
    for changes in (
        {"mesh__data": 2}, {"checkpoint__interval": 7},
        {"optim__learning_rate": 0.5}, {"seed": 3}, {"model__d_model": 32}, {"model__bias": True},
        {"optim__b1": 0.95}, {"optim__b2": 0.9}, {"parameterization__override": ("input=sp",)},
    ):  # fmt: skip
        trees.append(tiny(**changes))
    found = [(make_run_config(tree).id, differing(tree)) for tree in trees]
    for id, own in found:
        assert [other == id for other, _ in found] == [own == its for _, its in found]
        assert id.startswith("2-") and len(id) == 14
    assert len({id for id, _ in found}) == len(trees) - 2


def test_a_new_field_with_a_neutral_default_changes_no_id(tiny, monkeypatch):
    before = make_run_config(tiny()).id
    wider = dataclasses.make_dataclass(
        "Wider",
        [("nesterov", bool, declare(False, "look ahead"))],
        bases=(config.OptimConfig,),
        frozen=True,
        kw_only=True,
    )
    monkeypatch.setitem(config.SECTIONS, "optim", wider)
    assert make_run_config(tiny(optim__nesterov=False)).id == before
    assert make_run_config(tiny(optim__nesterov=True)).id != before


@pytest.fixture
def tree(tiny):
    own = tiny()
    own["sweep"] = {"optim": {"learning_rate": (2.0**-8, 2.0**-6)}, "seed": (0, 1)}
    return own


def make_first(root, tree):
    """Makes of a workdir of today one of schema 1, which knew a field less, and one by another
    name."""
    points = make_points(tree)
    old = {p.id: first_id(p.run.cfg) for p in points}
    record = json.loads((root / "manifest.json").read_text())
    del record["config"]["optim"][LATER]
    record["config"]["model"]["separator_id"] = record["config"]["model"].pop("separator_id")
    record["points"] = {old[id]: point for id, point in record["points"].items()}
    (fingerprint,) = record["data"].values()
    record["data"] = {first_schema(points[0].run.cfg.as_dict()["data"]): fingerprint}
    files.write_json(root / "manifest.json", record)
    rows = load_rows(root)
    files.write_jsonl(root / "results.jsonl", [{**row, "id": old[row["id"]]} for row in rows])
    for id in old:
        (root / "points" / id).rename(root / "points" / old[id])


@pytest.fixture
def first(tree, tmp_path):
    """(workdir of schema 1, rows as today's code would have written them)."""
    rows = sweep(tree, tmp_path / "first", train_runs=Engine(bowl))
    make_first(tmp_path / "first", tree)
    return tmp_path / "first", rows


def make_single(root, cfg, row):
    """Makes the workdir of `mujax train`."""
    files.write_json(root / "config.json", cfg.as_dict())
    files.write_json(root / "result.json", {**row, "overrides": {}})


def without_group(rows):
    return [{k: v for k, v in row.items() if k != "group"} for row in rows]


def test_a_sweep_goes_on_where_an_earlier_version_stopped(tree, first, capsys):
    root, rows = first
    before = (root / "results.jsonl").read_bytes()
    engine = Engine(bowl)
    assert without_group(sweep(tree, root, train_runs=engine)) == without_group(rows)
    assert engine.steps == 0
    assert "4 points have ids of today" in capsys.readouterr().err
    assert (root / "earlier" / "1" / "results.jsonl").read_bytes() == before
    assert sorted(f.name for f in (root / "points").iterdir()) == sorted(r["id"] for r in rows)
    # Carried over once: there is nothing left to do
    sweep(tree, root, train_runs=engine)
    assert engine.steps == 0 and not (root / "earlier" / "2").exists()
    # Its grid may grow, as any
    tree["sweep"]["seed"] = (0, 1, 2)
    with pytest.raises(Exception, match=r"belongs to another config: sweep\.seed"):
        sweep(tree, root, train_runs=engine)


@pytest.mark.parametrize("cut_at", [1, 2, 3, 5, 6])
def test_cut_short_it_is_carried_over_by_the_next_call(cut_at, tree, first, monkeypatch):
    """Of copies, moves and files written, any may be the last."""
    root, rows = first
    left = [cut_at]

    def counted(call):
        def wrapped(*args):
            left[0] -= 1
            if not left[0]:
                raise OSError("the machine went away")
            return call(*args)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("keep_copies", "move", "write_jsonl", "write_json"):
            patch.setattr(migration.files, name, counted(getattr(files, name)))
        with pytest.raises(OSError, match="went away"):
            migration.carry_over(root)
    engine = Engine(bowl)
    assert without_group(sweep(tree, root, train_runs=engine)) == without_group(rows)
    assert engine.steps == 0
    assert all((root / "points" / row["id"] / "metrics.jsonl").exists() for row in rows)


def test_merge_joins_both_schemas_without_doubles(tree, first, tmp_path):
    root, rows = first
    before = {f: f.read_bytes() for f in root.rglob("*") if f.is_file()}
    tree["sweep"]["seed"] = (1,)
    sweep(tree, tmp_path / "today", train_runs=Engine(bowl))
    cfg = make_points(tree)[0].run.cfg
    (row,) = (row for row in rows if row["id"] == cfg.id)
    make_single(tmp_path / "single", cfg, {**row, "id": first_id(cfg)})
    said = merge(tmp_path / "all", [str(tmp_path / n) for n in ("first", "today", "single")])
    assert "4 rows added, 3 were there already, 4 in all" in said
    assert {f: f.read_bytes() for f in before} == before  # a source is read alone
    assert without_group(load_rows(tmp_path / "all")) == without_group(rows)
    for row in rows:
        assert (tmp_path / "all" / "points" / row["id"] / "metrics.jsonl").exists()
    # and into one of schema 1
    merge(root, [str(tmp_path / "today")])
    assert without_group(load_rows(root)) == without_group(rows)


def test_a_single_run_is_not_trained_again(tiny, tmp_path):
    tree = tiny(train__steps=4)
    row = train(tree, tmp_path / "run")
    result, recorded = tmp_path / "run" / "result.json", tmp_path / "run" / "config.json"
    old = first_id(make_run_config(tree))
    result.write_text(result.read_text().replace(row["id"], old))
    content = json.loads(recorded.read_text())
    del content["optim"][LATER]
    recorded.write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    before = result.read_bytes()
    assert train(tree, tmp_path / "run") == row
    assert result.read_bytes() == before
    changed = tiny(train__steps=4, optim__learning_rate=0.25)
    again = train(changed, tmp_path / "run", allowed_changes=("optim.learning_rate",))
    assert again["id"] != row["id"] and again["final_loss"] != row["final_loss"]


def test_a_report_counts_a_run_of_two_schemas_once(tree, first, tmp_path, capsys):
    root, rows = first
    make_single(tmp_path / "single", make_points(tree)[0].run.cfg, rows[0])
    assert main.run(["report", f"--workdir={root}", f"--sources={tmp_path / 'single'}"]) == 0
    assert "1 row" in capsys.readouterr().out


def test_a_config_that_none_can_have_today_is_one_line(tree, first):
    root, _ = first
    record = json.loads((root / "manifest.json").read_text())
    record["config"]["optim"]["warp"] = 9
    files.write_json(root / "manifest.json", record)
    before = (root / "results.jsonl").read_bytes()
    with pytest.raises(Exception, match=r"first was written by .*unknown field optim\.warp"):
        migration.read_workdir(root)
    assert (root / "results.jsonl").read_bytes() == before
