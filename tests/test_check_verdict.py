"""The check's verdict from made-up slopes, where an activation comes from, and whether a model is
causal."""

import dataclasses

import forks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import PLAN, WIDTHS, config
from conftest import tiny_tree
from flax import linen as nn

from mujax.check.blame import TOLERANCE, Case, Line, assess, coordinate_findings, grows_late
from mujax.check.coordinates import Slope, fit_slope, measure
from mujax.check.dataflow import Origin, origins
from mujax.check.findings import Finding
from mujax.check.forward import causality_findings, probe_forward
from mujax.check.run import at_width
from mujax.check.verdict import Verdict, judge
from mujax.config import make_run_config
from mujax.data.loader import load_batches
from mujax.models import MODELS
from mujax.models.module import MuModule
from mujax.training.run import make_run

# A layer of two branches, after an embedding: names that the check has never heard of
MADE_OF = {
    "tokens": Origin(tensors=frozenset({"table"})),
    "u": Origin(frozenset({"tokens"}), frozenset({"wu"})),
    "v": Origin(frozenset({"tokens"}), frozenset({"wv"})),
    "uv": Origin(frozenset({"u", "v"}), scales=frozenset({"attention scale"}), summed=16),
    "stream": Origin(frozenset({"tokens", "uv"}), scales=frozenset({"residual scale"})),
    "guess": Origin(frozenset({"stream"}), frozenset({"answers"}), readouts=frozenset({"answers"})),
}


def case(starts=(), changes=(), updates=(), degrees=None, declining=(), first_starts=None):
    """All of slope zero, as wanted, but for {name: slope}."""

    def slopes(named, name):
        value = dict(named).get(name, 0.0)
        return value if isinstance(value, Slope) else Slope(value, 0.02)

    activations = [
        Line(
            name, "", slopes(starts, name), 0.0, (slopes(changes, name),) * 2, 0.0,
            None if first_starts is None or name in ("tokens", "guess") else slopes(first_starts,
            name),
            (slopes(changes, name),) * 2 if first_starts is not None else (),
        )
        for name in MADE_OF
    ]  # fmt: skip
    tensors = [
        Line(
            name,
            "hidden",
            Slope(-0.5, 0.01),
            -0.5,
            (Slope(dict(updates).get(name, -1.0), 0.02),) * 2,
            -1.0,
        )
        for name in ("table", "wu", "wv", "answers")
    ]
    declines = {name: "so it is" for name in declining}
    return Case(tuple(tensors), tuple(activations), MADE_OF, declines, degrees or {}, (), WIDTHS)


def named(*args, earlier=(), **kwargs):
    found = coordinate_findings(case(*args, **kwargs), earlier, 1e-8)
    return {finding.subject: finding.level for finding in found}


def test_all_right():
    assert named() == {}


@pytest.mark.parametrize("part", ["starts", "changes"])
@pytest.mark.parametrize(
    ("misses", "culprits"),
    [
        # everything behind it misses too
        ({"u": 0.5, "uv": 0.5, "stream": 0.4, "guess": 0.45}, {"u"}),
        ({"u": 1.0, "stream": 0.5}, {"u", "stream"}),  # between them one passes: two mistakes
        ({"u": 0.5, "v": 0.5, "uv": 1.0}, {"u", "v"}),  # side by side
        ({"stream": 0.5}, {"stream"}),  # of parts which all pass, as a multiplied residual stream
        ({"tokens": -0.5, "stream": -0.5}, {"tokens"}),
        ({"guess": 1.0}, {"guess"}),
    ],
)
def test_the_first_that_misses_while_its_sources_pass_is_named(part, misses, culprits):
    assert named(**{part: misses}) == dict.fromkeys(culprits, "fail")


def test_an_update_that_a_wrong_forward_pass_explains_is_not_blamed():
    assert named(starts={"stream": 0.5}, updates={"wu": -0.4}, changes={"uv": 0.6}) == {
        "stream": "fail"
    }


def test_a_wrong_update_comes_before_the_changes_it_makes():
    assert named(updates={"wu": -0.4}, changes={"u": 0.6, "uv": 0.6}) == {"wu": "fail"}


def test_a_tensor_that_the_table_has_wrong_explains_what_it_makes_and_nothing_else():
    wrong = [Finding("wu", "fail", "static", "init", "")]
    assert named(starts={"u": 0.5, "uv": 0.5}, earlier=wrong) == {}
    assert named(starts={"v": 0.5, "uv": 0.5}, earlier=wrong) == {"v": "fail"}
    # which initialization does not know
    rate = [Finding("wu", "fail", "static", "learning rate", "")]
    assert named(starts={"u": 0.5}, earlier=rate) == {"u": "fail"}


def test_a_forward_scale_that_the_table_has_wrong_explains_what_it_multiplies():
    assert (
        named(starts={"uv": 0.5}, earlier=[Finding("attention scale", "fail", "static", "", "")])
        == {}
    )


def test_of_a_stack_the_first_layer_is_judged():
    """Without norms every layer reads a stream that grew in those before: in the first layer only
    the stream is off."""
    grown = {"u": 0.5, "v": 0.5, "uv": 1.0, "stream": 0.7, "guess": 0.7}
    assert named(starts=grown, first_starts={"stream": 0.6}) == {"stream": "fail"}
    # in later layers alone
    assert named(starts={"uv": 0.5, "stream": 0.5}, first_starts={}) == {"uv": "fail"}
    assert named(starts={"stream": 0.5, "guess": 0.5}, first_starts={"uv": 0.5}) == {"uv": "fail"}


@pytest.mark.parametrize(("degree", "fix"), [(1.0, "m^-1"), (2.0, "m^-1/2")])
def test_the_fix_is_a_scale_only_where_the_activation_is_proportional_to_it(degree, fix):
    (scaled,) = coordinate_findings(
        case({"uv": 1.0}, degrees={("uv", "attention scale"): degree}), (), 1e-8
    )
    assert scaled.fix == f"attention scale x {fix}"
    (summed,) = coordinate_findings(case({"stream": 1.0}), (), 1e-8)
    assert "scale x" not in summed.fix and "take a factor m out" in summed.fix


def test_a_decline_is_harmless_where_the_computation_says_so():
    assert named(changes={"uv": -0.45}, declining=["uv"]) == {"uv": "benign"}
    assert named(changes={"uv": -0.45}) == {"uv": "fail"}
    assert named(changes={"uv": -0.9}, declining=["uv"]) == {"uv": "fail"}
    assert named(starts={"uv": -0.45}, declining=["uv"]) == {"uv": "fail"}


def slope(mean, half_width, narrow, wide):
    return Slope(
        mean,
        half_width,
        (Slope(narrow, half_width), Slope(wide, half_width)),
        Slope(wide - narrow, 0.02),
    )


@pytest.mark.parametrize(
    ("at", "level"),
    [
        (slope(0.02, 0.1, 0.05, 0.0), None),
        (slope(0.25, 0.03, 0.27, 0.23), None),  # near the tolerance, and all of it within
        (slope(0.29, 0.05, 0.25, 0.33), "undecided"),  # fails and passes by the widths
        (slope(0.31, 0.05, 0.35, 0.27), "undecided"),
        (slope(-0.31, 0.05, -0.35, -0.27), "undecided"),
        (slope(0.26, 0.1, 0.26, 0.26), "undecided"),  # or by the seeds
        (slope(0.5, 0.2, 0.45, 0.5), "fail"),
        (slope(0.5, 0.4, 0.5, 0.5), "undecided"),
        (slope(0.15, 0.05, 0.0, 0.4), "undecided"),
    ],
)
def test_a_verdict_that_flips_is_undecided(at, level):
    miss = assess(at, 0.0, TOLERANCE)
    assert (miss and miss.level) == level


def test_undecided_names_the_widths_that_would_decide():
    (finding,) = coordinate_findings(case(changes={"u": slope(0.29, 0.05, 0.25, 0.33)}), (), 1e-8)
    assert finding.level == "undecided" and finding.fix == "--widths=64,128,256,512"
    assert "0.25 and 0.33" in finding.text
    (finding,) = coordinate_findings(case(changes={"u": slope(0.29, 0.2, 0.28, 0.3)}), (), 1e-8)
    assert (
        finding.fix == "more seeds (--seeds), or --widths=64,128,256,512"
        and "0.29 ±0.20" in finding.text
    )


def test_undecided_is_no_pass():
    def verdict(level):
        return Verdict((), (), (Finding("u", level, "coordinates", "", ""),))

    assert (
        verdict("benign").passed and not verdict("undecided").passed and not verdict("fail").passed
    )
    assert verdict("undecided").undecided == ("u",) and not verdict("undecided").culprits


def test_noise_that_grows_from_a_small_start():
    """A part that starts at 0.07 of the rest and grows as m leaves a slope undecided; effects of
    finite width and seeds alone do not."""
    rng = np.random.default_rng(0)
    m = np.array([1, 2, 4, 8])[:, None]
    seeds = 1 + 0.04 * rng.normal(size=(4, 15)) / m**0.5
    noisy = fit_slope(WIDTHS, seeds * np.sqrt(1 + (0.07 * m) ** 2))
    assert abs(noisy.mean) < 0.12 and assess(noisy, 0.0, 0.2) is None
    assert grows_late(noisy, 0.0).level == "undecided"
    for right in (seeds, seeds * (1 - 0.3 / m), seeds * (1 + 0.3 / m), seeds * m**0.05):
        assert grows_late(fit_slope(WIDTHS, right), 0.0) is None


def fork_config(text_file, module, monkeypatch):
    monkeypatch.setitem(MODELS, "fork", (forks.ForkConfig, module))
    model = forks.ForkConfig(16, "float32", 256, 32)
    return dataclasses.replace(config("mup", text_file), model_name="fork", model=model)


def test_where_activations_come_from(text_file, monkeypatch):
    found = origins(make_run(fork_config(text_file, forks.Fork, monkeypatch)))
    assert {name: set(origin.activations) for name, origin in found.items()} == {
        "tokens": set(), "a": {"tokens"}, "b": {"tokens"}, "affinity": {"a", "b"},
        "blend": {"affinity", "tokens"},
        "valve": {"tokens"}, "side": {"tokens", "valve"}, "inner": {"tokens", "blend"},
        "outer": {"inner"},
        "stream": {"tokens", "blend", "side", "outer"}, "guess": {"stream"},
    }  # fmt: skip
    assert found["blend"].tensors == {"carry", "blend_out"} and found["guess"].readouts == {
        "answers"
    }
    assert found["affinity"].summed == 16 and not found["stream"].tensors


class Recorded(MuModule):
    """Records a copy, an activation inside a jitted function, and a layer of a scan; the readout
    has a soft cap."""

    @nn.compact
    def __call__(self, tokens_BT, hps):
        x_BTD = jnp.take(self.weight("embed", "input", "vocab -> embed"), tokens_BT, axis=0)
        self.record("copy", x_BTD.astype(jnp.float32).reshape(-1))
        w_DF = self.weight("w", "hidden", "embed -> mlp")
        h_BTF = jax.jit(lambda x: jax.nn.silu(x @ w_DF))(x_BTD)
        self.record("jitted", h_BTF)
        logits_BTV = h_BTF @ self.weight("unembed", "output", "mlp -> vocab")
        logits_BTV = 30 * jnp.tanh(logits_BTV * hps.logits_scale / 30)
        self.record("capped", logits_BTV)
        return logits_BTV


def test_copies_and_inner_functions_are_seen_through(text_file, monkeypatch):
    found = origins(make_run(fork_config(text_file, Recorded, monkeypatch)))
    assert found["jitted"] == Origin(frozenset({"copy"}), frozenset({"w"}))
    assert found["capped"].activations == {"jitted"} and found["capped"].scales == {"logits scale"}
    assert found["capped"].readouts == {"unembed"}


class Means(MuModule):
    """Mixes each token with the mean of all so far, under a norm over the sequence axis where one
    is planted."""

    is_planted = False

    @nn.compact
    def __call__(self, tokens_BT, hps):
        x_BTD = jnp.take(self.weight("embed", "input", "vocab -> embed"), tokens_BT, axis=0)
        mean_BTD = jnp.cumsum(x_BTD, axis=1) / jnp.arange(1, x_BTD.shape[1] + 1)[None, :, None]
        self.record("means", mean_BTD)
        if self.is_planted:
            mean_BTD = mean_BTD / jnp.sqrt(jnp.mean(jnp.square(mean_BTD), axis=1, keepdims=True))
        self.record("evened", mean_BTD)
        return mean_BTD @ self.weight("unembed", "output", "embed -> vocab")


@pytest.mark.parametrize("is_planted", [False, True])
def test_a_norm_over_the_sequence_reads_the_future(is_planted, text_file, monkeypatch):
    run = make_run(
        fork_config(text_file, type("Planted", (Means,), {"is_planted": is_planted}), monkeypatch)
    )
    forward = probe_forward(run, origins(run))
    assert forward.is_causal is not is_planted
    found = causality_findings(forward)
    assert [(finding.subject, finding.level) for finding in found] == [
        ("evened", "fail")
    ] * is_planted
    for finding in found:
        assert (
            "position 0 change with the tokens after position" in finding.text
            and "no loss" in finding.text
        )


def test_a_classifier_has_no_future_and_scales_have_degrees():
    def probed(model, **changes):
        tree = {key: value for key, value in tiny_tree(model, **changes).items() if key != "sweep"}
        run = make_run(make_run_config(tree))
        return probe_forward(run, origins(run))

    classifier = probed("cnn", data__seq_len=3 * 8 * 8)
    assert classifier.is_causal is None and not causality_findings(classifier)
    windows = probed("mlp")
    assert windows.is_causal is True
    assert windows.degrees == {
        ("embedding", "embedding scale"): 1.0,
        ("logits", "logits scale"): 1.0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("widths", [WIDTHS, (32, 64, 128, 256)])
def test_forks_with_names_of_their_own(widths, text_file, monkeypatch):
    """Every mistake is named where it is recorded, and nothing else; all mistakes of a width are
    one program."""
    cfg = fork_config(text_file, forks.Fork, monkeypatch)
    batches, validation, _ = load_batches(cfg, (0, 1, 2))
    runs = {width: make_run(at_width(cfg, width)) for width in widths}
    numbers = range(len(forks.MISTAKES))
    measured = {number: {} for number in numbers}
    for width in widths:
        by_seed = [
            make_run(at_width(dataclasses.replace(cfg, seed=seed), width)) for seed in range(3)
        ]
        lanes = [
            dataclasses.replace(run, hps=run.hps._replace(final_ratio=float(number)))
            for number in numbers
            for run in by_seed
        ]
        values = measure(lanes, batches, validation[0], PLAN.horizons)
        for number in numbers:
            own = np.repeat(numbers, 3) == number
            measured[number][width] = {
                q: array[np.tile(own, len(array) // len(own))] for q, array in values.items()
            }
    made_of = {width: origins(runs[width]) for width in (widths[0], widths[-1])}
    for number, (mistake, culprit) in enumerate(forks.MISTAKES.items()):
        verdict = judge(runs, measured[number], [], made_of)
        named = verdict.culprits or verdict.undecided if mistake == "noise" else verdict.culprits
        assert named == ((culprit,) if culprit else ()), (mistake, verdict.findings)
        assert not verdict.passed or mistake == "none"
