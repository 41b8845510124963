import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_tree
from flax import linen as nn

from mujax.config import make_run_config
from mujax.errors import UserError
from mujax.hps import Hps
from mujax.models import MODELS
from mujax.models.mlp import MLPConfig
from mujax.models.module import unbox
from mujax.models.transformer import Transformer
from mujax.params import num_params, signature
from mujax.training.run import make_run
from mujax.training.steps import abstract_metas, abstract_state

DIMS = {"embed": 6, "heads": 3, "head_dim": 2, "mlp": 10, "vocab": 7, "layers": 5, "experts": 4}
TRANSFORMER = make_run_config(
    tiny_tree(
        model__d_model=24, model__num_layers=3, model__mlp_ratio=2.5, model__norm_gain="vector"
    )
).model


def draw(model, config):
    """The boxed parameters of a real init."""
    hps = Hps(*(0.0 for _ in Hps._fields))
    return jax.jit(MODELS[model][1](config).init)(
        jax.random.key(1), jnp.zeros((1, 1), jnp.int32), hps
    )["params"]


def test_fans_are_logical():
    """Repeated axes are in no fan; a head kernel's fans are products of two axes."""
    qkv = signature("hidden", "layers | embed -> heads head_dim", DIMS)
    assert (qkv.fan_in, qkv.fan_out, qkv.sizes) == (6, 6, (5, 6, 3, 2))
    expert = signature("hidden", "layers experts | mlp -> embed", DIMS)
    assert (expert.fan_in, expert.fan_out, expert.batch) == (10, 6, ("layers", "experts"))
    bias = signature("vector", "-> mlp", DIMS, dist="zeros")
    assert (bias.fan_in, bias.fan_out, bias.text) == (1, 10, "-> mlp")


@pytest.mark.parametrize(
    ("role", "text", "dist", "complaint"),
    [
        (
            "hiden",
            "embed -> mlp",
            "normal",
            "'hiden', the role of 'embed -> mlp', is no role; did you mean hidden",
        ),
        ("hidden", "embed mlp", "normal", "no '->'"),
        ("hidden", "embed -> mpl", "normal", "no size for axis 'mpl'"),
        ("hidden", "embed -> embed", "normal", "repeats an axis"),
        ("hidden", "embed -> mlp", "uniform", "draw 'uniform'"),
    ],
)
def test_bad_declaration_says_what_is_wrong(role, text, dist, complaint):
    with pytest.raises(UserError, match=complaint):
        signature(role, text, DIMS, dist)


def test_metadata_survives_scan_and_matches_the_arrays():
    """The metas are read off an abstract init; shapes are those of the arrays a real init makes."""
    metas = abstract_metas(Transformer, TRANSFORMER)
    arrays, again = unbox(draw("transformer", TRANSFORMER))
    assert metas == again
    assert jax.tree.map(lambda m: m.sizes, metas) == jax.tree.map(lambda x: x.shape, arrays)
    wo = metas["blocks"]["mlp"]["wo"]
    assert (wo.axes, wo.sizes, wo.fan_in) == (("layers", "mlp", "embed"), (3, 60, 24), 60)
    # 12 L D^2 at ratio 4; here 4 + 2 * 2.5 matrices a layer, two embeddings, and gains
    assert num_params(metas) == 3 * (4 + 5) * 24**2 + 2 * 256 * 24 + 2 * 3 * 24 + 24


def test_draws_have_unit_variance_and_differ_by_layer_and_tensor():
    cfg = MLPConfig(d_model=64, num_layers=3, context=4, dtype="float32", vocab_size=64)
    for name, config in (("mlp", cfg), ("transformer", TRANSFORMER)):
        arrays, metas = unbox(draw(name, config))
        for x, meta in zip(jax.tree.leaves(arrays), jax.tree.leaves(metas), strict=True):
            if meta.dist == "normal":
                assert abs(float(x.std()) - 1) < 4 / x.size**0.5
    wq, wk = arrays["blocks"]["attention"]["wq"], arrays["blocks"]["attention"]["wk"]
    assert not jnp.array_equal(wq[0], wq[1])
    assert not jnp.array_equal(wq, wk)


def test_parameter_without_a_role_is_named():
    variables = nn.Dense(3).init(jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(UserError, match="parameter (bias|kernel) has no role"):
        unbox(variables["params"])


def test_a_fork_that_keeps_its_name_is_another_program(monkeypatch):
    """As one edited in a notebook does: nothing that was found or compiled for the first serves the
    second."""
    tree = tiny_tree("mlp")
    tree.pop("sweep")
    cfg = make_run_config(tree)
    first = make_run(cfg)

    class MLPLanguageModel(MODELS["mlp"][1]):
        """With one tensor more."""

        def weight(self, name, role, text, dist="normal"):
            if name == "w0":
                super().weight("extra", role, text, dist)
            return super().weight(name, role, text, dist)

    monkeypatch.setitem(MODELS, "mlp", (MODELS["mlp"][0], MLPLanguageModel))
    second = make_run(cfg)
    assert second.program != first.program and second.metas.keys() - first.metas.keys() == {"extra"}
    assert abstract_state(second.program).params.keys() - abstract_state(
        first.program
    ).params.keys() == {"extra"}
    assert second.group == first.group  # of what the config says
