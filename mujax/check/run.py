"""The verb `check`: a verdict on a model, a parameterization and an optimizer."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from mujax.check import oracle
from mujax.check.coordinates import Measurements, measure, quick_compilation
from mujax.check.dataflow import origins
from mujax.check.forward import Forward, causality_findings, probe_forward
from mujax.check.static import static_findings
from mujax.check.verdict import Verdict, judge
from mujax.config import DATASETS, RunConfig, ScheduleConfig
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.training.run import Run, make_run


class Plan(NamedTuple):
    """The extent of a check.

    multiples: widths, over the base width.
    horizons: steps at which updates are measured.
    batch_size, seq_len: at most so many sequences per batch, and tokens per sequence.
    """

    multiples: tuple[int, ...]
    num_seeds: int
    horizons: tuple[int, ...]
    batch_size: int
    seq_len: int


FAST = Plan(multiples=(1, 2, 4, 8), num_seeds=3, horizons=(3, 10), batch_size=4, seq_len=32)
FULL = Plan(multiples=(1, 2, 4, 8, 16), num_seeds=5, horizons=(3, 30), batch_size=8, seq_len=64)
ORACLE_STEPS = 10


class Report(NamedTuple):
    """A verdict and its evidence.

    runs: width -> one of its runs.
    measured: width -> {Quantity: [seeds]}.
    """

    cfg: RunConfig
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    plan: Plan
    symmetry: oracle.Symmetry
    forward: Forward
    runs: dict[int, Run]
    measured: dict[int, Measurements]
    verdict: Verdict


def at_width(cfg: RunConfig, width: int) -> RunConfig:
    """Returns the config at another width; heads grow with it if base_d_head is given.

    Raises:
      UserError: there is no such model.
    """
    changes = {"d_model": width}
    base = cfg.parameterization
    if base.base_d_head:
        if base.base_d_head * width % base.base_width:
            raise UserError(
                f"width {width}: d_head would be {base.base_d_head * width / base.base_width:g}"
            )
        changes["d_head"] = base.base_d_head * width // base.base_width
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **changes))


def check_config(cfg: RunConfig, plan: Plan) -> RunConfig:
    """Returns the config that is checked: constant learning rate, small batches, no clip.

    An active clip rescales every update by the gradient's norm, which is not constant in width, and
    would hide each tensor's own behaviour. The oracle keeps the clip.
    """
    is_text = DATASETS[cfg.data.name] == "text"  # sequences of text can be shortened
    batch_size = min(cfg.train.batch_size, plan.batch_size)
    return dataclasses.replace(
        cfg,
        optim=dataclasses.replace(cfg.optim, grad_clip=0.0),
        schedule=ScheduleConfig(name="constant", warmup_steps=0, decay_steps=0, final_ratio=1.0),
        train=dataclasses.replace(cfg.train, batch_size=batch_size, accumulation=1, eval_batches=1),
        data=dataclasses.replace(cfg.data, seq_len=min(cfg.data.seq_len, plan.seq_len))
        if is_text
        else cfg.data,
    )


def static_runs(cfg: RunConfig, widths: Sequence[int]) -> dict[int, Run]:
    """Returns runs at the widths, and at odd ratios between them where such a model exists."""
    runs = {width: make_run(at_width(cfg, width)) for width in widths}
    for width in (3 * widths[0] // 2, 3 * widths[0], 5 * widths[0]):
        try:
            runs[width] = make_run(at_width(cfg, width))
        except UserError:
            continue
    return runs


def check(
    cfg: RunConfig,
    plan: Plan,
    widths: Sequence[int] = (),
    num_seeds: int = 0,
    progress=lambda text: None,
) -> Report:
    """Checks one config; the modules of mujax.check say what is measured.

    Args:
      cfg: the config; its width does not matter.
      plan: FAST or FULL.
      widths: in place of the plan's, at least four.
      num_seeds: in place of the plan's.
      progress: called with a text about each stage.

    Raises:
      UserError: fewer than four widths, or one that the model cannot have.
    """
    widths = tuple(
        sorted(set(widths or (cfg.parameterization.base_width * k for k in plan.multiples)))
    )
    if len(widths) < 4:
        raise UserError(
            f"--widths: {len(widths)} distinct widths; a slope with an interval needs at least 4"
        )
    num_seeds = num_seeds or plan.num_seeds
    if num_seeds < 3:
        raise UserError(f"--seeds={num_seeds}: an interval over seeds needs at least 3")
    clip, cfg = cfg.optim.grad_clip, check_config(cfg, plan)
    seeds = tuple(range(cfg.seed, cfg.seed + num_seeds))
    by_seed = [dataclasses.replace(cfg, seed=seed) for seed in seeds]
    groups = {width: [make_run(at_width(c, width)) for c in by_seed] for width in widths}
    findings = static_findings(static_runs(cfg, widths))
    batches, validation, _ = load_batches(cfg, seeds)
    probe = validation[0]

    progress("symmetry oracle")
    rows = [batches[cfg.seed][t] for t in range(ORACLE_STEPS)]
    clipped = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, grad_clip=clip))
    symmetry = oracle.symmetry(
        make_run(at_width(clipped, widths[0])), rows, compiler_options=quick_compilation()
    )
    findings += oracle.symmetry_findings(symmetry)
    progress("forward passes")
    firsts = {width: runs[0] for width, runs in groups.items()}
    made_of = {width: origins(firsts[width]) for width in (widths[0], widths[-1])}
    forward = probe_forward(firsts[widths[0]], made_of[widths[0]], quick_compilation())
    findings += causality_findings(forward)
    stacked = [name for name, origin in made_of[widths[0]].items() if origin.is_stacked]
    measured = {}
    for width, runs in groups.items():
        progress(f"width {width}")
        measured[width] = measure(runs, batches, probe, plan.horizons, stacked)
    verdict = judge(firsts, measured, findings, made_of, forward.degrees)
    return Report(cfg, widths, seeds, plan, symmetry, forward, firsts, measured, verdict)
