"""The check against bugs planted one at a time, in tables, models and optimizers, and against what is right."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from conftest import tiny_tree

from mujax import optim, steps
from mujax.check.coordinates import measure
from mujax.check.oracle import symmetry, symmetry_findings
from mujax.check.run import FAST, at_width, check_config, static_runs
from mujax.check.static import static_findings
from mujax.check.verdict import judge
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.models import MODELS
from mujax.models.transformer import Transformer, TransformerConfig
from mujax.parameterization import PARAMETERIZATIONS, Parameterization, Power, ScaleRules, is_scaling
from mujax.parameterization.mup import MUP
from mujax.parameterization.table import ONE
from mujax.params import MuModule
from mujax.run import make_run

WIDTHS = (16, 32, 64, 128)
PLAN = FAST._replace(seq_len=32)
HIDDEN = {f"blocks/attention/{w}" for w in ("wq", "wk", "wv", "wo")} | {"blocks/mlp/wi", "blocks/mlp/wo"}
GAINS = {"blocks/attention_norm/gain", "blocks/mlp_norm/gain", "final_norm/gain"}


def changed(role: str, **numbers):
    """muP with some numbers of one row replaced."""
    row = MUP.rows[role]
    if "lr" in numbers:
        numbers["lr"] = {**row.lr, "adam": numbers["lr"]}
    return MUP.replace(rows={**MUP.rows, role: row.replace(**numbers)})


def each_row(f):
    return MUP.replace(rows={role: f(row) for role, row in MUP.rows.items()})


def attention(power: Power):
    return MUP.replace(scales=ScaleRules(attention=power))


GROWING = {"parameterization__base_d_head": 8}
EPS = {"optim__eps": 1e-3}
DECAY = {"optim__weight_decay": 0.1}


class Variant(NamedTuple):
    """A table, changes of the config, the culprits that must be named (none if it is right) and those that may be."""

    table: Parameterization
    changes: dict
    culprits: set[str]
    may_name: set[str] = set()


VARIANTS = {
    "right: table 3": Variant(MUP, {}, set()),
    "right: table 8": Variant(PARAMETERIZATIONS["mup_table8"], {}, set()),
    "right: table 9": Variant(PARAMETERIZATIONS["mup_table9"], {}, set()),
    "right: absolute": Variant(PARAMETERIZATIONS["mup_abs"], {"optim__learning_rate": 0.1}, set()),
    "right: mean field": Variant(PARAMETERIZATIONS["mean_field_full"], {}, set()),
    "right: zero-init q": Variant(MUP, {"parameterization__override": ("*/wq.init=0",)}, set()),
    "right: decay with constant shrink": Variant(PARAMETERIZATIONS["mup_constant_shrink"], DECAY, set()),
    "right: eps 1e-3": Variant(MUP, EPS, set()),
    "right: heads that grow": Variant(MUP, GROWING, set()),
    "sp": Variant(PARAMETERIZATIONS["sp"], {}, HIDDEN | {"unembed"}),
    "hidden LR not scaled": Variant(changed("hidden", lr=ONE), {}, HIDDEN),
    "hidden LR m^-1/2": Variant(changed("hidden", lr=Power(ratio_in=-0.5)), {}, HIDDEN),
    "one matrix not scaled": Variant(MUP, {"parameterization__override": ("blocks/mlp/wo.lr=sp",)}, {"blocks/mlp/wo"}),
    "readout LR not scaled": Variant(changed("output", lr=ONE), {}, {"unembed"}),
    "readout init n^-1/2": Variant(changed("output", init=Power(fan_in=-0.5)), {}, {"unembed"}),
    "readout LR 1/m^2": Variant(changed("output", lr=Power(ratio_in=-2)), {}, {"unembed"}),
    "output multiplier on top of table 3": Variant(
        MUP.replace(scales=dataclasses.replace(MUP.scales, logits=Power(ratio_in=-1))), {}, {"logits scale"},
    ),
    "embedding LR 1/m": Variant(changed("input", lr=Power(ratio_out=-1)), {}, {"embed"}),
    "embedding LR m^-1/2": Variant(changed("input", lr=Power(ratio_out=-0.5)), {}, {"embed"}),
    "embedding init n^-1/2": Variant(changed("input", init=Power(ratio_out=-0.5)), {}, {"embed"}),
    "hidden init not scaled": Variant(changed("hidden", init=Power(fan_in=-0.5, ratio_in=0.5)), {}, HIDDEN),
    "attention 1/sqrt(d), heads grow": Variant(attention(Power(fan_in=-0.5)), GROWING, {"attention scale"}),
    "no attention scale, heads grow": Variant(attention(ONE), GROWING, {"attention scale"}),
    "eps 1e-3 not scaled": Variant(each_row(lambda row: row.replace(eps=ONE)), EPS, {"embed"}, HIDDEN | GAINS),
    "eps 1e-3 follows the LR": Variant(each_row(lambda row: row.replace(eps=row.lr["adam"])), EPS, {"embed"}, GAINS),
    "gain LR 1/m": Variant(changed("vector", lr=Power(ratio_out=-1)), {}, GAINS),
    "decoupled decay on the scaled LR": Variant(MUP, DECAY, HIDDEN | {"unembed"}),
    "missing base constant": Variant(attention(Power(fan_in=-1)), {}, {"attention scale"}),
}  # fmt: skip


def config(table: str, text_file, **changes):
    tree = tiny_tree(
        data__name="text", data__path=str(text_file), parameterization__name=table,
        model__norm_gain=True, model__d_head=8, model__num_layers=1, train__batch_size=4, data__seq_len=32,
        **{"optim__learning_rate": 0.01, "parameterization__base_width": 16, **changes},
    )  # fmt: skip
    return check_config(make_run_config({key: value for key, value in tree.items() if key != "sweep"}), PLAN)


def judge_all(variants, cfgs, seeds, widths=WIDTHS):
    """name -> Verdict, all variants of one program side by side."""
    first = next(iter(cfgs.values()))
    batches, validation, _ = load_batches(first.data, first.train, seeds)
    measured = {name: {} for name in variants}
    runs = {name: {width: make_run(at_width(cfgs[name], width)) for width in widths} for name in variants}
    for width in widths:
        lanes = [
            make_run(at_width(dataclasses.replace(cfgs[name], seed=seed), width)) for name in variants for seed in seeds
        ]
        values = measure(lanes, batches, validation[0], PLAN.horizons)
        for i, name in enumerate(variants):
            own = slice(i * len(seeds), (i + 1) * len(seeds))
            measured[name][width] = {quantity: array[own] for quantity, array in values.items()}
    return {
        name: judge(runs[name], measured[name], static_findings(static_runs(cfgs[name], widths))) for name in variants
    }


@pytest.mark.parametrize("seeds", [(0, 1, 2), (10, 11, 12), (20, 21, 22)], ids=str)
@pytest.mark.parametrize("heads", ["fixed", "growing"])
def test_mutation_suite(heads, seeds, text_file, monkeypatch):
    """Every planted bug is rejected with its culprit and nothing else named; every right variant passes."""
    cfgs = {}
    for i, (name, variant) in enumerate(VARIANTS.items()):
        if ("parameterization__base_d_head" in variant.changes) == (heads == "growing"):
            monkeypatch.setitem(PARAMETERIZATIONS, f"variant{i}", variant.table.replace(name=f"variant{i}"))
            cfgs[name] = config(f"variant{i}", text_file, **variant.changes)
    verdicts = judge_all(list(cfgs), cfgs, seeds)
    wrong = []
    for name, verdict in verdicts.items():
        named, variant = set(verdict.culprits), VARIANTS[name]
        if not variant.culprits <= named <= variant.culprits | variant.may_name:
            failed = [finding for finding in verdict.findings if finding.level == "fail"]
            wrong.append(f"{name}: named {sorted(named)}, wants {sorted(variant.culprits)}: {failed}")
    assert not wrong, "\n".join(wrong)


class AttentionScaledTwice(Transformer):
    def __call__(self, tokens_BT, hps):
        return super().__call__(tokens_BT, hps._replace(attention_scale=hps.attention_scale**2))


class LogitsDividedByWidth(Transformer):
    def __call__(self, tokens_BT, hps):
        return super().__call__(tokens_BT, hps._replace(logits_scale=hps.logits_scale * 16 / self.cfg.d_model))


class EmbeddingTimesSqrtWidth(Transformer):
    def __call__(self, tokens_BT, hps):
        return super().__call__(tokens_BT, hps._replace(embedding_scale=self.cfg.d_model**0.5))


class ResidualDividedByWidth(Transformer):
    def __call__(self, tokens_BT, hps):
        return super().__call__(tokens_BT, hps._replace(residual_scale=16 / self.cfg.d_model))


declare = MuModule.weight


def declared(tensor: str, role: str, text: str = ""):
    """The transformer with one tensor declared otherwise."""

    def weight(self, name, own_role, own_text, dist="normal"):
        if tensor == "/".join((*self.path, name)):
            own_role, own_text = role, text or own_text
        return declare(self, name, own_role, own_text, dist)

    return weight


def frozen(self, name, role, text, dist="normal"):
    """The transformer with wk behind a stopped gradient."""
    value = declare(self, name, role, text, dist)
    return jax.lax.stop_gradient(value) if name == "wk" else value


FORKS = {
    "attention scaled twice": (AttentionScaledTwice, "attention scale"),
    "logits divided by the width, again": (LogitsDividedByWidth, "logits scale"),
    "embedding times sqrt(d_model)": (EmbeddingTimesSqrtWidth, "embedding scale"),
    "residual branches divided by the width": (ResidualDividedByWidth, "residual scale"),
    "wk never updated": (Transformer, "blocks/attention/wk"),
}


@pytest.mark.parametrize("name", FORKS)
def test_fork_with_a_bug(name, text_file, monkeypatch):
    """Bugs in a model, under a right table, which training alone can show."""
    module, culprit = FORKS[name]
    if name == "wk never updated":
        monkeypatch.setattr(MuModule, "weight", frozen)
    monkeypatch.setitem(MODELS, name, (TransformerConfig, module))
    changes = GROWING if module is AttentionScaledTwice else {}
    cfg = dataclasses.replace(config("mup", text_file, **changes), model_name=name)
    verdict = judge_all([name], {name: cfg}, (0, 1, 2), widths=(16, 64))[name]
    assert verdict.culprits == (culprit,), [finding for finding in verdict.findings if finding.level == "fail"]


@pytest.mark.parametrize(
    ("tensor", "role", "text", "advice"),
    [
        ("blocks/mlp/wo", "output", "", "'hidden'"),
        ("unembed", "hidden", "", "'output'"),
        ("embed", "hidden", "", "'input'"),
        ("blocks/attention/wq", "hidden", "embed heads -> head_dim", "'output'"),  # heads counted into fan_in
    ],
)
def test_declaration_that_its_axes_contradict(tensor, role, text, advice, text_file, monkeypatch):
    monkeypatch.setattr(MuModule, "weight", declared(tensor, role, text))
    monkeypatch.setitem(MODELS, tensor, (TransformerConfig, Transformer))
    cfg = dataclasses.replace(config("mup", text_file), model_name=tensor)
    failed = [finding for finding in static_findings(static_runs(cfg, WIDTHS)) if finding.level == "fail"]
    assert {finding.subject for finding in failed} == {tensor}
    assert f"declared {role!r}" in failed[0].text and advice in failed[0].fix


def test_integer_ratio_of_widths(text_file, monkeypatch):
    """m = width // base width, base 24: no number is a power of the width any more."""
    cfg = config("mup", text_file, parameterization__base_width=24)
    assert not static_findings(static_runs(cfg, WIDTHS))

    def floored(self, size, base):
        return exact(self, size, dataclasses.replace(base, fan_in=size.fan_in / max(size.fan_in // base.fan_in, 1)))

    exact = Power.__call__
    monkeypatch.setattr(Power, "__call__", floored)
    findings = static_findings(static_runs(cfg, WIDTHS))
    assert {f.subject for f in findings if f.level == "fail"} >= HIDDEN | {"unembed"}
    assert any("no power of the width" in f.text for f in findings)


def overwritten_rates(*args):
    *static, hps, scalings, multiplier = args
    flat = jax.tree.map(lambda s: s._replace(lr=1.0), scalings, is_leaf=is_scaling)
    return optim.make_optimizer(*static, hps, flat, multiplier)


def test_schedule_that_overwrites_the_rates(text_file, monkeypatch):
    """The table is right and unused: seen in the updates, and by the oracle."""
    monkeypatch.setattr(steps, "make_optimizer", overwritten_rates)
    cfg = config("mup", text_file)
    verdict = judge_all(["mup"], {"mup": cfg}, (0, 1, 2), widths=(16, 64))["mup"]
    assert set(verdict.culprits) == HIDDEN | {"unembed"}
    assert all("what applies it" in f.fix for f in verdict.findings if f.level == "fail" and f.part == "coordinates")


def oracle_of(text_file, **changes):
    cfg = config("mup_table8", text_file, model__d_model=32, **changes)
    rows = np.random.default_rng(0).integers(0, 256, (10, 4, 33))
    return symmetry(make_run(cfg), rows)


@pytest.mark.parametrize(
    ("bug", "changes"),
    [
        ("rates", {}),
        ("clip", {"optim__grad_clip": 0.05}),
        ("eps", {"optim__eps": 1e-6}),
        ("decay", {"optim__weight_decay": 1.0}),
    ],
)
def test_oracle_sees_optimizers_that_look_at_stored_weights(bug, changes, text_file, monkeypatch):
    """Each planted bug is far above the tolerance; without it the run is symmetric to rounding."""
    right = oracle_of(text_file, **changes)
    assert right.difference < 1e-12 and not right.broken_by
    adamw = optim.OPTIMIZERS["adamw"]
    if bug == "rates":
        monkeypatch.setattr(steps, "make_optimizer", overwritten_rates)
    elif bug == "clip":
        monkeypatch.setattr(optim, "effective_grad_norm", lambda grads, scalings: optax.tree.norm(grads))
    elif bug == "eps":
        monkeypatch.setitem(optim.OPTIMIZERS, "adamw", dataclasses.replace(adamw, hps=("b1", "b2")))
    else:

        def decay_at_the_stored_rate(*args):
            return make(*args)

        make = optim.make_optimizer
        no_gauge = dataclasses.replace(adamw, gauge=0, core=adamw.core)
        monkeypatch.setattr(optim, "_on_effective_weights", lambda core, scalings: core)
        monkeypatch.setitem(optim.OPTIMIZERS, "adamw", no_gauge)
        monkeypatch.setattr(steps, "make_optimizer", decay_at_the_stored_rate)
    wrong = oracle_of(text_file, **changes)
    assert wrong.difference > 1e-8
    assert "unembed" in wrong.broken_by
    assert {f.subject for f in symmetry_findings(wrong)} == set(wrong.broken_by)
