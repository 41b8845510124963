"""The tables against their papers, against golden text, and against measured gradients."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_tree

from mujax.check.oracle import stretch
from mujax.config import make_run_config
from mujax.errors import UserError
from mujax.models.mlp import MLPConfig, MLPLanguageModel
from mujax.optimizers import OPTIMIZERS
from mujax.parameterization import (
    PARAMETERIZATIONS,
    Row,
    apply_overrides,
    assign_rows,
    check_depth,
    is_scaling,
    resolve,
)
from mujax.parameterization.table import ONE
from mujax.params import map_params, named_leaves, signature
from mujax.training.run import make_run
from mujax.training.steps import abstract_metas, make_train_fns

GOLDEN = Path(__file__).parent / "golden"


def run_at(width, name, base_width=32, model="transformer", **overrides):
    tree = tiny_tree(
        model,
        model__d_model=width,
        parameterization__name=name,
        parameterization__base_width=base_width,
        **overrides,
    )
    tree.pop("sweep")
    return make_run(make_run_config(tree))


HEADS = {"model__d_head": 16, "parameterization__base_d_head": 8}
OTHER_MODELS = {"moe": HEADS, "recurrent": {}, "mlp": {}}


@pytest.mark.parametrize(
    ("name", "model"),
    [*((name, "transformer") for name in PARAMETERIZATIONS), *(("mup", m) for m in OTHER_MODELS)],
)
def test_golden_table(name, model, request):
    """Every tensor, at widths 128 and 512 over a base of 32, two layers over one, d_head 16 over 8.

    Regenerate with pytest --regenerate-golden and review the diff against the source that the file
    names.
    """
    table = PARAMETERIZATIONS[name]
    blocks = [table.source]
    is_stack = model != "mlp"
    options = {"model__norm_gain": "vector"} if is_stack else {}
    if is_stack and table.compares_depths:
        options["parameterization__base_num_layers"] = 1
    for width in (128, 512):
        run = run_at(width, name, model=model, **OTHER_MODELS.get(model, HEADS), **options)
        base_metas = abstract_metas(run.program.model_class, run.cfg.base_model)
        lines = []
        for tensor, row in named_leaves(run.rows).items():
            by_column = {
                column: named_leaves(_resolve(run, base_metas, column)) for column in row.lr
            }
            numbers = by_column["adam"][tensor]
            rates = "  ".join(
                f"{column}={float(by_column[column][tensor].lr):<9.6g}" for column in row.lr
            )
            lines.append(
                f"{tensor:<26} {named_leaves(run.metas)[tensor].role:<7} "
                f"init={numbers.init:<10.6g} "
                f"forward={numbers.forward:<10.6g} eps={numbers.eps:<11.6g} "
                f"decay={numbers.weight_decay:<9.6g} "
                f"lr: {rates}".rstrip()
            )
        scales = "  ".join(
            f"{scale}={float(value):.6g}" for scale, value in run.scales._asdict().items()
        )
        blocks.append("\n".join([f"width {width}", *lines, scales]))
    text = "\n\n".join(blocks) + "\n"
    file = GOLDEN / f"{name}.txt" if model == "transformer" else GOLDEN / "models" / f"{model}.txt"
    if request.config.getoption("--regenerate-golden"):
        file.write_text(text)
    assert text == file.read_text()


def _resolve(run, base_metas, column):
    """The scalings of another column of learning rates; ones where a tensor's rule has no such
    column."""
    rows = map_params(lambda _, r: r if column in r.lr else r.replace(lr={column: ONE}), run.rows)
    return resolve(rows, run.metas, base_metas, column)


def test_golden_files_are_those_of_the_tables():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(PARAMETERIZATIONS)


@pytest.mark.parametrize("width", [16, 32, 48, 80, 256])
def test_mup_is_table_3_of_2203_03466(width):
    """Written out by hand, below the base width, at it, above it and at odd ratios."""
    m, mlp = width / 32, 4 * width
    scalings = run_at(width, "mup", model__norm_gain="vector").scalings
    attention, ff = scalings["blocks"]["attention"], scalings["blocks"]["mlp"]
    expected = {
        "wq": (attention["wq"], width**-0.5, 1 / m, 1 / m),
        "attention/wo": (attention["wo"], width**-0.5, 1 / m, 1 / m),
        "wi": (ff["wi"], width**-0.5, 1 / m, 1 / m),
        "mlp/wo": (ff["wo"], mlp**-0.5, 1 / m, 1 / m),
        "embed": (scalings["embed"], 1, 1, 1 / m),
        "unembed": (scalings["unembed"], (width * m) ** -0.5, 1 / m, 1),
        "gain": (scalings["final_norm"]["gain"], 1, 1, 1 / m),
    }
    for name, (scaling, init, lr, eps) in expected.items():
        assert np.allclose([scaling.init, scaling.lr, scaling.eps], [init, lr, eps], rtol=1e-6), (
            name
        )
        assert scaling.forward == scaling.weight_decay == 1


@pytest.mark.parametrize(("d_head", "base_d_head"), [(8, 0), (8, 8), (16, 8), (4, 16)])
def test_attention_scale(d_head, base_d_head):
    """SP: 1/sqrt(d_head). muP: proportional to 1/d_head, equal to SP at the base head size."""
    base = base_d_head or d_head
    for name, expected in (("sp", d_head**-0.5), ("mup", base**0.5 / d_head)):
        run = run_at(64, name, model__d_head=d_head, parameterization__base_d_head=base_d_head)
        assert np.isclose(run.hps.attention_scale, expected, rtol=1e-6)


@pytest.mark.parametrize("width", [16, 48])
def test_relative_tables_are_sp_at_the_base_width(width):
    runs = {
        name: run_at(width, name, base_width=width, model__norm_gain="vector")
        for name, table in PARAMETERIZATIONS.items()
        if table.relative
    }
    effective = {name: (effective_numbers(run), run.scales) for name, run in runs.items()}
    assert len(effective) > 10
    assert all(numbers == effective["sp"] for numbers in effective.values())
    # Apart from the base width no two tables are one, but for these, of which the papers say so
    wide = {
        name: run_at(
            2 * width,
            name,
            base_width=width,
            model__norm_gain="vector",
            parameterization__base_num_layers=int(table.compares_depths),
        ).table_hash
        for name, table in PARAMETERIZATIONS.items()
    }
    alike = {frozenset(k for k, h in wide.items() if h == value) for value in wide.values()}
    assert {pair for pair in alike if len(pair) > 1} == {
        frozenset({"mup_table9", "everett_mup_full"}),
        frozenset({"lingle_sp", "sp"}),
    }


def effective_numbers(run):
    """Per tensor, what training sees: init, rate and eps of the effective weight."""
    return jax.tree.map(
        lambda s: tuple(
            round(float(x), 6) for x in (s.init * s.forward, s.lr * s.forward, s.eps / s.forward)
        ),
        run.scalings,
        is_leaf=is_scaling,
    )


def test_eps_follows_the_measured_gradient():
    """Slope of log gradient RMS against log width after 10 steps, per tensor, near the eps exponent
    of the table."""
    widths = (64, 256)
    logs = []
    for width in widths:
        run = run_at(width, "mup", model__norm_gain="vector", model__d_head=16, model__num_layers=1)
        fns = make_train_fns(run.program)
        step, grad, init = jax.jit(fns.step), jax.jit(jax.grad(fns.evaluate)), jax.jit(fns.init)
        squares = []
        for seed in range(2):
            state = init(seed, run.hps, run.scalings)
            rows = np.random.default_rng(seed).integers(0, 256, (11, 4, 17))
            for batch in rows[:10]:
                state, _ = step(state, batch, run.hps, run.scalings)
            grads = grad(state.params, rows[10], run.hps, run.scalings)
            squares.append(jax.tree.map(lambda g: np.mean(np.square(g)), jax.device_get(grads)))
        logs.append(jax.tree.map(lambda *s: 0.5 * np.log2(np.mean(s)), *squares))
    slopes = jax.tree.map(lambda *y: np.polyfit(np.log2(widths), y, 1)[0], *logs)
    narrow, wide = (run_at(width, "mup", model__norm_gain="vector").scalings for width in (32, 64))
    exponents = jax.tree.map(
        lambda a, b: float(np.log2(b.eps / a.eps)), narrow, wide, is_leaf=is_scaling
    )
    for name, slope in named_leaves(slopes).items():
        assert abs(slope - named_leaves(exponents)[name]) < 0.25, name


# Tables that store other weights and train the same effective ones (2203.03466, Tables 3, 8, 9 and
# appendix J.2.1;
# 2407.05872, section 2)
ONE_TRAJECTORY = (
    ("mup", "mup_table8", "mup_table9", "mean_field_full", "everett_mup_full"),
    ("mup_abs", "mup_table8_abs", "mup_table9_abs"),
    ("standard_full", "ntk_full"),
    ("standard_none", "ntk_none"),
    ("everett_mup_none", "mean_field_none"),
)
# What is stretched under all optimizers, of which a table knows the rates alone: weights stored as
# they are used, weights stored otherwise, and some that start at zero
SOME_TABLES = ("sp", "mup", "mup_table8", "lingle_mup_qzero")


@pytest.mark.parametrize(
    ("optimizer", "decay_form"),
    [
        ("adamw", "decoupled"),
        pytest.param("adamw", "independent", marks=pytest.mark.slow),
        pytest.param("adamw", "l2", marks=pytest.mark.slow),
        pytest.param("sgd", "decoupled", marks=pytest.mark.slow),
        ("sgd", "l2"),
        ("lion", "independent"),
        ("adafactor", "decoupled"),
        ("muon", "decoupled"),
    ],
)
def test_symmetry_of_every_table(optimizer, decay_form):
    """Rescaling what is stored, by hand or by another form of a table, changes no loss of 10 steps
    (fp64, 1e-12).

    With a clip that bites and with decay. A table without rates for the optimizer is run at its
    Adam rates: the symmetry does not depend on them.
    """
    rate = {"sgd": 0.05, "adafactor": 0.02}.get(optimizer, 2.0**-8)
    with jax.enable_x64(True):
        common = dict(
            model__norm_gain="vector", model__dtype="float32", optim__name="adamw",
            optim__decay_form=decay_form,
            optim__weight_decay=0.1, optim__grad_clip=0.5, optim__eps=1e-5,
            optim__learning_rate=rate,
        )  # fmt: skip
        runs = {name: run_at(32, name, base_width=16, **common) for name in PARAMETERIZATIONS}
        base_metas = abstract_metas(runs["sp"].program.model_class, runs["sp"].cfg.base_model)
        program = dataclasses.replace(runs["sp"].program, optimizer=OPTIMIZERS[optimizer])
        model = dataclasses.replace(program.model, dtype="float64")
        fns = make_train_fns(dataclasses.replace(program, model=model))
        init, step = jax.jit(fns.init), jax.jit(fns.step)
        rows = np.random.default_rng(1).integers(0, 256, (10, 4, 17))

        def losses(run, scalings):
            hps, scalings = (jax.tree.map(np.float64, tree) for tree in (run.hps, scalings))
            state, history = init(0, hps, scalings), []
            for batch in rows:
                state, metrics = step(state, batch, hps, scalings)
                history.append(float(metrics["loss"]))
            return np.asarray(history)

        def numbers(name):
            column = OPTIMIZERS[optimizer].column
            has_it = all(column in row.lr for row in named_leaves(runs[name].rows).values())
            return resolve(
                runs[name].rows, runs[name].metas, base_metas, column if has_it else "adam"
            )

        thetas = iter(np.exp(np.random.default_rng(0).uniform(-2, 2, 10_000)))
        forms = {name for names in ONE_TRAJECTORY for name in names} | {*SOME_TABLES}
        plain = {
            name: losses(run, numbers(name))
            for name, run in runs.items()
            if optimizer == "adamw" or name in forms
        }
        for name in runs if optimizer == "adamw" else SOME_TABLES:
            theta = jax.tree.map(lambda _: next(thetas), runs[name].metas)
            stretched = losses(
                runs[name], stretch(numbers(name), theta, OPTIMIZERS[optimizer].gauge)
            )
            np.testing.assert_allclose(stretched, plain[name], rtol=1e-12, err_msg=name)
        for first, *others in ONE_TRAJECTORY:
            for other in others:
                if optimizer != "muon" or other.startswith("mup"):
                    np.testing.assert_allclose(
                        plain[other], plain[first], rtol=1e-12, err_msg=f"{other}, {first}"
                    )
        assert np.max(np.abs(plain["mup"] / plain["sp"] - 1)) > 1e-6  # other tables are other runs


def test_a_table_must_be_whole():
    """A role, column or intention that is misspelled, or a basic role that is missing."""
    table, rows = PARAMETERIZATIONS["mup"], PARAMETERIZATIONS["mup"].rows
    without = {role: row for role, row in rows.items() if role != "vector"}
    for changes, message in (
        ({"rows": without}, "no row for role 'vector'"),
        (
            {"rows": {**rows, "hiden": rows["hidden"]}},
            "'hiden', which is no role; did you mean hidden",
        ),
        (
            {"rows": {**rows, "input": Row("x", lr={"adamw": ONE})}},
            "'adamw' is no column; did you mean adam",
        ),
        ({"intends": {"decays": "x"}}, "intends 'decays'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            table.replace(**changes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("embedd=sp",),
            "matches no tensor, role or forward scale of the model; did you mean embed?",
        ),
        (("kv=sp",), "matches no tensor"),
        (("hidden=sp", "blocks/*/wq.lr=0.5"), "both set blocks/attention/wq's lr"),
        (("unembed=sp", "output=sp"), "both set unembed's init"),
        (("attention=sp", "attention=0.1"), "both set the attention scale"),
        (("unembed=spp",), "'spp' is no number and no table; did you mean sp?"),
        (("unembed=sp.hiden",), "no row for 'hiden'; did you mean hidden?"),
        (("unembed.rate=2",), "'rate' is no number of a row"),
        (("unembed=2",), "say which number, e.g. 'unembed.lr=2'"),
        (("unembed.lr=-1",), "must be at least 0"),
        (("unembed.lr=nan",), "fit float32"),
        (("unembed.init=1e300",), "fit float32"),
        (("unembed.eps=0",), "must be above 0"),
        (("logits=0",), "must be above 0"),
        (("hidden.readout=2",), "only a tied embedding has a readout factor"),
        (("unembed",), "is not TARGET=VALUE"),
        (("attention.lr=2",), "is one number"),
    ],
)
def test_overrides_that_cannot_be(override, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        run_at(64, "mup", parameterization__override=override)
    assert "\n" not in str(error.value)


def test_overrides():
    """Rows, patterns, numbers and scales from other tables or as numbers; the rest is left
    alone."""
    plain, sp = (named_leaves(run_at(64, name).scalings) for name in ("mup", "sp"))
    override = (
        "input=sp",
        "*/wq.lr=0.5",
        "unembed=mup_table8",
        "blocks/mlp/wi.init=sp.output",
        "attention=sp",
    )
    run = run_at(
        64,
        "mup",
        model__d_head=16,
        parameterization__base_d_head=8,
        parameterization__override=override,
    )
    ours = named_leaves(run.scalings)
    assert ours["embed"] == sp["embed"] != plain["embed"]
    assert ours["blocks/attention/wq"] == plain["blocks/attention/wq"]._replace(lr=0.5)
    assert ours["unembed"] == named_leaves(run_at(64, "mup_table8").scalings)["unembed"]
    assert ours["blocks/mlp/wo"] == plain["blocks/mlp/wo"]
    assert run.scales.attention == 0.25
    assert "[override */wq.lr=0.5]" in named_leaves(run.rows)["blocks/attention/wq"].source
    assert run.table_hash != run_at(64, "mup").table_hash


def test_override_takes_the_row_that_the_other_table_has_for_the_tensor():
    override = (
        "*/wq=lingle_mup_qzero",
        "blocks/mlp/wo=factorial",
        "blocks/attention/wo=factorial.hidden",
    )
    ours = named_leaves(run_at(64, "mup", parameterization__override=override).scalings)
    assert ours["blocks/attention/wq"].init == 0
    assert np.isclose(ours["blocks/mlp/wo"].init, (2 * 2 * 64) ** -0.5)
    assert np.isclose(ours["blocks/attention/wo"].init, 64**-0.5)


def test_depth_needs_a_stack():
    """Rules for depth where no tensor says how deep it is, and a base depth where layers are not
    stacked."""
    flat = {"w": signature("hidden", "embed -> mlp", {"embed": 8, "mlp": 8})}
    stacked = {
        "w": signature("hidden", "layers | embed -> mlp", {"layers": 4, "embed": 8, "mlp": 8})
    }
    table = PARAMETERIZATIONS["completep_half"]
    for metas, dims, is_right in (
        ({**stacked}, {"layers": 4}, True),
        (flat, {"layers": 1}, True),
        (flat, {"layers": 4}, False),
    ):
        rows = assign_rows(table, metas)
        if is_right:
            check_depth(table, rows, table.scales, metas, dims)
        else:
            with pytest.raises(UserError, match="stack the layers with nn.scan"):
                check_depth(table, rows, table.scales, metas, dims)
    with pytest.raises(UserError, match="base_num_layers must be 0"):
        run_at(64, "completep", model="mlp", parameterization__base_num_layers=1)


def test_a_base_depth_that_no_rule_reads_is_refused():
    """Depth as such (L) is no comparison; an override may bring the rule that is."""
    for name in ("sp", "mup", "u_mup", "factorial", "lingle_mup"):
        with pytest.raises(
            UserError,
            match=f"base_num_layers = 1: '{name}' has no rule .* set it to 0, .*: completep",
        ):
            run_at(32, name, parameterization__base_num_layers=1)
    for override in ("residual=completep", "blocks/*/wq=completep_half.hidden"):
        assert run_at(
            32, "mup", parameterization__base_num_layers=1, parameterization__override=(override,)
        )


@pytest.mark.parametrize("depth", [2, 8])
def test_completep_is_the_code_of_its_authors(depth):
    """EleutherAI/nanoGPT-mup, branch completep, whose embedding is tied: group by group, at m_N = 4
    over 1 layer.

    Their attention is 1 / d_head; a relative table has the constant of sp at the base.
    """
    run = run_at(
        128, "completep", model__tied=True, model__norm="layer", model__norm_gain="vector",
        model__bias=True,
        model__num_layers=depth, model__d_head=32, parameterization__base_num_layers=1,
    )  # fmt: skip
    width, blocks = 4, run.scalings["blocks"]
    groups = {  # rate, eps, decay times rate
        "embedding": ([run.scalings["embed"]], 1, 1 / width, 1),
        "matrices": (
            [blocks["attention"]["wq"], blocks["mlp"]["wo"]],
            1 / width,
            1 / width / depth,
            1,
        ),
        "gains and biases": (
            [blocks["attention_norm"]["gain"], blocks["mlp"]["bi"]],
            1,
            1 / width / depth,
            0,
        ),
        "final norm": ([run.scalings["final_norm"]["gain"]], 1, 1 / width, 0),
    }
    for name, (scalings, lr, eps, shrink) in groups.items():
        for s in scalings:
            ours = s.lr, s.eps, s.lr * s.weight_decay, s.forward
            assert np.allclose(ours, [lr, eps, shrink, 1], rtol=1e-6), (name, s)
    base = run_at(32, "completep", model__tied=True, model__num_layers=1, model__d_head=32)
    assert np.isclose(run.scales.logits / base.scales.logits, 1 / width)
    assert np.isclose(run.scales.residual, 1 / depth)
    assert np.isclose(run.scales.attention, 32**-0.5)
    theirs = run_at(
        128, "completep", model__d_head=32, parameterization__override=("attention=mup_abs",)
    )
    assert np.isclose(theirs.scales.attention, 1 / 32)


def test_everything_of_the_factorials_sp_trains_at_eta_over_the_width():
    """2605.21486's gauge, whatever a tensor's own sizes are: gains of queries and keys, biases of
    MLP and logits."""
    options = dict(
        model__qk_norm=True, model__norm="layer", model__norm_gain="vector", model__bias=True
    )
    for gain, table, expected in (
        ("vector", "factorial", 1 / 64), ("scalar", "factorial", 1 / 64), ("vector", "factorial+ln",
        1),
    ):  # fmt: skip
        run = run_at(64, table, **options | {"model__norm_gain": gain})
        rates = {
            name: float(s.lr)
            for name, s in named_leaves(run.scalings).items()
            if named_leaves(run.metas)[name].role == "vector" or expected != 1
        }
        assert rates == dict.fromkeys(rates, expected), table
        assert len(rates) > 10
    no_width = {"w": signature("vector", "-> mlp", {"mlp": 8})}
    with pytest.raises(
        UserError, match="w: the rule .* goes by the width, which is the size of the axis 'embed'"
    ):
        resolve(assign_rows(PARAMETERIZATIONS["factorial"], no_width), no_width, no_width, "adam")


def test_features_without_a_rule_are_refused():
    """Tied embeddings, shared keys, experts and optimizers that a table says nothing about: what to
    declare."""
    for overrides, message in (
        ({"model__tied": True}, "'ntk_full' has no row for role 'tied' of embed; declare"),
        (
            {"model__num_kv_heads": 2},
            "'ntk_full' has no row for role 'kv' of blocks/attention/wk; declare",
        ),
        ({"optim__name": "muon"}, "no learning rate for the muon family"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            run_at(64, "ntk_full", **overrides)
    assert run_at(
        64, "ntk_full", model__tied=True, parameterization__override=("tied=mup",)
    ).scalings["embed"]
    metas = {
        "w": signature("hidden", "experts | embed -> mlp", {"experts": 4, "embed": 8, "mlp": 16})
    }
    with pytest.raises(
        UserError, match="w is repeated over 'experts', for which parameterization 'lingle_mup' "
    ):
        assign_rows(PARAMETERIZATIONS["lingle_mup"], metas)
    rows, _ = apply_overrides(PARAMETERIZATIONS["lingle_mup"], ("w=mup",), metas, PARAMETERIZATIONS)
    assert resolve(rows, metas, metas, "adam")["w"].init == 8**-0.5


def test_tied_embedding_and_shared_keys():
    """Tied: an embedding of unit variance, and logits x base^-1/2 / m; keys: as hidden, SGD's rate
    by fan_out too."""
    run = run_at(128, "mup", model__tied=True, model__num_kv_heads=2, optim__name="sgd")
    assert "unembed" not in run.scalings
    assert run.scalings["embed"].init == 1 and run.scalings["embed"].lr == 4
    assert np.isclose(run.scales.logits, 32**-0.5 / 4)
    attention = run.scalings["blocks"]["attention"]
    assert attention["wk"].lr == attention["wv"].lr == 0.25 and attention["wq"].lr == 1
    assert attention["wk"].init == attention["wq"].init


def test_changed_signature_is_an_error():
    cfg = MLPConfig(d_model=8, num_layers=2, context=2, dtype="float32", vocab_size=5)
    metas = abstract_metas(MLPLanguageModel, cfg)
    other = metas | {"w1": dataclasses.replace(metas["w1"], role="output")}
    with pytest.raises(UserError, match="w1 is hidden"):
        resolve(assign_rows(PARAMETERIZATIONS["mup"], metas), metas, other, "adam")
