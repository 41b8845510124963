"""What the architectures compute. First a battery of what holds of each; then second
implementations, precision and options of the transformer."""

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from models import OPTIONS, apply, in_numpy, initial_params, make, make_with, shaken

from mujax.errors import UserError
from mujax.models import MODELS, attention
from mujax.models.layers import LanguageModel, rope
from mujax.models.protocol import Decoder, Mixer, Model, ModelConfig
from mujax.models.transformer import Transformer
from mujax.params import named_leaves
from mujax.plan.topology import load_topology
from mujax.training.loss import cross_entropy
from mujax.training.sharding import ONE_DEVICE, make_layout
from mujax.training.steps import abstract_state, make_train_fns

TEXT_MODELS = [name for name, (cfg, _) in MODELS.items() if getattr(cfg, "reads", "text") == "text"]
CACHED = ("transformer", "moe", "recurrent")


def matmul_flops(jaxpr):
    """FLOPs of the products in a traced function: twice the size of the result times what is summed
    over."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((axes, _), _), shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
            total += (
                2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in axes)
            )
        elif eqn.primitive.name == "conv_general_dilated":
            total += (
                2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[1].aval.shape[:3])
            )
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += eqn.params.get("length", 1) * matmul_flops(inner)
    return total


@pytest.mark.parametrize("model", MODELS)
def test_every_architecture_is_what_the_protocol_asks_for(model):
    """Its members by what they say: sizes of axes, shape and type of the logits, FLOPs against
    those of the trace."""
    run = make(model)
    cfg, module, seq_len = (
        run.cfg.model,
        run.program.model_class(run.cfg.model),
        run.cfg.data.seq_len,
    )
    assert isinstance(cfg, ModelConfig) and isinstance(module, Model) and hash(cfg) is not None
    if isinstance(module, Transformer):
        block = module.block_class
        assert isinstance(block.mixer_class(cfg), Mixer) and isinstance(block.mlp_class(cfg), Mixer)
    for meta in named_leaves(run.metas).values():
        assert [cfg.dims[axis] for axis in meta.axes] == list(meta.sizes)
    cfg = dataclasses.replace(cfg, dtype="bfloat16")
    params = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.sizes, jnp.bfloat16), run.metas)
    tokens = jax.ShapeDtypeStruct((2, seq_len), jnp.int32)
    closed, logits = jax.make_jaxpr(
        lambda params, tokens: type(module)(cfg).apply({"params": params}, tokens, run.hps),
        return_shape=True,
    )(params, tokens)
    places = seq_len if model in TEXT_MODELS else 1
    assert (logits.shape, logits.dtype) == ((2, places, cfg.vocab_size), jnp.bfloat16)
    told, counted = cfg.flops_per_token(seq_len), 3 * matmul_flops(closed.jaxpr) / (2 * seq_len)
    if model == "moe":
        # what finds a token's place is no work of the model, nor are places that stay empty
        assert 0.2 * counted < told < counted
    else:
        np.testing.assert_allclose(told, counted, rtol=1e-6)


@pytest.mark.parametrize("model", [*TEXT_MODELS, "moe with few places"])
def test_a_token_changes_logits_from_its_own_on(model):
    """And of the window model no further than its window; where places of experts are few, no later
    token takes one from an earlier."""
    few = {"model__capacity_factor": 0.3} if model.endswith("few places") else {}
    run = make(model.partition(" ")[0], **few)
    logits_of, params = apply(run), initial_params(run)
    length = run.cfg.data.seq_len
    tokens_BT = np.random.default_rng(0).integers(0, 256, (4, length))
    logits_BTV = logits_of(params, tokens_BT, run.hps)
    reach = getattr(run.cfg.model, "context", length)
    for s in range(length):
        changed_BT = tokens_BT.copy()
        changed_BT[:, s] = (changed_BT[:, s] + 1) % 256
        changed_BTV = np.asarray(logits_of(params, changed_BT, run.hps))
        influence_T = np.abs(changed_BTV - logits_BTV).max(axis=(0, 2))
        is_reached_T = (0 <= np.arange(length) - s) & (np.arange(length) - s < reach)
        np.testing.assert_array_equal(influence_T > 0, is_reached_T)
        assert influence_T[s] > 1e-3


@pytest.mark.parametrize("model", CACHED)
def test_in_pieces_from_its_cache_as_in_one_call(model):
    """Experts have places for all, which tokens by themselves find."""
    run = make(model, **({"model__capacity_factor": 4.0} if model == "moe" else {}))
    module, variables = run.program.model_class(run.cfg.model), {"params": initial_params(run)}
    assert isinstance(module, Decoder)
    cache = module.empty_cache(2, 16)
    tokens_BT = np.random.default_rng(0).integers(0, 256, (2, 16))
    whole_BTD = jax.jit(functools.partial(module.apply, method="features"))(
        variables, tokens_BT, run.hps
    )
    extend, found = jax.jit(functools.partial(module.apply, method="extend")), []
    for start, stop in ((0, 5), (5, 6), (6, 16)):
        out_BTD, cache = extend(variables, tokens_BT[:, start:stop], run.hps, cache, start)
        found.append(out_BTD)
    np.testing.assert_allclose(np.concatenate(found, 1), whole_BTD, rtol=1e-4, atol=1e-5)


def rows_of(run, num_rows):
    """Random rows; the last token of a classifier's is one of its classes."""
    cfg, rng = run.cfg.model, np.random.default_rng(0)
    rows = rng.integers(0, 256, (num_rows, run.cfg.data.seq_len + 1))
    rows[:, -1] %= cfg.vocab_size
    return rows


class Asked:
    """Stands in for a Layout, and takes down which weights and activations it was asked to
    place."""

    def __init__(self):
        self.weights, self.activations = set(), set()

    def weight(self, w, meta):
        assert w.shape == meta.sizes
        self.weights.add((meta.role, meta.axes))
        return w

    def activation(self, x, axes):
        assert x.ndim == len(axes)
        self.activations.add(tuple(axes))
        return x


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        *((model, {}) for model in MODELS),
        (
            "transformer",
            {"model__remat": "full", "model__bias": True, "model__norm_gain": "vector"},
        ),
        ("moe", {"model__scan_layers": False}),
    ],
)
def test_a_layout_places_what_every_part_of_a_model_declares(model, changes):
    """However deep it is, and also where layers are stacked or computed again."""
    run, asked = make(model, **changes), Asked()
    module = run.program.model_class(run.cfg.model, layout=asked)
    params = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.sizes, jnp.float32), run.metas)
    tokens = jax.ShapeDtypeStruct((2, run.cfg.data.seq_len), jnp.int32)
    jax.eval_shape(lambda p, tokens: module.apply({"params": p}, tokens, run.hps), params, tokens)
    of_one_layer = {
        (meta.role, tuple(axis for axis in meta.axes if axis != "layers"))
        for meta in named_leaves(run.metas).values()
    }
    assert asked.weights == of_one_layer
    assert any("batch" in axes for axes in asked.activations)


def loss_and_gradients(run, params, rows, layout=ONE_DEVICE):
    loss = jax.jit(jax.value_and_grad(make_train_fns(run.program, layout).evaluate))
    return loss(params, rows, run.hps, run.scalings)


@pytest.mark.parametrize("model", MODELS)
def test_split_over_devices_the_numbers_are_those_of_one(model):
    """Loss and gradients, over data, fsdp and tensor together."""
    run = make(model)
    params, rows = initial_params(run), rows_of(run, 4)
    whole = loss_and_gradients(run, params, rows)
    split = loss_and_gradients(run, params, rows, make_layout(1, data=2, fsdp=2, tensor=2))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(split))


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_bfloat16_computes_in_bfloat16_from_float32_masters(model):
    """No traced float32 number promotes an activation; masters and optimizer state stay float32."""
    run32, run16 = make(model), make(model, model__dtype="bfloat16")
    params, rows = initial_params(run32), rows_of(run32, 16)
    with jax.numpy_dtype_promotion("strict"):
        low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        logits = jax.eval_shape(apply(run16), low, rows[:, :-1], run16.hps)
    assert logits.dtype == jnp.bfloat16
    numbers = rows, run16.hps, run16.scalings
    step = make_train_fns(run16.program).step
    state, _ = jax.eval_shape(step, abstract_state(run16.program), *numbers)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == 3 * len(jax.tree.leaves(params))
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    low, exact = (
        float(jax.jit(make_train_fns(run.program).evaluate)(params, *numbers))
        for run in (run16, run32)
    )
    # a token for which two experts are nearly alike goes to the other one
    assert 0 < abs(low / exact - 1) < (2e-2 if model == "moe" else 5e-3)


# At the base width of 16 every table is the same; narrower, and at odd ratios
WIDTHS = {"transformer": (8, 40), "mlp": (8, 40)}


@pytest.mark.parametrize(
    ("model", "width"), [(m, width) for m in MODELS for width in WIDTHS.get(m, (48,))]
)
def test_any_width_trains(model, width):
    """The loss on a repeated batch falls."""
    run = make(model, model__d_model=width, optim__learning_rate=2.0**-5)
    step, rows = jax.jit(make_train_fns(run.program).step), rows_of(run, 4)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_state(run.program))
    state, losses = zeros._replace(params=initial_params(run)), []
    for _ in range(10):
        state, metrics = step(state, rows, run.hps, run.scalings)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_transformer_equals_its_definition_in_numpy(options):
    run = make_with(options)
    params = shaken(initial_params(run, seed=3))
    tokens = np.random.default_rng(0).integers(0, 256, (2, 10))
    ours = apply(run)(params, tokens, run.hps)
    theirs = in_numpy(run.cfg.model, params, tokens, float(run.hps.attention_scale))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


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
        model__separator_id=3,
        model__attention_impl=implementation,
        model__scan_layers=scan_layers,
    )
    logits_of, params = apply(run), initial_params(run)
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
    params, tokens, logits = initial_params(run), np.arange(10)[None], apply(run)

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
    params, logits = initial_params(mlp), apply(mlp)
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
    ours = apply(shared)(params, tokens, shared.hps)
    np.testing.assert_allclose(ours, apply(full)(same, tokens, full.hps), rtol=1e-5, atol=1e-6)
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
    ours = apply(tied)(params, tokens, tied.hps)
    theirs = apply(untied)(same, tokens, untied.hps) * tied.hps.logits_scale
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_recorded_activations_are_those_of_the_forward_pass():
    """Named, stacked by layer, and the logits are the logits; asking for them changes nothing."""
    run = make("transformer", model__norm_gain="vector")
    params, fns = initial_params(run), make_train_fns(run.program)
    rows = np.random.default_rng(0).integers(0, 256, (2, 11))
    recorded = jax.jit(fns.activations)(params, rows, run.hps, run.scalings)
    np.testing.assert_array_equal(recorded["logits"], apply(run)(params, rows[:, :-1], run.hps))
    assert recorded["blocks"]["residual"].shape == (2, 2, 10, 16)
    assert recorded["blocks"]["attention"]["attention_logits"].shape == (2, 2, 2, 10, 10)
    np.testing.assert_array_equal(recorded["embedding"], params["embed"][rows[:, :-1]])
