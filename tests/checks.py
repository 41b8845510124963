"""Verdicts of the check on tiny models, for several test modules."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from conftest import tiny_tree

from mujax.check.coordinates import measure
from mujax.check.dataflow import origins
from mujax.check.run import FAST, at_width, check_config, static_runs
from mujax.check.static import static_findings
from mujax.check.verdict import Verdict, judge
from mujax.config import RunConfig, make_run_config
from mujax.data.loader import load_batches
from mujax.training.run import make_run

WIDTHS = (16, 32, 64, 128)
# What most tests train at: two programs instead of four, and none of the widest
ENDS = (16, 64)
PLAN = FAST._replace(seq_len=32)


def config(table: str, text_file, **changes) -> RunConfig:
    """Returns the config of a transformer of one layer as it is checked, from base width 16 on."""
    tree = tiny_tree(
        data__name="text", data__path=str(text_file), parameterization__name=table,
        model__d_head=8, model__num_layers=1, train__batch_size=4, data__seq_len=32,
        **{"model__norm_gain": "vector", "optim__learning_rate": 0.01,
        "parameterization__base_width": 16, **changes},
    )  # fmt: skip
    return check_config(
        make_run_config({key: value for key, value in tree.items() if key != "sweep"}), PLAN
    )


def judge_all(
    cfgs: Mapping[str, RunConfig],
    widths: Sequence[int] = ENDS,
    seeds: Sequence[int] = (0, 1, 2),
    num_draws: int = 2,
    trained: Mapping[str, Callable[[dict], dict]] | None = None,
) -> dict[str, tuple[Verdict, Verdict]]:
    """Returns for each config its verdict, and that of training alone.

    Args:
      cfgs: all are trained side by side by the program of the first, so that they may differ in
        numbers alone, or in declarations that do no more than change numbers.
      num_draws: see measure.
      trained: makes of the scalings of a config those that it is trained with, but not judged by.
    """
    first = next(iter(cfgs.values()))
    batches, validation, _ = load_batches(first, seeds)
    runs = {
        name: {width: make_run(at_width(cfg, width)) for width in widths}
        for name, cfg in cfgs.items()
    }
    one = next(iter(runs.values()))
    made_of = {width: origins(one[width]) for width in (widths[0], widths[-1])}
    stacked = [name for name, origin in made_of[widths[0]].items() if origin.is_stacked]
    measured = {name: {} for name in cfgs}
    for width in widths:
        lanes = []
        for name, of_width in runs.items():
            run = dataclasses.replace(of_width[width], program=one[width].program)
            if trained and name in trained:
                resolved = dataclasses.replace(run.resolved, scalings=trained[name](run.scalings))
                run = dataclasses.replace(run, resolved=resolved)
            lanes += [
                dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, seed=seed))
                for seed in seeds
            ]
        values = measure(lanes, batches, validation[0], PLAN.horizons, stacked, num_draws)
        for i, name in enumerate(runs):
            own = np.arange(len(lanes)) // len(seeds) == i
            measured[name][width] = {
                quantity: array[np.tile(own, len(array) // len(own))]
                for quantity, array in values.items()
            }
    static = {name: static_findings(static_runs(cfg, widths)) for name, cfg in cfgs.items()}
    return {
        name: tuple(judge(runs[name], values, earlier, made_of) for earlier in (static[name], ()))
        for name, values in measured.items()
    }


def judge_one(cfg: RunConfig, widths: Sequence[int] = ENDS) -> Verdict:
    """Returns the verdict on one config."""
    ((verdict, _),) = judge_all({"it": cfg}, widths).values()
    return verdict


def failed(verdict: Verdict):
    """Returns the findings that fail a model."""
    return [finding for finding in verdict.findings if finding.level == "fail"]
