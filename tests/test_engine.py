"""The engine: what a run computes depends on neither its lane, its neighbours, the devices nor the
memory there is."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from conftest import count_compilations, tiny_tree

from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.parameterization.kalra import FACTORIAL
from mujax.sweep import compilation, engine
from mujax.sweep.engine import train_runs
from mujax.sweep.grid import expand_sweep
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns


def runs_of(tree, **sweep):
    return [make_run(cfg) for _, cfg in expand_sweep({**tree, "sweep": sweep})]


def results(runs, **kwargs):
    """{index: Progress} of train_runs."""
    cfg = runs[0].cfg
    batches, validation, _ = load_batches(cfg, {run.cfg.seed for run in runs})
    return dict(train_runs(runs, batches, validation, **kwargs))


def single_curve(run, init, step):
    """Training losses of the bare step, one run by itself."""
    batches, _, _ = load_batches(run.cfg, [run.cfg.seed])
    state, losses = init(run.cfg.seed, run.hps, run.scalings), []
    for t in range(run.cfg.train.steps):
        state, metrics = step(state, batches[run.cfg.seed][t], run.hps, run.scalings)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.fixture(scope="module")
def runs_and_curves(text_file):
    """32 runs of 50 steps - learning rates, decays, tables and two seeds - and three of them
    trained alone."""
    tree = tiny_tree(
        "mlp",
        data__name="text",
        data__path=str(text_file),
        train__steps=50,
        train__eval_interval=20,
        model__d_model=32,
    )
    runs = runs_of(
        tree,
        optim={"learning_rate": (2.0**-9, 2.0**-8, 2.0**-7, 2.0**-6), "weight_decay": (0.0, 0.1)},
        parameterization={"name": ("sp", "mup")},
        seed=(0, 1),
    )
    assert len(runs) == 32
    fns = make_train_fns(runs[0].program)
    init, step = jax.jit(fns.init), jax.jit(fns.step)
    return runs, {i: single_curve(runs[i], init, step) for i in (0, 13, 30)}


@pytest.mark.parametrize(
    ("size", "num_devices", "vmapped"),
    [
        (1, 8, True),
        (7, 8, False),
        (32, 1, True),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in ((1, 1, False), (7, 1, True), (32, 8, True), (32, 8, False))
        ),
    ],
)
def test_a_run_is_the_same_in_any_company(runs_and_curves, size, num_devices, vmapped, monkeypatch):
    """Batches of 1, 7 and 32, shuffled, on 1 and 8 devices, against the run by itself: 1e-5 after
    50 steps."""
    runs, curves = runs_and_curves
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    order = np.random.default_rng(size).permutation(32).tolist()
    watched = list(curves)[:size]
    company = [*(i for i in order if i not in curves), *watched][-size:]
    ended = results([runs[i] for i in company], vmapped=vmapped)
    assert len(ended) == size
    for i in watched:
        progress = ended[company.index(i)]
        np.testing.assert_allclose(progress.history[0], curves[i], rtol=1e-5)
        assert [step for step, _ in progress.outcome.evals] == [0, 20, 40, 50]


def test_order_and_neighbours_do_not_change_a_bit(tiny):
    """The same executable and chunk: another order, another lane, other neighbours, one of which
    diverges."""
    tree = tiny("mlp", optim__grad_clip=0.0)
    runs = runs_of(tree, optim={"learning_rate": (0.01, 0.015, 0.02, 0.03, 0.05)})
    wild = runs_of(tree, optim={"learning_rate": (1e4,)})
    forward = results(runs)
    other = results([*wild, *runs[::-1], *wild])
    assert other[0].outcome.diverged_at is not None
    for i in range(5):
        assert np.array_equal(forward[i].history, other[5 - i].history)
        assert forward[i].outcome.evals == other[5 - i].outcome.evals


def test_parameterizations_learning_rates_and_decays_share_one_program(tiny):
    """The 16 parameterizations of paper 2 at two learning rates and two decays."""
    names = tuple(table.name for table in FACTORIAL if "sqrt" not in table.name)
    assert len(names) == 16
    runs = runs_of(
        tiny(train__steps=2, train__eval_interval=2, model__d_model=32, model__norm_gain="vector"),
        parameterization={"name": names},
        optim={"learning_rate": (0.01, 0.02), "weight_decay": (0.0, 1e-3)},
    )
    compilation._compile.cache_clear()
    compiled = count_compilations("train_lane")
    assert len(results(runs)) == 64
    assert len(compiled) == 1


def test_as_many_lanes_as_memory_holds(tiny, monkeypatch):
    """Less memory, by the compiler's count, is fewer lanes and the same losses; too little is one
    clear line."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    runs = runs_of(tiny("mlp"), optim={"learning_rate": tuple(0.01 + 0.001 * i for i in range(8))})
    sizes, compile_lanes = [], compilation.compile_lanes

    def noted(*args):
        sizes.append(compile_lanes(*args))
        return sizes[-1]

    monkeypatch.setattr(compilation, "compile_lanes", noted)
    plenty = results(runs, vmapped=True)
    assert [e.num_lanes for e in sizes] == [8]
    monkeypatch.setattr(
        compilation, "available_memory", lambda mesh: sizes[0].bytes_per_device // 3 + 1
    )
    little = results(runs, vmapped=True)
    assert sizes[-1].num_lanes == 2
    assert sizes[-1].bytes_per_device <= sizes[0].bytes_per_device // 3 + 1
    for i in range(8):
        np.testing.assert_allclose(little[i].history, plenty[i].history, rtol=1e-5)
    monkeypatch.setattr(compilation, "available_memory", lambda mesh: 1000)
    asked = []

    def too_large(runs, validation, layout, num_lanes, vmapped):
        asked.append(num_lanes)
        return types.SimpleNamespace(bytes_per_device=1001 * num_lanes)

    monkeypatch.setattr(compilation, "compile_lanes", too_large)
    with pytest.raises(
        UserError, match="one run of width 16 needs about .* split it with mesh.fsdp"
    ):
        results(runs, vmapped=True)
    assert asked == [8, 1]


def test_a_chunk_of_mostly_dead_lanes_is_packed_anew(tiny, monkeypatch):
    """Six of eight vmapped runs explode: the two others go on in a chunk of two, unless compiling
    costs more."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    runs = runs_of(
        tiny("mlp", optim__grad_clip=0.0, train__steps=20),
        optim={"learning_rate": (0.01, *(1e4 + i for i in range(6)), 0.02)},
    )
    sizes = []
    train_chunk = engine.Chunk.train
    monkeypatch.setattr(
        engine.Chunk, "train", lambda self: (sizes.append(len(self._slots)), train_chunk(self))[1]
    )
    patient = results(runs, vmapped=True)
    assert set(sizes) == {8}  # 20 tiny steps are cheaper than a compilation
    sizes.clear()
    monkeypatch.setattr(compilation.Executables, "compile_seconds", 0.0)
    packed = results(runs, vmapped=True)
    assert sizes[0] == 8
    assert sizes[-1] == 2
    for i in range(8):
        assert packed[i].outcome.diverged_at == patient[i].outcome.diverged_at
        assert (packed[i].outcome.diverged_at is None) == (i in (0, 7))
        np.testing.assert_allclose(packed[i].history, patient[i].history, rtol=1e-5)


def test_parked_runs_go_on_to_the_bit_on_fewer_devices_too(tiny, monkeypatch):
    """Stopped in mid-flight, in between two evaluations; then on as many devices, and on fewer than
    it has runs."""
    runs = runs_of(tiny("mlp"), optim={"learning_rate": (0.01, 0.02, 0.03)}, seed=(0, 1))
    whole = results(runs)
    calls = 0

    def stop(take_snapshots):
        nonlocal calls
        calls += 1
        snapshots.append(take_snapshots())
        if calls == 2:
            raise InterruptedError

    monkeypatch.setattr(compilation, "MAX_STEPS_PER_CALL", 3)
    compilation._compile.cache_clear()
    snapshots = []
    with pytest.raises(InterruptedError):
        results(runs, interrupt=stop)
    assert [entry.progress.done for entry in snapshots[-1]] == [3] * 6
    for num_devices in (8, 2):
        monkeypatch.setattr(jax, "device_count", lambda n=num_devices: n)
        again = [engine.Snapshot(e.index, copied(e.progress), e.state) for e in snapshots[-1]]
        steps, saved = [], []
        on = results(
            runs,
            snapshots=again,
            report=lambda indices, n, log=steps: log.append(len(indices) * n),
            interrupt=lambda take_snapshots, log=saved: log.append(len(take_snapshots())),
        )
        assert sum(steps) == 6 * (12 - 3)
        assert saved[0] == 6  # those that wait for a lane are saved with the others
        for i in range(6):
            rtol = 0 if num_devices == 8 else 1e-6
            np.testing.assert_allclose(on[i].history, whole[i].history, rtol=rtol)
            np.testing.assert_allclose(on[i].outcome.evals, whole[i].outcome.evals, rtol=rtol)


def copied(progress):
    outcome = dataclasses.replace(progress.outcome, evals=list(progress.outcome.evals))
    return dataclasses.replace(progress, outcome=outcome, history=progress.history.copy())
