"""What the architectures compute: causality, second implementations, initial loss, precision, any
width."""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_tree
from jax.sharding import SingleDeviceSharding

from mujax.config import make_run_config
from mujax.errors import UserError
from mujax.models import MODELS, attention
from mujax.models.layers import LanguageModel, rope
from mujax.plan.topology import load_topology
from mujax.training.loss import cross_entropy
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns


def make(model, **overrides):
    tree = tiny_tree(model, **overrides)
    tree.pop("sweep")
    return make_run(make_run_config(tree))


def apply(model, run):
    """Jitted (params, tokens, hps) -> logits."""
    module = MODELS[model][1](run.cfg.model)
    return jax.jit(lambda params, tokens, hps: module.apply({"params": params}, tokens, hps))


def initial_params(run, seed=0):
    """Weights as large as at initialization, drawn with NumPy, so that nothing is compiled for
    them."""
    rng = np.random.default_rng(seed)
    draws = {"normal": rng.standard_normal, "zeros": np.zeros, "ones": np.ones}
    return jax.tree.map(
        lambda meta, s: np.float32(draws[meta.dist](meta.sizes) * s.init), run.metas, run.scalings
    )


@pytest.mark.parametrize("model", ["transformer", "mlp"])
def test_causal_by_zero_gradients(model):
    """d logits[t] / d embedding of token s is exactly zero for s > t, and not for s = t."""
    run = make(model)
    module, params = MODELS[model][1](run.cfg.model), initial_params(run)
    length = 6

    def logits(embed_TD):  # token t is id t, so its embedding is row t
        tokens = jnp.arange(length)[None]
        return module.apply(
            {"params": params | {"embed": jnp.asarray(params["embed"]).at[:length].set(embed_TD)}},
            tokens,
            run.hps,
        )[0].sum(-1)

    jacobian_TSD = jax.jit(jax.jacobian(logits))(params["embed"][:length])
    influence = np.abs(np.asarray(jacobian_TSD)).max(-1)
    assert np.all(influence[np.triu_indices(length, k=1)] == 0)
    assert np.all(np.diag(influence) > 0)
    reach = run.cfg.model.context if model == "mlp" else length
    t, s = np.tril_indices(length)
    assert np.all((influence[t, s] > 0) == (t - s < reach))


# One or more options each, on three layers of width 32 with four heads
OPTIONS = {
    "baseline": {},
    "gains and biases": {"norm_gain": "vector", "bias": True},
    "scalar gains": {"norm_gain": "scalar"},
    "layer norm": {"norm": "layer", "norm_gain": "vector", "bias": True, "embedding_norm": True},
    "gpt": {"norm": "layer", "norm_gain": "vector", "position": "learned", "activation": "gelu"},
    "no positions, shared keys": {"position": "none", "num_kv_heads": 2, "activation": "silu"},
    "qk norm, one key head, swiglu": {
        "qk_norm": True, "norm_gain": "vector", "num_kv_heads": 1, "activation": "swiglu",
        "mlp_ratio": 2.5,
    },
    "biases, geglu, shared keys": {"bias": True, "activation": "geglu", "num_kv_heads": 2},
    "parallel": {"parallel": True, "activation": "sqrelu"},
    "squared relu attention": {"attention": "sqrelu"},
    "elu attention": {"attention": "elu"},
    "normalized squared relu attention": {"attention": "normalized_sqrelu"},
    "normalized elu attention": {"attention": "normalized_elu"},
}  # fmt: skip


def make_with(options, **overrides):
    model = {
        f"model__{name}": value
        for name, value in {"d_model": 32, "num_layers": 3, **options}.items()
    }
    return make("transformer", **model, **overrides)


def shaken(params):
    """Weights that are off zero and one too."""
    return jax.tree.map(
        lambda x: x + np.float32(0.1 * np.cos(np.arange(x.size)).reshape(x.shape)), params
    )


def in_numpy(cfg, params, tokens, attention_scale, window=10**6):
    """The logits of a transformer, from its definition: float64, one sequence and one head at a
    time.

    window: positions that a query sees, its own included.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, gains):
        x = x - x.mean(-1, keepdims=True) if cfg.norm == "layer" else x
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps) * gains.get(
            "gain", 1
        ) + gains.get("bias", 0)

    def rotate(x_TK):  # pairs as complex numbers
        half = x_TK.shape[1] // 2
        angles = np.outer(np.arange(len(x_TK)), cfg.rope_base ** (-np.arange(half) / half))
        z = (x_TK[:, :half] + 1j * x_TK[:, half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], 1)

    def cdf(x):
        return np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))(x)

    act = {
        "relu": lambda x: x * (x > 0),
        "sqrelu": lambda x: x**2 * (x > 0),
        "gelu": lambda x: x * cdf(x),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
        "exp": np.exp,
    }
    gates = {"swiglu": act["silu"], "geglu": act["gelu"]}

    def project(w, name, h, x_TD):
        weight = w[f"w{name}"]
        own = h * weight.shape[1] // cfg.num_heads  # neighbouring query heads share a key head
        bias = w[f"b{name}"][own] if cfg.bias else 0
        return x_TD @ weight[:, own] + bias

    def head(w, h, x_TD):
        q, k, v = (project(w, n, h, x_TD) for n in "qkv")
        if cfg.qk_norm:
            q, k = norm(q, w.get("q_norm", {})), norm(k, w.get("k_norm", {}))
        if cfg.position == "rope":
            q, k = rotate(q), rotate(k)
        mixed = np.zeros_like(v)
        kind = {"softmax": "exp", "normalized_sqrelu": "sqrelu", "normalized_elu": "elu"}.get(
            cfg.attention, cfg.attention
        )
        for t in range(len(q)):
            seen = slice(max(t + 1 - window, 0), t + 1)
            weights = act[kind](k[seen] @ q[t] * attention_scale)
            if cfg.attention == "softmax" or cfg.attention.startswith("normalized"):
                weights = weights / max(weights.sum(), 1e-6)
            mixed[t] = weights @ v[seen]
        return mixed @ w["wo"][h]

    def mlp(w, x_TD):
        h = x_TD @ w["wi"] + w.get("bi", 0)
        if cfg.activation in gates:
            h = gates[cfg.activation](x_TD @ w["wg"] + w.get("bg", 0)) * h
        else:
            h = act[cfg.activation](h)
        return h @ w["wo"] + w.get("bo", 0)

    def logits(ids):
        x = p["embed"][ids]
        if cfg.position == "learned":
            x = (x + p["position"][: len(ids)]) / np.sqrt(2)
        if cfg.embedding_norm:
            x = norm(x, p.get("embedding_norm", {}))
        for layer in range(cfg.num_layers):
            w = jax.tree.map(lambda x, i=layer: x[i], p["blocks"])
            read = norm(x, w.get("attention_norm", {}))
            x = (
                x
                + sum(head(w["attention"], h, read) for h in range(cfg.num_heads))
                + w["attention"].get("bo", 0)
            )
            x = x + mlp(w["mlp"], read if cfg.parallel else norm(x, w.get("mlp_norm", {})))
        return norm(x, p.get("final_norm", {})) @ p["unembed"] + p.get("unembed_bias", 0)

    return np.stack([logits(ids) for ids in tokens])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_transformer_equals_its_definition_in_numpy(options):
    run = make_with(options)
    params = shaken(initial_params(run, seed=3))
    tokens = np.random.default_rng(0).integers(0, 256, (2, 10))
    ours = apply("transformer", run)(params, tokens, run.hps)
    theirs = in_numpy(run.cfg.model, params, tokens, float(run.hps.attention_scale))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def loss_and_gradients(run, params, rows):
    loss = jax.jit(jax.value_and_grad(make_train_fns(run.program).evaluate))
    return loss(params, rows, run.hps, run.scalings)


@pytest.mark.parametrize(
    "how",
    [
        {"remat": "full"},
        {"remat": "dots"},
        {"scan_layers": False},
        {"attention_impl": "dot_product"},
    ],
    ids=lambda how: "-".join(map(str, *how.items())),
)
def test_how_it_is_computed_changes_no_number(how):
    """Rematerialization, unrolled layers, another implementation of attention: the same loss and
    gradients."""
    options = {"num_kv_heads": 2, "norm_gain": "vector"}
    run, other = make_with(options), make_with({**options, **how})
    params = shaken(initial_params(run))
    rows = np.random.default_rng(0).integers(0, 256, (3, 17))
    for a, b in zip(
        jax.tree.leaves(loss_and_gradients(run, params, rows)),
        jax.tree.leaves(loss_and_gradients(other, params, rows)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())


def test_splash_attention_equals_the_plain_one():
    """The TPU kernel, interpreted: heads that share keys too."""
    q, k, v = (
        jnp.asarray(x, jnp.float32)
        for x in np.random.default_rng(0).normal(size=(3, 2, 128, 2, 128))
    )
    for G in (1, 2):
        args = (q / 128, k[:, :, :G], v[:, :, :G], make("transformer").cfg.model)
        np.testing.assert_allclose(
            attention.splash(*args, interpret=True), attention.plain(*args), rtol=2e-3, atol=2e-3
        )
        documents = jnp.asarray(np.random.default_rng(1).random((2, 128)) < 0.05).cumsum(axis=1)
        np.testing.assert_allclose(
            attention.splash(*args, documents, interpret=True),
            attention.plain(*args, documents),
            rtol=2e-3,
            atol=2e-3,
        )


@pytest.mark.parametrize("implementation", ["plain", "dot_product"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_documents_of_a_row_do_not_see_each_other(implementation, scan_layers):
    """Logits of a packed document are those that it has alone, after the end of the one before it;
    so its losses and
    their gradients are too: the gradient of a document's losses by the embeddings of all others is
    zero."""
    run = make(
        "transformer",
        model__boundary_id=3,
        model__attention_impl=implementation,
        model__scan_layers=scan_layers,
    )
    logits_of, params = apply("transformer", run), initial_params(run)
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 200, size=n) for n in (5, 1, 6)]
    row = np.concatenate([documents[0], [3], documents[1], [3], documents[2]])
    # an end begins the next
    alone = [documents[0], *(np.concatenate([[3], document]) for document in documents[1:])]
    padded = [
        np.pad(document, (0, len(row) - len(document)), constant_values=4) for document in alone
    ]
    packed, *each = logits_of(params, np.stack([row, *padded]), run.hps)
    start = 0
    for document, logits in zip(alone, each, strict=True):
        end = start + len(document)
        np.testing.assert_allclose(packed[start:end], logits[: len(document)], rtol=1e-4, atol=1e-5)
        start = end

    def last_losses(embed, run=run):
        module = MODELS["transformer"][1](run.cfg.model)
        logits = module.apply({"params": params | {"embed": embed}}, row[None, :-1], run.hps)
        return cross_entropy(logits, jnp.asarray(row[None, 1:]))[0, -len(documents[2]) :].sum()

    gradient = np.abs(np.asarray(jax.jit(jax.grad(last_losses))(params["embed"]))).max(axis=1)
    own = {3, *documents[2][:-1].tolist()}
    assert {int(i) for i in np.flatnonzero(gradient)} == own
    # without boundaries it does see them
    blind = make("transformer", model__attention_impl=implementation)
    seen = jax.jit(jax.grad(functools.partial(last_losses, run=blind)))(params["embed"])
    assert np.abs(np.asarray(seen))[documents[0]].max() > 0


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this platform"
)
@pytest.mark.parametrize("num_kv_heads", [0, 1])
def test_splash_attention_compiles_for_a_tpu(num_kv_heads):
    """The whole training step, by the TPU's own compiler and without one."""
    one_chip = SingleDeviceSharding(load_topology("v4:2x2x1").devices[0])
    run = make(
        "transformer", model__d_model=256, model__d_head=128, model__num_kv_heads=num_kv_heads,
        model__dtype="bfloat16", model__attention_impl="splash", data__seq_len=256,
        parameterization__base_width=128,
    )  # fmt: skip
    fns = make_train_fns(run.program)

    def abstract(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=one_chip), tree
        )

    state = jax.eval_shape(fns.init, np.uint32(0), run.hps, run.scalings)
    args = abstract((state, np.zeros((4, 257), np.uint8), run.hps, run.scalings))
    text = jax.jit(fns.step).lower(*args).compile().as_text()
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text


def test_the_readout_in_parts_changes_no_number(monkeypatch):
    run = make("transformer")
    params, rows = initial_params(run), np.random.default_rng(0).integers(0, 256, (3, 17))
    whole = loss_and_gradients(run, params, rows)
    monkeypatch.setattr("mujax.training.loss.CHUNK_BYTES", 1)
    parts = loss_and_gradients(run, params, rows)
    text = (
        jax.jit(make_train_fns(run.program).evaluate)
        .lower(params, rows, run.hps, run.scalings)
        .as_text()
    )
    assert "tensor<3x2x256xf32>" in text  # 8 parts of 2 positions
    assert "tensor<3x16x256xf32>" not in text
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(a).max())


def test_a_fork_without_a_readout_is_told_so(monkeypatch):
    class Half(LanguageModel):
        def features(self, tokens_BT, hps):
            return tokens_BT

    monkeypatch.setitem(MODELS, "transformer", (MODELS["transformer"][0], Half))
    with pytest.raises(
        UserError, match=r"^Half has no logits\(\); write it, or one __call__ for the whole model"
    ):
        make("transformer")


@pytest.mark.parametrize("width", [64, 128])
def test_parameter_counts_by_closed_form(width):
    """12 L M^2 + 2 V M, and what each option of 2404.05728 adds to it."""
    L, M, V, K = 3, width, 256, 8
    baseline = 12 * L * M**2 + 2 * V * M
    for options, count in (
        ({}, baseline),
        ({"norm_gain": "vector"}, baseline + (2 * L + 1) * M),
        ({"norm_gain": "scalar"}, baseline + 2 * L + 1),
        ({"bias": True}, baseline + L * (4 * M + 5 * M) + V),
        ({"num_kv_heads": 1, "mlp_ratio": 5.0}, L * (2 * M**2 + 2 * M * K + 10 * M**2) + 2 * V * M),
        ({"activation": "swiglu", "mlp_ratio": 2.5}, L * (4 * M**2 + 7.5 * M**2) + 2 * V * M),
        ({"position": "learned", "tied": True}, baseline - V * M + 16 * M),
    ):
        assert make_with({**options, "d_model": width}).num_params == count


def test_rope_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=8), rng.normal(size=8)
    q_rot, k_rot = (
        rope(jnp.broadcast_to(jnp.float32(x), (1, 9, 1, 8)), 100.0)[0, :, 0] for x in (q, k)
    )
    dots = np.asarray(q_rot @ k_rot.T)
    np.testing.assert_allclose(dots[3:, 3:], dots[:-3, :-3], atol=1e-5)
    assert not np.allclose(dots[0, 0], dots[3, 0], atol=1e-2)


@pytest.mark.parametrize(("width", "name"), [(64, "mup"), (256, "mup"), (64, "sp")])
def test_initial_loss_closed_form(width, name):
    """Unit-RMS features and logit variance s^2 give ln V + s^2 / 2: s^2 = base / width for muP, 1
    for SP."""
    run = make(
        "transformer",
        model__d_model=width,
        parameterization__base_width=32,
        parameterization__name=name,
    )
    fns = make_train_fns(run.program)
    init, evaluate = jax.jit(fns.init), jax.jit(fns.evaluate)
    rows = np.random.default_rng(0).integers(0, 256, (64, 17))
    losses = []
    for seed in range(4):
        losses.append(
            float(evaluate(init(seed, run.hps, run.scalings).params, rows, run.hps, run.scalings))
        )
    variance = 32 / width if name == "mup" else 1.0
    assert abs(np.mean(losses) / (np.log(256) + variance / 2) - 1) < 0.004


def test_cross_entropy_is_minus_log_probability():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    targets = np.array([[0, 4, 2], [1, 1, 3]])
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probs, targets[..., None], -1))[..., 0]
    np.testing.assert_allclose(
        cross_entropy(jnp.asarray(logits), jnp.asarray(targets)), expected, rtol=1e-6
    )


@pytest.mark.parametrize("model", ["transformer", "mlp"])
def test_bfloat16_computes_in_bfloat16_from_float32_masters(model):
    """No traced float32 number promotes an activation; masters and optimizer state stay float32."""
    run32 = make(model, model__d_model=32)
    run16 = make(model, model__d_model=32, model__dtype="bfloat16")
    fns = make_train_fns(run16.program)
    state = jax.jit(fns.init)(0, run16.hps, run16.scalings)
    params = state.params
    tokens = np.random.default_rng(0).integers(0, 256, (2, 17))
    with jax.numpy_dtype_promotion("strict"):
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        logits = apply(model, run16)(low, tokens, run16.hps)
    assert logits.dtype == jnp.bfloat16
    state, metrics = jax.jit(fns.step)(state, tokens, run16.hps, run16.scalings)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    exact = jax.jit(make_train_fns(run32.program).evaluate)(
        params, tokens, run32.hps, run32.scalings
    )
    assert 0 < abs(float(metrics["loss"]) / float(exact) - 1) < 5e-3


@pytest.mark.parametrize("width", [8, 24, 40])
@pytest.mark.parametrize("model", ["transformer", "mlp"])
def test_any_width_trains(model, width):
    """Below the base width of 16 and at odd ratios, the loss on a repeated batch falls."""
    run = make(model, model__d_model=width, optim__learning_rate=2.0**-5)
    fns = make_train_fns(run.program)
    state, step = jax.jit(fns.init)(0, run.hps, run.scalings), jax.jit(fns.step)
    rows = np.random.default_rng(0).integers(0, 256, (4, 17))
    losses = []
    for _ in range(10):
        state, metrics = step(state, rows, run.hps, run.scalings)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3


def test_one_executable_serves_both_parameterizations():
    """SP and muP differ in traced numbers alone: the jitted step is compiled once for both."""
    runs = [
        make("transformer", model__d_model=32, parameterization__name=name)
        for name in ("sp", "mup")
    ]
    assert runs[0].program == runs[1].program
    fns = make_train_fns(runs[0].program)
    step = jax.jit(fns.step)
    for run in runs:
        step(
            jax.jit(fns.init)(0, run.hps, run.scalings),
            np.zeros((4, 17), np.uint8),
            run.hps,
            run.scalings,
        )
    assert step._cache_size() == 1


def test_forward_scales_reach_the_model():
    """They are numbers in hps, not constants of the module, and each multiplies what it says."""
    run = make("transformer")
    params, tokens, logits = initial_params(run), np.arange(10)[None], apply("transformer", run)

    def with_scales(**scales):
        return logits(
            params, tokens, run.hps._replace(**{k: np.float32(v) for k, v in scales.items()})
        )

    plain = with_scales()
    assert not np.allclose(with_scales(attention_scale=0.1), with_scales(attention_scale=0.5))
    np.testing.assert_allclose(with_scales(logits_scale=0.25), plain / 4, rtol=1e-6)
    # Without branches the stream is the embedding, and the norm takes its factor away
    no_branch = with_scales(residual_scale=0.0)
    embedded = np.asarray(params["embed"])[tokens[0]]
    normed = embedded / np.sqrt(np.mean(embedded**2, axis=-1, keepdims=True))
    np.testing.assert_allclose(no_branch[0], normed @ params["unembed"], rtol=1e-4, atol=1e-5)
    # The same stream, three times as large: embedding and branches alike
    np.testing.assert_allclose(
        with_scales(embedding_scale=3, residual_scale=3), plain, rtol=1e-3, atol=1e-4
    )
    mlp = make("mlp")
    params, logits = initial_params(mlp), apply("mlp", mlp)
    plain = logits(params, tokens, mlp.hps)
    scaled = logits(
        params, tokens, mlp.hps._replace(embedding_scale=np.float32(2), logits_scale=np.float32(3))
    )
    # biases are zero and ReLU is homogeneous
    np.testing.assert_allclose(scaled, 6 * plain, rtol=1e-5)


def test_shared_keys_are_repeated_heads():
    """Two query heads on one key head equal two key heads with the same weights; four heads in two
    groups."""
    shared, full = (
        make("transformer", model__d_model=32, model__num_kv_heads=2),
        make("transformer", model__d_model=32),
    )
    params = initial_params(shared)
    attention = params["blocks"]["attention"]
    assert attention["wk"].shape == attention["wv"].shape == (2, 32, 2, 8)
    repeated = {name: jnp.repeat(attention[name], 2, axis=2) for name in ("wk", "wv")}
    same = params | {"blocks": params["blocks"] | {"attention": attention | repeated}}
    tokens = np.random.default_rng(0).integers(0, 256, (2, 10))
    ours = apply("transformer", shared)(params, tokens, shared.hps)
    np.testing.assert_allclose(
        ours, apply("transformer", full)(same, tokens, full.hps), rtol=1e-5, atol=1e-6
    )
    assert (
        shared.cfg.model.flops_per_token(64)
        == full.cfg.model.flops_per_token(64) - 6 * 2 * 2 * 0.5 * 32**2
    )


def test_tied_embedding_is_the_readout():
    tied, untied = make("transformer", model__tied=True), make("transformer")
    params = initial_params(tied)
    assert "unembed" not in params
    same = params | {"unembed": params["embed"].T}
    tokens = np.random.default_rng(0).integers(0, 256, (2, 10))
    ours = apply("transformer", tied)(params, tokens, tied.hps)
    theirs = apply("transformer", untied)(same, tokens, untied.hps) * tied.hps.logits_scale
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_recorded_activations_are_those_of_the_forward_pass():
    """Named, stacked by layer, and the logits are the logits; asking for them changes nothing."""
    run = make("transformer", model__norm_gain="vector")
    params, fns = initial_params(run), make_train_fns(run.program)
    rows = np.random.default_rng(0).integers(0, 256, (2, 11))
    recorded = jax.jit(fns.activations)(params, rows, run.hps, run.scalings)
    np.testing.assert_array_equal(
        recorded["logits"], apply("transformer", run)(params, rows[:, :-1], run.hps)
    )
    assert recorded["blocks"]["residual"].shape == (2, 2, 10, 16)
    assert recorded["blocks"]["attention"]["attention_logits"].shape == (2, 2, 2, 10, 10)
    np.testing.assert_array_equal(recorded["embedding"], params["embed"][rows[:, :-1]])
