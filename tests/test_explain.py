"""What explain prints, against the optimizer itself; and both verbs on the command line."""

import json
from unittest.mock import patch

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT, run_mujax, tiny_tree

from mujax import main
from mujax.config import make_run_config
from mujax.explain.explain import COLUMNS, describe, explain
from mujax.main import VERBS
from mujax.models import MODELS
from mujax.optimizers import DECAY_FORMS, OPTIMIZERS, make_optimizer
from mujax.parameterization import PARAMETERIZATIONS
from mujax.params import named_leaves
from mujax.training.run import make_run


def config(name="mup", width=64, model="transformer", **overrides):
    tree = tiny_tree(model, model__d_model=width, parameterization__name=name, **overrides)
    return make_run_config({key: value for key, value in tree.items() if key != "sweep"})


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_table_reads_in_100_columns(name):
    """One config, three widths, and the difference from SP; each tensor is there, with its
    source."""
    cfgs = [
        config(name, width, model__norm_gain="vector", optim__weight_decay=0.1)
        for width in (64, 128, 1024)
    ]
    one, several, diff = explain(cfgs[:1]), explain(cfgs), explain(cfgs[:1], diff="sp")
    for text in (one, several, diff):
        assert max(map(len, text.splitlines())) <= COLUMNS
    run = make_run(cfgs[0])
    for tensor in named_leaves(run.metas):
        assert tensor in one
    for row in PARAMETERIZATIONS[name].rows.values():
        arxiv_number = row.source.split()[0].strip(",;")
        assert arxiv_number in one.replace("\n    ", " ")


def test_diff_shows_what_differs_and_nothing_else():
    text = explain([config(width=64)], diff="sp")
    lines = [line.split() for line in text.split("\n\n")[1].splitlines()[1:]]
    changed = {(line[0], line[1]) for line in lines}
    hidden = {f"blocks/attention/w{x}" for x in "qkvo"} | {"blocks/mlp/wi", "blocks/mlp/wo"}
    expected = {(name, number) for name in hidden for number in ("lr", "eps")}
    assert changed == expected | {("embed", "eps"), ("unembed", "init"), ("unembed", "lr")}
    assert "no difference" in explain([config("mup", width=16)], diff="sp")


def test_widths_side_by_side_leave_out_what_is_constant():
    text = explain([config(width=width) for width in (16, 32, 64)])
    blocks = {block.splitlines()[0].partition("  ")[0]: block for block in text.split("\n\n")[1:]}
    assert set(blocks) == {"init", "learning rate", "eps", "forward scale"}
    assert blocks["learning rate"].splitlines()[1].split()[1:4] == ["0.00781", "0.00391", "0.00195"]


@pytest.mark.parametrize("decay_form", DECAY_FORMS)
@pytest.mark.parametrize(
    ("optimizer", "table"),
    [("adamw", "mup_table8"), ("sgd", "mup_table9"), ("lion", "mup"), ("muon", "mup_table8")],
)
def test_decay_steps_are_what_the_optimizer_does(optimizer, table, decay_form):
    """The optimizer, given no gradient, shrinks each weight by 1 / decay_steps of itself in one
    step."""
    cfg = config(
        table, optim__name=optimizer, optim__decay_form=decay_form, optim__weight_decay=0.01
    )
    run = make_run(cfg)
    params = jax.tree.map(lambda meta: np.ones(meta.sizes, np.float32), run.metas)
    chain = make_optimizer(OPTIMIZERS[optimizer], decay_form, run.metas, run.hps, run.scalings, 1.0)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = chain.update(zeros, chain.init(params), params)
    after = named_leaves(optax.apply_updates(params, updates))
    for name, tensor in describe(run)["tensors"].items():
        shrink = 1 - float(np.mean(after[name]))
        if decay_form == "l2":
            assert tensor["decay_steps"] is None  # it goes through the optimizer
        else:
            np.testing.assert_allclose(1 / tensor["decay_steps"], shrink, rtol=2e-2)


def test_json_is_complete():
    runs = json.loads(explain([config(), config(width=128)], diff="sp", as_json=True))
    assert [run["width"] for run in runs["runs"]] == [64, 128] and runs["against"][0][
        "parameterization"
    ] == "sp"
    tensor = runs["runs"][1]["tensors"]["unembed"]
    assert (tensor["fan_in"], tensor["fan_out"], tensor["signature"]) == (
        128,
        256,
        "embed -> vocab",
    )
    assert np.isclose(tensor["init"], 128**-0.5 * 8**-0.5, rtol=1e-6)
    assert tensor["rules"]["lr"] == "m_in^-1" and "2203.03466 Table 3" in tensor["source"]
    assert runs["runs"][0]["scales"]["attention"]["rule"].startswith("d_head^-1/2")


def test_explain_on_the_command_line():
    """In a process of its own, as one of all verbs."""
    done = run_mujax("explain", "--config=configs/quickstart.py", "--diff=sp", "--json")
    assert (
        done.returncode == 0 and json.loads(done.stdout)["against"][0]["parameterization"] == "sp"
    )
    listed = VERBS["explain"].help_text()
    assert all(f"\n  {name}: " in listed for name in PARAMETERIZATIONS)


BROKEN = """
import dataclasses
from configs import base
from mujax.models import MODELS
from mujax.models.mlp import MLPConfig, MLPLanguageModel
from mujax.parameterization import PARAMETERIZATIONS

class Fork(MLPLanguageModel):
    def weight(self, name, role, text, dist="normal"):
        return super().weight(name, "hiden" if name == "w1" else role, text, dist)

def get_config(arg=""):
    c = base.get_config("mlp")
    if arg == "role":
        MODELS["fork"] = (MLPConfig, Fork)
        c.model.name = "fork"
    if arg == "table":
        mup = PARAMETERIZATIONS["mup"]
        rows = {role: row for role, row in mup.rows.items() if role != "vector"}
        PARAMETERIZATIONS["mine"] = mup.replace(name="mine", rows=rows)
    return c
"""


@pytest.mark.parametrize(
    ("verb", "args", "message"),
    [
        (
            "explain",
            ["--config=BROKEN:role"],
            "w1: 'hiden', the role of 'embed -> mlp', is no role; did you mean hidden",
        ),
        ("explain", ["--config=BROKEN:table"], "'mine' has no row for role 'vector'"),
        (
            "explain",
            ["--config=BASE", "--config.parameterization.override=('embd=sp',)"],
            "matches no tensor",
        ),
        (
            "train",
            [
                "--config=BASE",
                "--config.parameterization.override=('embed=sp', 'input.lr=2')",
                "--workdir=DIR",
            ],
            "'embed=sp' and 'input.lr=2' both set embed's lr",
        ),
        ("explain", ["--config=BASE", "--config.parameterization.override=3"], "override"),
        ("explain", ["--config=BASE", "--config.parameterization.name=mupp"], "not one of"),
        ("explain", ["--config=BASE", "--diff=spp"], "--diff=spp is no table; did you mean sp?"),
        ("explain", ["--config=BASE", "--widths=32,x"], "--widths=32,x is not a whole number"),
        ("explain", ["--config=BASE", "--widths=33"], "d_head"),
        (
            "explain",
            ["--config=BASE", "--config.model.num_kv_heads=3"],
            "num_kv_heads = 3 does not divide the 4 heads",
        ),
        (
            "explain",
            ["--config=BASE", "--config.model.tied=True", "--config.parameterization.name=u_mup"],
            "'tied'",
        ),
        (
            "explain",
            ["--config=BASE", "--config.optim.name=muon", "--config.parameterization.name=u_mup"],
            "muon",
        ),
        ("check", ["--config=BASE", "--workdir=DIR", "--widths=32,64,128"], "at least 4"),
        ("check", ["--config=BASE", "--workdir=DIR", "--seeds=0"], "--seeds=0"),
        ("check", ["--config=BASE", "--workdir=/proc/none", "--fast"], "cannot be written"),
        ("check", ["--config=BASE", "--fast"], "needs --workdir"),
    ],
)
def test_bad_input_is_one_line(verb, args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (tmp_path / "broken.py").write_text(BROKEN)
    names = {
        "BROKEN": str(tmp_path / "broken.py"),
        "BASE": "configs/base.py",
        "DIR": str(tmp_path / "out"),
    }
    for name, value in names.items():
        args = [arg.replace(f"={name}", f"={value}") for arg in args]
    with patch.dict(MODELS), patch.dict(PARAMETERIZATIONS):  # what a config adds goes again
        assert main.run([verb, *args]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1, err
    assert not out


@pytest.mark.slow  # the guide's worked example runs it too
def test_check_on_the_command_line(tmp_path):
    """muP passes, SP fails and names the hidden tensors; files are left, and an earlier check is
    kept."""
    args = (
        "--config=configs/base.py:mlp",
        f"--workdir={tmp_path}",
        "--fast",
        "--config.data.name=text",
    )
    args += (
        "--config.data.path=mujax",
        "--config.data.glob=**/*.py",
        "--config.optim.learning_rate=0.01",
    )
    done = run_mujax("check", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines()[:-2])) <= COLUMNS
    report = json.loads((tmp_path / "check.json").read_text())
    assert (
        report["passed"] and report["culprits"] == [] and report["symmetry"]["difference"] < 1e-12
    )
    # 3 seeds, at initialization of 5 draws, on as many devices as there are cores: what fills the
    # last round up is not counted
    assert len(report["seeds"]) == 3
    assert all(
        len(row) == (3 if q["horizon"] else 15) for q in report["measured"] for row in q["values"]
    )
    assert (
        report["tensors"]["w1"]["wants_later"] == -1
        and report["tensors"]["w1"]["verdict"] == "pass"
    )
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    done = run_mujax("check", *args, "--config.parameterization.name=sp")
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "check.json").read_text())
    assert set(report["culprits"]) == {"w0", "w1", "unembed"}
    assert "FAIL: unembed, w0, w1" in done.stdout
    assert json.loads((tmp_path / "earlier/1/check.json").read_text())["passed"]
    assert (tmp_path / "earlier/1/check.png").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_help_reads_in_100_columns(verb):
    assert max(map(len, VERBS[verb].help_text().splitlines())) <= COLUMNS
