"""The configs of Kalra & Barkeshli 2026 (2605.21486): complete, of the known sizes and numbers, and
they train."""

import csv
import math

import jax
import numpy as np
import pytest
from conftest import ROOT, count_compilations

from configs.kalra2026.studies import DECAYS, FACTORIAL, SCALES, STUDIES, get_config
from mujax import main
from mujax.data.loader import load_batches
from mujax.params import named_leaves
from mujax.report.curves import make_curves
from mujax.sweep.grid import expand_sweep
from mujax.sweep.points import make_points
from mujax.sweep.study import sweep
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns

GOLDEN = ROOT / "tests" / "golden" / "kalra2026"
WIDTHS = {"full": (128, 256, 512, 1024, 2048), "small": (32, 64, 128, 256)}
IMAGE_WIDTHS = {"full": (32, 64, 128, 256, 512), "small": (8, 16, 32, 64)}
TOKENS_WIDTHS = {"full": WIDTHS["full"], "small": (32, 48, 64, 96, 128)}
ON_TEXT = [name for name in STUDIES if name != "first_layer"]


def tree(which, **axes):
    """axes: section__field=values, in place of the study's own."""
    c = get_config(which)
    for key, values in axes.items():
        section, field = key.split("__")
        c.sweep[section] = {**c.sweep.get(section, {}), field: values}
    return c.to_dict()


def runs_by_case(width):
    """Name of a file -> run, for each table and change to it among the studies at full scale and
    this width."""
    runs = {}
    for name in ON_TEXT:
        one = {
            "optim__learning_rate": (1.0,),
            "optim__weight_decay": (0.0,),
            "model__d_model": (width,),
        }
        for field in ("optim__weight_decay", "model__d_model"):
            # which some studies set point by point
            if field.replace("__", ".") in get_config(name).sweep.get("points", ({},))[0]:
                one.pop(field)
        for _, cfg in expand_sweep(tree(name, **one)):
            changes = ["tied"] * cfg.model.tied + ["frozen"] * bool(cfg.parameterization.override)
            case = ",".join([cfg.parameterization.name, *changes])
            if cfg.model.d_model == width and case not in runs:
                runs[case] = cfg
    return {case: make_run(cfg) for case, cfg in runs.items()}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("name", "is_whole"),
    [
        *((name, name != "factorial") for name in STUDIES),
        pytest.param("factorial", True, marks=pytest.mark.slow),
    ],
)
def test_every_study_resolves_to_one_program_a_width(name, is_whole, scale):
    """Nothing is allocated or compiled. Of the factorial, the ends of the learning rates stand for
    all."""
    rates = get_config(f"{name},scale={scale}").sweep.optim.learning_rate
    rates = rates if is_whole else (rates[0], rates[-1])
    points = make_points(tree(f"{name},scale={scale}", optim__learning_rate=rates))
    widths = (
        IMAGE_WIDTHS if name not in ON_TEXT else TOKENS_WIDTHS if "tokens" in name else WIDTHS
    )[scale]
    assert {p.run.cfg.model.d_model for p in points} == set(widths)
    assert len({p.run.group for p in points}) == len({p.run.program for p in points}) == len(widths)
    if name == "factorial":
        assert len(points) == 16 * (8 if scale == "full" else 3) * len(rates) * len(WIDTHS[scale])
        assert len({p.run.table_hash for p in points}) == 16 * len(WIDTHS[scale])
    for p in points:
        cfg = p.run.cfg
        assert (cfg.optim.b1, cfg.optim.b2, cfg.optim.eps, cfg.optim.grad_clip) == (
            0.9,
            0.95,
            1e-8,
            0,
        )
        assert cfg.schedule.decay_steps == cfg.train.steps // 5
        assert name == "warmup" or cfg.schedule.warmup_steps == cfg.train.steps // 5
        if scale == "full" and name in ON_TEXT and not name.startswith("fixed_tokens"):
            assert (p.tokens, cfg.train.steps) == (10_000 * 256 * 1024, 10_000)


def test_tables_and_decays_of_a_width_are_one_compilation(tmp_path, text_file):
    """SP and muP, which differ in all switches, x 2 decays."""
    small = tree(
        "factorial,scale=small", model__d_model=(16,), parameterization__name=(FACTORIAL[0],
        FACTORIAL[-1]),
        optim__weight_decay=(0.0, 0.1), optim__learning_rate=(0.25,),
    )  # fmt: skip
    small["data"].update(name="text", path=str(text_file), seq_len=16)
    small["train"].update(steps=5, batch_size=4, eval_interval=5, eval_batches=1)
    small["refine"]["log2_step"] = 0.0
    small["schedule"].update(warmup_steps=1, decay_steps=1)
    training = count_compilations("train_lane")
    rows = sweep(small, tmp_path)
    assert len(training) == 1
    assert len({row["final_loss"] for row in rows if row["status"] == "ok"}) == len(rows) == 4


def num_params(n, layers, context, vocab):
    """A layer: 4 n^2 of attention, 8 n^2 of the MLP, two gains; then the last gain, tokens, readout
    and positions."""
    return layers * (12 * n**2 + 2 * n) + n + 2 * vocab * n + context * n


def test_parameter_counts():
    gpt, small = (12, 1024, 50_304), (2, 32, 256)
    for case, run in runs_by_case(512).items():
        assert run.num_params == num_params(512, *gpt) - (
            50_304 * 512 if case.endswith("tied") else 0
        )
    for name, sizes in (("path", gpt), ("path,scale=small", small)):
        for p in make_points(tree(name, optim__learning_rate=(1.0,))):
            assert p.run.num_params == num_params(p.run.cfg.model.d_model, *sizes)


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("fixed_tokens")])
@pytest.mark.parametrize(("scale", "ratio"), [("full", 20), ("small", 0.6)])
def test_tokens_per_parameter(name, scale, ratio):
    points = make_points(tree(f"{name},scale={scale}", optim__learning_rate=(1.0,)))
    for p in points:
        np.testing.assert_allclose(p.tokens / p.run.num_params, ratio, rtol=0.01)
        if name.endswith("timescale"):
            np.testing.assert_allclose(
                p.run.cfg.optim.weight_decay * p.run.cfg.train.steps, 10, rtol=1e-4
            )
    # The report draws a curve a table (and decay) across the widths, although steps go along with
    # them
    rows = [
        {
            "width": p.run.cfg.model.d_model, "parameterization": p.run.cfg.parameterization.name,
            "status": "ok",
            "overrides": p.overrides, "learning_rate": 1.0, "final_loss": 1.0, "seed": 0,
        }
        for p in points
    ]  # fmt: skip
    curves = make_curves(rows)
    assert len(curves) == len(points) / len(TOKENS_WIDTHS[scale])
    assert all(
        [curve.width for curve in study] == list(TOKENS_WIDTHS[scale]) for study in curves.values()
    )


def expected(switches, tensor, n, layers, d_head=64):
    """(init, lr) of a tensor, lr in units of eta, by the table of the paper."""
    last = tensor.rpartition("/")[2]
    if last in ("embed", "position"):
        return 1, 1 if "embd" in switches else n**-0.5 if "sqrt_embd" in switches else 1 / n
    if last == "gain":
        return 1, 1 if "ln" in switches else 1 / n
    if last == "unembed":
        return 1 / n if "last" in switches else n**-0.5, 1 / n
    return (2 * layers * n) ** -0.5 if last == "wo" else n**-0.5, 1 / n


def test_scalings_are_those_of_the_paper():
    """Every tensor of every table at width 512; a step shrinks each matrix by eta lambda, and no
    gain."""
    n = 512
    runs = runs_by_case(n)
    assert set(FACTORIAL) < set(runs)
    for case, run in runs.items():
        switches = case.partition(",")[0].split("+")[1:]
        scale = 1 / 64 if "attn" in switches else 1 / 8
        assert math.isclose(run.hps.attention_scale, scale, rel_tol=1e-6)
        readout = (1 / n if "last" in switches else n**-0.5) if case.endswith("tied") else 1
        assert math.isclose(run.hps.logits_scale, readout, rel_tol=1e-6)
        assert run.hps.residual_scale == run.hps.embedding_scale == 1
        for tensor, s in named_leaves(run.scalings).items():
            init, lr = expected(switches, tensor, n, layers=12)
            shrink = 0 if tensor.endswith("gain") else 1
            if case.endswith("frozen") and tensor in ("embed", "position"):
                lr, shrink = 0, 0
            if "sqrt_decay" in switches:
                # m^-1/2 of what it is at the base width of 128, on hidden matrices
                shrink = 0.5 if "/w" in tensor else 0
            np.testing.assert_allclose(
                (s.init, s.lr, s.lr * s.weight_decay), (init, lr, shrink), 1e-6, err_msg=tensor
            )
            assert (s.forward, s.eps) == (1, 1)
    assert (
        runs["factorial"].scalings["unembed"].init
        == runs["factorial"].scalings["blocks"]["mlp"]["wi"].init
    )


def test_first_layer_of_images():
    """Its rate over eta: 1 / n, n^-1/2, 1; the other kernels' 1 / 9n, the readout's 1 / n."""
    runs = {}
    for _, cfg in expand_sweep(
        tree("first_layer", optim__learning_rate=(1.0,), model__d_model=(64,))
    ):
        runs[cfg.parameterization.name] = make_run(cfg)
    assert {name: run.scalings["first"].lr * 64 for name, run in runs.items()} == {
        "factorial": 1, "factorial+sqrt_embd": 8, "factorial+embd": 64,
    }  # fmt: skip
    for run in runs.values():
        assert run.num_params == 27 * 64 + 3 * 9 * 64**2 + 64 * 10
        for tensor, s in named_leaves(run.scalings).items():
            assert tensor == "first" or math.isclose(
                s.lr, 1 / 64 if tensor == "unembed" else 1 / (9 * 64), rel_tol=1e-6
            )
            assert math.isclose(s.lr * s.weight_decay, 1, rel_tol=1e-6)


def test_golden_tables(request):
    """The whole resolved table of each case, at the narrowest and the widest width, to be read as a
    diff."""
    texts = {}
    for width in (128, 2048):
        for case, run in runs_by_case(width).items():
            texts[case] = texts.get(case, "") + f"{case}, width {width}\n{run.table}\n"
    if request.config.getoption("--regenerate-golden"):
        GOLDEN.mkdir(exist_ok=True)
        for case, text in texts.items():
            (GOLDEN / f"{case}.txt").write_text(text)
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(texts)
    for case, text in texts.items():
        assert (GOLDEN / f"{case}.txt").read_text() == text


def test_the_longer_runs_differ_in_length_alone():
    """Four times the steps of the same slices of the path, and of each phase of the schedule."""
    ours, theirs = (
        {(p.run.cfg.parameterization.name, p.run.cfg.model.d_model): p.run.cfg for p in points}
        for points in (
            make_points(tree(f"{n},scale=small", optim__learning_rate=(1.0,)))
            for n in ("longer", "path")
        )
    )
    assert len(ours) == 3 * 3
    for key, cfg in ours.items():
        other = theirs[key]
        assert cfg.train.steps == 4 * other.train.steps == 800
        assert (cfg.schedule.warmup_steps, cfg.schedule.decay_steps) == (160, 160)
        assert (cfg.model, cfg.optim, cfg.data, cfg.train.batch_size) == (
            other.model, other.optim, other.data, other.train.batch_size,
        )  # fmt: skip


THIRD = ("frozen_embedding", "tied", "fixed_tokens", "first_layer")


@pytest.mark.parametrize(
    ("name", "steps"),
    [*((n, 3) for n in THIRD), *(pytest.param(n, 20, marks=pytest.mark.slow) for n in STUDIES)],
)
def test_small_studies_train(name, steps):
    """Every point at the narrowest width and eta = 1, on a batch that is repeated: the loss
    falls."""
    cfgs = [
        cfg for _, cfg in expand_sweep(tree(f"{name},scale=small", optim__learning_rate=(1.0,)))
    ]
    runs = [make_run(cfg) for cfg in cfgs if cfg.model.d_model == cfgs[0].model.d_model]
    batches, _, _ = load_batches(runs[0].cfg, [0])
    fns = make_train_fns(runs[0].program)
    init, step = jax.jit(fns.init), jax.jit(fns.step)
    first = "embed" if name in ON_TEXT else "first"
    for run in runs:
        state = init(0, run.hps, run.scalings)
        losses, before = [], np.asarray(state.params[first])
        for _ in range(steps):
            state, metrics = step(state, batches[0][0], run.hps, run.scalings)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0], run.cfg
        assert np.array_equal(before, state.params[first]) == bool(
            run.cfg.parameterization.override
        )


def table_of(display):
    """Their name of a parameterization -> ours: 'SP+Attn+Embd', or 'μP-LN'."""
    switches = ("embd", "ln", "attn", "last")
    first, *rest = display.lower().replace("-", "+").split("+")
    on = [s for s in switches if (s in rest) == (first == "sp")]
    return "+".join(["factorial", *on])


def test_published_metrics_are_of_the_factorial():
    """124 of the 128 slices: two decays are missing for each of two tables."""
    with open(ROOT / "experiments" / "kalra2026" / "published.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    slices = {(table_of(row["display"]), float(row["weight_decay"])) for row in rows}
    assert len(rows) == len(slices) == 124
    assert {table for table, _ in slices} == set(FACTORIAL)
    assert {decay for _, decay in slices} == set(DECAYS)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("factorail", "no study 'factorail'; one of factorial, path"),
        ("tied,scale=huge", "'scale=huge' is neither scale=full nor scale=small"),
        ("longer", "longer is at small scale alone: longer,scale=small"),
    ],
)
def test_wrong_names_give_one_line(argument, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = f"--config=configs/kalra2026/studies.py:{argument}"
    assert main.run(["sweep", config, "--dry_run"]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("mujax: ") and err.count("\n") == 1


def test_one_slice_by_overrides(monkeypatch, capsys):
    """As the docstring of the config says."""
    monkeypatch.chdir(ROOT)
    code = main.run(
        [
            "sweep", "--config=configs/kalra2026/studies.py:factorial,scale=small", "--dry_run",
            f"--config.sweep.parameterization.name=('{FACTORIAL[-1]}',)",
            "--config.sweep.optim.weight_decay=(0.0,)",
        ]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "16 points in 4 groups, 4 training programs" in out
