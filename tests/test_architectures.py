"""The mixture of experts and the linear recurrence: against loops in numpy, by causality, and with
mistakes planted."""

import dataclasses
import difflib
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import config, failed, judge_all, judge_one
from conftest import ROOT
from flax import linen as nn
from models import make

from mujax import main
from mujax.models import MODELS, moe, recurrent
from mujax.models.protocol import Context
from mujax.models.transformer import Block, Transformer
from mujax.report import figures
from mujax.training.steps import make_train_fns


def module_and_params(run, seed=0):
    return MODELS[run.cfg.model_name][1](run.cfg.model), jax.jit(make_train_fns(run.program).init)(
        seed, run.hps, run.scalings
    ).params


def experts_by_a_loop(cfg, weights, x_BTD):
    """Every token by itself, in the order of the row; places of an expert are counted down."""
    out = np.zeros_like(x_BTD)
    for b, x_TD in enumerate(x_BTD):
        left = [cfg.capacity(len(x_TD))] * cfg.num_experts
        for t, x_D in enumerate(x_TD):
            logits = x_D @ weights["router"]
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            chosen = np.argsort(-shares, kind="stable")[: cfg.experts_per_token]
            total = shares[chosen].sum() if cfg.experts_per_token > 1 else 1.0
            for e in chosen:
                if left[e]:
                    left[e] -= 1
                    h_F = np.maximum(x_D @ weights["wi"][e], 0)
                    out[b, t] += shares[e] / total * (h_F @ weights["wo"][e])
    return out


@pytest.mark.parametrize(("active", "factor"), [(1, 1.0), (2, 0.5), (2, 8.0), (3, 1.0)])
def test_experts_equal_a_loop_over_tokens(active, factor):
    """With places for all, and with so few that some tokens go without."""
    run = make(
        "moe", model__num_experts=4, model__experts_per_token=active, model__capacity_factor=factor
    )
    cfg = run.cfg.model
    rng = np.random.default_rng(active)
    D, F, E = cfg.d_model, 2 * cfg.d_model, 4
    sizes = {"router": (D, E), "wi": (E, D, F), "wo": (E, F, D)}
    weights = {name: rng.normal(size=size) for name, size in sizes.items()}
    x_BTD = rng.normal(size=(3, 12, D))
    with jax.enable_x64(True):
        out_BTD = moe.Experts(cfg).apply({"params": weights}, jnp.asarray(x_BTD), Context(run.hps))
    expected = experts_by_a_loop(cfg, weights, x_BTD)
    np.testing.assert_allclose(out_BTD, expected, rtol=1e-5, atol=1e-5)  # shares are of float32
    if factor in (0.5, 8.0):
        assert (np.abs(expected).sum(-1) == 0).any() == (factor == 0.5)


def test_what_is_minimized_has_the_imbalance_and_what_is_reported_has_not():
    """The router's gradient is that of the loss plus balance_weight times that of the imbalance,
    taken by itself."""
    run = make("moe", model__num_layers=1, model__balance_weight=0.5)
    module, params = module_and_params(run)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16)))
    cfg = run.cfg.model

    def loss(router, module=module):
        mlp = params["blocks"]["mlp"] | {"router": router}
        changed = params | {"blocks": params["blocks"] | {"mlp": mlp}}
        logits, seen = module.apply({"params": changed}, tokens, run.hps, mutable="activations")
        shares = jax.nn.softmax(seen["activations"]["blocks"]["mlp"]["router_logits"][0], axis=-1)
        chosen = jax.nn.one_hot(
            jax.lax.top_k(shares, cfg.experts_per_token)[1], cfg.num_experts
        ).sum(axis=2)
        return jnp.mean(logits**2), moe.load_balancing_loss(shares, chosen)

    router = params["blocks"]["mlp"]["router"]
    ours = jax.jit(jax.grad(lambda r: loss(r)[0]))(router)
    without = MODELS["moe"][1](dataclasses.replace(cfg, balance_weight=0.0))
    with_imbalance = jax.jit(jax.grad(lambda r: 0.5 * loss(r, without)[1]))(router)
    plain = jax.jit(jax.grad(lambda r: loss(r, without)[0]))(router)
    np.testing.assert_allclose(ours, plain + with_imbalance, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(with_imbalance).max()) > 1e-4


def test_the_load_balancing_loss_is_one_where_all_are_alike():
    shares = jnp.full((2, 6, 3), 1 / 3)
    assert float(
        moe.load_balancing_loss(shares, jax.nn.one_hot(jnp.arange(12).reshape(2, 6) % 3, 3))
    ) == (pytest.approx(1))
    one = jax.nn.one_hot(jnp.zeros((2, 6), int), 3)
    assert float(moe.load_balancing_loss(one, one)) == pytest.approx(3)


def test_the_scan_equals_a_loop():
    rng = np.random.default_rng(0)
    log_a, x, first = (
        -rng.uniform(0, 3, (2, 9, 5)),
        rng.normal(size=(2, 9, 5)),
        rng.normal(size=(2, 5)),
    )
    for h in (None, first):
        expected, state = [], np.zeros((2, 5)) if h is None else h
        for t in range(9):
            state = np.exp(log_a[:, t]) * state + x[:, t]
            expected.append(state)
        with jax.enable_x64(True):
            found = recurrent.scan(
                jnp.asarray(log_a), jnp.asarray(x), None if h is None else jnp.asarray(h)
            )
        np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-12)


class Gates(recurrent.Recurrence):
    @nn.compact
    def __call__(self, x_BTR):
        return self.gates(x_BTR)


def test_decays_start_between_the_slowest_and_the_fastest():
    """With its gate open a channel keeps 0.9 to 0.999 of its state a step, and half-way the square
    root of that."""
    run = make("recurrent")
    params = {"wa": jnp.zeros((16, 16)), "wi": jnp.zeros((16, 16)), "decay": jnp.zeros(16)}
    log_a, _ = Gates(run.cfg.model).apply({"params": params}, jnp.ones((1, 1, 16)))
    np.testing.assert_allclose(np.exp(2 * log_a[0, 0]), np.linspace(0.9, 0.999, 16), rtol=1e-4)


@pytest.mark.parametrize("pieces", [(1,) * 16, (5, 1, 10)])
def test_a_recurrence_goes_on_from_its_memory(pieces):
    """In pieces, with the memory in between, as in one call; pieces shorter than the kernel too."""
    run = make("recurrent")
    module, params = module_and_params(run)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 16))
    whole = module.apply({"params": params}, tokens, run.hps, method="features")
    cache, position, found = module.empty_cache(2, 4), 0, []
    for piece in pieces:
        here = tokens[:, position : position + piece]
        out, cache = module.apply(
            {"params": params}, here, run.hps, cache, position, method="extend"
        )
        found.append(out)
        position += piece
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=2e-4, atol=2e-5)


def fork(base_model, **changes):
    """The model with another module in its block."""
    block = type("ForkedBlock", (base_model.block_class,), changes)
    return type("Fork", (base_model,), {"block_class": block})


def text_of(tensor, role, text):
    """The module's own declarations, but for one."""

    def weight(self, name, own_role, own_text, dist="normal"):
        if name == tensor:
            own_role, own_text = role, text or own_text
        return super(type(self), self).weight(name, own_role, own_text, dist)

    return weight


MISTAKES = {
    "the router as a hidden matrix": ("moe", "router", "hidden", "", "blocks/mlp/router"),
    "the fan-in of an expert taken not to grow": ("moe", "wi", "input", "", "blocks/mlp/wi"),
    "experts whose out-projection is an output": ("moe", "wo", "output", "", "blocks/mlp/wo"),
    "gates whose fan-in is taken not to grow": (
        "recurrent",
        "wa",
        "input",
        "",
        "blocks/recurrence/wa",
    ),
    "an input gate as a readout": ("recurrent", "wi", "output", "", "blocks/recurrence/wi"),
    "a decay that learns as a hidden matrix": (
        "recurrent",
        "decay",
        "hidden",
        "recurrent ->",
        "blocks/recurrence/decay",
    ),
}


@pytest.mark.parametrize("model", ["moe", "recurrent"])
def test_check_names_what_is_planted(model, text_file, monkeypatch):
    config_cls, module = MODELS[model]
    part = {"moe": ("mlp_class", moe.Experts), "recurrent": ("mixer_class", recurrent.Recurrence)}[
        model
    ]
    cfg = dataclasses.replace(
        config("mup", text_file), model=make(model, model__num_layers=1).cfg.model
    )
    cfgs = {}
    for mistake, (of_model, tensor, role, text, _) in MISTAKES.items():
        if of_model == model:
            wrong = type("Wrong", (part[1],), {"weight": text_of(tensor, role, text)})
            monkeypatch.setitem(MODELS, mistake, (config_cls, fork(module, **{part[0]: wrong})))
            cfgs[mistake] = dataclasses.replace(cfg, model_name=mistake)
    # what is declared wrong is a wrong number, and nothing else that a program knows
    for mistake, (verdict, _) in judge_all(cfgs).items():
        assert verdict.culprits == (MISTAKES[mistake][-1],), (mistake, failed(verdict))


class GrowingRecurrence(recurrent.Recurrence):
    """Its output times sqrt(d_model)."""

    def __call__(self, x_BTD, context):
        return super().__call__(x_BTD, context) * self.cfg.d_model**0.5


class CountsExpertsAsItsFanIn(moe.Experts):
    """Divides what the experts make by the root of their width once more."""

    def mlp(self, x_TD):
        return super().mlp(x_TD) * self.cfg.d_model**-0.5


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(16, 64), (16, 32, 64, 128), (32, 64, 128, 256)])
@pytest.mark.parametrize(
    ("model", "part", "culprit"),
    [
        ("recurrent", {"mixer_class": GrowingRecurrence}, "blocks/recurrence_out"),
        ("moe", {"mlp_class": CountsExpertsAsItsFanIn}, "blocks/mlp_out"),
    ],
)
def test_a_wrong_factor_is_named_at_all_widths(
    model, part, culprit, widths, text_file, monkeypatch
):
    config_cls, module = MODELS[model]
    monkeypatch.setitem(MODELS, "planted", (config_cls, fork(module, **part)))
    cfg = dataclasses.replace(
        config("mup", text_file), model=make(model).cfg.model, model_name="planted"
    )
    verdict = judge_one(cfg, widths)
    assert verdict.culprits == (culprit,), failed(verdict)


def test_another_architecture_is_one_file_and_one_line(tmp_path, text_file):
    """In a copy of the package, the example of the guide is trained like any other."""
    for folder in ("mujax", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    models = tmp_path / "mujax" / "models"
    shutil.copy(ROOT / "docs" / "examples" / "running_mean.py", models)
    listed = (models / "__init__.py").read_text()
    (models / "__init__.py").write_text(
        listed.replace('    "recurrent",\n', '    "recurrent",\n    "running_mean",\n')
    )
    added, changed = [], []
    for file in sorted(tmp_path.rglob("*.py")):
        own = ROOT / file.relative_to(tmp_path)
        lines = file.read_text().splitlines()
        if not own.exists():
            added.append(file.name)
        else:
            old = own.read_text().splitlines()
            changed += [line for line in difflib.ndiff(old, lines) if line[0] in "+-"]
    assert (added, changed) == (["running_mean.py"], ['+     "running_mean",'])
    flags = {"d_model": 16, "d_head": 8}
    command = [
        sys.executable, "-m", "mujax", "train", "--config=configs/base.py:running_mean",
        "--workdir=run", "--config.train.steps=4", "--config.train.eval_interval=4",
        "--config.train.eval_batches=1", "--config.schedule.warmup_steps=1",
        "--config.data.name=text",
        f"--config.data.path={text_file}",
        *(f"--config.model.{name}={value}" for name, value in flags.items()),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4


def test_hooks_are_those_of_the_transformer():
    assert moe.MoETransformer.block_class.mixer_class is Block.mixer_class
    assert issubclass(recurrent.RecurrentModel, Transformer)


def test_a_gate_that_is_shut_has_a_gradient():
    """Then a_t is 1 in float32, and the root of 1 - a_t^2 has none of its own."""
    run = make("recurrent")

    def loss(wa):
        params = {"wa": wa, "wi": jnp.ones((16, 16)), "decay": jnp.zeros(16)}
        log_a, factor = Gates(run.cfg.model).apply({"params": params}, jnp.ones((1, 1, 16)))
        return jnp.sum(log_a + factor)

    for size in (-1.0, -8.0, -1e4):
        assert np.isfinite(jax.grad(loss)(jnp.full((16, 16), size))).all()


@pytest.mark.parametrize("model", ["moe", "recurrent"])
def test_the_account_is_that_of_the_committed_rows(model, tmp_path, monkeypatch, capsys):
    """What `mujax report` prints of them, and the README's drifts from it."""
    monkeypatch.setattr(figures, "save_figures", lambda *args: [])  # most of the time
    here = ROOT / "experiments" / "architectures"
    for file in ("results.jsonl", "manifest.json"):
        shutil.copy(here / model / file, tmp_path / file)
    assert main.run(["report", f"--workdir={tmp_path}"]) == 0
    printed = capsys.readouterr().out.rpartition("\n\n")[0] + "\n"
    assert printed == (here / model / "report.txt").read_text()
    told = [
        float(number) for number in re.findall(r"[-+]\d\.\d\d\b", (here / "README.md").read_text())
    ]
    drifts = re.findall(
        r"moves by (\S+) log2 LR per doubling of width \(90%: (\S+) to (\S+)\)", printed
    )
    assert len(drifts) == 2
    for drift in drifts:
        assert all(min(abs(float(number) - near) for near in told) < 0.0051 for number in drift), (
            drift
        )
