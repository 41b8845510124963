"""The tables against their papers, against golden text, and against measured gradients."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_tree

from mujax.config import make_run_config
from mujax.models.mlp import MLPConfig
from mujax.parameterization import PARAMETERIZATIONS, is_scaling, resolve, tensor_name
from mujax.run import make_run
from mujax.steps import abstract_metas, make_train_fns

GOLDEN = Path(__file__).parent / "golden"


def run_at(width, name, base_width=32, model="transformer", **overrides):
    tree = tiny_tree(
        model, model__d_model=width, parameterization__name=name, parameterization__base_width=base_width, **overrides
    )
    tree.pop("sweep")
    return make_run(make_run_config(tree))


@pytest.mark.parametrize("width", [48, 128])
@pytest.mark.parametrize("name", ["sp", "mup"])
def test_golden_table(name, width, request):
    """One line a tensor; regenerate with pytest --regenerate-golden and review the diff."""
    mlp = run_at(width, name, model="mlp").table
    text = f"transformer\n{run_at(width, name, model__norm_gain=True).table}\nmlp\n{mlp}"
    file = GOLDEN / f"{name}_{width}.txt"
    if request.config.getoption("--regenerate-golden"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("width", [16, 32, 48, 80, 256])
def test_mup_is_table_3_of_2203_03466(width):
    """Written out by hand, below the base width, at it, above it and at odd ratios."""
    m, mlp = width / 32, 4 * width
    scalings = run_at(width, "mup", model__norm_gain=True).scalings
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
        assert np.allclose([scaling.init, scaling.lr, scaling.eps], [init, lr, eps], rtol=1e-6), name
        assert scaling.forward == scaling.weight_decay == 1


@pytest.mark.parametrize(("d_head", "base_d_head"), [(8, 0), (8, 8), (16, 8), (4, 16)])
def test_attention_scale(d_head, base_d_head):
    """SP: 1/sqrt(d_head). muP: proportional to 1/d_head, equal to SP at the base head size."""
    base = base_d_head or d_head
    for name, expected in (("sp", d_head**-0.5), ("mup", base**0.5 / d_head)):
        run = run_at(64, name, model__d_head=d_head, parameterization__base_d_head=base_d_head)
        assert np.isclose(run.hps.attention_scale, expected, rtol=1e-6)


@pytest.mark.parametrize("width", [16, 48])
def test_all_tables_agree_at_the_base_width(width):
    runs = [run_at(width, name, base_width=width, model__norm_gain=True) for name in PARAMETERIZATIONS]
    assert all(run.scalings == runs[0].scalings and run.hps == runs[0].hps for run in runs)
    assert len({run.table_hash for run in runs}) == 1
    assert len({run_at(2 * width, name, base_width=width).table_hash for name in PARAMETERIZATIONS}) == len(runs)


def test_eps_follows_the_measured_gradient():
    """Slope of log gradient RMS against log width after 10 steps, per tensor, near the eps exponent of the table."""
    widths = (64, 128, 256)
    logs = []
    for width in widths:
        run = run_at(width, "mup", model__norm_gain=True, model__d_head=16)
        fns = make_train_fns(run.program)
        step, grad, init = jax.jit(fns.step), jax.jit(jax.grad(fns.evaluate)), jax.jit(fns.init)
        squares = []
        for seed in range(3):
            state = init(seed, run.hps, run.scalings)
            rows = np.random.default_rng(seed).integers(0, 256, (11, 8, 33))
            for batch in rows[:10]:
                state, _ = step(state, batch, run.hps, run.scalings)
            grads = grad(state.params, rows[10], run.hps, run.scalings)
            squares.append(jax.tree.map(lambda g: float(jnp.mean(g * g)), grads))
        logs.append(jax.tree.map(lambda *s: 0.5 * np.log2(np.mean(s)), *squares))
    slopes = jax.tree.map(lambda *y: np.polyfit(np.log2(widths), y, 1)[0], *logs)
    narrow, wide = (run_at(width, "mup", model__norm_gain=True).scalings for width in (32, 64))
    exponents = jax.tree.map(lambda a, b: float(np.log2(b.eps / a.eps)), narrow, wide, is_leaf=is_scaling)
    for (path, slope), exponent in zip(
        jax.tree_util.tree_leaves_with_path(slopes), jax.tree.leaves(exponents), strict=True
    ):
        assert abs(slope - exponent) < 0.25, (tensor_name(path), slope, exponent)


@pytest.mark.parametrize("decay_form", ["independent", "l2"])
def test_symmetry_oracle(decay_form):
    """Storing theta * W in place of W, with every number scaled to match, changes no loss (fp64, 1e-12).

    init x theta, forward / theta, lr x theta, eps / theta; one random theta a tensor. l2 decay enters with
    the gradient, which is 1 / theta as large, so its coefficient goes with 1 / theta^2.
    """
    with jax.enable_x64(True):
        run = run_at(32, "mup", base_width=16, model__norm_gain=True, optim__decay_form=decay_form)
        model = dataclasses.replace(run.program.model, dtype="float64")
        fns = make_train_fns(dataclasses.replace(run.program, model=model))
        hps = jax.tree.map(np.float64, run.hps)._replace(
            grad_clip=np.inf, eps=np.float64(1e-4), weight_decay=np.float64(1e-2), learning_rate=np.float64(0.01)
        )
        metas = run.metas
        rng = np.random.default_rng(0)
        thetas = jax.tree.map(lambda _: float(np.exp(rng.uniform(-2, 2))), metas)
        plain = resolve(PARAMETERIZATIONS["mup"], metas, run_at(16, "mup", model__norm_gain=True).metas)
        decay_power = 0 if decay_form == "independent" else -2
        stretched = jax.tree.map(
            lambda theta, s: s._replace(
                init=s.init * theta,
                forward=s.forward / theta,
                lr=s.lr * theta,
                eps=s.eps / theta,
                weight_decay=s.weight_decay * theta**decay_power,
            ),
            thetas,
            plain,
        )
        plain, stretched = (jax.tree.map(np.float64, scalings) for scalings in (plain, stretched))
        losses = [_losses(fns, hps, scalings) for scalings in (plain, stretched)]
        assert np.ptp(losses[0]) > 0.1  # the weights moved
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-12)
        # The oracle can fail: eps left unscaled is another trajectory
        wrong = jax.tree.map(lambda s, p: s._replace(eps=p.eps), stretched, plain, is_leaf=is_scaling)
        assert np.max(np.abs(np.divide(_losses(fns, hps, wrong), losses[0]) - 1)) > 1e-6


def _losses(fns, hps, scalings):
    state = jax.jit(fns.init)(0, hps, scalings)
    step, losses = jax.jit(fns.step), []
    rows = np.random.default_rng(1).integers(0, 256, (10, 4, 17))
    for batch in rows:
        state, metrics = step(state, batch, hps, scalings)
        losses.append(float(metrics["loss"]))
    return losses


def test_uncovered_role_and_changed_signature_are_errors():
    cfg = MLPConfig(d_model=8, num_layers=2, context=2, dtype="float32", vocab_size=5)
    metas = abstract_metas("mlp", cfg)
    table = PARAMETERIZATIONS["mup"]
    without = dataclasses.replace(table, rows={k: v for k, v in table.rows.items() if k != "vector"})
    with pytest.raises(ValueError, match="'mup' has no row for role 'vector' of b0"):
        resolve(without, metas, metas)
    other = metas | {"w1": dataclasses.replace(metas["w1"], role="output")}
    with pytest.raises(ValueError, match="w1 is hidden"):
        resolve(table, metas, other)
