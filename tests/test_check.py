"""The check against bugs planted one at a time, in tables, models and optimizers, and against what
is right."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import ENDS, WIDTHS, config, failed, judge_all, judge_one
from conftest import count_compilations, tiny_tree

from mujax import optimizers
from mujax.check.coordinates import (
    NUM_DRAWS,
    Quantity,
    fit_slope,
    measure,
    quick_compilation,
    spectral_norm,
)
from mujax.check.oracle import symmetry, symmetry_findings
from mujax.check.run import at_width, static_runs
from mujax.check.static import static_findings
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.explain.explain import explain
from mujax.models import MODELS
from mujax.models.module import MuModule
from mujax.models.transformer import Transformer, TransformerConfig
from mujax.parameterization import (
    PARAMETERIZATIONS,
    Parameterization,
    Power,
    ScaleRules,
    is_scaling,
)
from mujax.parameterization.mup import MUP
from mujax.parameterization.table import ONE
from mujax.params import signature
from mujax.training import steps
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns

HIDDEN = {f"blocks/attention/{w}" for w in ("wq", "wk", "wv", "wo")} | {
    "blocks/mlp/wi",
    "blocks/mlp/wo",
}
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
# The gradient falls with width: at an eighth of the widths usual for 1e-4 its effect shows at 2e-3
EPS = {"optim__eps": 2e-3}
DECAY = {"optim__weight_decay": 0.1}


def overwritten_rates(scalings):
    """One rate for all, as a schedule that overwrites them leaves it."""
    return jax.tree.map(lambda s: s._replace(lr=np.float32(1)), scalings, is_leaf=is_scaling)


def without_updates_of_keys(scalings):
    wk = scalings["blocks"]["attention"]["wk"]
    attention = scalings["blocks"]["attention"] | {"wk": wk._replace(lr=np.float32(0))}
    return scalings | {"blocks": scalings["blocks"] | {"attention": attention}}


class Variant(NamedTuple):
    """A table, changes of the config, the culprits that must be named (none if it is right) and
    those that may be.

    seen: in training alone, without the exponents of the table.
    trained: makes of the table's numbers those that training takes, which the check does not see.
    says: what every finding of the training itself says.
    """

    table: Parameterization
    changes: dict
    culprits: set[str]
    may_name: set[str] = set()
    seen: bool = False
    trained: Callable[[dict], dict] = lambda scalings: scalings
    says: str = ""


VARIANTS = {
    "right: table 3": Variant(MUP, {}, set()),
    "right: table 8": Variant(PARAMETERIZATIONS["mup_table8"], {}, set()),
    "right: table 9": Variant(PARAMETERIZATIONS["mup_table9"], {}, set()),
    "right: absolute": Variant(PARAMETERIZATIONS["mup_abs"], {"optim__learning_rate": 0.1}, set()),
    "right: mean field": Variant(PARAMETERIZATIONS["mean_field_full"], {}, set()),
    "right: zero-init q": Variant(MUP, {"parameterization__override": ("*/wq.init=0",)}, set()),
    "right: decay with constant shrink": Variant(PARAMETERIZATIONS["mup_constant_shrink"], DECAY,
    set()),
    "right: eps 2e-3": Variant(MUP, EPS, set()),
    "right: heads that grow": Variant(MUP, GROWING, set()),
    "sp": Variant(PARAMETERIZATIONS["sp"], {}, HIDDEN | {"unembed"}, seen=True),
    "hidden LR not scaled": Variant(changed("hidden", lr=ONE), {}, HIDDEN, seen=True),
    "hidden LR m^-1/2": Variant(changed("hidden", lr=Power(ratio_in=-0.5)), {}, HIDDEN, seen=True),
    "one matrix not scaled": Variant(
        MUP, {"parameterization__override": ("blocks/mlp/wo.lr=sp",)}, {"blocks/mlp/wo"}, seen=True
    ),
    "readout LR not scaled": Variant(changed("output", lr=ONE), {}, {"unembed"}, seen=True),
    "readout init n^-1/2": Variant(changed("output", init=Power(fan_in=-0.5)), {}, {"unembed"},
    seen=True),
    "readout LR 1/m^2": Variant(changed("output", lr=Power(ratio_in=-2)), {}, {"unembed"},
    seen=True),
    "output multiplier on top of table 3": Variant(
        MUP.replace(scales=dataclasses.replace(MUP.scales, logits=Power(ratio_in=-1))), {},
        {"logits scale"},
    ),
    "embedding LR 1/m": Variant(changed("input", lr=Power(ratio_out=-1)), {}, {"embed"}, seen=True),
    "embedding LR m^-1/2": Variant(changed("input", lr=Power(ratio_out=-0.5)), {}, {"embed"},
    seen=True),
    "embedding init n^-1/2": Variant(changed("input", init=Power(ratio_out=-0.5)), {}, {"embed"},
    seen=True),
    "hidden init not scaled": Variant(changed("hidden", init=Power(fan_in=-0.5, ratio_in=0.5)), {},
    HIDDEN, seen=True),
    "attention 1/sqrt(d), heads grow": Variant(attention(Power(fan_in=-0.5)), GROWING,
    {"attention scale"}),
    "no attention scale, heads grow": Variant(attention(ONE), GROWING, {"attention scale"}),
    "eps 2e-3 not scaled": Variant(each_row(lambda row: row.replace(eps=ONE)), EPS, {"embed"},
    HIDDEN | GAINS),
    "eps 2e-3 follows the LR": Variant(each_row(lambda row: row.replace(eps=row.lr["adam"])), EPS,
    {"embed"}, GAINS),
    "gain LR 1/m": Variant(changed("vector", lr=Power(ratio_out=-1)), {}, GAINS, seen=True),
    "decoupled decay on the scaled LR": Variant(MUP, DECAY, HIDDEN | {"unembed"}),
    "missing base constant": Variant(attention(Power(fan_in=-1)), {}, {"attention scale"}),
    "a schedule that overwrites the rates": Variant(MUP, {}, HIDDEN | {"unembed"}, seen=True,
    trained=overwritten_rates, says="what applies it"),
    "a tensor that is never updated": Variant(MUP, {}, {"blocks/attention/wk"}, seen=True,
    trained=without_updates_of_keys, says="is never updated"),
    "diverged training": Variant(MUP, {"optim__learning_rate": 1e30}, {"loss"}, seen=True,
    says="diverged at width"),
}  # fmt: skip


# Other seeds each time, which show that no verdict hangs on them
@pytest.mark.parametrize(
    ("heads", "widths", "num_draws", "first_seed"),
    [
        ("fixed", ENDS, 2, 0),
        *(
            pytest.param(heads, WIDTHS, NUM_DRAWS, seed, marks=pytest.mark.slow)
            for heads in ("fixed", "growing")
            for seed in (0, 10, 20)
        ),
    ],
)
def test_mutation_suite(heads, widths, num_draws, first_seed, text_file, monkeypatch):
    """Every planted bug is rejected with its culprit and nothing else named; every right variant
    passes."""
    cfgs = {}
    for i, (name, variant) in enumerate(VARIANTS.items()):
        if ("parameterization__base_d_head" in variant.changes) == (heads == "growing"):
            monkeypatch.setitem(
                PARAMETERIZATIONS, f"variant{i}", variant.table.replace(name=f"variant{i}")
            )
            cfgs[name] = config(f"variant{i}", text_file, **variant.changes)
    seeds = range(first_seed, first_seed + 3)
    trained = {name: VARIANTS[name].trained for name in cfgs}
    wrong = []
    for name, (verdict, blind) in judge_all(cfgs, widths, seeds, num_draws, trained).items():
        named, variant = set(verdict.culprits), VARIANTS[name]
        if not variant.culprits <= named <= variant.culprits | variant.may_name:
            wrong.append(
                f"{name}: named {sorted(named)}, wants {sorted(variant.culprits)}: "
                f"{failed(verdict)}"
            )
        if variant.seen and set(blind.culprits) != variant.culprits:
            wrong.append(
                f"{name}: training alone names {blind.culprits}, wants {sorted(variant.culprits)}"
            )
        wrong += [
            f"{name}: {finding} does not say {variant.says!r}"
            for finding in failed(verdict)
            if finding.part in ("coordinates", "loss")
            and variant.says not in finding.text + finding.fix
        ]
    assert not wrong, "\n".join(wrong)


# Planted in the model, in the order of their numbers -> the culprit
MISTAKES = {
    "none": "",
    "attention scaled twice": "blocks/attention/attention_logits",
    # its own 1/sqrt(d_head), on top of ours
    "attention scaled by a kernel too": "blocks/attention/attention_logits",
    "logits divided by the width, again": "logits",
    "embedding times sqrt(d_model)": "embedding",
    "residual branches divided by the width": "blocks/residual",
}


class Planted(Transformer):
    """One mistake at a time: hps.final_ratio, which a constant schedule does not read, is its
    number."""

    def __call__(self, tokens_BT, hps):
        def factor(mistake, x):
            return jnp.where(hps.final_ratio == list(MISTAKES).index(mistake), x, 1.0)

        attention = factor("attention scaled twice", hps.attention_scale)
        kernel = factor("attention scaled by a kernel too", self.cfg.d_head**-0.5)
        logits = factor("logits divided by the width, again", 16 / self.cfg.d_model)
        embedding = factor("embedding times sqrt(d_model)", self.cfg.d_model**0.5)
        residual = factor("residual branches divided by the width", 16 / self.cfg.d_model)
        hps = hps._replace(
            attention_scale=hps.attention_scale * attention * kernel,
            logits_scale=hps.logits_scale * logits,
            embedding_scale=hps.embedding_scale * embedding,
            residual_scale=hps.residual_scale * residual,
        )
        return super().__call__(tokens_BT, hps)


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


class Patched(Transformer):
    """For tests that patch MuModule.weight: what is known of the transformer itself stays as it
    is."""


def test_model_with_a_bug(text_file, monkeypatch):
    """Bugs in a model, under a right table, which training alone can show; all of them are one
    program a width."""
    monkeypatch.setitem(MODELS, "planted", (TransformerConfig, Planted))
    cfg = dataclasses.replace(config("mup", text_file, **GROWING), model_name="planted")
    schedules = {
        name: dataclasses.replace(cfg.schedule, final_ratio=float(i))
        for i, name in enumerate(MISTAKES)
    }
    cfgs = {
        name: dataclasses.replace(cfg, schedule=schedule) for name, schedule in schedules.items()
    }
    for name, (verdict, _) in judge_all(cfgs).items():
        assert verdict.culprits == ((MISTAKES[name],) if MISTAKES[name] else ()), (
            name,
            failed(verdict),
        )


@pytest.mark.parametrize(
    ("tensor", "role", "text", "advice"),
    [
        ("blocks/mlp/wo", "output", "", "'hidden'"),
        ("unembed", "hidden", "", "'output'"),
        ("embed", "hidden", "", "'input'"),
        # heads counted into fan_in
        ("blocks/attention/wq", "hidden", "embed heads -> head_dim", "'output'"),
    ],
)
def test_declaration_that_its_axes_contradict(tensor, role, text, advice, text_file, monkeypatch):
    monkeypatch.setattr(MuModule, "weight", declared(tensor, role, text))
    monkeypatch.setitem(MODELS, tensor, (TransformerConfig, type("Declared", (Transformer,), {})))
    cfg = dataclasses.replace(config("mup", text_file), model_name=tensor)
    found = [
        finding for finding in static_findings(static_runs(cfg, WIDTHS)) if finding.level == "fail"
    ]
    assert {finding.subject for finding in found} == {tensor}
    assert f"declared {role!r}" in found[0].text and advice in found[0].fix


def test_integer_ratio_of_widths(text_file, monkeypatch):
    """m = width // base width, base 24: no number is a power of the width any more."""
    cfg = config("mup", text_file, parameterization__base_width=24)
    assert not static_findings(static_runs(cfg, WIDTHS))

    def floored(self, size, base):
        return exact(
            self,
            size,
            dataclasses.replace(base, fan_in=size.fan_in / max(size.fan_in // base.fan_in, 1)),
        )

    exact = Power.__call__
    monkeypatch.setattr(Power, "__call__", floored)
    findings = static_findings(static_runs(cfg, WIDTHS))
    assert {f.subject for f in findings if f.level == "fail"} >= HIDDEN | {"unembed"}
    assert any("no power of the width" in f.text for f in findings)


def optimizer_at_one_rate(name, decay_form, metas, hps, scalings, *rest):
    return optimizers.make_optimizer(
        name, decay_form, metas, hps, overwritten_rates(scalings), *rest
    )


def decay_at_the_stored_rate(name, decay_form, metas, hps, scalings, multiplier, momentum_dtype):
    """AdamW as everybody has it: lr * decay * stored weight."""
    no_decay = optimizers.make_optimizer(
        name, decay_form, metas, hps._replace(weight_decay=0.0), scalings, multiplier
    )
    del momentum_dtype

    def update(grads, state, params):
        updates, state = no_decay.update(grads, state, params)
        rate = hps.learning_rate * hps.weight_decay * multiplier
        return jax.tree.map(lambda u, w, s: u - rate * s.lr * w, updates, params, scalings), state

    return optax.GradientTransformation(no_decay.init, update)


def clipped_by_the_stored_norm(name, decay_form, metas, hps, scalings, *rest):
    unclipped = optimizers.make_optimizer(
        name, decay_form, metas, hps._replace(grad_clip=np.inf), scalings, *rest
    )

    def update(grads, state, params):
        norm = optax.tree.norm(jax.tree.map(lambda g, s: g * s.forward, grads, scalings))
        return unclipped.update(
            jax.tree.map(lambda g: g * jnp.minimum(1.0, hps.grad_clip / norm), grads), state, params
        )

    return optax.GradientTransformation(unclipped.init, update)


def oracle_of(cfg):
    rows = np.random.default_rng(0).integers(0, 256, (10, 4, 33))
    return symmetry(make_run(cfg), rows, compiler_options=quick_compilation())


def test_gradients_in_parts_are_symmetric_too(text_file):
    """In double precision; a check of more than the oracle takes its small batches whole."""
    cfg = config("mup_table8", text_file, train__accumulation=2)
    assert cfg.train.accumulation == 1
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, accumulation=2))
    assert oracle_of(cfg).difference < 1e-12


def test_oracle_sees_optimizers_that_look_at_stored_weights(text_file, monkeypatch):
    """Each planted bug is far above the tolerance; without it the run is symmetric to rounding."""
    cfg = config(
        "mup_table8", text_file, model__d_model=32, optim__eps=1e-6, optim__weight_decay=1.0
    )
    # which a check of more than the oracle leaves out
    cfg = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, grad_clip=0.05))
    right = oracle_of(cfg)
    assert right.difference < 1e-12 and not right.broken_by
    adamw = dataclasses.replace(optimizers.OPTIMIZERS["adamw"], hps=("b1", "b2"))
    for bug, plant in {
        "rates": lambda m: m.setattr(steps, "make_optimizer", optimizer_at_one_rate),
        "clip": lambda m: m.setattr(steps, "make_optimizer", clipped_by_the_stored_norm),
        "eps": lambda m: m.setitem(optimizers.OPTIMIZERS, "adamw", adamw),
        "decay": lambda m: m.setattr(steps, "make_optimizer", decay_at_the_stored_rate),
    }.items():
        with monkeypatch.context() as m:
            plant(m)
            wrong = oracle_of(cfg)
        assert wrong.difference > 1e-8, bug
        assert "unembed" in wrong.broken_by, bug
        assert {f.subject for f in symmetry_findings(wrong)} == set(wrong.broken_by)


def test_measure_equals_plain_training(text_file):
    """Every quantity against the bare step function, and one compilation for all tables and seeds
    of a width, also of more runs than there are devices."""
    trained = count_compilations("train_lane")
    names = ("mup_table9", "sp")
    cfgs = [
        dataclasses.replace(config(name, text_file), seed=seed) for name in names for seed in (0, 1)
    ]
    batches, validation, _ = load_batches(cfgs[0], (0, 1))
    runs = [make_run(at_width(cfg, 32)) for cfg in cfgs]
    nine = [*runs, *runs, runs[0]]  # on 8 devices
    measured = measure(nine, batches, validation[0], (2, 5), num_draws=2)
    assert len(trained) == 1
    for quantity, values in measured.items():
        assert values.shape == (18 if quantity.kind in ("weight", "activation") else 9,)
        np.testing.assert_array_equal(values[:4], values[4:8], err_msg=str(quantity))
    fns = make_train_fns(runs[0].program)
    init, step, evaluate, activations = (jax.jit(f) for f in fns)
    for i, run in enumerate(runs):
        first = state = init(run.cfg.seed, run.hps, run.scalings)
        for t in range(5):
            state, _ = step(state, batches[run.cfg.seed][t], run.hps, run.scalings)
        start, end = (
            activations(s.params, validation[0], run.hps, run.scalings) for s in (first, state)
        )
        embed, now = (
            np.asarray(s.params["embed"]) * run.scalings["embed"].forward for s in (first, state)
        )
        logits, later = np.asarray(start["logits"]), np.asarray(end["logits"])
        for quantity, values in {
            ("weight", "embed", 0): embed,
            ("update", "embed", 5): now - embed,
            ("activation", "logits", 0): logits,
            ("change", "logits", 5): later - logits,
        }.items():
            np.testing.assert_allclose(
                measured[Quantity(*quantity)][i], np.sqrt(np.mean(values**2)), rtol=1e-3
            )
        loss = evaluate(state.params, validation[0], run.hps, run.scalings)
        np.testing.assert_allclose(measured[Quantity("loss", "loss", 5)][i], loss, rtol=1e-4)


def test_slope_and_its_interval():
    """A power law gives its exponent; the interval is Student's, here for three seeds, written
    out."""
    widths, factors = np.array([16, 32, 64, 128]), np.array([1.0, 1.0, 1.0])
    exact = fit_slope(widths, 3.0 * widths[:, None] ** -0.5 * factors)
    assert np.isclose(exact.mean, -0.5) and exact.half_width < 1e-9
    slopes = np.array([-0.4, -0.5, -0.75])
    noisy = fit_slope(widths, widths[:, None] ** slopes)
    assert np.isclose(noisy.mean, slopes.mean())
    assert np.isclose(noisy.half_width, 4.303 * slopes.std(ddof=1) / 3**0.5)
    assert (
        fit_slope(widths, np.zeros((4, 3))) is None
        and fit_slope(widths, np.full((4, 3), np.nan)) is None
    )


def test_spectral_norm_of_logical_matrices():
    meta = signature(
        "hidden",
        "layers | heads head_dim -> embed",
        {"layers": 2, "heads": 2, "head_dim": 3, "embed": 4},
    )
    x = np.random.default_rng(0).normal(size=meta.sizes)
    each = [np.linalg.norm(layer.reshape(6, 4), ord=2) for layer in x]
    np.testing.assert_allclose(
        spectral_norm(x, meta, iterations=200), np.sqrt(np.mean(np.square(each))), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        pytest.param(
            "mup", {"optim__name": "sgd", "optim__learning_rate": 0.5}, marks=pytest.mark.slow
        ),
        pytest.param(
            "mup_table9",
            {"optim__name": "lion", "optim__learning_rate": 0.003},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "mup",
            {"optim__name": "adafactor", "optim__learning_rate": 0.05},
            marks=pytest.mark.slow,
        ),
        ("mup", {"optim__name": "muon", "optim__learning_rate": 0.02, "model__tied": True}),
        (
            "mup",
            {
                "model__num_kv_heads": 1,
                "model__norm": "layer",
                "model__bias": True,
                "model__position": "learned",
                "model__activation": "gelu",
                "model__embedding_norm": True,
            },
        ),
        pytest.param(
            "mup",
            {
                "model__norm_gain": "scalar",
                "model__qk_norm": True,
                "model__activation": "swiglu",
                "model__parallel": True,
                "model__attention": "normalized_elu",
            },
            marks=pytest.mark.slow,
        ),
        pytest.param("u_mup", {"optim__learning_rate": 0.3}, marks=pytest.mark.slow),
        pytest.param("standard_full", {}, marks=pytest.mark.slow),
    ],  # fmt: skip
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_other_right_models_pass(table, changes, text_file):
    """Every optimizer with its column, tied embeddings with shared keys, every kind of tensor, odd
    tables."""
    verdict = judge_one(config(table, text_file, **changes))
    assert verdict.culprits == (), failed(verdict)


@pytest.mark.parametrize("name", ["muon", "adafactor", "sgd"])
def test_an_optimizer_is_known_by_what_it_says_not_by_its_name(name, text_file, monkeypatch):
    """Under another name: the same numbers, tables, findings, refusals and norms of its updates."""
    monkeypatch.setitem(optimizers.OPTIMIZERS, "another", optimizers.OPTIMIZERS[name])
    both = [
        config("mup", text_file, optim__name=n, optim__weight_decay=0.1) for n in (name, "another")
    ]
    own, other = (static_findings(static_runs(cfg, WIDTHS)) for cfg in both)
    assert own == other
    own, other = ([explain([cfg]), explain([cfg], diff="sp")] for cfg in both)
    assert [text.replace("another", name) for text in other] == own
    if name == "muon":
        batches, validation, _ = load_batches(both[0], (0,))
        runs = [make_run(at_width(cfg, 16)) for cfg in both]
        own, other = (measure([run], batches, validation[0], (2,), num_draws=1) for run in runs)
        assert own.keys() == other.keys() and all(
            np.array_equal(own[key], other[key]) for key in own
        )
    for cfg in both:
        tree = cfg.as_dict()
        tree["optim"]["momentum_dtype"] = "bfloat16"
        if name == "adafactor":
            with pytest.raises(
                UserError, match=f"'bfloat16' with optim.name = '{cfg.optim.name}': it has none"
            ):
                make_run_config(tree)
        else:
            make_run_config(tree)


@pytest.mark.slow
def test_frozen_tensor_under_muon_is_seen(text_file, monkeypatch):
    """Its update is a matrix of zeros, whose spectral norm is zero and not NaN."""
    monkeypatch.setattr(MuModule, "weight", frozen)
    monkeypatch.setitem(MODELS, "frozen", (TransformerConfig, Patched))
    cfg = config("mup", text_file, optim__name="muon", optim__learning_rate=0.02)
    verdict = judge_one(dataclasses.replace(cfg, model_name="frozen"), widths=(16, 32))
    assert verdict.culprits == ("blocks/attention/wk",)


def test_intention_covers_its_own_exponent_alone(text_file):
    """standard_full means logits of order 1; logits that grow are a bug there too."""
    for override, subjects in (
        ((), set()),
        (("unembed.init=1",), {"unembed"}),
        (("unembed.init=mup",), set()),
    ):
        cfg = config("standard_full", text_file, parameterization__override=override)
        findings = static_findings(static_runs(cfg, WIDTHS))
        assert {finding.subject for finding in findings if finding.level == "fail"} == subjects


def test_divergence_is_not_blamed_on_the_symmetry():
    tree = tiny_tree("mlp", optim__name="sgd", optim__learning_rate=1e30, optim__grad_clip=0.0)
    run = make_run(make_run_config({key: value for key, value in tree.items() if key != "sweep"}))
    result = symmetry(run, np.random.default_rng(0).integers(0, 256, (10, 4, 17)))
    assert [finding.subject for finding in symmetry_findings(result)] == ["loss"]
