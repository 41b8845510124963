"""The configs of Lingle 2024 (2404.05728): complete, of the published sizes and numbers, and they
train."""

import csv
import math

import jax
import numpy as np
import pytest
from conftest import ROOT

from configs.lingle2024.ablations import ABLATIONS, HEAD_OF, REASONS, get_config
from mujax.data.loader import load_batches
from mujax.sweep.grid import expand_sweep
from mujax.sweep.points import make_points
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns

GOLDEN = ROOT / "tests" / "golden" / "lingle2024"
V = 32_100


def tree(which, **overrides):
    """overrides: section__field=value."""
    values = get_config(which).to_dict()
    for key, value in overrides.items():
        section, field = key.split("__")
        values[section][field] = value
    return values


def first_runs(which, **overrides):
    """width -> its run at the lowest learning rate."""
    runs = {}
    for _, cfg in expand_sweep(tree(which, **overrides)):
        runs.setdefault(cfg.model.d_model, cfg)
    return {width: make_run(cfg) for width, cfg in runs.items()}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_config_resolves(name):
    """Both profiles at both scales; nothing is allocated or compiled. Tokens are the published
    ones."""
    for profile in ("paper", "head"):
        points = make_points(tree(f"{name},profile={profile}"))
        large = name.startswith("combined")
        widths = {128, 512, 2048} | ({256, 1024} if profile == "head" else set())
        widths |= ({8192} | ({4096} if profile == "head" else set())) if large else set()
        assert {p.run.cfg.model.d_model for p in points} == widths
        assert len(points) == len(widths) * (3 if large else 5)
        assert {p.tokens for p in points} == {90_000 * 2**21 if large else 125_000 * 2**18}
        assert len(make_points(tree(f"{name},profile={profile},scale=small"))) == 4 * 3


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_is_asked_at_small_scale_alone(name):
    """There it is what it asks about but for what its line names; the published runs have no such
    study."""
    about = name.rpartition("_")[0]
    (ours, theirs) = (make_points(tree(f"{n},scale=small")) for n in (name, about))
    assert [(p.run.cfg.model.d_model, p.run.cfg.optim.learning_rate) for p in ours] == [
        (p.run.cfg.model.d_model, p.run.cfg.optim.learning_rate) for p in theirs
    ]
    assert not {p.id for p in ours} & {p.id for p in theirs}
    with pytest.raises(ValueError, match=f"{name},scale=small"):
        get_config(name)


def test_published_meshes():
    """128 x 1 up to width 1024, 32 x 4 at 2048 and 4096, 64 x 4 at 8192; at small scale there is
    nothing to split."""
    points = make_points(tree("combined,profile=head,mesh=paper"))
    found = {p.run.cfg.model.d_model: p.run.cfg.mesh for p in points}
    assert len(points) == 3 * 7 and all(mesh.data == 1 for mesh in found.values())
    assert {w: (mesh.fsdp, mesh.tensor) for w, mesh in found.items()} == {
        **dict.fromkeys((128, 256, 512, 1024), (128, 1)), 2048: (32, 4), 4096: (32, 4), 8192: (64,
        4),
    }  # fmt: skip
    assert all(
        p.run.cfg.mesh.num_devices == 1
        for p in make_points(tree("baseline,scale=small,mesh=paper"))
    )


def test_parameter_counts_are_the_published_ones():
    """12 L M^2 + 2 V M, and what an ablation adds."""
    L = 24
    for name, count in {
        "baseline": lambda M: 12 * L * M**2 + 2 * V * M,
        "gains_vector": lambda M: 12 * L * M**2 + 2 * V * M + (2 * L + 1) * M,
        "gains_scalar": lambda M: 12 * L * M**2 + 2 * V * M + 2 * L + 1,
        "biases": lambda M: 12 * L * M**2 + 2 * V * M + L * 9 * M + V,
        "mqa": lambda M: L * (2 * M**2 + 2 * 128 * M + 10 * M**2) + 2 * V * M,
        "swiglu": lambda M: L * (4 * M**2 + 7.5 * M**2) + 2 * V * M,
        "combined": lambda M: 12 * 12 * M**2 + 2 * V * M,
    }.items():
        for width, run in first_runs(name).items():
            assert run.num_params == count(width), (name, width)
    assert 10.1e9 < first_runs("combined")[8192].num_params < 10.3e9


def expected(name, tensor, M):
    """(init, lr) of a tensor in units of the base rate, from the paper's tables; P = 128, F the
    MLP's hidden size."""
    P, last = 128, tensor.rpartition("/")[2]
    F = {"swiglu": 2.5, "mqa": 5}.get(name, 4) * M
    rule = "sp" if name.startswith("sp") else "abs" if name.endswith("_abs") else "mup"
    if last in ("embed", "gain") or last.startswith("b") or last == "unembed_bias":
        return 1.0, 1.0
    fan_in = F if tensor.endswith("mlp/wo") else M
    lr = {"sp": 1.0, "mup": P / M, "abs": 1 / fan_in}[rule]
    init = fan_in**-0.5
    if last == "unembed":
        init = M**-0.5 if rule == "sp" or name == "uinit" else 1 / M
    if last == "wq" and (name == "qinit" or name.startswith("combined")):
        init = 0.0
    return init, lr


@pytest.mark.parametrize("name", ABLATIONS)
def test_scalings_are_those_of_the_paper(name, request):
    """Closed forms of init and learning rate; and the whole resolved table as a file, to be read as
    a diff."""
    text = []
    for profile in ("paper", "head") if name in HEAD_OF else ("paper",):
        for width, run in first_runs(f"{name},profile={profile}").items():
            text.append(f"{name}, {profile}, width {width}\n{run.table}")
            if profile == "head":
                continue
            scale = 128**-0.5 if name in ("sp", "sp_simple", "qkscale") else 1 / 128
            assert math.isclose(run.hps.attention_scale, scale, rel_tol=1e-6)
            for path, s in jax.tree_util.tree_leaves_with_path(
                run.scalings, is_leaf=lambda x: hasattr(x, "init")
            ):
                init, lr = expected(
                    name, jax.tree_util.keystr(path, simple=True, separator="/"), width
                )
                np.testing.assert_allclose((s.init, s.lr), (init, lr), rtol=1e-6, err_msg=str(path))
                assert (s.forward, s.eps, s.weight_decay) == (1, 1, 1)
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--regenerate-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(text))
    assert file.read_text() == "\n".join(text)


def test_the_profiles_differ_in_no_scaling_but_of_the_large_run():
    for name in ABLATIONS:
        if name not in HEAD_OF:
            paper, head = (first_runs(f"{name},profile={profile}") for profile in ("paper", "head"))
            assert {paper[width].table for width in paper} == {head[width].table for width in paper}


@pytest.mark.parametrize(
    ("width", "published"), [(128, 10.3805), pytest.param(2048, 10.3769, marks=pytest.mark.slow)]
)
def test_initial_loss_is_the_published_one(width, published):
    """ln(V) + 1 / (2 M), what a diverged cell of the tables shows; one layer, as the final norm
    forgets the others."""
    run = first_runs("baseline", model__num_layers=1, model__dtype="float32", data__eos_id=-1)[
        width
    ]
    assert abs(math.log(V) + 1 / (2 * width) - published) < 1e-4
    fns = make_train_fns(run.program)
    rows = np.random.default_rng(0).integers(0, V, (16, 65), dtype=np.uint16)

    @jax.jit
    def initial_loss(seed):
        return fns.evaluate(
            fns.init(seed, run.hps, run.scalings).params, rows, run.hps, run.scalings
        )

    losses = [float(initial_loss(seed)) for seed in range(3 if width == 128 else 1)]
    assert abs(np.mean(losses) - published) < 0.002


# One of each kind of program; tables are numbers
SOME = ("emb_norm", "mqa", "wd_indep_n4", "combined")


@pytest.mark.parametrize(
    ("name", "steps"),
    [*((n, 3) for n in SOME), *(pytest.param(n, 20, marks=pytest.mark.slow) for n in ABLATIONS)],
)
def test_small_configs_train(name, steps):
    """The loss falls on a batch that is repeated."""
    _, cfg = expand_sweep(tree(f"{name},scale=small"))[1]
    run = make_run(cfg)
    batches, _, _ = load_batches(cfg, [0])
    fns = make_train_fns(run.program)
    state, step = jax.jit(fns.init)(0, run.hps, run.scalings), jax.jit(fns.step)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batches[0][0], run.hps, run.scalings)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


def test_published_losses_are_complete():
    """117 cells, and in each group a whole grid."""
    with open(ROOT / "experiments" / "lingle2024" / "published.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 117
    for group in {row["group"] for row in rows}:
        own = [(row["width"], row["log2_lr"]) for row in rows if row["group"] == group]
        assert len(own) == len(set(own)) == (12 if group == "combined_large_scale" else 15)
