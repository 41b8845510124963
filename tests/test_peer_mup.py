"""Parity with mup 1.0.0 (github.com/microsoft/mup), by the authors of 2203.03466: it stores what
Table 8 does.

Not compared, as mup has no rule for them: Adam's eps, and the attention scale, which it leaves to
the model.
"""

import re

import pytest
from conftest import tiny_tree

from mujax.config import make_run_config
from mujax.params import named_leaves
from mujax.training.run import make_run

_NEEDS = (
    "needs the CPU build of torch and the package mup (pip install --no-deps mup; pip install "
    "pyyaml)"
)
torch = pytest.importorskip("torch", reason=_NEEDS)
mup = pytest.importorskip("mup", reason=_NEEDS)
nn = torch.nn
pytestmark = pytest.mark.slow

BASE, VOCAB, CONTEXT = 32, 256, 8
# Model -> what it overrides in mujax's config; `build` makes its twin.
MODELS = {
    "mlp": {},
    "transformer": {"model__norm_gain": "vector"},
    "tied": {"model__norm_gain": "vector", "model__tied": True},
}
NUMBERS = ("fan_in", "fan_out", "init", "forward", "adam", "sgd", "decay")


def build(model, width):
    """Modules by mujax's names of tensors; heads are flattened, and one block stands for a stack of
    equal ones."""
    embed = nn.Embedding(VOCAB, width)
    if model == "mlp":
        body = {"w0": nn.Linear(CONTEXT * width, width), "w1": nn.Linear(width, width)}
    else:
        body = {
            f"blocks/attention/{w}": nn.Linear(width, width, bias=False)
            for w in ("wq", "wk", "wv", "wo")
        }
        body["blocks/mlp/wi"] = nn.Linear(width, 4 * width, bias=False)
        body["blocks/mlp/wo"] = nn.Linear(4 * width, width, bias=False)
        norms = ("blocks/attention_norm", "blocks/mlp_norm", "final_norm")
        body |= {f"{norm}/gain": nn.RMSNorm(width) for norm in norms}
    tied = model == "tied"
    unembed = (
        mup.MuSharedReadout(embed.weight, bias=False)
        if tied
        else mup.MuReadout(width, VOCAB, bias=False)
    )
    return nn.ModuleDict({"embed": embed, **body, "unembed": unembed})


def sp_stds(params):
    """fan_in^-1/2 (torch's own for a Linear is 3^-1/2 of it at every width) and 1 for an
    embedding."""
    # gains and biases start at one and zero
    matrices = {name: p for name, p in params.items() if p.ndim == 2}
    return {
        name: 1.0 if name == "embed.weight" else p.shape[1] ** -0.5 for name, p in matrices.items()
    }


def draw(params, normal_, stds):
    torch.manual_seed(0)  # two draws differ in scale alone
    return {name: normal_(params[name], std=std).detach().clone() for name, std in stds.items()}


def ratio(x, y):
    """The factor between tensors that are multiples of one another."""
    quotient = x.detach().double() / y.detach().double()
    assert quotient.max() - quotient.min() < 1e-6 * quotient.mean()
    return quotient.mean().item()


def numbers_of_mup(model, width, rescale):
    """(tensor, number) -> value, measured.

    There are two ways to initial weights. Either mup.init draws them, with the standard deviation
    that SP has at the base width; or, with `rescale`, they are drawn as SP does at their own width,
    and set_base_shapes multiplies those of the readout by m^1/2. Both give a readout of base
    fan_in^-1/2, which forward divides by m.
    """
    modules, base, delta = (build(model, w) for w in (width, BASE, 2 * BASE))
    params = dict(modules.named_parameters())
    units = draw(params, nn.init.normal_, dict.fromkeys(sp_stds(params), 1.0))
    draw(params, nn.init.normal_, sp_stds(params))
    mup.set_base_shapes(modules, base, delta=delta, rescale_params=rescale)
    if not rescale:
        draw(params, mup.init.normal_, sp_stds(dict(base.named_parameters())))
    chains = (make(params.values(), lr=1.0, weight_decay=1.0) for make in (mup.MuAdamW, mup.MuSGD))
    adam, sgd = (
        {p: group for group in chain.param_groups for p in group["params"]} for chain in chains
    )
    numbers = {}
    for name, p in params.items():
        tensor = re.sub(r"w(\d)\.bias", r"b\1", name).removesuffix(".weight")
        fans = (1, *p.shape) if p.ndim == 1 else p.shape if tensor == "embed" else reversed(p.shape)
        init = ratio(p, units[name]) if name in units else 1.0
        values = (
            *fans,
            init,
            1.0,
            adam[p]["lr"],
            sgd[p]["lr"],
            adam[p]["lr"] * adam[p]["weight_decay"],
        )
        numbers |= {(tensor, number): value for number, value in zip(NUMBERS, values, strict=True)}
    unembed = modules["unembed"]
    return numbers | {("unembed", "forward"): ratio(unembed(torch.eye(width)), unembed.weight.T)}


def numbers_of_mujax(model, width, table):
    """The same from a table; `decay` is decay_form independent, which is lr * weight_decay of
    torch's AdamW."""

    def run_at(width, optimizer):
        settings = {
            "parameterization__name": table,
            "parameterization__base_width": BASE,
            "model__d_model": width,
        }
        tree = tiny_tree(
            "mlp" if model == "mlp" else "transformer",
            optim__name=optimizer,
            **settings,
            **MODELS[model],
        )
        tree.pop("sweep")
        return make_run(make_run_config(tree))

    run, base = run_at(width, "adamw"), run_at(BASE, "adamw")
    metas, sgd = named_leaves(run.metas), named_leaves(run_at(width, "sgd").scalings)
    numbers = {}
    for tensor, s in named_leaves(run.scalings).items():
        values = (
            metas[tensor].fan_in,
            metas[tensor].fan_out,
            s.init,
            s.forward,
            s.lr,
            sgd[tensor].lr,
            s.weight_decay,
        )
        numbers |= {
            (tensor, number): float(value) for number, value in zip(NUMBERS, values, strict=True)
        }
    # At the base width mup's factor is 1, where mujax scales the logits of a tied embedding by
    # width^-1/2.
    logits = float(run.hps.logits_scale / base.hps.logits_scale)
    return numbers | {("unembed", "forward"): numbers.get(("unembed", "forward"), 1.0) * logits}


# Tied, only mup.init is right: set_base_shapes takes the embedding for a readout and rescales it.
CASES = [
    ("mlp", False),
    ("mlp", True),
    ("transformer", False),
    ("transformer", True),
    ("tied", False),
]


@pytest.mark.parametrize("width", [16, 64, 96, 128, 256])
@pytest.mark.parametrize(("model", "rescale"), CASES)
def test_table_8_is_mup(model, rescale, width):
    theirs = numbers_of_mup(model, width, rescale)
    assert numbers_of_mujax(model, width, "mup_table8") == pytest.approx(theirs, rel=1e-6, abs=0)


@pytest.mark.parametrize("model", ["mlp", "transformer"])
def test_table_3_stores_another_readout(model):
    """And no other difference: the comparison can fail."""
    theirs, ours = numbers_of_mup(model, 96, rescale=False), numbers_of_mujax(model, 96, "mup")
    differing = {
        key for key, value in ours.items() if value != pytest.approx(theirs[key], rel=1e-6)
    }
    assert differing == {("unembed", number) for number in ("init", "forward", "adam", "sgd")}
