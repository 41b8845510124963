"""The check against bugs planted one at a time, in tables, models and optimizers, and against what is right."""

import dataclasses

import numpy as np
import pytest
from conftest import tiny_tree

from mujax.check.coordinates import fit_slope, measure
from mujax.check.run import FAST, at_width, check_config, static_runs
from mujax.check.static import static_findings
from mujax.check.verdict import judge
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.parameterization import PARAMETERIZATIONS, Power, ScaleRules
from mujax.parameterization.mup import MUP
from mujax.parameterization.table import ONE
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


ATTENTION_SQRT = MUP.replace(scales=ScaleRules(attention=Power(fan_in=-0.5)))
GROWING = {"parameterization__base_d_head": 8}
EPS = {"optim__eps": 1e-4}
DECAY = {"optim__weight_decay": 0.1}

# name -> (table, changes of the config, tensors and forward scales that must be named: none if it is right)
VARIANTS = {
    "right: table 3": (MUP, {}, set()),
    "right: table 8": (PARAMETERIZATIONS["mup_table8"], {}, set()),
    "right: table 9": (PARAMETERIZATIONS["mup_table9"], {}, set()),
    "right: absolute": (PARAMETERIZATIONS["mup_abs"], {"optim__learning_rate": 0.1}, set()),
    "right: mean field": (PARAMETERIZATIONS["mean_field_full"], {}, set()),
    "right: zero-init q": (MUP, {"parameterization__override": ("*/wq.init=0",)}, set()),
    "right: decay with constant shrink": (PARAMETERIZATIONS["mup_constant_shrink"], DECAY, set()),
    "right: heads that grow": (MUP, GROWING, set()),
    "sp": (PARAMETERIZATIONS["sp"], {}, HIDDEN | {"unembed"}),
    "hidden LR not scaled": (changed("hidden", lr=ONE), {}, HIDDEN),
    "hidden LR m^-1/2": (changed("hidden", lr=Power(ratio_in=-0.5)), {}, HIDDEN),
    "one matrix not scaled": (MUP, {"parameterization__override": ("blocks/mlp/wo.lr=sp",)}, {"blocks/mlp/wo"}),
    "readout LR not scaled": (changed("output", lr=ONE), {}, {"unembed"}),
    "readout init n^-1/2": (changed("output", init=Power(fan_in=-0.5)), {}, {"unembed"}),
    "readout LR 1/m^2": (changed("output", lr=Power(ratio_in=-2)), {}, {"unembed"}),
    "output multiplier on top of table 3": (
        MUP.replace(scales=dataclasses.replace(MUP.scales, logits=Power(ratio_in=-1))), {}, {"logits scale"},
    ),
    "embedding LR 1/m": (changed("input", lr=Power(ratio_out=-1)), {}, {"embed"}),
    "embedding LR m^-1/2": (changed("input", lr=Power(ratio_out=-0.5)), {}, {"embed"}),
    "embedding init n^-1/2": (changed("input", init=Power(ratio_out=-0.5)), {}, {"embed"}),
    "hidden init not scaled": (changed("hidden", init=Power(fan_in=-0.5, ratio_in=0.5)), {}, HIDDEN),
    "attention 1/sqrt(d), heads grow": (ATTENTION_SQRT, GROWING, {"attention scale"}),
    "no attention scale, heads grow": (MUP.replace(scales=ScaleRules(attention=ONE)), GROWING, {"attention scale"}),
    "eps 1e-4 not scaled": (each_row(lambda row: row.replace(eps=ONE)), EPS, {"embed"}),
    "eps 1e-4 follows the LR": (each_row(lambda row: row.replace(eps=row.lr["adam"])), EPS, {"embed"}),
    "gain LR 1/m": (changed("vector", lr=Power(ratio_out=-1)), {}, GAINS),
    "decoupled decay on the scaled LR": (MUP, DECAY, HIDDEN | {"unembed"}),
    "missing base constant": (MUP.replace(scales=ScaleRules(attention=Power(fan_in=-1))), {}, {"attention scale"}),
}  # fmt: skip


def config(table: str, text_file, **changes):
    tree = tiny_tree(
        data__name="text", data__path=str(text_file), parameterization__name=table, parameterization__base_width=16,
        model__norm_gain=True, model__d_head=8, train__batch_size=4, data__seq_len=32,
        **{"optim__learning_rate": 0.01, **changes},
    )  # fmt: skip
    return check_config(make_run_config({key: value for key, value in tree.items() if key != "sweep"}), PLAN)


def judge_all(variants, cfgs, seeds):
    """name -> Verdict, all variants of one program side by side."""
    first = next(iter(cfgs.values()))
    batches, validation, _ = load_batches(first.data, first.train, seeds)
    measured = {name: {} for name in variants}
    runs = {name: {width: make_run(at_width(cfgs[name], width)) for width in WIDTHS} for name in variants}
    for width in WIDTHS:
        lanes = [
            make_run(at_width(dataclasses.replace(cfgs[name], seed=seed), width)) for name in variants for seed in seeds
        ]
        values = measure(lanes, batches, validation[0], PLAN.horizons)
        for i, name in enumerate(variants):
            own = slice(i * len(seeds), (i + 1) * len(seeds))
            measured[name][width] = {quantity: array[own] for quantity, array in values.items()}
    return {
        name: judge(runs[name], measured[name], static_findings(static_runs(cfgs[name], WIDTHS))) for name in variants
    }


@pytest.mark.parametrize("seeds", [(0, 1, 2), (10, 11, 12), (20, 21, 22)], ids=str)
@pytest.mark.parametrize("heads", ["fixed", "growing"])
def test_mutation_suite(heads, seeds, text_file, monkeypatch):
    """Every planted bug is rejected with its culprit and nothing else named; every right variant passes."""
    cfgs = {}
    for i, (name, (table, changes, _)) in enumerate(VARIANTS.items()):
        if ("parameterization__base_d_head" in changes) == (heads == "growing"):
            monkeypatch.setitem(PARAMETERIZATIONS, f"variant{i}", table.replace(name=f"variant{i}"))
            cfgs[name] = config(f"variant{i}", text_file, **changes)
    verdicts = judge_all(list(cfgs), cfgs, seeds)
    wrong = {}
    for name, verdict in verdicts.items():
        culprits, expected = set(verdict.culprits), VARIANTS[name][2]
        if culprits != expected:
            wrong[name] = (sorted(culprits), sorted(expected), [f for f in verdict.findings if f.level == "fail"])
    assert not wrong, "\n".join(f"{name}: named {got}, wants {want}: {why}" for name, (got, want, why) in wrong.items())
