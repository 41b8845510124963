"""Which rows are one study, and which are averaged as seeds: those whose whole configs are equal
but for the seed."""

import copy
import json
import math
import re

import numpy as np
import pytest
from conftest import ROOT, tiny_tree

from configs import base
from mujax.errors import UserError
from mujax.report.curves import make_curves
from mujax.report.rows import load_rows, load_sources, warnings
from mujax.report.summary import make_studies
from mujax.sweep.grid import axis, chain, expand_sweep, zipped
from mujax.sweep.merge import merge
from mujax.sweep.points import make_points
from mujax.sweep.pooling import find_coupling, level_seeds, same_values
from mujax.sweep.study import sweep
from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import drift_per_doubling

LRS = tuple(2.0**k for k in (-8, -7, -6, -5, -4))


def tree_of(rates=LRS, widths=(16, 32, 64), seeds=(0,), points=None, **fields):
    tree = tiny_tree("mlp", **fields)
    tree["sweep"] = {"model": {"d_model": widths}, "seed": seeds}
    tree["sweep"] |= {"optim": {"learning_rate": rates}} if rates else {}
    tree["sweep"] |= {"points": points} if points else {}
    return json.loads(json.dumps(tree))


def row_of(cfg, overrides, loss, **facts):
    return {
        "id": cfg.id, "status": "ok", "diverged_at_step": None, "model": cfg.model_name,
        "width": cfg.model.d_model,
        "depth": cfg.model.num_layers, "parameterization": cfg.parameterization.name,
        "optimizer": cfg.optim.name,
        "learning_rate": cfg.optim.learning_rate, "weight_decay": cfg.optim.weight_decay,
        "seed": cfg.seed,
        "steps": cfg.train.steps, "final_loss": loss, "overrides": overrides, "table_hash": "t",
        "code_version": "1",
        "data_fingerprint": "abc", **facts,
    }  # fmt: skip


def bowl(cfg, best=-6.0):
    return 2 + 0.1 * (math.log2(cfg.optim.learning_rate) - best) ** 2


def drifting(cfg, slope):
    return bowl(cfg, -6 + slope * math.log2(cfg.model.d_model / 32))


def write_sweep(folder, tree, loss=bowl, **facts):
    """What a finished sweep leaves, without training; loss: of a run's config."""
    points = expand_sweep(tree)
    folder.mkdir(parents=True)
    entries = {
        cfg.id: {"overrides": own, "table_hash": facts.get("table_hash", "t")}
        for own, cfg in points
    }
    (folder / "manifest.json").write_text(
        json.dumps({"config": tree, "part": "", "points": entries, "refinement": []})
    )
    rows = [row_of(cfg, own, loss(cfg), **facts) for own, cfg in points]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_run(folder, cfg, loss, **facts):
    """What mujax train leaves."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(cfg.as_dict()))
    (folder / "result.json").write_text(json.dumps(row_of(cfg, {}, loss, **facts)))
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 3.0}\n')
    return folder


def studies(folder):
    """Names of the studies of a workdir, and the numbers of seeds of their curves."""
    found = make_curves(load_rows(folder)[0])
    return {name: [curve.num_seeds for curve in curves] for name, curves in found.items()}


ONE_SEED = [(1,) * 5] * 3


@pytest.mark.parametrize(
    ("changes", "facts", "names"),
    [
        ({"optim__name": "sgd"}, {}, ["mup, optimizer=adamw", "mup, optimizer=sgd"]),
        ({"train__steps": 24}, {}, ["mup, steps=12", "mup, steps=24"]),
        ({"optim__weight_decay": 0.1}, {}, ["mup, weight_decay=0.0", "mup, weight_decay=0.1"]),
        ({"schedule__name": "cosine"}, {}, ["mup, schedule=linear", "mup, schedule=cosine"]),
        ({"optim__weight_decay": 0.1, "widths": (128, 256, 512)}, {},
         ["mup, weight_decay=0.0", "mup, weight_decay=0.1"]),
        ({"data__name": "text", "data__path": "b.txt"}, {"data_fingerprint": "def"},
         ["mup, data=embedded, path=", "mup, data=text, path=b.txt"]),
        ({"seeds": (1,)}, {"table_hash": "other", "code_version": "2"}, ["mup, table_hash=t",
        "mup, table_hash=other"]),
        ({"seeds": (1,)}, {"data_fingerprint": "def"}, ["mup, data_fingerprint=abc",
        "mup, data_fingerprint=def"]),
    ],
)  # fmt: skip
def test_sweeps_that_differ_in_what_neither_sweeps_are_two_studies(tmp_path, changes, facts, names):
    write_sweep(
        tmp_path / "a",
        tree_of(),
        lambda cfg: bowl(cfg, -6 - 0.3 * math.log2(cfg.model.d_model / 16)),
    )
    write_sweep(
        tmp_path / "b",
        tree_of(**changes),
        lambda cfg: bowl(cfg, -6 + 0.3 * math.log2(cfg.model.d_model / 16)),
        **facts,
    )
    names = [
        name.replace("name=embedded", "data=embedded").replace("name=text", "data=text")
        for name in names
    ]
    merge(str(tmp_path / "all"), [str(tmp_path / "a"), str(tmp_path / "b")])
    assert studies(tmp_path / "all") == dict.fromkeys(names, ONE_SEED)
    assert not any(
        "config" in line for line in warnings(tmp_path / "all", load_rows(tmp_path / "all")[0])
    )
    # Again, and with a third: each row keeps its config
    merge(str(tmp_path / "again"), [str(tmp_path / "all"), str(tmp_path / "b")])
    assert studies(tmp_path / "again") == dict.fromkeys(names, ONE_SEED)
    sources = load_sources(tmp_path / "new", [str(tmp_path / "a"), str(tmp_path / "b")])[0]
    assert [s.name for s in make_studies(sources)] == [f"a: {names[0]}", f"b: {names[1]}"]


def test_seeds_of_one_config_are_one_study(tmp_path):
    """However they came together: as an axis, or as the field of another sweep; where the text lies
    does not matter."""
    write_sweep(tmp_path / "a", tree_of(seeds=(0, 1)))
    write_sweep(
        tmp_path / "b",
        tree_of(seeds=(2,), data__name="text", data__path="elsewhere.txt", optim__name="adamw"),
    )
    tree = tree_of(seed=3, data__name="text", data__path="here.txt")
    del tree["sweep"]["seed"]
    write_sweep(tmp_path / "c", tree)
    merge(str(tmp_path / "all"), [str(tmp_path / "b"), str(tmp_path / "c")])
    assert studies(tmp_path / "all") == {"mup": [(2,) * 5] * 3}
    merge(str(tmp_path / "all"), [str(tmp_path / "a")])
    # data.name is no place: embedded text is another field's
    assert len(studies(tmp_path / "all")) == 2


def test_points_that_name_only_what_they_change_have_the_baselines_value_elsewhere(tmp_path):
    """A baseline that drifts by -0.3 and its change that drifts by +0.3 are not one study that
    transfers."""
    points = chain(({},), axis("optim.name", ("sgd",)), axis("optim.weight_decay", (0.1,)))
    slopes = {("adamw", 0.0): -0.3, ("sgd", 0.0): 0.3, ("adamw", 0.1): 0.0}
    loss = lambda cfg: drifting(cfg, slopes[cfg.optim.name, cfg.optim.weight_decay])  # noqa: E731
    folder = write_sweep(tmp_path / "a", tree_of(points=points), loss)
    found = make_curves(load_rows(folder)[0])
    drifts = {}
    for name, curves in found.items():
        optima = fit_optima([c.log2_lrs for c in curves], [c.seed_losses for c in curves], 0.001)
        drifts[name] = drift_per_doubling([c.width for c in curves], optima).value
    assert drifts == {
        "mup, optimizer=adamw, weight_decay=0.0": pytest.approx(-0.3),
        "mup, optimizer=sgd, weight_decay=0.0": pytest.approx(0.3),
        "mup, optimizer=adamw, weight_decay=0.1": pytest.approx(0.0, abs=1e-9),
    }


def test_the_algebra_of_the_guide_names_no_study_none(tmp_path):
    c = base.get_config()
    guide = (ROOT / "docs" / "sweeps.md").read_text()
    exec(re.search(r"```python\n(from mujax.sweep.grid.*?)```", guide, re.S)[1], {"c": c})
    tree = json.loads(json.dumps(c.to_dict()))
    assert list(studies(write_sweep(tmp_path / "a", tree))) == [
        f"{table}, weight_decay={decay}" for table in ("sp", "mup") for decay in (0.0, 0.1)
    ]


def test_a_field_that_goes_along_with_the_learning_rate_tears_no_curve(tmp_path):
    """By a power of it, by one of two, or in order alone; not where both are axes of a grid."""
    along = lambda field, values: zipped(axis("optim.learning_rate", LRS), axis(field, values))  # noqa: E731
    timescale = lambda c: along("optim.weight_decay", tuple(c / lr for lr in LRS))  # noqa: E731
    for points, names in (
        (timescale(2.0**-9), ["mup, weight_decay=0.00195312/learning_rate"]),
        (chain(timescale(2.0**-9), timescale(2.0**-8)),
         ["mup, weight_decay=0.00195312/learning_rate",
         "mup, weight_decay=0.00390625/learning_rate"]),
        (along("schedule.warmup_steps", (5, 4, 2, 1, 0)), ["mup, warmup_steps along with "
                                                           "learning_rate"]),
    ):  # fmt: skip
        folder = write_sweep(
            tmp_path / f"{len(list(tmp_path.iterdir()))}", tree_of(rates=None, points=points)
        )
        assert studies(folder) == dict.fromkeys(names, ONE_SEED)
    g = [("g", lr, decay) for lr in LRS for decay in (*LRS, 0.0)]
    assert find_coupling(g) is None
    # Two optimizers with grids of their own, and random search
    assert find_coupling(("g", lr, 0.1 * (lr > 2.0**-6)) for lr in LRS) is None
    assert (
        find_coupling(("g", lr, value) for lr, value in zip(LRS, (3, 1, 4, 1.5, 9), strict=True))
        is None
    )


def test_learning_rates_that_went_through_float32_are_the_same_points():
    rates = [0.001 * 2**k for k in range(7)]
    rows = [
        {"id": f"{n} {lr} {seed}", "width": n, "parameterization": "mup", "learning_rate": lr,
        "seed": seed,
         "overrides": {}, "status": "ok", "final_loss": 2 + (math.log2(lr) + 7) ** 2 + seed / 100}
        for n in (64, 128) for seed in (0, 1) for lr in (map(float,
        np.float32(rates)) if seed else rates)
    ]  # fmt: skip
    curves = make_curves(rows)["mup"]
    assert [curve.log2_lrs for curve in curves] == [tuple(map(math.log2, rates))] * 2
    assert all(curve.seeds == ((0, 1),) * 7 for curve in curves)
    assert len(set(same_values([0.001, 0.001001, 0.002]).values())) == 3


def test_more_seeds_at_some_rates_do_not_move_the_vertex():
    """The seeds' luck is common to all rates: 0, -0.1 and -0.2 nats. Plain means over who is there
    move it by 0.4."""
    curve = lambda lr: 2 + 0.1 * (math.log2(lr) + 6.3) ** 2  # noqa: E731
    rates = [2.0**k for k in range(-9, -2)]
    few = {lr: (0, 1, 2) if -6 <= math.log2(lr) <= -5 else (0,) for lr in rates}
    row = lambda lr, seed: {  # noqa: E731
        "width": 64, "parameterization": "mup", "learning_rate": lr, "seed": seed, "overrides": {},
        "status": "ok",
        "final_loss": curve(lr) - 0.1 * seed,
    }  # fmt: skip
    vertex = lambda x, losses: fit_optima([x], [losses], 0.01)[0].parabola.vertex  # noqa: E731
    (uneven,) = make_curves([row(lr, seed) for lr in rates for seed in few[lr]])["mup"]
    assert vertex(uneven.log2_lrs, uneven.seed_losses) == pytest.approx(-6.3, abs=1e-6)
    assert abs(vertex(uneven.log2_lrs, uneven.raw_losses) + 6.3) > 0.1
    assert uneven.seeds[3] == (0, 1, 2) and uneven.raw_losses[3] == tuple(
        curve(2.0**-6) - 0.1 * s for s in range(3)
    )
    # A seed that diverged at one rate is none that is missing there, and leaves no mean there
    rows = [row(lr, seed) for lr in rates for seed in few[lr]]
    rows[-1] |= {"status": "diverged", "final_loss": None}
    (diverged,) = make_curves(rows)["mup"]
    assert diverged.losses[-1] is None and diverged.losses[:-1] == pytest.approx(uneven.losses[:-1])
    # The same seeds everywhere: what was measured, to the bit
    (even,) = make_curves([row(lr, seed) for lr in rates for seed in range(3)])["mup"]
    assert even.seed_losses == even.raw_losses
    assert level_seeds([[0], [1]], [[3.0], [2.0]]) == ((3.0,), (2.0,))  # seeds that never met


def test_a_missing_run_leaves_no_trace_and_is_counted(tmp_path):
    folder = write_sweep(tmp_path / "a", tree_of(widths=(16,)))
    rows = load_rows(folder)[0]
    rows[2]["final_loss"] = None
    rows[4] |= {"status": "diverged", "final_loss": None}
    (curve,) = make_curves(rows)["mup"]
    assert curve.log2_lrs == (-8, -7, -5, -4) and curve.diverged == (0, 0, 0, 1)
    assert any(
        "1 rows have no loss although they did not diverge" in line
        for line in warnings(folder, rows)
    )


def test_a_point_trained_alone_joins_its_sweep(tmp_path):
    """As --dry_run prints it, or with another seed; another optimizer does not."""
    tree = tree_of()
    points = expand_sweep(tree)
    folder = write_sweep(tmp_path / "sweep", tree)
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[1:]))  # the first has not been trained
    (_, first), (_, second) = points[:2]
    runs = tmp_path / "runs"
    write_run(runs / "first", first, 2.4)
    other = copy.deepcopy(tree) | {"seed": 1}
    del other["sweep"]["seed"]
    write_run(runs / "seed", expand_sweep(other)[1][1], 2.2)
    write_run(runs / "twice", second, 9.0)
    (_, sgd), *_ = expand_sweep(tree_of(optim__name="sgd"))
    write_run(runs / "sgd", sgd, 5.0)
    expected = {
        "mup, optimizer=adamw": [(1, 2, 1, 1, 1), *ONE_SEED[1:]],
        "mup, optimizer=sgd": [(1,)],
    }
    said = merge(str(tmp_path / "all"), [str(runs / "*"), str(folder)])
    assert said.endswith("17 rows added, 1 were there already, 17 in all")
    assert studies(tmp_path / "all") == expected
    assert (tmp_path / "all" / "points" / first.id / "metrics.jsonl").exists()
    # Its own point alone leaves the sweep what it was: mujax sweep would go on in it
    merge(str(tmp_path / "own"), [str(runs / "first"), str(folder)])
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    assert manifest["config"] == tree and len(manifest["points"]) == 15
    assert studies(tmp_path / "own") == {"mup": ONE_SEED}
    # In a report over sources: with the sweep, and the rest beside it
    rows, _, repeated = load_sources(tmp_path / "new", [str(folder), str(runs / "*")])
    assert ({name: len(found) for name, found in rows.items()}, repeated) == (
        {"sweep": 16, "sgd": 1},
        1,
    )
    names = {s.name: [c.num_seeds for c in s.curves] for s in make_studies(rows)}
    assert list(names.values()) == list(expected.values())
    assert list(names) == ["sweep: mup, optimizer=adamw", "sgd: mup, optimizer=sgd"]
    # Runs alone, without a sweep, are points of one
    for i, (_, cfg) in enumerate(points):
        write_run(tmp_path / "alone" / f"{i}", cfg, bowl(cfg))
    rows, _, _ = load_sources(tmp_path / "new", [str(tmp_path / "alone" / "*")])
    assert {s.name: [c.num_seeds for c in s.curves] for s in make_studies(rows)} == {
        "mup": ONE_SEED
    }
    merge(str(tmp_path / "joined"), [str(tmp_path / "alone" / "*")])
    assert studies(tmp_path / "joined") == {"mup": ONE_SEED}
    # One that has not finished adds nothing
    (runs / "seed" / "result.json").unlink()
    said = merge(str(tmp_path / "part"), [str(runs / "seed"), str(folder)])
    assert said.endswith("14 in all; 1 runs have not finished")


def test_a_field_may_go_along_with_the_width(tmp_path):
    """So in fixed tokens per parameter, whatever stands beside it: no width is torn from the
    others."""
    fixed = zipped(axis("model.d_model", (16, 32, 64)), axis("train.steps", (20, 40, 80)))
    tree = tree_of(points=fixed, widths=())
    del tree["sweep"]["model"]
    assert studies(write_sweep(tmp_path / "a", tree)) == {"mup": ONE_SEED}
    write_sweep(tmp_path / "b", tree_of(train__steps=24))
    write_sweep(tmp_path / "c", tree_of(train__steps=24, optim__name="sgd"))
    merge(str(tmp_path / "all"), [str(tmp_path / name) for name in "abc"])
    # What more than half of the sweeps have needs no name
    names = ["mup, steps=20 to 80 by width", "mup", "mup, optimizer=sgd"]
    assert studies(tmp_path / "all") == dict.fromkeys(names, ONE_SEED)


def test_what_cannot_be_told_is_said(tmp_path):
    """A row that is no point of the manifest, a workdir merged before points said their config, and
    no manifest."""
    a = write_sweep(tmp_path / "a", tree_of())
    borrowed = row_of(expand_sweep(tree_of(seeds=(1,)))[0][1], {}, 2.0)
    with open(a / "results.jsonl", "a") as stream:
        stream.write(json.dumps(borrowed) + "\n")
    assert studies(a) == {"mup": ONE_SEED, "mup, config=unknown": [(1,)]}
    rows = load_rows(a)[0]
    assert any(
        "1 rows do not tell their whole config (they are no points of" in line
        for line in warnings(a, rows)
    )
    for changes, names, is_told in (
        # rows say their optimizer
        ({"optim__name": "sgd"}, ["mup, optimizer=adamw", "mup, optimizer=sgd"], True),
        ({"train__batch_size": 8}, ["mup"], False),
    ):
        old = tmp_path / names[-1]
        trees = tree_of(), tree_of(seeds=(1,), **changes)
        parts = [write_sweep(old / f"{i}", tree) for i, tree in enumerate(trees)]
        (old / "results.jsonl").write_text(
            "".join((part / "results.jsonl").read_text() for part in parts)
        )
        entries = {
            k: v
            for part in parts
            for k, v in json.loads((part / "manifest.json").read_text())["points"].items()
        }
        manifest = {"config": {"merged": "several"}, "merged": trees, "points": entries}
        (old / "manifest.json").write_text(json.dumps(manifest))
        assert list(studies(old)) == names
        said = [
            line
            for line in warnings(old, load_rows(old)[0])
            if "do not tell their whole config" in line
        ]
        assert bool(said) != is_told and all(
            "has 2 configs and does not say of which" in line for line in said
        )
        (old / "manifest.json").unlink()
        assert list(studies(old)) == names
        assert "there is no manifest.json" in " ".join(warnings(old, load_rows(old)[0]))


def test_of_two_rows_with_one_id_the_first_counts_everywhere(tmp_path, monkeypatch):
    tree = tree_of(widths=(16,), data__name="text", data__path=__file__)
    points = make_points(tree)
    monkeypatch.setattr("mujax.sweep.study._Study.run", lambda self, points, notes: None)
    folder = write_sweep(tmp_path / "a", tree)
    (folder / "manifest.json").unlink()
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    from mujax.data.loader import load_batches

    fingerprint = load_batches(points[0].run.cfg, seeds=())[2].fingerprint
    rows = [
        r | {"table_hash": points[0].run.table_hash, "data_fingerprint": fingerprint} for r in rows
    ]
    rows += [rows[0] | {"final_loss": 7.0}]
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    first = rows[0]["final_loss"]
    assert sweep(tree, folder)[0]["final_loss"] == first
    assert load_rows(folder)[0][0]["final_loss"] == first
    (folder / "manifest.json").write_text(json.dumps({"config": tree}))
    merge(str(tmp_path / "all"), [str(folder)])
    assert load_rows(tmp_path / "all")[0][0]["final_loss"] == first
    assert load_rows(tmp_path / "all")[1] == 0


def test_a_folder_that_is_neither_sweep_nor_run_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="holds neither manifest.json nor config.json"):
        merge(str(tmp_path / "all"), [str(tmp_path / "a")])
