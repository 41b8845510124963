"""The coordinate check: sizes of weights, updates, activations and their changes.

After Yang et al. 2022 (2203.03466, appendix D.1), but two-sided, per tensor, and over a short and a
longer horizon. All points of one width train side by side in one compiled program.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mujax.hps import stack
from mujax.models.layers import at_least_float32
from mujax.params import ParamMeta, named_leaves
from mujax.sweep.lanes import make_lane_fns, over_lanes
from mujax.training.run import Run
from mujax.training.sharding import make_layout
from mujax.training.steps import make_train_fns


@functools.cache
def quick_compilation() -> dict[str, Any] | None:
    """Returns XLA options that compile fast, for a check's few steps of many programs.

    On CPU most of a check's time would go to LLVM. Measured on the quickstart transformer with jax
    0.10, a training step compiles 4 to 5 times as fast. Options that this XLA does not know are
    left out, and accelerators get none (None).
    """
    if jax.default_backend() != "cpu":
        return None
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
    known = {}
    for name, value in wanted.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value})(0.0)
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


class Quantity(NamedTuple):
    """A measured size: a root mean square over all entries, or a spectral norm.

    The spectral norm is used for updates that the optimizer orthogonalizes.

    kind: weight (effective, at initialization), update (of the effective weight, since
      initialization), activation (at initialization), change (of an activation, since
      initialization), first activation and first change (of an activation's first layer alone), or
      loss.
    name: of the tensor or activation.
    horizon: steps since initialization; 0 for weight and activation.
    """

    kind: str
    name: str
    horizon: int


Measurements = dict[Quantity, np.ndarray]


class Batches(Protocol):
    """Training batches: batches[t] holds the integer rows [B, T + 1] of step t."""

    def __getitem__(self, t: int, /) -> np.ndarray: ...


# Kinds measured at initialization, and draws per run: further draws cost next to nothing.
AT_INIT = ("weight", "activation", "first activation")
NUM_DRAWS = 5
SEEDS_APART = 100003


def measure(
    runs: Sequence[Run],
    batches: Mapping[int, Batches],
    probe,
    horizons: Sequence[int],
    stacked: Collection[str] = (),
    num_draws: int = NUM_DRAWS,
) -> Measurements:
    """Trains runs of one program, and measures them at each horizon.

    Args:
      runs: N runs, equal in program; they may differ in numbers and seed.
      batches: seed -> Batches.
      probe: integer rows [B, T + 1] on which activations and loss are taken.
      horizons: increasing numbers of steps.
      stacked: activations whose first axis counts layers; their first layer is also measured alone.
      num_draws: draws of the weights of each run; only the first is trained.

    Returns:
      {Quantity: float64 [N], or [num_draws N] for AT_INIT, grouped by draw, the trained draw first;
        inf or NaN where a run diverged}.
    """
    program = runs[0].program
    rounds = -(-len(runs) // jax.device_count())
    num_devices = -(-len(runs) // rounds)  # no more than share the runs evenly
    is_cpu = jax.default_backend() == "cpu"
    layout = make_layout(num_devices)
    options = quick_compilation()
    fns, plain = make_lane_fns(program, layout, not is_cpu, options), make_train_fns(program)

    activations = jax.jit(plain.activations)  # traced once, for both of a lane's weights

    def rms(tree):
        return jax.tree.map(lambda x: jnp.sqrt(jnp.mean(jnp.square(x))), tree)

    def update_size(update, meta):
        return (
            spectral_norm(update, meta) if program.optimizer.orthogonalizes(meta) else rms(update)
        )

    def measure_lane(first, params, hps, scalings):
        start, now = (
            jax.tree.map(at_least_float32, activations(p, probe, hps, scalings))
            for p in (first, params)
        )
        weight, update = (
            jax.tree.map(lambda w, s: w * s.forward, tree, scalings)
            for tree in (first, jax.tree.map(jnp.subtract, params, first))
        )
        change = jax.tree.map(jnp.subtract, now, start)
        first_start, first_change = (
            {name: x[0] for name, x in named_leaves(tree).items() if name in stacked}
            for tree in (start, change)
        )
        return {
            "weight": rms(weight),
            "update": jax.tree.map(update_size, update, runs[0].metas),
            "activation": rms(start),
            "change": rms(change),
            "first activation": rms(first_start),
            "first change": rms(first_change),
            "loss": {"loss": plain.evaluate(params, probe, hps, scalings)},
        }

    measure_lanes = over_lanes(measure_lane, layout, not is_cpu, options)
    # The last run is repeated until all devices have equal shares.
    num_runs = len(runs)
    num_lanes = -(-num_runs // num_devices) * num_devices
    runs = [*runs, *[runs[-1]] * (num_lanes - num_runs)]
    hps, scalings = stack([run.hps for run in runs]), stack([run.scalings for run in runs])
    seeds = [run.cfg.seed for run in runs]
    row_sets = list(dict.fromkeys(seeds))
    row_set_N = np.asarray([row_sets.index(seed) for seed in seeds], np.int32)
    active = np.ones(num_lanes, bool)
    no_bound = np.full(num_lanes, np.inf, np.float32)

    measured: Measurements = {}

    def add(sizes, kinds, end: int) -> None:
        for kind in kinds:
            for name, values in named_leaves(sizes[kind]).items():
                values = np.asarray(values, np.float64)[:num_runs]
                quantity = Quantity(kind, name, 0 if kind in AT_INIT else end)
                measured[quantity] = np.concatenate(
                    [values, *([measured[quantity]] if quantity in measured else ())]
                )

    for draw in reversed(range(num_draws)):  # draw 0, which comes last, is trained
        lanes = fns.init(np.asarray(seeds, np.uint32) + SEEDS_APART * draw, hps, scalings)
        if draw:
            add(measure_lanes(lanes.train.params, lanes.train.params, hps, scalings), AT_INIT, 0)
    first = jax.tree.map(jnp.copy, lanes.train.params)  # training donates the original
    num_rows = max(np.diff([0, *horizons]))
    for begin, end in zip([0, *horizons], horizons, strict=False):
        steps = [min(begin + k, end - 1) for k in range(num_rows)]
        rows = np.stack([np.stack([batches[seed][t] for t in steps]) for seed in row_sets])
        lanes, _ = fns.train(
            lanes, rows, row_set_N, active, np.int32(end - begin), hps, scalings, no_bound
        )
        sizes = measure_lanes(first, lanes.train.params, hps, scalings)
        add(sizes, sizes if not begin else sizes.keys() - AT_INIT, end)
    return measured


def spectral_norm(x, meta: ParamMeta, iterations: int = 20):
    """Returns the largest singular value by power iteration, as RMS over the copies of a matrix."""
    x_RIO = x.reshape(-1, meta.fan_in, meta.fan_out)
    v_RO = jax.random.normal(jax.random.key(0), x_RIO.shape[::2])

    def iterate(_, v_RO):
        v_RO = jnp.einsum("RIO,RI->RO", x_RIO, jnp.einsum("RIO,RO->RI", x_RIO, v_RO))
        norm_R1 = jnp.linalg.norm(v_RO, axis=-1, keepdims=True)
        return v_RO / jnp.where(norm_R1 > 0, norm_R1, 1.0)  # no 0 / 0 for a zero matrix

    v_RO = jax.lax.fori_loop(0, iterations, iterate, v_RO)
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(jnp.einsum("RIO,RO->RI", x_RIO, v_RO)), axis=-1)))


class Slope(NamedTuple):
    """The slope d log(quantity) / d log(width): mean over seeds, half-width of its 95% interval.

    ends: slopes without the widest and without the narrowest width; empty if fewer than three
      remain.
    bend: the second of these less the first; None if there are none.
    """

    mean: float
    half_width: float
    ends: tuple["Slope", ...] = ()
    bend: "Slope | None" = None

    @property
    def low(self) -> float:
        return self.mean - self.half_width


def fit_slope(widths: Sequence[int], values_WS) -> Slope | None:
    """Fits log2 values [widths, seeds] per seed; returns the mean slope with Student's interval.

    None if a value is zero or not finite.
    """
    values_WS = np.asarray(values_WS, np.float64)
    if not np.all(np.isfinite(values_WS)) or np.any(values_WS <= 0):
        return None
    sizes_WS = np.log2(values_WS)

    def slopes(part: slice) -> np.ndarray:
        x = np.log2(widths[part]) - np.mean(np.log2(widths[part]))
        return x @ sizes_WS[part] / (x @ x)

    whole = _mean(slopes(slice(None)))
    if len(widths) < 4:
        return whole
    narrow_S, wide_S = slopes(slice(None, -1)), slopes(slice(1, None))
    return whole._replace(ends=(_mean(narrow_S), _mean(wide_S)), bend=_mean(wide_S - narrow_S))


def _mean(slopes_S: np.ndarray) -> Slope:
    num_seeds = len(slopes_S)
    if num_seeds == 1:
        return Slope(float(slopes_S[0]), 0.0)
    error = np.std(slopes_S, ddof=1) / np.sqrt(num_seeds)
    return Slope(
        float(np.mean(slopes_S)), float(_STUDENT[min(num_seeds, len(_STUDENT)) - 1] * error)
    )


# 97.5% quantiles of Student's t with n - 1 degrees of freedom, n = 1, 2, ...; the last one also
# serves larger n.
_STUDENT = (np.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
