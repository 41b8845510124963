"""A sweep of many points is resolved by what differs between them, with the same result as each
config whole."""

import copy
import dataclasses
import hashlib
import json
import time

import pytest
from conftest import tiny_tree

from mujax.config import OPERATION_SECTIONS, SECTIONS, default_config, make_run_config
from mujax.errors import UserError, shown
from mujax.models import MODELS
from mujax.optimizers import OPTIMIZERS
from mujax.sweep.grid import axis, chain, expand_sweep, product, zipped
from mujax.sweep.points import group_points, make_points
from mujax.training.run import make_run

# Fields of several sections, whole sections, equal numbers of other types, and a section with a
# field set in it
MIXED = chain(
    product(
        axis("model.d_model", (16, 32)),
        axis("optim.learning_rate", (0.1, 0.2, 1)),
        axis("optim.weight_decay", (0, 0.0625, 1.0)),
        axis("seed", (0, 1)),
        axis("data.eos_id", (-1, 1)),
    ),
    product(
        axis("parameterization.name", ("sp", "mup")),
        zipped(axis("train.steps", (13, 14)), axis("mesh.fsdp", (1, 2))),
    ),
    product(
        axis("parameterization.override", (("unembed.lr=0.5",), ["input=sp"])),
        axis("optim.name", ("sgd", "lion")),
    ),
    [
        {
            "schedule": {"name": "wsd", "warmup_steps": 1, "decay_steps": 3, "final_ratio": 0.0},
            "schedule.decay_steps": 4,
        }
    ],
    axis("model.norm_gain", ("vector",)),
)
BAD = (
    {"optim.lr": 0.1},
    {"optim.learning_rate.x": 0.1},
    {"optim.learning_rate": -1.0},
    {"optim.learning_rate": True},
    {"optim.learning_rate": "0.1"},
    {"optim.learning_rate": float("nan")},
    {"optim": 3},
    {"seed": True},
    {"seed": -1},
    {"seed": 10**5000},
    {"model.d_model": 24.0},
    {"model.d_model": 20},
    {"model.d_model": 2**40},
    {"model.d_model": 8, "model.d_head": 16},
    {"model.name": "mlp"},
    {"data.seq_len": 2**31 - 1},
    {"train.batch_size": 3, "mesh.fsdp": 2},
    {"parameterization.base_width": 20},
    {"parameterization.override": ("nothing=sp",)},
    {"mesh.rules": ("embd=fsdp",)},
)


def set_in_full(tree, overrides):
    """The tree of one point, by a copy of all of it."""
    tree = copy.deepcopy(
        {key: value for key, value in tree.items() if key not in ("sweep", "refine")}
    )
    for field, value in overrides.items():
        *sections, last = field.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[last] = copy.deepcopy(value)
    return tree


def own_part(section, defaults):
    """The JSON of what a section has other than its defaults."""
    own = {k: v for k, v in section.items() if k not in defaults or v != as_json(defaults[k])}
    return json.dumps(own, sort_keys=True)


def as_json(value):
    return list(value) if isinstance(value, tuple) else value


def own_of(config, defaults):
    """What names a config: a line of its seed, of its model and of each section with a field of its
    own."""
    kept = [key for key in SECTIONS if key not in OPERATION_SECTIONS]
    sections = {key: own_part(config[key], defaults[key]) for key in kept}
    model = dict(config["model"])
    lines = [f"seed: {config['seed']}"]
    lines.append(f"{model.pop('name')}: {own_part(model, defaults['model'])}")
    lines += [f"{key}: {part}" for key, part in sorted(sections.items()) if part != "{}"]
    return "\n".join(lines)


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_points_together_are_each_point_alone():
    """Ids, groups and tables: of the whole config's JSON, with nothing shared."""
    defaults = default_config()
    tree = {**tiny_tree(), "sweep": {"points": MIXED}}
    points = make_points(tree)
    assert len(points) == len(MIXED) > 80
    wholes = []
    for point, overrides in zip(points, MIXED, strict=True):
        cfg = make_run_config(set_in_full(tree, overrides))
        assert point.id == cfg.id == f"2-{sha(own_of(cfg.as_dict(), defaults))}"
        assert point.run.cfg == cfg
        assert {key: type(value) for key, value in vars(point.run.cfg.optim).items()} == {
            key: type(value) for key, value in vars(cfg.optim).items()
        }
        wholes.append(cfg)
    for point, cfg in list(zip(points, wholes, strict=True))[::7]:
        run = make_run(cfg)
        # A group has names where the program holds a class and an optimizer
        program = dataclasses.asdict(run.program) | {
            "model_name": cfg.model_name,
            "optimizer": cfg.optim.name,
        }
        assert program.pop("model_class") is MODELS[cfg.model_name][1]
        assert run.program.optimizer is OPTIMIZERS[cfg.optim.name]
        train, data = (own_part(cfg.as_dict()[key], defaults[key]) for key in ("train", "data"))
        shared = f"[{json.dumps(program, sort_keys=True)}, {train}, {data}]"
        assert point.run.group == run.group == sha(shared)
        assert (point.run.hps, point.run.table_hash, point.run.program) == (
            run.hps,
            run.table_hash,
            run.program,
        )
    members = {
        p.id: tuple(sorted(q.id for q in group)) for group in group_points(points) for p in group
    }
    assert len(set(members.values())) == len(
        {(p.run.program, p.run.cfg.train, p.run.cfg.data, p.run.cfg.mesh) for p in points}
    )


@pytest.mark.parametrize(
    "bad", BAD, ids=lambda bad: f"{'+'.join(bad)}={shown(list(bad.values())[-1])}"
)
def test_what_is_wrong_with_a_point_is_said_as_if_it_were_alone(bad):
    """After points that share its sections, and alone: the same words."""

    def complaint(points):
        with pytest.raises(UserError) as e:
            make_points({**tiny_tree(), "sweep": {"points": points}})
        assert len(str(e.value)) < 400 and "\n" not in str(e.value)
        return str(e.value)

    assert complaint([*MIXED[:40:3], bad]) == complaint([bad])


def test_equal_points_are_found():
    """Also where they are written otherwise: 1 and 1.0, or a mesh, which is no part of what a run
    is."""
    for points in (
        [{"optim.weight_decay": 1}, {"optim.weight_decay": 1.0}],
        [{"seed": 0}, {"mesh.fsdp": 2}],
    ):
        with pytest.raises(UserError, match="one point twice"):
            expand_sweep({**tiny_tree(), "sweep": {"points": points}})


def test_what_a_point_sets_is_not_seen_by_another():
    """Also where a whole section is set, and a field in it."""
    section = {**tiny_tree()["optim"], "learning_rate": 0.25}
    points = [
        {"optim": section, "optim.b1": 0.5},
        {"optim": section},
        {"optim.b1": 0.25},
        {"seed": 3},
    ]
    tree = {**tiny_tree(), "sweep": {"points": points}}
    before = copy.deepcopy(tree)
    found = [(cfg.optim.learning_rate, cfg.optim.b1) for _, cfg in expand_sweep(tree)]
    rate, b1 = tree["optim"]["learning_rate"], tree["optim"]["b1"]
    assert found == [(0.25, 0.5), (0.25, b1), (rate, 0.25), (rate, b1)]
    assert tree == before


def test_sections_are_all_of_a_config():
    """An id is made of the sections' own JSON: none may be missing there."""
    assert {"seed", "model_name", "model", *SECTIONS} == {
        field.name for field in dataclasses.fields(make_run_config(set_in_full(tiny_tree(), {})))
    }


def test_many_points_take_no_longer_each_than_few():
    """Far below what a whole config takes, which is 20 times as much as this bound on one quiet
    core."""
    tree = {
        **tiny_tree(),
        "sweep": {
            "points": product(
                axis("seed", range(30)), axis("optim.learning_rate", [2.0**-k for k in range(30)])
            )
        },
    }
    make_points({**tree, "sweep": {"seed": (0,)}})  # what is traced once
    start = time.process_time()
    assert len(make_points(tree)) == 900
    together = time.process_time() - start
    start = time.process_time()
    for seed in range(90):
        make_run(make_run_config(set_in_full(tree, {"seed": seed})))
    alone = 10 * (time.process_time() - start)
    assert together < alone / 4, (together, alone)
