"""A table as parameter groups for torch.optim: by hand from 2203.03466's Table 8, and the groups of
microsoft/mup."""

import json

import pytest
import yaml
from conftest import run_mujax

from mujax import main
from mujax.errors import UserError
from mujax.explain.export import export, parse_roles, read_shapes

# An MLP as torch stores it, four times as wide as its base, whose file is written as microsoft/mup
# writes it
SHAPES = {
    "embed.weight": [50, 256],
    "first.weight": [256, 3],
    "hidden.weight": [256, 256],
    "hidden.bias": [256],
}
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
    """m = 4: hidden lr 1/m, all else 1; the readout's forward factor 1/m, its draw of the base
    fan_in. A layer that sums three inputs starts at 3^-1/2. The readout's effective weight learns
    at 1/m, and so fast it decays."""
    done = run_mujax(
        "export", *files, "--parameterization=mup_table8", "--learning_rate=0.02",
        f"--roles={ROLES}",
        "--weight_decay=0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rates = {name: group["lr"] for group in told["groups"] for name in group["params"]}
    assert rates == {
        name: pytest.approx(0.005 if name == "hidden.weight" else 0.02) for name in SHAPES
    }
    decays = {name: group["weight_decay"] for group in told["groups"] for name in group["params"]}
    assert decays == {
        name: pytest.approx(0.025 if name == "head.weight" else 0.1) for name in SHAPES
    }
    assert told["roles"]["first.weight"] == told["roles"]["embed.weight"] == "input"
    assert told["forward"] == {name: 0.25 if name == "head.weight" else 1.0 for name in SHAPES}
    assert told["init"] == pytest.approx(
        {
            "embed.weight": 1.0,
            "first.weight": 3**-0.5,
            "hidden.weight": 1 / 16,
            "head.weight": 1 / 8,
        }
    )


def test_forms_of_one_table_are_one_model():
    """Tables 3, 8 and 9 store other weights: what they start as, and are shrunk by a step, is the
    same."""
    shapes = {name: tuple(sizes) for name, sizes in SHAPES.items()}
    base = {name: tuple(sizes) for name, sizes in yaml.safe_load(BSH).items()}

    def told(table, optimizer):
        numbers = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1}
        return export(shapes, base, table, optimizer, numbers, parse_roles(ROLES))

    for optimizer in ("adamw", "sgd"):
        shrinks, starts = [], []
        for table in ("mup", "mup_table8", "mup_table9"):
            form = told(table, optimizer)
            shrinks.append(
                {name: g["lr"] * g["weight_decay"] for g in form["groups"] for name in g["params"]}
            )
            starts.append({name: std * form["forward"][name] for name, std in form["init"].items()})
        for other in (1, 2):
            assert shrinks[other] == pytest.approx(shrinks[0])
            assert starts[other] == pytest.approx(starts[0])


@pytest.mark.parametrize("table", ["sp", "mup", "mup_table8", "mup_table9", "mup_constant_shrink"])
def test_the_base_model_itself_has_the_numbers_of_the_base(table):
    """Without null the shapes of a model are base shapes that say nothing of what grows; they mean
    what null would."""
    told = {  # name -> shape, and the same with null
        "embed.weight": ((1000, 64), (None, 64)), "l1.weight": ((64, 64), (64, 64)),
        "l1.bias": ((64,), (64,)),
        "up.weight": ((256, 64), (256, 64)), "down.weight": ((64, 256), (64, 256)),
        "norm.weight": ((64,), (64,)),
        "first.weight": ((64, 3), (64, None)), "head.weight": ((1000, 64), (None, 64)),
        "head.bias": ((1000,), (None,)),
    }  # fmt: skip
    shapes, nulls = ({name: pair[i] for name, pair in told.items()} for i in (0, 1))
    numbers = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1}
    ours = export(shapes, shapes, table, "adamw", numbers, parse_roles(ROLES))
    assert ours == export(shapes, nulls, table, "adamw", numbers, parse_roles(ROLES))
    starts = {name: std * ours["forward"][name] for name, std in ours["init"].items()}
    matrices = {"l1": 1 / 8, "up": 1 / 8, "down": 1 / 16, "first": 3**-0.5, "head": 1 / 8}
    assert starts == pytest.approx(
        {"embed.weight": 1.0} | {f"{name}.weight": std for name, std in matrices.items()}
    )
    rates = {g["lr"] * ours["forward"][name] for g in ours["groups"] for name in g["params"]}
    assert {g["weight_decay"] for g in ours["groups"]} == {0.1} and rates == {0.01}
    tied = export({"embed": (1000, 64), "l1": (64, 64)}, {"embed": (1000, 64), "l1": (64, 64)},
    table, "adamw", numbers,
                  {"embed": "tied"})  # fmt: skip
    assert tied["init"]["embed"] == 1.0 and tied["readout"]["embed"] == pytest.approx(1 / 8)


def test_a_base_model_that_cannot_be_told_is_refused():
    numbers = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.0}
    for rows, roles, message in (
        (1000, {}, "may be an embedding or a readout: give its role"),
        (64, {"embed": "input"}, "is it an embedding or a layer. Write null"),
    ):
        shapes = {"embed": (rows, 64), "l1": (64, 64)}
        with pytest.raises(UserError, match=message):
            export(shapes, shapes, "mup", "adamw", numbers, roles)


def test_what_a_step_forgets_is_that_of_the_original():
    """Rate x decay, tensor by tensor. mup_constant_shrink: as microsoft/mup's MuAdamW, which
    divides the rate of a matrix with two growing sizes by m, multiplies its decay by m, and leaves
    all else alone. Muon's matrices: as KellerJordan/Muon, whatever their shape, where a torch Muon
    gets the factor for shape in its learning rate."""
    base = {name: tuple(sizes) for name, sizes in yaml.safe_load(BSH).items()}
    shapes = {name: tuple(sizes) for name, sizes in SHAPES.items()}
    shapes |= {"up.weight": (1024, 256), "down.weight": (256, 1024)}
    base |= {"up.weight": (256, 64), "down.weight": (64, 256)}
    numbers = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1}

    def groups(table, optimizer):
        told = export(shapes, base, table, optimizer, numbers, parse_roles(ROLES))
        return {name: group for group in told["groups"] for name in group["params"]}

    for name, group in groups("mup_constant_shrink", "adamw").items():
        matrix_like = None not in base[name] and len(base[name]) == 2
        assert group["lr"] * group["weight_decay"] == pytest.approx(
            (0.01 / 4) * (0.1 * 4) if matrix_like else 0.01 * 0.1
        )
    muon = groups("mup", "muon")
    assert [muon[name]["lr"] for name in ("up.weight", "down.weight")] == pytest.approx(
        [0.02, 0.005]
    )
    for name in ("up.weight", "down.weight", "hidden.weight"):
        assert muon[name]["lr"] * muon[name]["weight_decay"] == pytest.approx(0.01 * 0.1)


def test_a_tied_embedding_has_a_factor_on_its_logits():
    """What its readout, drawn at fan_in^-1/2, has at the base width, where the embedding is of
    order 1; then 1/m."""
    numbers = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.0}
    told = export(
        {"embed": (50, 256)}, {"embed": (None, 64)}, "mup", "adamw", numbers, {"embed": "tied"}
    )
    assert told["readout"] == {"embed": pytest.approx(64**-0.5 / 4)}


def test_what_shapes_cannot_tell_is_refused():
    numbers = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.0}

    def told(table="mup", optimizer="adamw", shape=(8, 8), base=(4, 4), roles=None):
        return export({"w": shape}, {"w": base}, table, optimizer, numbers, roles or {})

    for message, arguments in {
        "has rules for depth": {"table": "completep"},
        "has rules for single tensors": {"table": "lingle_mup_qzero"},
        "no learning rate of": {"table": "lingle_mup", "optimizer": "muon"},
        "split a stack": {"shape": (3, 8, 8), "base": (None, 4, 4), "roles": {"w": "hidden"}},
        "write null": {"shape": (8, 50), "base": (4, 50)},
        "matches no tensor": {"roles": {"v*": "input"}},
    }.items():
        with pytest.raises(UserError, match=message):
            told(**arguments)


def test_what_is_wrong_is_told_in_one_line(files, tmp_path, capsys):
    base = ["--parameterization=mup", "--learning_rate=0.1"]
    for arguments, message in (
        (
            [*files, *base],
            "embed.weight [null, 64] may be an embedding or a readout: give its role",
        ),
        ([*files, *base, "--roles=embed*=inptu"], "is not PATTERN=ROLE; did you mean input"),
        (
            [*files, "--parameterization=mpu", "--learning_rate=0.1", f"--roles={ROLES}"],
            "--parameterization=mpu is not",
        ),
        ([files[0], f"--base_shapes={tmp_path}/none.bsh", *base], "no such file"),
    ):
        assert main.run(["export", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    with pytest.raises(UserError, match="a.b is in one of --shapes and --base_shapes"):
        export({"a.b": (2,)}, {}, "mup", "adamw", {}, {})
    (tmp_path / "odd.json").write_text('{"w": [1, "x"]}')
    with pytest.raises(UserError, match="w is .*not a list of sizes"):
        read_shapes(str(tmp_path / "odd.json"), "shapes")


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 256, 1024])
def test_the_learning_rates_of_microsoft_mup(width, tmp_path):
    """The same MLP, through its own file of base shapes: MuAdam's learning rates, tensor by
    tensor."""
    torch, mup = (
        pytest.importorskip(name, reason="needs the CPU build of torch and mup")
        for name in ("torch", "mup")
    )

    def model(width):
        nn = torch.nn
        return nn.ModuleDict({
            "first": nn.Linear(3, width), "hidden": nn.Linear(width, width),
            "head": mup.MuReadout(width, 10),
        })  # fmt: skip

    file = str(tmp_path / "base.bsh")
    mup.make_base_shapes(model(32), model(64), savefile=file)
    mlp = model(width)
    mup.set_base_shapes(mlp, file)
    names = {parameter: name for name, parameter in mlp.named_parameters()}
    theirs = {
        names[p]: g["lr"]
        for g in mup.MuAdam(mlp.parameters(), lr=0.1).param_groups
        for p in g["params"]
    }
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
