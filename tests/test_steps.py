"""The training step: accumulation, the loss that counts tokens up to the first end of text, and
dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_tree

from mujax.config import make_run_config
from mujax.models import MODELS
from mujax.sweep.engine import Progress, Snapshot
from mujax.sweep.lanes import LaneState
from mujax.sweep.snapshots import load_snapshots, save_snapshots
from mujax.training.loss import until_first
from mujax.training.outcome import Outcome
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns


def make(model="transformer", **overrides):
    tree = tiny_tree(model, **overrides)
    tree.pop("sweep")
    return make_run(make_run_config(tree))


def one_step(run, rows):
    """(state, metrics) after the first update."""
    fns = make_train_fns(run.program)
    state = jax.jit(fns.init)(0, run.hps, run.scalings)
    return jax.jit(fns.step)(state, rows, run.hps, run.scalings)


ROWS = np.random.default_rng(0).integers(0, 256, (4, 17), dtype=np.uint8)


def test_accumulation_equals_the_large_batch():
    """Also where rows end early: the mean is over all slots, so every part weighs the same."""
    overrides = {"optim__name": "sgd", "optim__grad_clip": 0.0, "data__eos_id": 7}
    rows = ROWS.copy()
    rows[1, 5] = rows[2, 9] = 7
    whole, metrics = one_step(make("mlp", **overrides), rows)
    in_parts, metrics_in_parts = one_step(make("mlp", **overrides, train__accumulation=4), rows)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(in_parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_in_parts[name], value, rtol=1e-5)


def test_the_loss_counts_what_comes_before_the_first_end_of_text():
    targets = np.array([[3, 7, 1, 7], [7, 7, 2, 2], [1, 2, 3, 4]])
    np.testing.assert_array_equal(
        until_first(7, jnp.asarray(targets)), [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    )


def test_masked_loss_against_numpy():
    """Reported: the mean over the tokens that count; differentiated: the mean over all slots
    (2404.05728)."""
    run = make(data__eos_id=7, optim__name="sgd", optim__grad_clip=0.0, schedule__warmup_steps=0)
    rows = ROWS.copy()
    rows[0, 3] = rows[1, 16] = rows[2, 1] = 7
    fns = make_train_fns(run.program)
    state = jax.jit(fns.init)(0, run.hps, run.scalings)

    is_counted_BT = np.array([[7 not in row[1 : t + 1] for t in range(16)] for row in rows])
    assert is_counted_BT.sum() < 64

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(params):
        logits = MODELS["transformer"][1](run.cfg.model).apply(
            {"params": params}, rows[:, :-1], run.hps
        )
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(logits), rows[:, 1:, None].astype(int), -1
        )[..., 0]
        return jnp.mean(losses * is_counted_BT), losses

    (_, losses), gradient = objective(state.params)
    evaluated = jax.jit(fns.evaluate)(state.params, rows, run.hps, run.scalings)
    np.testing.assert_allclose(evaluated, losses[is_counted_BT].mean(), rtol=1e-6)
    new, metrics = one_step(run, rows)
    np.testing.assert_allclose(metrics["loss"], evaluated, rtol=1e-6)
    moved = jax.tree.map(
        lambda w, g, s: w - run.hps.learning_rate * s.lr * g, state.params, gradient, run.scalings
    )
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_evaluation_reads_out_in_float32():
    """The same features, in bfloat16; their logits from the float32 weight, so finer than bfloat16
    can tell."""
    run = make(model__dtype="bfloat16")
    fns = make_train_fns(run.program)
    params = jax.jit(fns.init)(0, run.hps, run.scalings).params
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    model = MODELS["transformer"][1](run.cfg.model)
    x_BTD = jax.jit(lambda p: model.apply({"params": p}, ROWS[:, :-1], run.hps, method="features"))(
        low
    )
    assert x_BTD.dtype == jnp.bfloat16
    logits = np.asarray(x_BTD, np.float64) @ np.asarray(params["unembed"], np.float64)
    target = np.take_along_axis(logits, ROWS[:, 1:, None].astype(int), -1)[..., 0]
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - target)
    evaluated = jax.jit(fns.evaluate)(params, ROWS, run.hps, run.scalings)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["lion", "muon", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "sgd"))]
)
def test_first_moment_in_bfloat16(name, tmp_path):
    """It alone; the run is the same to bfloat16's precision; and what is in flight is saved with
    it, to the bit."""
    exact, _ = one_step(make("mlp", optim__name=name), ROWS)
    run = make("mlp", optim__name=name, optim__momentum_dtype="bfloat16")
    state, _ = one_step(run, ROWS)
    dtypes = {
        str(x.dtype)
        for x in jax.tree.leaves(state.opt_state)
        if jnp.issubdtype(x.dtype, jnp.floating)
    }
    assert dtypes == ({"bfloat16"} if name in ("lion", "sgd") else {"bfloat16", "float32"})
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}
    for a, b in zip(jax.tree.leaves(exact.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)
    progress = Progress(
        1, Outcome(run.cfg.train, [(0, 5.5)]), np.zeros((3, run.cfg.train.steps), np.float32)
    )
    snapshots = Snapshot(0, progress, jax.device_get(LaneState(state, np.int32(-1))))
    save_snapshots(tmp_path / "it.npz", [snapshots], ["a"], "code")
    (again,) = load_snapshots(tmp_path / "it.npz", run, {"a": 0}, "code")
    for a, b in zip(jax.tree.leaves(snapshots.state), jax.tree.leaves(again.state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
