"""Whatever a field, a flag or a config file holds: a config with finite numbers, or one line that
says what is wrong.

Fields are enumerated, so that a new one is covered; nothing is compiled here, and no array is made.
"""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from conftest import tiny_tree

from configs import base
from mujax import main
from mujax.cli.flags import number, numbers
from mujax.config import DERIVED, SECTIONS, ConfigMaker, RefineConfig, leaves, make_run_config
from mujax.errors import UserError, cut, shown
from mujax.fields import Range
from mujax.launch.slices import parse_topology
from mujax.models import MODELS
from mujax.plan.topology import load_topology
from mujax.sweep.grid import expand_sweep
from mujax.sweep.points import Shard, make_points
from mujax.sweep.refine import refine_config
from mujax.training.run import RunMaker


class Strange:
    def __repr__(self):
        raise RuntimeError("no repr")


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


NUMBERS = (
    0, -1, 1e30, 1e-30, 1e12, 1e308, math.nan, math.inf, -math.inf, -0.0, 0.99999999999, 2**24,
    2**31 - 1, 2**31, 2**40,
    2**63, 10**12, 10**400, -(10**400), 10**5000, np.float32(2), np.int64(2**40), np.float64("nan"),
)  # fmt: skip
OTHERS = (True, "x", "a\0b", b"x", None, (), (1,), {}, Strange(), [math.nan], np.arange(2))


def assert_one_line(error, field: str = ""):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500 and field in text, text


def cases(model: str):
    """(field, the config with each wild value there) of every field of a model's config but the
    sweep."""
    tree = {key: value for key, value in base.get_config(model).to_dict().items() if key != "sweep"}
    for field, _ in leaves(tree):
        section, _, name = field.rpartition(".")
        for value in (*NUMBERS, *OTHERS):
            yield (
                field,
                {
                    **tree,
                    **({section: {**tree[section], name: value}} if section else {name: value}),
                },
            )


def check(field: str, tree, make_config, make_run=None) -> bool:
    """Whether it is accepted; if so its numbers are finite, and if not one line says so."""
    try:
        cfg = make_config(tree)
        refine_config(tree, ())
        run = make_run(cfg) if make_run else None
    except UserError as e:
        assert "\n" not in str(e) and len(str(e)) < 500, (field, str(e))
        return False
    json.dumps(cfg.as_dict(), allow_nan=False)
    if run:
        numbers = [*jax.tree.leaves(run.scalings), *run.hps._replace(grad_clip=1.0)]
        assert np.all(np.isfinite(np.asarray(numbers, np.float64))), field
    return True


@pytest.mark.parametrize("model", MODELS)
def test_every_field_with_every_value(model):
    make_config = ConfigMaker()
    accepted = {field for field, tree in cases(model) if check(field, tree, make_config)}
    assert {"seed", "optim.eps", "data.glob"} <= accepted  # not all is refused


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_field_with_every_value_resolves(model):
    """What is accepted has a finite table, though no such model could be trained."""
    make_config, make_run = ConfigMaker(), RunMaker()
    assert any([check(field, tree, make_config, make_run) for field, tree in cases(model)])


def test_every_field_says_what_it_means_and_what_it_may_be():
    models = {f"model {name}": cls for name, (cls, _) in MODELS.items()}
    for section, cls in {**SECTIONS, "refine": RefineConfig, **models}.items():
        for field in dataclasses.fields(cls):
            if field.name not in DERIVED:
                assert len(field.metadata["doc"]) >= 5, f"{section}.{field.name}"
                assert isinstance(field.metadata["within"], Range), f"{section}.{field.name}"
                assert field.default is not dataclasses.MISSING


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"train.steps": 1e12}, "train.steps = 1000000000000.0 is float, not int"),
        ({"train.steps": 10**9}, "at most 16777216"),
        ({"model.d_model": 2**30}, "parameters are more than any machine"),
        (
            {"model.d_model": 2**21, "model.num_layers": 2**14},
            "parameters are more than any machine",
        ),
        ({"model.mlp_ratio": 1e30}, "'mlp' has size"),
        ({"model.num_layers": 10**9}, "at most 16384"),
        ({"data.vocab_size": 2**31}, "fits int32"),
        (
            {"data.vocab_size": 2**31 - 1, "model.d_model": 2**20},
            "parameters are more than any machine",
        ),
        ({"parameterization.base_width": 2**30}, "parameterization.base_width"),
        ({"parameterization.base_width": math.nan}, "is float, not int"),
        ({"optim.b2": 0.99999999999}, "as a float32 too"),
        ({"train.batch_size": 2**27}, "int32"),
        ({"seed": 10**400}, "<a number of 401 digits>"),
    ],
    ids=shown,
)
def test_values_that_ended_in_a_traceback(fields, complaint):
    tree = {**tiny_tree(model__d_head=16), "sweep": {"points": [fields]}}
    with pytest.raises(UserError, match=complaint) as e:
        make_points(tree)
    assert_one_line(e)


@pytest.mark.parametrize("value", [math.nan, 10**5000, Strange(), b"x", [1, math.inf]], ids=shown)
def test_a_value_that_no_file_can_hold_is_refused_though_every_point_sets_it(value):
    """The dry run and the sweep both expand the sweep; the sweep then writes the config into
    manifest.json."""
    tree = {
        **tiny_tree(optim__learning_rate=value),
        "sweep": {"optim": {"learning_rate": (0.1, 0.2)}},
    }
    with pytest.raises(UserError, match="optim.learning_rate = ") as e:
        expand_sweep(tree)
    assert_one_line(e)
    tree = {
        **tiny_tree(),
        "sweep": {"optim": {"weight_decay": (np.float32(0.5), np.float64(0.25))}},
    }
    assert len(expand_sweep(tree)) == 2


def test_more_points_than_fit_are_not_made():
    axes = {
        name: tuple(0.5 + k / 10**4 for k in range(1000))
        for name in ("b1", "b2", "learning_rate", "weight_decay")
    }
    with pytest.raises(UserError, match="1000000000000 points are more than"):
        expand_sweep({**tiny_tree(), "sweep": {"optim": axes}})


LONG = "1" * 400


@pytest.mark.parametrize(
    "digits", [LONG, "9" * 5000, "-" + LONG, "nan", "inf", "", "\u0661", "1e400", "0x10"], ids=cut
)
def test_numbers_of_flags(digits):
    for read in (
        lambda: number("f", digits, 1, 1),
        lambda: number("f", digits, 1.0, 0),
        lambda: numbers("f", f"1,{digits}"),
        lambda: Shard.parse(f"0/{digits}"),
        lambda: Shard.parse(f"{digits}/{digits}"),
        lambda: parse_topology(f"v4-{digits}"),
        lambda: parse_topology(f"v4:2x2x{digits}"),
        lambda: load_topology(f"v4:2x2x{digits}"),
    ):
        try:
            assert read() in (1, 1.0, [1, 1])  # an Arabic one
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 300, str(e)


FILES = {
    "recursion": "def get_config():\n    return get_config()",
    "memory": "def get_config():\n    raise MemoryError",
    "exit": "import sys\nsys.exit(0)",
    "exit in get_config": "def get_config():\n    raise SystemExit('x')",
    "interrupt": "def get_config():\n    raise KeyboardInterrupt",
    "of its own": "class Own(BaseException): pass\ndef get_config():\n    raise Own('a\\nb')",
    "without text": "class Own(Exception):\n    def __str__(self): raise ValueError\ndef "
    "get_config():\n    raise Own",
    "its own cause": "def get_config():\n    e = ValueError('x'); e.__cause__ = e\n    raise e",
    "syntax": "def get_config(:\n",
    "of exec": "def get_config():\n    exec('a b')",
    "null bytes": "x = 1\0\n",
    "not text": "\xff\xfe",
    "no get_config": "x = 1",
    "in itself": "from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict(); "
    "c.a = c\n"
    "    return c",
    "a placeholder": "from ml_collections import config_dict as d\ndef get_config():\n"
    "    c = d.ConfigDict(); c.a = d.required_placeholder(int)\n    return c",
    "long": f"def get_config():\n    raise ValueError('x' * {10**6})",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_config_file_may_raise_anything(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.getsignal", lambda signum: main._interrupt)  # as the command has it
    file = tmp_path / "config.py"
    file.write_bytes(text.encode("latin-1"))
    for verb in (["train", f"--workdir={tmp_path}/w"], ["sweep", "--dry_run"]):
        assert main.run([verb[0], f"--config={file}", *verb[1:]]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mujax: ") and error.count("\n") == 1 and len(error) < 1000, error


def test_names_of_files_without_null_bytes():
    with pytest.raises(UserError, match="null byte"):
        make_run_config(
            {
                k: v
                for k, v in tiny_tree(data__path="a\0b", data__name="text").items()
                if k != "sweep"
            }
        )
