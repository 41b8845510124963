"""Runs that are split over devices: the numbers of one device, and what each device stores and
tells the others."""

import dataclasses
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_tree

from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.models.module import MuModule
from mujax.params import signature
from mujax.sweep import engine
from mujax.sweep.engine import train_runs
from mujax.sweep.grid import expand_sweep
from mujax.training.run import make_run
from mujax.training.sharding import make_layout

# Everything that has weights of its own. A length of 9, in 3 parts for the loss, keeps activations
# apart from weights, whose sizes are powers of two.
CONFIG = {
    "model__d_model": 64, "model__d_head": 8, "model__num_kv_heads": 2, "model__bias": True,
    "model__norm": "layer",
    "model__norm_gain": "vector", "model__embedding_norm": True, "model__qk_norm": True,
    "data__seq_len": 9,
    "train__batch_size": 8, "train__steps": 6, "train__eval_interval": 3,
}  # fmt: skip


MLP = {"data__seq_len": 9, "model__d_model": 64, "train__batch_size": 8, "train__steps": 6}


def runs_of(num_runs: int = 1, mesh=(1, 1, 1), rules=None, model="transformer", **changes):
    """So many runs of a small model, with learning rates of their own; mesh: data, fsdp, tensor."""
    tree = tiny_tree(model, **{**(CONFIG if model == "transformer" else MLP), **changes})
    tree["mesh"].update(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    tree["mesh"]["rules"] = rules or tree["mesh"]["rules"]
    tree["sweep"] = {"optim": {"learning_rate": tuple(0.004 * (i + 1) for i in range(num_runs))}}
    return [make_run(cfg) for _, cfg in expand_sweep(tree)]


class Outcome(NamedTuple):
    progress: dict
    lanes: object
    hlo: str  # of the training program


@pytest.fixture(scope="module")
def whole_outcomes():
    """Of runs on one device, by their config."""
    return {}


@pytest.fixture
def outcome_of(text_file, whole_outcomes, monkeypatch):
    """Trains runs as a sweep does, its loss cut into parts, and looks at what the engine has
    compiled and holds."""
    monkeypatch.setattr("mujax.training.loss.CHUNK_BYTES", 1)
    chunks = []
    refill = engine.Chunk.refill
    monkeypatch.setattr(
        engine.Chunk,
        "refill",
        lambda self, waiting: (chunks.append(self), refill(self, waiting))[1],
    )

    def train(*args, **kwargs):
        runs = runs_of(*args, data__name="text", data__path=str(text_file), **kwargs)
        batches, validation, _ = load_batches(runs[0].cfg, [0])
        progress = dict(train_runs(runs, batches, validation, vmapped=True))
        return Outcome(progress, chunks[-1]._lanes, chunks[-1]._executables.train.as_text())

    def outcome(*args, mesh=(1, 1, 1), **kwargs):
        if mesh != (1, 1, 1):
            return train(*args, mesh=mesh, **kwargs)
        key = repr((args, sorted(kwargs.items())))
        if key not in whole_outcomes:
            whole_outcomes[key] = train(*args, **kwargs)
        return whole_outcomes[key]

    return outcome


def assert_same(split: Outcome, whole: Outcome) -> None:
    """Training losses, gradient norms and learning rates of every step, and evaluations, of every
    run."""
    assert len(split.progress) == len(whole.progress)
    for i, progress in whole.progress.items():
        assert np.isfinite(progress.history).all()
        np.testing.assert_allclose(split.progress[i].history, progress.history, rtol=1e-5)
        losses = split.progress[i].outcome.evals
        np.testing.assert_allclose(losses, progress.outcome.evals, rtol=1e-5)


def assert_moments_lie_like_weights(lanes) -> None:
    params = jax.tree.leaves(lanes.train.params)
    moments = [x for x in jax.tree.leaves(lanes.train.opt_state) if x.ndim > 1]
    assert len(moments) == 2 * len(params)
    for i, moment in enumerate(moments):
        weight = params[i % len(params)]
        assert moment.shape == weight.shape
        assert moment.sharding.is_equivalent_to(weight.sharding, weight.ndim)


def exchanged(hlo: str) -> list[tuple[str, tuple[int, ...]]]:
    """(operation, shape of what it leaves on a device) of every array that devices exchange."""
    operations = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) ({operations})(?:-start)?\(", hlo)
    assert found or not re.search(rf"({operations})(-start)?\(", hlo)
    return [
        (operation, tuple(int(size) for size in sizes.split(",") if size))
        for results, operation in found
        for sizes in re.findall(r"\w\d+\[([\d,]*)\]", results)
    ]


def is_weight(shape: tuple[int, ...]) -> bool:
    """Or a scalar: no axis is the length, nor that of a part of the loss."""
    size = math.prod(shape)
    return size & (size - 1) == 0


def shares(lanes) -> dict[str, tuple[int, ...]]:
    """Weight -> shape of what one device stores of it, lanes left out."""
    leaves = jax.tree_util.tree_leaves_with_path(lanes.train.params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.shard_shape(x.shape)[1:]
        for path, x in leaves
    }


def test_fsdp_stores_shares_and_gathers_each_weight(outcome_of):
    whole, split = outcome_of(), outcome_of(mesh=(1, 8, 1))
    assert_same(split, whole)
    assert_moments_lie_like_weights(split.lanes)
    stored = shares(split.lanes)
    assert stored["embed"] == (256, 8)
    assert stored["blocks/attention/wq"] == (2, 8, 8, 8)
    assert stored["blocks/attention/wk"] == (2, 8, 2, 8)
    assert stored["blocks/mlp/wo"] == (2, 256, 8)
    assert stored["blocks/mlp_norm/gain"] == (2, 8)
    assert stored["unembed"] == (8, 256)
    assert stored["blocks/mlp/bi"] == (2, 256)  # no axis that fsdp splits
    assert_only_weights_are_exchanged(split)


def assert_only_weights_are_exchanged(split: Outcome) -> None:
    """And each matrix is gathered before it is used: activations stay where their rows are."""
    found = exchanged(split.hlo)
    assert all(is_weight(shape) for _, shape in found), found
    gathered = [
        tuple(size for size in shape if size > 1)
        for operation, shape in found
        if operation == "all-gather"
    ]
    # embed; wq, wo, wk and wv of a layer; wi and wo of its MLP; unembed
    for shape, least in {
        (256, 64): 2,
        (64, 256): 2,
        (64, 8, 8): 1,
        (8, 8, 64): 1,
        (64, 2, 8): 2,
    }.items():
        assert gathered.count(shape) >= least, (shape, gathered)


def test_mlp_split_by_fsdp(outcome_of):
    whole, split = outcome_of(model="mlp"), outcome_of(model="mlp", mesh=(1, 8, 1))
    assert_same(split, whole)
    assert_moments_lie_like_weights(split.lanes)
    found = exchanged(split.hlo)
    assert all(is_weight(shape) for _, shape in found), found


def test_an_architecture_that_names_no_activations_is_split_by_its_rows(outcome_of, monkeypatch):
    monkeypatch.setattr(MuModule, "constrain", lambda self, x, axes: x)
    whole, split = outcome_of(model="mlp"), outcome_of(model="mlp", mesh=(8, 1, 1))
    assert_same(split, whole)
    assert {operation for operation, _ in exchanged(split.hlo)} == {"all-reduce"}  # of gradients


def test_data_fsdp_and_tensor_together(outcome_of):
    """With layers that are computed twice, and gradients of a batch in two parts."""
    whole, split = (
        outcome_of(),
        outcome_of(mesh=(2, 2, 2), model__remat="full", train__accumulation=2),
    )
    assert_same(split, whole)
    assert_moments_lie_like_weights(split.lanes)
    stored = shares(split.lanes)
    assert stored["embed"] == (128, 32)
    assert stored["blocks/attention/wq"] == (2, 32, 4, 8)
    assert stored["blocks/attention/wk"] == (2, 32, 1, 8)
    assert stored["blocks/attention/wo"] == (2, 4, 8, 32)
    assert stored["blocks/mlp/wi"] == (2, 32, 128)
    assert stored["blocks/mlp/bi"] == (2, 128)
    assert stored["unembed"] == (32, 128)
    # Rows never leave their devices: 8 of them, in two parts over four devices, are one at a time
    # everywhere
    for operation, shape in exchanged(split.hlo):
        assert is_weight(shape) or shape[-2:] in ((9, 64), (9, 32)) or shape[:1] == (1,), (
            operation,
            shape,
        )


@pytest.mark.slow
def test_data_alone(outcome_of):
    """Weights whole everywhere, and the sum of their gradients the one thing that is exchanged."""
    whole, split = outcome_of(), outcome_of(mesh=(8, 1, 1))
    assert_same(split, whole)
    assert_moments_lie_like_weights(split.lanes)
    assert shares(split.lanes) == shares(whole.lanes)
    found = exchanged(split.hlo)
    assert {operation for operation, _ in found} == {"all-reduce"}
    assert all(is_weight(shape) for _, shape in found), found


@pytest.mark.slow
def test_data_and_fsdp(outcome_of):
    """Here a gradient of the embedding that is scattered right into its shares gathers all
    activations."""
    whole, split = outcome_of(), outcome_of(mesh=(2, 4, 1))
    assert_same(split, whole)
    assert_only_weights_are_exchanged(split)


@pytest.mark.slow
def test_tensor_alone_and_heads_that_it_does_not_divide(outcome_of):
    """One of 8 query heads a device, the 2 heads of keys and values whole on each; layers one after
    the other."""
    changes = {"model__activation": "swiglu", "model__position": "learned"}
    whole, split = (
        outcome_of(**changes),
        outcome_of(mesh=(1, 1, 8), model__scan_layers=False, **changes),
    )
    assert_same(split, whole)
    assert_moments_lie_like_weights(split.lanes)
    stored = shares(split.lanes)
    assert stored["blocks/attention/wq"] == (2, 64, 1, 8)
    assert stored["blocks/attention/wk"] == (2, 64, 2, 8)
    assert stored["blocks/mlp/wg"] == (2, 64, 32)
    assert stored["embed"] == (32, 64)
    assert stored["position"] == (9, 64)
    assert stored["unembed_bias"] == (32,)


@pytest.mark.slow
def test_two_runs_side_by_side_on_four_devices_each(outcome_of):
    """Four runs: two lanes in each of two slots, between which nothing is exchanged."""
    whole, split = outcome_of(4), outcome_of(4, mesh=(1, 4, 1))
    assert_same(split, whole)
    wi = split.lanes.train.params["blocks"]["mlp"]["wi"]
    assert dict(wi.sharding.mesh.shape) == {"sweep": 2, "data": 1, "fsdp": 4, "tensor": 1}
    assert wi.sharding.shard_shape(wi.shape) == (2, 2, 16, 256)
    assert_moments_lie_like_weights(split.lanes)
    groups = re.findall(r"replica_groups=(.*?), \w+=", split.hlo)
    assert len(groups) > 10
    assert {group for text in groups for group in members(text)} == {(0, 1, 2, 3), (4, 5, 6, 7)}


def members(replica_groups: str) -> list[tuple[int, ...]]:
    """Groups of devices: mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, say, are the rows of all devices
    as such a mesh."""
    mesh, names = re.fullmatch(r"mesh\[(.*)\] \{(.*)\}", replica_groups).groups()
    sizes = {name: int(size) for name, size in (axis.split("=") for axis in mesh.split(","))}
    along = [list(sizes).index(name) for name in names.split(",")]
    ids = np.arange(8).reshape(*sizes.values())
    rows = np.moveaxis(ids, along, range(-len(along), 0)).reshape(
        -1, math.prod(ids.shape[i] for i in along)
    )
    return [tuple(row) for row in rows.tolist()]


@pytest.mark.slow
def test_rules_of_ones_own(outcome_of):
    """Other axes over other mesh axes: the same numbers, and shares by those rules."""
    rules = ("mlp=fsdp", "vocab=fsdp", "embed=tensor", "heads=fsdp")
    split = outcome_of(mesh=(2, 2, 2), rules=rules)
    assert_same(split, outcome_of())
    stored = shares(split.lanes)
    assert stored["embed"] == (128, 32)
    assert stored["blocks/mlp/wi"] == (2, 32, 128)
    assert stored["blocks/attention/wk"] == (2, 32, 2, 8)
    assert stored["blocks/attention/wo"] == (2, 4, 8, 32)


def test_what_a_mesh_axis_does_not_divide_stays_whole():
    """And the first axis of a weight to name a mesh axis gets it."""
    dims = {"embed": 64, "mlp": 256, "heads": 6, "head_dim": 8, "vocab": 257}
    layout = make_layout(
        1, fsdp=2, tensor=4, rules=(("embed", "fsdp"), *((n, "tensor") for n in ("heads", "vocab")))
    )

    def split(text, layout=layout):
        return tuple(layout.stored(signature("hidden", text, dims)).spec)

    assert split("embed -> heads head_dim") == ("fsdp", None, None)  # 6 heads on 4 devices
    assert split("vocab -> embed") == (None, "fsdp")
    assert split("embed -> mlp") == ("fsdp", None)  # no rule
    both = make_layout(1, fsdp=4, rules=(("embed", "fsdp"), ("mlp", "fsdp")))
    assert split("mlp -> embed", both) == ("fsdp", None)
    assert split("embed -> mlp", both) == ("fsdp", None)


def test_a_gradient_lies_like_its_weight():
    """Wherever what it is computed from lies."""
    layout = make_layout(1, data=2, fsdp=2, tensor=2)
    meta = signature("hidden", "embed -> mlp", {"embed": 8, "mlp": 16})
    w = jnp.arange(128.0).reshape(8, 16)
    for place in (layout.stored(meta), layout.used(meta)):
        gradient = jax.jit(jax.grad(lambda w: jnp.sum(layout.weight(w, meta) ** 2)))(
            jax.device_put(w, place)
        )
        np.testing.assert_array_equal(gradient, 2 * w)
        assert gradient.sharding.is_equivalent_to(layout.stored(meta), 2)


@pytest.mark.parametrize("num_slots", [1, 8])
def test_runs_that_are_not_split_are_not_constrained(num_slots):
    """A device each: what is traced is what is traced without any mesh, and rows stay where they
    are read."""
    layout = make_layout(num_slots)
    meta = signature("hidden", "embed -> mlp", {"embed": 8, "mlp": 16})
    x = jnp.ones((8, 16))
    assert layout.weight(x, meta) is x and layout.activation(x, ("batch", "embed")) is x
    rows = np.arange(12).reshape(4, 3)
    placed = layout.place((4, 3), rows.__getitem__)
    assert isinstance(placed, np.ndarray) and np.array_equal(placed, rows)


def test_more_devices_than_there_are(outcome_of):
    with pytest.raises(UserError, match="= 16 is more than the 8 devices here"):
        outcome_of(mesh=(1, 4, 4))


def test_data_is_split_over_slices_first():
    """16 devices on two slices: whatever else is split stays on one of them, also where some
    devices are left over."""

    @dataclasses.dataclass(frozen=True)
    class Device:
        id: int
        slice_index: int
        platform: str = "cpu"
        device_kind: str = "cpu"
        process_index: int = 0

    devices = [Device(i, i // 8) for i in range(16)]
    mesh = make_layout(1, data=4, fsdp=2, slices=2, devices=devices).mesh
    assert dict(mesh.shape) == {"sweep": 1, "data": 4, "fsdp": 2, "tensor": 1}
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)[0, :, :, 0]
    assert slices.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(
        UserError, match="mesh.slices = 4, but the slices of the devices here are 2"
    ):
        make_layout(1, data=4, slices=4, devices=devices)
    with pytest.raises(
        UserError, match="mesh.slices = 2, but the slices of the devices here are 1"
    ):
        make_layout(1, data=2, slices=2)
