"""The algebra of sweeps, shards, and what a dry run says."""

import re
import shlex

import jax
import pytest

from configs import quickstart
from mujax import main
from mujax.cli import train
from mujax.cli.flags import parse
from mujax.config import make_run_config
from mujax.errors import UserError
from mujax.sweep.compilation import choose_lanes
from mujax.sweep.dry_run import dry_run, estimate_bytes
from mujax.sweep.grid import axis, chain, expand_sweep, product, zipped
from mujax.sweep.points import Shard, curves_along, group_points, make_points

WIDTHS = axis("model.d_model", (16, 32))
RATES = axis("optim.learning_rate", (0.1, 0.2, 0.3))


def test_algebra():
    """Sizes multiply under product, add under chain and stay under zipped; the last axis varies
    fastest."""
    assert product(WIDTHS, RATES)[:4] == (
        {"model.d_model": 16, "optim.learning_rate": 0.1},
        {"model.d_model": 16, "optim.learning_rate": 0.2},
        {"model.d_model": 16, "optim.learning_rate": 0.3},
        {"model.d_model": 32, "optim.learning_rate": 0.1},
    )
    seeds = axis("seed", (0, 1, 2))
    assert [(p["optim.learning_rate"], p["seed"]) for p in zipped(RATES, seeds)] == [
        (0.1, 0),
        (0.2, 1),
        (0.3, 2),
    ]
    assert len(product(chain(WIDTHS, RATES), seeds)) == (2 + 3) * 3
    assert product(product(WIDTHS, RATES), seeds) == product(WIDTHS, product(RATES, seeds))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: axis("seed", ()), "without points"),
        (lambda: zipped(WIDTHS, RATES), r"different lengths \[2, 3\]"),
        (lambda: product(RATES, RATES), "optim.learning_rate is set by two"),
        (lambda: chain(WIDTHS, ()), "without points"),
    ],
)
def test_bad_algebra(build, complaint):
    with pytest.raises(UserError, match=complaint):
        build()


def test_points_and_axes_multiply(tiny):
    """sweep.points beside a mirrored axis; equal runs by different overrides are found out; an
    unknown field too."""
    tree = tiny()
    tree["sweep"] = {"seed": (0, 1), "points": product(WIDTHS, RATES)}
    runs = expand_sweep(tree)
    assert len(runs) == 12
    assert {(cfg.model.d_model, cfg.optim.learning_rate, cfg.seed) for _, cfg in runs} == {
        (d, lr, s) for d in (16, 32) for lr in (0.1, 0.2, 0.3) for s in (0, 1)
    }
    bad = {
        "one point twice": ({"seed": 0}, {"mesh.fsdp": 2}),  # a mesh is no part of what a run is
        "the config has no field optim.lr": ({"optim.lr": 0.1},),
        "not a non-empty tuple of dicts": ("seed",),
        "seed is set by two": ({"seed": 3},),
    }
    for complaint, points in bad.items():
        tree["sweep"] = {"points": points, **({"seed": (0, 1)} if "two" in complaint else {})}
        with pytest.raises(UserError, match=complaint):
            expand_sweep(tree)


def test_what_splits_a_group_and_what_does_not(tiny):
    """Numbers are lanes of one program; shapes, lengths, options and families are groups of their
    own."""
    numbers = {
        "optim.learning_rate": 0.3, "optim.weight_decay": 0.1, "optim.b1": 0.8, "optim.b2": 0.9,
        "optim.eps": 1e-6,
        "optim.grad_clip": 0.5, "schedule.warmup_steps": 3, "schedule.final_ratio": 0.1, "seed": 7,
        "parameterization.name": "sp", "parameterization.base_width": 8,
        "parameterization.override": ("input=sp",),
    }  # fmt: skip
    shapes = {
        "model.d_model": 32, "model.num_layers": 3, "model.norm_gain": "vector",
        "train.batch_size": 8,
        "train.steps": 10,
        "optim.name": "lion", "optim.decay_form": "independent", "schedule.name": "cosine",
        "data.seq_len": 8,
        "mesh.fsdp": 2,
    }  # fmt: skip
    tree = tiny()
    base = {"optim.learning_rate": 0.25}
    tree["sweep"] = {"points": [base, *({**base, name: value} for name, value in numbers.items())]}
    assert len(group_points(make_points(tree))) == 1
    tree["sweep"] = {
        "points": [base, *({**base, "seed": 1, name: value} for name, value in shapes.items())]
    }
    assert len(group_points(make_points(tree))) == 1 + len(shapes)


def test_shards_are_a_partition_and_keep_curves_together(tiny):
    tree = tiny()
    tree["sweep"] = {
        "points": product(WIDTHS, RATES), "parameterization": {"name": ("sp", "mup", "mup_table8")},
        "seed": (0, 1),
    }  # fmt: skip
    points = make_points(tree)
    for field in (None, "optim.learning_rate"):
        parts = [Shard(i, 4).take(points, field) for i in range(4)]
        ids = [point.id for part in parts for point in part]
        assert sorted(ids) == sorted(point.id for point in points)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= (1 if field is None else 6)
    owner = {point.id: i for i, part in enumerate(parts) for point in part}
    curves, _ = curves_along(points, "optim.learning_rate")
    assert len(curves) == 6
    assert all(len({owner[point.id] for point in curve}) == 1 for curve in curves)
    for text in ("4/4", "1", "a/b", "-1/4", "1/0"):
        with pytest.raises(UserError, match="is not i/n"):
            Shard.parse(text)


def test_a_dry_run_names_every_point_by_a_command_that_is_it(tiny, capsys):
    """Each printed command, parsed again, is the run whose id it names."""
    tree = quickstart.get_config().to_dict()
    flags = [
        "--config=configs/quickstart.py",
        "--config.train.steps=40",
        "--config.sweep.model.d_model=(32,)",
    ]
    assert main.run(["sweep", *flags, "--dry_run", "--config.refine.log2_step=0.5"]) == 0
    text = capsys.readouterr().out
    assert "16 points in 1 groups, 1 training programs" in text
    assert f"{16 * 40 * 16 * 64:.3g} tokens" in text
    assert "until its best value is bracketed within 2^0.5" in text
    commands = [line for line in text.splitlines() if line.startswith("mujax train")]
    assert len(commands) == 16
    for command in commands[::5]:
        argv = shlex.split(command)[2:]
        parsed = parse(train.VERB, argv)
        assert make_run_config(parsed["config"]).id == parsed["workdir"].removeprefix("runs/")
    tree = tiny()
    tree["mesh"].update(data=4, slices=2)  # not for train
    tree["sweep"] = {
        "points": [
            {"parameterization.override": ("unembed.lr=0.5", "input=sp"), "mesh.fsdp": 1, "seed": 1}
        ]
    }
    command = dry_run(tree, Shard(), ["--config=configs/base.py"]).splitlines()[-1]
    parsed = parse(train.VERB, shlex.split(command)[2:])["config"]
    assert parsed["parameterization"]["override"] == ("unembed.lr=0.5", "input=sp")
    assert make_run_config(parsed).mesh.num_devices == 1
    assert command.count("mesh") == 2


def test_estimated_memory_is_near_what_the_compiler_counts(tiny, monkeypatch):
    """From shapes alone, within a factor of two of the compiled program of one lane."""
    from mujax.data.loader import load_batches

    monkeypatch.setattr(jax, "device_count", lambda: 1)
    tree = tiny(model__d_model=64, train__batch_size=16)
    tree["sweep"] = {"seed": (0,)}
    run = make_points(tree)[0].run
    _, validation, _ = load_batches(run.cfg, [0])
    measured = choose_lanes([run], validation, vmapped=False).bytes_per_device
    state, training = estimate_bytes(run)
    # weights and two moments, float32
    assert state == pytest.approx(4 * 3 * run.num_params, rel=1e-3)
    assert 0.5 < training / measured < 2, (training, measured)
    assert re.search(r"KiB|MiB", dry_run(tree, Shard(), []))
