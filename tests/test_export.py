"""A table as parameter groups for torch.optim: by hand from 2203.03466's Table 8, and the groups of microsoft/mup."""

import json

import pytest
from conftest import run_mujax

from mujax.errors import UserError
from mujax.export import export, parse_roles, read_shapes

# An MLP as torch stores it, four times as wide as its base, whose file is written as microsoft/mup writes it
SHAPES = {"embed.weight": [50, 256], "first.weight": [256, 3], "hidden.weight": [256, 256], "hidden.bias": [256]}
SHAPES |= {"head.weight": [50, 256], "head.bias": [50]}
BSH = """# This is a base shape file encoded in yaml
embed.weight:
- null
- 64
first.weight:
- 64
- null
hidden.weight:
- 64
- 64
hidden.bias:
- 64
head.weight:
- null
- 64
head.bias:
- null
"""
ROLES = "embed.weight=input,head.weight=output"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "shapes.json").write_text(json.dumps(SHAPES))
    (tmp_path / "base.bsh").write_text(BSH)
    return [f"--shapes={tmp_path}/shapes.json", f"--base_shapes={tmp_path}/base.bsh"]


def test_table_8_by_hand(files):
    """m = 4: hidden lr 1/m, all else 1; the readout's forward factor 1/m, its draw of the base fan_in."""
    done = run_mujax(
        "export", *files, "--parameterization=mup_table8", "--learning_rate=0.02", f"--roles={ROLES}",
        "--weight_decay=0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rates = {name: group["lr"] for group in told["groups"] for name in group["params"]}
    assert rates == {name: pytest.approx(0.005 if name == "hidden.weight" else 0.02) for name in SHAPES}
    assert {group["weight_decay"] for group in told["groups"]} == {0.1}
    assert told["forward"] == {name: 0.25 if name == "head.weight" else 1.0 for name in SHAPES}
    assert told["init"] == pytest.approx(
        {"embed.weight": 1.0, "first.weight": 1.0, "hidden.weight": 1 / 16, "head.weight": 1 / 8}
    )


def test_what_is_wrong_is_told_in_one_line(files, tmp_path):
    base = ["--parameterization=mup", "--learning_rate=0.1"]
    for arguments, message in (
        ([*files, *base], "embed.weight [None, 64] may be an embedding or a readout: give its role"),
        ([*files, *base, "--roles=embed*=inptu"], "is not PATTERN=ROLE; did you mean input"),
        (
            [*files, "--parameterization=mpu", "--learning_rate=0.1", f"--roles={ROLES}"],
            "--parameterization=mpu is not",
        ),
        ([files[0], f"--base_shapes={tmp_path}/none.bsh", *base], "no such file"),
    ):
        done = run_mujax("export", *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(UserError, match="a.b is in one of --shapes and --base_shapes"):
        export({"a.b": (2,)}, {}, "mup", "adamw", {}, {})
    (tmp_path / "odd.json").write_text('{"w": [1, "x"]}')
    with pytest.raises(UserError, match="w is .*not a list of sizes"):
        read_shapes(str(tmp_path / "odd.json"), "shapes")


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 256, 1024])
def test_the_learning_rates_of_microsoft_mup(width, tmp_path):
    """The same MLP, through its own file of base shapes: MuAdam's learning rates, tensor by tensor."""
    torch, mup = (pytest.importorskip(name, reason="needs the CPU build of torch and mup") for name in ("torch", "mup"))

    def model(width):
        nn = torch.nn
        return nn.ModuleDict({
            "first": nn.Linear(3, width), "hidden": nn.Linear(width, width), "head": mup.MuReadout(width, 10),
        })  # fmt: skip

    file = str(tmp_path / "base.bsh")
    mup.make_base_shapes(model(32), model(64), savefile=file)
    mlp = model(width)
    mup.set_base_shapes(mlp, file)
    names = {parameter: name for name, parameter in mlp.named_parameters()}
    theirs = {names[p]: g["lr"] for g in mup.MuAdam(mlp.parameters(), lr=0.1).param_groups for p in g["params"]}
    shapes = {name: tuple(parameter.shape) for name, parameter in mlp.named_parameters()}
    hyperparameters = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.0}
    told = export(
        shapes,
        read_shapes(file, "base_shapes"),
        "mup_table8",
        "adamw",
        hyperparameters,
        parse_roles("head.weight=output"),
    )
    ours = {name: group["lr"] for group in told["groups"] for name in group["params"]}
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert len(set(ours.values())) == (1 if width == 32 else 2)
