"""Refinement: from a coarse grid to a bracketed optimum, bounded, and the same again after an
interruption."""

import math

import pytest
from conftest import tiny_tree
from helpers import Engine, bowl

from mujax.errors import UserError
from mujax.storage.files import read_json, read_jsonl
from mujax.sweep.grid import axis, zipped
from mujax.sweep.points import Shard, make_points
from mujax.sweep.refine import propose, refine_config, refine_curve
from mujax.sweep.study import sweep


def settle(loss, grid, log2_step=0.5, max_extension=4.0):
    """Adds what is asked for until nothing is: (losses, last note)."""
    losses = {float(x): loss(x) for x in grid}
    ends = (min(losses), max(losses))
    for _ in range(40):
        proposal = refine_curve(losses, ends, log2_step, max_extension)
        if not proposal.add:
            return losses, proposal.note
        assert not set(proposal.add) & set(losses)
        losses.update({x: loss(x) for x in proposal.add})
    raise AssertionError("never settled")


@pytest.mark.parametrize("optimum", [-6.3, -5.0, -4.01, -8.7, -1.2])
@pytest.mark.parametrize("log2_step", [1.0, 0.5, 0.125])
def test_finds_the_vertex_of_a_parabola(optimum, log2_step):
    """From a grid of -7, -5, -3, also where the vertex lies outside of it; off by at most half a
    step."""
    losses, note = settle(lambda x: (x - optimum) ** 2, (-7, -5, -3), log2_step)
    xs = sorted(losses)
    i = min(range(len(xs)), key=lambda k: losses[xs[k]])
    assert abs(xs[i] - optimum) <= log2_step / 2 + 1e-9
    assert max(xs[i + 1] - xs[i], xs[i] - xs[i - 1]) <= log2_step
    assert "bracketed" in note
    assert len(losses) <= 3 + 4 + 2 * math.ceil(math.log2(2 / log2_step)) + 4


def test_extension_is_bounded_and_says_so():
    losses, note = settle(lambda x: x, (-7, -5, -3), 0.5, max_extension=4.0)
    assert sorted(losses) == [-11, -9, -7, -5, -3]
    assert "edge of the grid" in note
    assert "no further" in note
    losses, note = settle(lambda x: -x, (-7, -5, -3), 0.5, max_extension=0.0)
    assert sorted(losses) == [-7, -5, -3]


def test_divergence_brackets_from_above_but_is_no_optimum():
    losses, note = settle(lambda x: -x if x < -4.5 else None, (-7, -5, -3), 0.5)
    best = min((x for x in losses if losses[x] is not None), key=lambda x: losses[x])
    assert best == -5.0
    assert losses[min(x for x in losses if x > best)] is None
    losses, note = settle(lambda x: None, (-7, -5), 0.5, max_extension=2.0)
    assert "every point diverged" in note
    assert min(losses) == -9


def test_refinement_of_a_sweep_and_the_same_again(tiny, tmp_path, capsys):
    """Two tables, a grid too low: extended, bracketed, recorded; a second call adds nothing and
    recomputes nothing."""
    tree = tiny("mlp")
    tree["sweep"] = {
        "optim": {"learning_rate": (2.0**-12, 2.0**-11)},
        "parameterization": {"name": ("sp", "mup")},
    }
    engine = Engine(bowl)
    coarse = sweep(tree, tmp_path, train_runs=engine)
    tree["refine"] = {
        "field": "optim.learning_rate",
        "log2_step": 2.0,
        "max_extension": 3.0,
        "num_seeds": 0,
    }
    rows = sweep(tree, tmp_path, train_runs=engine)
    assert rows[:4] == coarse  # a second pass over a finished sweep keeps it
    assert "extended to 2^-10" in capsys.readouterr().err
    for name in ("sp", "mup"):
        lrs = sorted(
            math.log2(row["learning_rate"]) for row in rows if row["parameterization"] == name
        )
        assert lrs == [-12, -11, -10, -9, -8]
    notes = read_json(tmp_path / "manifest.json")["refinement"]
    assert len(notes) == 2
    assert all("lets it grow no further" in note for note in notes)
    content = (tmp_path / "results.jsonl").read_bytes()
    assert sweep(tree, tmp_path, train_runs=engine) == rows
    assert engine.steps == 10 * 12
    assert (tmp_path / "results.jsonl").read_bytes() == content
    assert len(list(read_jsonl(tmp_path / "results.jsonl"))) == 10


def test_seeds_where_the_verdict_falls(tiny, tmp_path, capsys):
    """The best value, of the mean over seeds in the end, and all within two steps have three seeds,
    others the one."""
    tree = tiny("mlp", seed=5)
    tree["sweep"] = {"optim": {"learning_rate": tuple(2.0**k for k in (-14, -10, -6, -2))}}
    tree["refine"] = {
        "field": "optim.learning_rate",
        "log2_step": 1.0,
        "max_extension": 4.0,
        "num_seeds": 3,
    }
    engine = Engine(lambda cfg: None if cfg.optim.learning_rate > 0.2 else bowl(cfg))
    rows = sweep(tree, tmp_path, train_runs=engine)
    by_lr = {}
    for row in rows:
        by_lr.setdefault(math.log2(row["learning_rate"]), {})[row["seed"]] = row["final_loss"]
    finite = {x: losses for x, losses in by_lr.items() if None not in losses.values()}
    means = {x: sum(losses.values()) / len(losses) for x, losses in finite.items()}
    best = min(means, key=means.get)
    near = [x for x in by_lr if abs(x - best) <= 2]
    assert best == -6 and {-7, -6, -5} <= set(near)
    assert by_lr[-2] == {5: None}
    for x in near:
        assert sorted(by_lr[x]) == [5, 6, 7]
        assert len(set(by_lr[x].values())) == 3
    assert sum(map(len, by_lr.values())) == len(rows) < 3 * len(by_lr)
    assert by_lr[-14].keys() == {5}
    assert " runs of more seeds there" in capsys.readouterr().err
    content = (tmp_path / "results.jsonl").read_bytes()
    assert sweep(tree, tmp_path, train_runs=engine) == rows
    assert (tmp_path / "results.jsonl").read_bytes() == content
    alone = dict(
        tree,
        sweep={"optim": {"learning_rate": (2.0**best,)}},
        refine={**tree["refine"], "log2_step": 0.0},
    )
    again = sweep({**alone, "seed": 7}, tmp_path / "alone", train_runs=engine)[0]
    assert (again["id"], again["final_loss"]) == (
        next(row["id"] for row in rows if row["seed"] == 7 and row["learning_rate"] == 2.0**best),
        by_lr[best][7],
    )


def refined(tree, loss):
    """(points, last notes) of a whole refinement of a sweep whose losses a function of the run's
    config gives."""
    tree["refine"] = {
        "field": "optim.learning_rate",
        "log2_step": 1.0,
        "max_extension": 4.0,
        "num_seeds": 3,
    }
    grid = points = make_points(tree)
    cfg = refine_config(tree, grid)
    while True:
        rows = {point.id: {"final_loss": loss(point.run.cfg)} for point in points}
        new, notes = propose(tree, grid, points, rows, cfg)
        points = [*points, *new]
        if not new:
            return points, notes


def parabola(cfg, best=-5.0):
    return (math.log2(cfg.optim.learning_rate) - best) ** 2


def test_what_goes_along_with_the_learning_rate_goes_on_along_with_it():
    rates = tuple(2.0**k for k in (-10, -8, -6))
    decays = axis("optim.weight_decay", (2.0**-9 / lr for lr in rates))
    tree = tiny_tree("mlp", sweep={"points": zipped(axis("optim.learning_rate", rates), decays)})
    points, (note,) = refined(tree, parabola)
    assert {p.run.cfg.optim.weight_decay * p.run.cfg.optim.learning_rate for p in points} == {
        2.0**-9
    }
    settled = {math.log2(p.run.cfg.optim.learning_rate) for p in points if p.run.cfg.seed == 2}
    assert {-6, -5, -4} <= settled
    assert note.startswith("weight_decay=0.00195312/learning_rate: best at 2^-5, bracketed by")
    # one curve
    assert [len(Shard(i, 2).take(points, "optim.learning_rate")) for i in (0, 1)] == [
        len(points),
        0,
    ]
    # A whole number that would have to be a fraction, and what follows no rule
    steps = {
        (8, 4, 2): "would be 2.82843, which is no whole number",
        (9, 4, 2): "by no power law, so its value",
    }
    for values, said in steps.items():
        along = axis("schedule.warmup_steps", values)
        tree = tiny_tree("mlp", sweep={"points": zipped(axis("optim.learning_rate", rates), along)})
        points, (note,) = refined(tree, parabola)
        assert said in note and len(points) == (3 if values[0] == 9 else 4)


def test_the_best_value_is_that_of_levelled_seeds():
    """Seed 0 alone is lucky by 10: its rates would beat those that two further seeds have been
    added to."""
    tree = tiny_tree(
        "mlp",
        sweep={"optim": {"learning_rate": tuple(2.0**k for k in (-9, -7, -6, -5, -4, -2, -1))}},
    )
    points, (note,) = refined(tree, lambda cfg: parabola(cfg) + (10 if cfg.seed else 0))
    assert note == "best at 2^-5, bracketed by 2^-6 and 2^-4"
    seeds = {}
    for point in points:
        seeds.setdefault(math.log2(point.run.cfg.optim.learning_rate), set()).add(
            point.run.cfg.seed
        )
    assert {x for x, found in seeds.items() if found == {0, 1, 2}} == {-7, -6, -5, -4}


def test_bad_refinement(tiny):
    tree = tiny(sweep={"seed": (0, 1)})
    for changes, complaint in (
        ({"log2_step": -1.0}, "refine.log2_step = -1.0 must be at least"),
        ({"log2_step": 1e-9}, "refine.log2_step = 1e-09 must be at least"),
        ({"field": "optim.lr"}, "refine.field = 'optim.lr' is None"),
        ({"field": "model.d_model"}, "it must be a number above 0"),
        ({"log2_step": "x"}, "refine.log2_step = 'x' is str"),
    ):
        tree["refine"] = {
            "field": "optim.learning_rate",
            "log2_step": 1.0,
            "max_extension": 4.0,
            "num_seeds": 0,
            **changes,
        }
        with pytest.raises(UserError, match=complaint):
            refine_config(tree, make_points(tree))
