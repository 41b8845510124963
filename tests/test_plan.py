"""The plan: costs read from HLO against sums by hand; and, where libtpu is, real compilations for
TPUs."""

import dataclasses
import importlib
import importlib.util
import json
import re
from typing import NamedTuple

import pytest
from conftest import ROOT, run_mujax, tiny_tree

from configs import base
from configs.lingle2024.ablations import get_config
from experiments.benchmarks.plan_all import CONFIGS, PLANS, plan_groups
from mujax import main
from mujax.config import make_run_config
from mujax.errors import UserError
from mujax.hardware import TPUS
from mujax.plan import topology
from mujax.plan.estimate import Estimate, estimate
from mujax.plan.hlo import num_bytes, read_cost
from mujax.plan.plan import candidates
from mujax.plan.topology import load_topology
from mujax.sweep.grid import expand_sweep
from mujax.training.run import make_run
from mujax.training.sharding import make_layout

# A loop of 5 whose body computes 100 + 7 cycles and gathers; a loop of unknown length; an
# asynchronous gather; a fused all-reduce with slice; a call without estimate
HLO = """\
HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b), backend_config={"estimated_cycles":"999"}
}

%inner (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %exp = f32[8]{0} exponential(%p), backend_config={"estimated_cycles":"50"}
}

%all-reduce-scatter.1 (q: bf16[64,8]) -> bf16[16,8] {
  %q = bf16[64,8]{1,0} parameter(0)
  %all-reduce.2 = bf16[64,8]{1,0} all-reduce(%q), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %slice = bf16[16,8]{1,0} dynamic-slice(%all-reduce.2), dynamic_slice_sizes={16,8}
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %fused = f32[8]{0} fusion(%x), kind=kLoop, calls=%inner, metadata={op_name="jit(f)/mlp/exp"}, backend_config={"estimated_cycles":"100"}
  %plain = f32[8]{0} fusion(%fused), kind=kLoop, calls=%inner
  %all-gather.3 = f32[32]{0} all-gather(%plain), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %out = (s32[], f32[8]{0}) tuple(%x, %fused)
}

%condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%unbounded (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %ok = pred[] get-tuple-element(%t), index=0
}

ENTRY %main (m: f32[8], n: bf16[64,8]) -> f32[8] {
  %m = f32[8]{0} parameter(0)
  %n = bf16[64,8]{1,0} parameter(1)
  %start = (s32[], f32[8]{0}) tuple(%m, %m)
  %while.1 = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  %while.2 = (s32[], f32[8]{0}) while(%while.1), condition=%unbounded, body=%body
  %scattered = bf16[16,8]{1,0} fusion(%n), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"11"}
  %all-gather-start.4 = (f32[8]{0}, f32[64]{0}) all-gather-start(%m), replica_groups=mesh['x'=2,'y'=4] {'x','y'}
  %all-gather-done.4 = f32[64]{0} all-gather-done(%all-gather-start.4)
  %kernel = f32[8]{0} custom-call(%m), custom_call_target="tpu_custom_call"
  ROOT %result = f32[8]{0} get-tuple-element(%while.2), index=1
}
"""  # noqa: E501 - as the compiler writes it


def test_cost_of_a_step_by_hand():
    cost = read_cost(HLO, num_devices=8)
    # 5 and 1 times the body; what a fusion holds is in its own estimate
    assert cost.cycles == 6 * (100 + 50) + 11
    assert cost.loops_of_unknown_length == 1
    gathers = 6 * (4 * 32) * 3 / 4  # float32 [8] of each of 4, in groups of 4
    assert cost.sent == {
        ("all-gather", "sync"): gathers, ("all-gather", "async"): 8 * 32 * 7 / 8,
        ("reduce-scatter", "sync"): 2 * 64 * 8 * 3 / 4,
    }  # fmt: skip
    assert cost.bytes_sent("async") == 224
    assert dict(cost.count) == {"all-gather": 7, "reduce-scatter": 1}
    assert cost.unknown["custom-call"] == 1
    assert cost.by_source["jit(f)/mlp/exp"] == 600


def test_bytes_of_types():
    assert num_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert num_bytes("(f32[8]{0}, pred[3], u8[2,2], f32[])") == 32 + 3 + 4 + 4
    assert num_bytes("f32[<=16]") == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "no TPU generation 'v9'"),
        ("v4", "two or three numbers, e.g. v4:4x8x8"),
        ("v4:2xx1", "two or three"),
    ],
)
def test_a_topology_that_is_none(name, message):
    with pytest.raises(UserError, match=message):
        load_topology(name)


def test_without_libtpu(monkeypatch):
    load_topology.cache_clear()
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        load_topology("v4:2x2x1")


def plan_of(capsys, monkeypatch, *flags):
    """(exit code, stdout, stderr) of `mujax plan` in this process."""
    monkeypatch.chdir(ROOT)
    return main.run(["plan", *flags]), *capsys.readouterr()


def test_usage_errors_end_with_2(capsys, monkeypatch):
    for flags, said in (
        (["--topology=v9:2x2"], "no TPU generation"),
        ([], "plan needs --topology=NAME"),
        (["--topology=v4:2x2x1", "--config.model.d_head=7"], "model.d_head = 7"),
    ):
        code, _, err = plan_of(capsys, monkeypatch, "--config=configs/base.py", *flags)
        assert code == 2, err
        assert said in err.splitlines()[-1] and len(err.splitlines()) == 1


def test_groups_are_points_of_one_width(tmp_path, monkeypatch):
    """By the costs of a compiler that is none: a width that does not fit is told, and hours are
    lots of `lanes` points, one after the other."""
    module = importlib.import_module("mujax.plan.plan")

    def costs(run, topology, num_points):
        width = run.cfg.model.d_model
        return Estimate(
            topology=topology.name, chips=4, slots=2, lanes=2, fits=width < 64,
            mesh={"sweep": 2, "data": 1, "fsdp": 2, "tensor": 1}, compile_s=1.0, why="too wide",
            memory_bytes=2**30, arguments_bytes=2**29, temporaries_bytes=2**29, hbm_bytes=2**35,
            compute_s=1.0, communication_s=0.0, exposed_s=0.0, step_s=float(width), mfu=0.5,
            tokens_per_s=1e6, bound="compute",
        )  # fmt: skip

    monkeypatch.setattr(module, "estimate", costs)
    monkeypatch.setattr(module, "load_topology", lambda name, slices: FourChips(name))
    tree = tiny_tree()
    tree["sweep"] = {"model": {"d_model": (16, 32)}, "optim": {"learning_rate": (0.1, 0.2, 0.4)}}
    assert module.plan(tree, "v4:2x2x1", str(tmp_path), say=lambda text: None)
    groups = json.loads((tmp_path / "plan.json").read_text())["groups"]
    assert [(g["width"], g["num_points"]) for g in groups] == [(16, 3), (32, 3)]
    hours = [2 * tree["train"]["steps"] * width / 3600 for width in (16, 32)]
    assert [g["chip_hours"] for g in groups] == pytest.approx([4 * h for h in hours])
    tree["sweep"]["model"]["d_model"] = (16, 64)
    told = []
    assert not module.plan(tree, "v4:2x2x1", say=told.append)
    assert "too wide" in told[-1]


class FourChips(NamedTuple):
    name: str
    devices: tuple = (0, 1, 2, 3)


def test_search_splits_a_run_over_its_share_of_the_devices():
    """The largest part that divides the batch: 16 of 25 for 5 runs on 128, which 1024 rows go
    into."""
    c = get_config("baseline")
    run = make_run(next(cfg for _, cfg in expand_sweep(c.to_dict())))
    meshes = {(other.cfg.mesh.data, other.cfg.mesh.fsdp) for other in candidates(run, 128, 5)}
    assert meshes == {(1, 16), (2, 8), (4, 4), (16, 1)}
    mesh = dataclasses.replace(run.cfg.mesh, slices=2)
    on_two_slices = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, mesh=mesh))
    assert {other.cfg.mesh.data % 2 for other in candidates(on_two_slices, 128, 1)} == {0}


aot = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this platform"
)
TINY = ["--config=configs/base.py", "--config.model.dtype=bfloat16", "--config.train.batch_size=32"]


@aot
def test_plan_of_a_small_sweep(tmp_path):
    """In a process of its own, as one of all verbs. One width: each more is two compilations."""
    done = run_mujax(
        "plan", "--config=configs/quickstart.py", "--config.model.dtype=bfloat16",
        "--topology=v4:2x2x1",
        f"--workdir={tmp_path / 'p'}", "--config.mesh.fsdp=2",
        "--config.sweep.model.d_model=(128,)",
        "--config.sweep.parameterization.name=('mup',)",
        "--config.sweep.optim.learning_rate=(0.01, 0.02, 0.04)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (group,) = json.loads((tmp_path / "p/plan.json").read_text())["groups"]
    assert (group["width"], group["num_points"]) == (128, 3)
    assert group["mesh"] == {"sweep": 2, "data": 1, "fsdp": 2, "tensor": 1}
    assert group["lanes"] == 4  # two slots of two devices, two lanes in each
    assert 0 < group["memory_bytes"] < group["hbm_bytes"] == 32 * 2**30
    compute, sent = group["compute_cycles"] / 1.05e9, sum(group["collectives"].values()) / 300e9
    assert compute <= group["step_s"] <= (compute + sent) * (1 + 1e-9)
    assert group["mfu"] == pytest.approx(
        4
        * group["tokens_per_step"]
        * flops_per_token(group)
        / (4 * TPUS["v4"].peak * group["step_s"])
    )
    assert group["chip_hours"] == pytest.approx(4 * 150 * group["step_s"] / 3600)
    assert {"all-gather"} <= set(group["collectives"])
    assert re.search(r"chip-hours on v4:2x2x1", done.stdout)


def flops_per_token(group):
    width, layers, vocab, seq_len = group["width"], group["depth"], 256, 64
    return 6 * (12 * layers * width**2 + vocab * width) + 12 * layers * width * seq_len


@aot
def test_what_does_not_fit_ends_with_1_and_says_what_to_change(capsys, monkeypatch):
    code, out, err = plan_of(
        capsys, monkeypatch, *TINY, "--topology=v5e:2x2", "--config.model.d_model=16384",
        "--config.model.num_layers=8",
        "--config.parameterization.base_width=16384",
    )  # fmt: skip
    assert code == 1, err
    assert re.search(
        r"width 16384 does not fit \(out of memory.*\): try mesh.fsdp=2, model.remat=dots", out
    )


@aot
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("3x5x7", "knows no such shape, e.g. v4:4x8x8"),
        ("3x5x7x9", "two or three numbers, e.g. v4:4x8x8"),
    ],
)
def test_a_shape_that_no_slice_has_ends_with_2(shape, said, capsys, monkeypatch):
    code, _, err = plan_of(capsys, monkeypatch, *TINY, f"--topology=v4:{shape}")
    assert code == 2 and said in err


@aot
def test_a_mesh_larger_than_the_topology_ends_with_2(capsys, monkeypatch):
    flags = [*TINY, "--topology=v4:2x2x1", "--config.mesh.data=8"]
    code, _, err = plan_of(capsys, monkeypatch, *flags)
    assert code == 2 and "is more than the 4 devices of v4:2x2x1" in err


def planned(name, width, topology):
    """Of a config of Lingle 2024 at one width, a run on the whole slice: what `mujax plan` says."""
    c = get_config(name)
    c.sweep.update(model={"d_model": (width,)}, optim={"learning_rate": (2.0**-6,)})
    (run,) = (make_run(cfg) for _, cfg in expand_sweep(c.to_dict()))
    return estimate(run, load_topology(topology))


@aot
@pytest.mark.parametrize(
    ("name", "width", "topology", "bound"),
    [
        pytest.param("baseline", 128, "v3:8x8", 0.013, marks=pytest.mark.slow),
        pytest.param("baseline", 2048, "v3:8x8", 0.36, marks=pytest.mark.slow),
        # 10B parameters, 2^21 tokens a step
        pytest.param("combined", 8192, "v4:4x8x8", 2.6, marks=pytest.mark.slow),
    ],
)
def test_full_scale_fits_and_is_fast(name, width, topology, bound):
    """Seconds a step by the compiler's cycles, and a quarter of the memory free."""
    found = planned(name, width, topology)
    assert found.fits and found.memory_bytes <= 0.75 * found.hbm_bytes
    assert found.step_s <= bound


@aot
def test_data_is_split_over_slices_first():
    """Of two real ones: only groups along `data` have devices of both. And a step of the small
    model is as fast as it was; the published ones are in the slow suite."""
    c = base.get_config()
    c.mesh.update(data=2, fsdp=4, slices=2)
    topology = load_topology("v4:2x2x1", 2)
    mesh = make_layout(1, data=2, fsdp=4, slices=2, devices=topology.devices).mesh
    assert [{d.slice_index for d in row} for row in mesh.devices[0, :, :, 0]] == [{0}, {1}]
    found = estimate(make_run(make_run_config(c.to_dict())), topology)
    assert found.fits and (found.topology, found.chips) == ("2 x v4:2x2x1", 8)
    assert found.step_s <= 2.5e-4
    assert {"all-gather", "all-reduce"} <= set(found.collectives)


@aot
@pytest.mark.parametrize(("slots", "data"), [(36, 1), (5, 3), (64, 1), (2, 32)])
def test_slots_need_not_fill_the_slice(slots, data):
    """36 runs on 64 chips, or runs of 3 chips each."""
    devices = load_topology("v4:4x4x4").devices
    mesh = make_layout(slots, data=data, devices=devices).mesh
    assert dict(mesh.shape) == {"sweep": slots, "data": data, "fsdp": 1, "tensor": 1}
    assert len({device.id for device in mesh.devices.flat}) == slots * data


@aot
@pytest.mark.slow
def test_narrow_runs_packed_by_the_sweep_axis():
    """32 runs of width 128 on 4 cores each: at least 1.3 times the tokens a second of one run on
    all 128, and nothing between runs."""
    c = get_config("baseline")
    c.mesh.update(data=4, fsdp=1)
    c.sweep.update(
        model={"d_model": (128,)}, optim={"learning_rate": tuple(2.0**-k for k in range(32))}
    )
    run = make_run(next(cfg for _, cfg in expand_sweep(c.to_dict())))
    packed = estimate(run, load_topology("v3:8x8"), 32)
    assert (packed.slots, packed.lanes) == (32, 32) and set(packed.collectives) == {"all-reduce"}
    assert packed.tokens_per_s >= 1.3 * planned("baseline", 128, "v3:8x8").tokens_per_s


COMMITTED = {paper: json.loads((PLANS / f"{paper}.json").read_text())["plans"] for paper in CONFIGS}


def test_a_committed_plan_of_every_config():
    """All widths of all points; every one fits."""
    for paper, configs in CONFIGS.items():
        assert set(COMMITTED[paper]) == set(configs)
        for name, (config, slices) in configs.items():
            groups = COMMITTED[paper][name]["groups"]
            tree = config(name).to_dict()
            assert {g["width"] for g in groups} == {
                cfg.model.d_model for _, cfg in expand_sweep(tree)
            }
            assert COMMITTED[paper][name]["topology"] == slices
            assert all(g["fits"] and g["step_s"] > 0 for g in groups)


@aot
@pytest.mark.slow
@pytest.mark.parametrize(
    ("paper", "name"), [(paper, name) for paper in CONFIGS for name in CONFIGS[paper]]
)
def test_every_config_fits_as_committed(paper, name):
    """Compiled again: an hour and more, for all."""
    config, topology = CONFIGS[paper][name]
    groups = plan_groups(config(name).to_dict(), topology)
    for group, committed in zip(groups, COMMITTED[paper][name]["groups"], strict=True):
        assert group.estimate.fits
        assert group.num_points == committed["num_points"]
        assert group.estimate.step_s == pytest.approx(committed["step_s"], rel=0.1)
