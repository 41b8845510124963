"""Configs: typed, closed, identified; bad ones are one line and exit code 2 before anything
compiles."""

import copy
import dataclasses
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, run_mujax, tiny_tree

from configs import base, quickstart
from mujax import main
from mujax.cli import flags, train
from mujax.cli.flags import parse
from mujax.config import DERIVED, SECTIONS, differences, make_run_config
from mujax.errors import UserError
from mujax.models import MODELS
from mujax.sweep.grid import expand_sweep
from mujax.training import sharding


def without_sweep(tree):
    return {key: value for key, value in tree.items() if key != "sweep"}


def test_base_config_names_every_field_and_no_other():
    for model, (model_cls, _) in MODELS.items():
        tree = base.get_config(model).to_dict()
        assert make_run_config(without_sweep(tree)).model_name == model
        for section, cls in {**SECTIONS, "model": model_cls}.items():
            derived = DERIVED if section == "model" else ()
            names = {field.name for field in dataclasses.fields(cls)} - set(derived)
            assert tree[section].keys() - {"name"} == names - {"name"}, section


def test_rules_of_the_mesh_are_the_layouts_own_and_no_part_of_what_a_run_is():
    tree = without_sweep(tiny_tree())
    cfg = make_run_config(tree)
    assert cfg.mesh.axis_rules == sharding.RULES
    tree["mesh"] = {
        "data": 2,
        "fsdp": 1,
        "tensor": 1,
        "slices": 2,
        "rules": ("layers=fsdp", "embed=tensor"),
    }
    other = make_run_config(tree)
    assert other.mesh.axis_rules == (("layers", "fsdp"), ("embed", "tensor"))
    assert other.id == cfg.id


def test_run_id_follows_the_config_alone():
    """Unmoved by the order of keys, moved by any field."""
    tree = without_sweep(tiny_tree())
    cfg = make_run_config(tree)
    shuffled = {key: tree[key] for key in reversed(tree)}
    assert make_run_config(shuffled).id == cfg.id
    other = {
        "seed": 1, "model.d_model": 32, "model.norm_gain": "vector", "parameterization.name": "sp",
        "optim.b2": 0.9,
        "optim.decay_form": "l2", "schedule.name": "cosine", "train.steps": 13, "data.seq_len": 17,
    }  # fmt: skip
    ids = {cfg.id}
    for field, value in other.items():
        changed = copy.deepcopy(tree)
        *sections, last = field.split(".")
        node = changed
        for section in sections:
            node = node[section]
        node[last] = value
        ids.add(make_run_config(changed).id)
        assert [line.split(":")[0] for line in differences(tree, changed)] == [field]
    assert len(ids) == 1 + len(other)


def test_ratios_of_the_width_are_exact():
    """Every ratio of two decimals up to 8 at ordinary widths, and fractions that no float holds:
    whole or refused."""
    transformer, recurrent, moe = (make_run_config(without_sweep(tiny_tree(m))).model for m in (
        "transformer", "recurrent", "moe"
    ))  # fmt: skip
    ratios = [(Fraction(k, 100), k / 100) for k in range(1, 801)] + [
        (Fraction(8, 3), 8 / 3),
        (Fraction(4, 3), 4 / 3),
    ]
    accepted = 0
    for width in (64, 96, 100, 192, 200, 250, 700, 1000):
        wide = dataclasses.replace(transformer, d_model=width, d_head=2)
        for exact, ratio in ratios:
            size = exact * width
            if size.denominator == 1:
                assert dataclasses.replace(wide, mlp_ratio=ratio).dims["mlp"] == size, (
                    ratio,
                    width,
                )
                accepted += 1
            else:
                with pytest.raises(UserError, match="whole number"):
                    dataclasses.replace(wide, mlp_ratio=ratio)
    assert accepted > 1000
    assert (
        dataclasses.replace(recurrent, d_model=100, recurrent_ratio=4.35).dims["recurrent"] == 435
    )
    for factor in (Fraction(11, 10), Fraction(22, 10), Fraction(7, 3)):
        # places of an expert: rounded up, but exactly
        cfg = dataclasses.replace(
            moe, capacity_factor=float(factor), num_experts=8, experts_per_token=2
        )
        for tokens in (400, 300, 120, 64, 7):
            assert cfg.capacity(tokens) == min(tokens, math.ceil(factor * tokens * 2 / 8)), (
                factor,
                tokens,
            )


def test_sweep_is_a_product_in_order():
    points = expand_sweep(quickstart.get_config().to_dict())
    assert len(points) == len({cfg.id for _, cfg in points})
    overrides, cfg = points[-1]
    assert overrides["model.d_model"] == cfg.model.d_model == 128
    assert overrides["optim.learning_rate"] == cfg.optim.learning_rate
    widths, names = (
        {o["model.d_model"] for o, _ in points},
        {o["parameterization.name"] for o, _ in points},
    )
    assert (widths, names) == ({32, 64, 128}, {"sp", "mup"})


BAD_FLAGS = {
    "unknown field": (["--config.model.dmodel=3"], "did you mean d_model?"),
    "unknown section": (["--config.modle.d_model=3"], "did you mean model?"),
    "not a number": (
        ["--config.train.steps=abc"],
        "--config.train.steps=abc is not a whole number",
    ),
    "fraction for an int": (
        ["--config.train.steps=1.5"],
        "--config.train.steps=1.5 is not a whole number",
    ),
    "negative steps": (["--config.train.steps=-5"], "train.steps = -5 must be above 0"),
    "zero batch": (["--config.train.batch_size=0"], "train.batch_size = 0 must be above 0"),
    "d_head": (["--config.model.d_model=72"], "d_head = 16 does not divide model.d_model = 72"),
    "odd d_head": (["--config.model.d_head=1"], "must be even"),
    "base width": (["--config.parameterization.base_width=40"], "parameterization.base_width = 40"),
    "mlp width": (["--config.model.mlp_ratio=1.01"], "whole number"),
    "a section": (["--config.optim=3"], "--config.optim=3: this is a section; set a field of it"),
    "neither true nor false": (
        ["--config.model.bias=maybe"],
        "--config.model.bias=maybe is not True or False",
    ),
    "another model": (["--config.model.name=moe"], "use --config=configs/base.py:moe"),
    "parameterization": (["--config.parameterization.name=mupp"], "there are; did you mean mup?"),
    "optimizer": (
        ["--config.optim.name=adam"],
        "not one of: adamw, sgd, lion, adafactor, muon; did you mean adamw?",
    ),
    "decay form": (
        ["--config.optim.decay_form=coupled"],
        "not one of: l2, decoupled, independent, constant",
    ),
    "schedule": (["--config.schedule.name=step"], "not one of: constant, linear, cosine, wsd"),
    "warm-up": (["--config.schedule.warmup_steps=500"], "exceeds train.steps = 200"),
    "wsd without decay": (["--config.schedule.name=wsd"], "wsd needs decay_steps above 0"),
    "NaN": (["--config.optim.learning_rate=nan"], "not a finite number"),
    "float32 underflow": (["--config.optim.eps=1e-60"], "not a finite number that fits float32"),
    "beta": (["--config.optim.b2=1.0"], "must be in [0, 1)"),
    "dtype": (["--config.model.dtype=float16"], "not one of: float32, bfloat16"),
    "seed": (["--config.seed=-1"], "seed = -1 must be in"),
    "mesh size": (["--config.mesh.fsdp=0"], "mesh.fsdp = 0 must be above 0"),
    "mesh and batch": (
        ["--config.mesh.data=3", "--config.mesh.fsdp=2"],
        "mesh.data * mesh.fsdp = 6 does not divide train.batch_size / train.accumulation = 16",
    ),
    "slices": (
        ["--config.mesh.data=4", "--config.mesh.slices=3"],
        "mesh.slices = 3 does not divide mesh.data = 4",
    ),
    "rule's axis": (
        ["--config.mesh.rules=('embd=fsdp',)"],
        "'embd=fsdp' names no axis of a weight; did you mean embed",
    ),
    "axis of another model": (
        ["--config.mesh.rules=('context=fsdp',)"],
        "'context=fsdp' names no axis of a weight",
    ),
    "rule's mesh axis": (["--config.mesh.rules=('embed=tensr',)"], "did you mean tensor?"),
    "rule onto data": (
        ["--config.mesh.rules=('embed=data',)"],
        "mesh.rules: 'embed=data' names no mesh axis that splits weights; known: fsdp, tensor",
    ),
    "no rule": (
        ["--config.mesh.rules=('embed',)"],
        "mesh.rules: 'embed' names no mesh axis that splits weights",
    ),
    "two rules": (
        ["--config.mesh.rules=('embed=fsdp', 'mlp=tensor', 'embed=tensor')"],
        "mesh.rules: 'embed=tensor' is a second rule for embed",
    ),
    "train on a mesh": (
        ["--config.mesh.data=16"],
        "mesh.data * mesh.fsdp * mesh.tensor = 16 is more than the 8 devices here",
    ),
    "no path": (["--config.data.name=text"], "data.path = ''"),
    "missing corpus": (
        ["--config.data.name=text", "--config.data.path=/no/such/file"],
        "no such file or folder",
    ),
    "glob": (
        ["--config.data.name=text", f"--config.data.path={ROOT}", "--config.data.glob=/etc/*"],
        "cannot be read",
    ),
    "long path": (["--config.data.name=text", f"--config.data.path={'x' * 300}"], "cannot be read"),
    "bucket elsewhere": (["--workdir=s3://bucket/run"], "neither a folder nor gs://BUCKET/PATH"),
    "nameless bucket": (["--workdir=gs://"], "neither a folder nor gs://BUCKET/PATH"),
    "single dash": (["-config.train.stps=3"], "did you mean steps?"),
    "flag file": (["--flagfile=/no/such/file"], "/no/such/file"),
    "unwritable workdir": (["--workdir=/proc/version/run"], "cannot be written"),
    "unknown flag": (["--cofnig.seed=1"], "unknown flag --cofnig.seed; known: config"),
    "positional": (["seed=1"], "unexpected argument 'seed=1'"),
}


@pytest.fixture
def compilations(monkeypatch):
    """Counts calls of XLA's compiler."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            events.append(name) if name.endswith("backend_compile_duration") else None
        )
    )
    return events


def refused(argv, capsys, complaint):
    # ml_collections loads every config file into this one module
    sys.modules.pop("config_config", None)
    code = main.run(argv)
    output = capsys.readouterr()
    assert code == 2
    assert output.err.count("\n") == 1, output.err
    assert complaint in output.err
    assert output.out == ""


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_config_is_one_line_and_exit_code_2(case, capsys, tmp_path, compilations):
    extra, complaint = BAD_FLAGS[case]
    argv = ["train", f"--config={ROOT}/configs/base.py", f"--workdir={tmp_path / 'run'}", *extra]
    refused(argv, capsys, complaint)
    assert not compilations
    assert not list(tmp_path.glob("run/*"))


def test_a_bucket_without_its_library_is_one_line_and_exit_code_2(
    capsys, compilations, monkeypatch
):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    train = ["train", f"--config={ROOT}/configs/base.py", "--workdir=gs://bucket/run"]
    refused(train, capsys, "--workdir=gs://bucket/run needs gcsfs: pip install 'mujax[gcs]'")
    refused(["sample", "--workdir=gs://bucket/run"], capsys, "needs gcsfs")
    sweep = ["sweep", f"--config={ROOT}/configs/quickstart.py", "--workdir=gs://bucket/run"]
    refused(sweep, capsys, "is not a local folder; only mujax train and sample take buckets")
    assert not compilations


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        (
            "--config.sweep.optim.learning_rate=()",
            "sweep.optim.learning_rate = () is not a non-empty tuple",
        ),
        ("--config.sweep.model.d_model=(32,32)", "twice"),
        ("--config.sweep.optim.weight_decay=(0.0,0.1)", "sweeps no such axis"),
        ("--config.sweep.model.d_model=(32,40)", "d_head = 16 does not divide"),
        ("--config.sweep.parameterization.name=('sp','mip')", "'mip' is not one of"),
    ],
)
def test_bad_sweep_is_one_line_and_exit_code_2(flag, complaint, capsys, tmp_path, compilations):
    refused(
        ["sweep", f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path}", flag],
        capsys,
        complaint,
    )
    assert not compilations
    assert not list(tmp_path.iterdir())


BASE_AND = (
    "from configs import base\ndef get_config():\n  c = base.get_config()\n  c.sweep.seed = (0, "
    "1)\n"
)
BAD_FILES = {
    "syntax": ("def get_config(: pass", "SyntaxError"),
    "empty": ("x = 1", "get_config"),
    "number": ("def get_config(): return 3", "not a ConfigDict"),
    "raises": ("def get_config(): return 1 / 0", "ZeroDivisionError"),
    "unknown_field": (BASE_AND + "  c.sed = 1\n  return c", "unknown field sed"),
    "missing_section": (BASE_AND + "  del c.train\n  return c", "train is missing"),
    "cause": (
        "def get_config():\n  try: {}[1]\n  except KeyError: raise ValueError('no profile') from "
        "None",
        "ValueError",
    ),
    "exits": ("def get_config(): raise SystemExit(0)", "SystemExit"),
    "no_sections": (BASE_AND + "  c.sweep = None\n  return c", "sweep = None is not a section"),
    "deep_axis": (
        BASE_AND + "  c.sweep.optim = {'b1': {'x': (1,)}}\n  return c",
        "b1 is a field, not a section",
    ),
    "list_name": (
        BASE_AND + "  c.sweep.model = {'name': ([1],)}\n  return c",
        "model.name = [1] is not one of",
    ),
    "axis": (
        BASE_AND + "  c.sweep.optim = {'lr': (1.,)}\n  return c",
        "the config has no field optim.lr",
    ),
    "no_axis": ("from configs import base\nget_config = base.get_config", "sweep has no axis"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_config_file(case, capsys, tmp_path):
    text, complaint = BAD_FILES[case]
    file = tmp_path / "config.py"
    file.write_text(text)
    refused(["sweep", f"--config={file}", f"--workdir={tmp_path / 'run'}"], capsys, complaint)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["fly"], "unknown verb 'fly'; known: train"),
        (["swep"], "unknown verb 'swep'; did you mean sweep?"),
        (["train"], "train needs --config=FILE.py"),
        (["train", "--config=nope.py"], "--config=nope.py: no such file"),
        (["train", f"--config={ROOT}/configs/base.py"], "train needs --workdir=DIR"),
        (
            ["train", f"--config={ROOT}/configs/base.py:rnn", "--workdir=x"],
            "model.name = 'rnn' is not one of",
        ),
        (["report"], "report needs --workdir=DIR"),
        (["report", "--workdir=/no/such/dir"], "no such folder"),
    ],
)
def test_bad_command_line(argv, complaint, capsys):
    refused(argv, capsys, complaint)


def test_a_crash_is_no_verdict(monkeypatch, capsys):
    """1 is one, and launchers never run a job again that ends with it."""

    def run(**flags):
        raise RuntimeError("a chip is lost")

    monkeypatch.setitem(main.VERBS, "explain", dataclasses.replace(main.VERBS["explain"], run=run))
    assert main.run(["explain", "--config=configs/base.py"]) == 70
    assert "RuntimeError: a chip is lost" in capsys.readouterr().err


def test_negative_numbers_are_values():
    assert flags._joined(["--config.data.eos_id", "-1", "-x", "--a", "-.5", "--b"]) == [
        "--config.data.eos_id=-1", "--x", "--a=-.5", "--b",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", ["train", "sweep", "merge", "report"])
def test_help_has_an_example_and_says_what_is_left_behind(verb, capsys):
    assert main.run([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"\n  mujax {verb} --" in text
    assert "eaves in DIR" in text
    assert "Exit codes: 0" in text
    assert max(map(len, text.splitlines())) <= 100


def test_flags_with_spaces_and_numpy_numbers():
    parsed = parse(
        train.VERB, ["--config", f"{ROOT}/configs/base.py", "--workdir", "x", "--config.seed", "3"]
    )
    assert (parsed["workdir"], parsed["config"]["seed"]) == ("x", 3)
    numpy_numbers = tiny_tree(optim__learning_rate=np.float64(0.25), train__steps=np.int64(20))
    plain = tiny_tree(optim__learning_rate=0.25, train__steps=20)
    assert (
        make_run_config(without_sweep(numpy_numbers)).id == make_run_config(without_sweep(plain)).id
    )


def test_workdir_of_another_config_is_one_line(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 1}')
    refused(
        ["train", f"--config={ROOT}/configs/base.py", f"--workdir={tmp_path}"],
        capsys,
        "belongs to another config",
    )
    (tmp_path / "config.json").write_text("[1]")
    refused(
        ["train", f"--config={ROOT}/configs/base.py", f"--workdir={tmp_path}"],
        capsys,
        "is not a JSON object",
    )


def test_command_line_in_a_process_of_its_own(tmp_path):
    done = run_mujax(
        "train", "--config=configs/base.py", f"--workdir={tmp_path}", "--config.train.steps=-1"
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "mujax: train.steps = -1 must be above 0\n",
    )
    assert run_mujax("--help").returncode == 0


def test_reading_a_config_imports_no_tensorflow():
    code = """
import sys
from mujax.config import make_run_config
from mujax.training import loop
from mujax.sweep import study
from configs import quickstart
tree = quickstart.get_config().to_dict()
del tree["sweep"]
make_run_config(tree)
heavy = {"tensorflow", "seqio", "torch", "matplotlib"}
print(sorted({name.partition(".")[0] for name in sys.modules} & heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(ROOT), check=True
    )
    assert done.stdout == "[]\n"
