"""One row a run: what a run measured, with everything needed to group, repeat and trust it."""

import dataclasses
import functools
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import mujax
from mujax.run import Run, device_description


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of results.jsonl. Losses are nats a token on the validation split, null where diverged.

    group: Run.group. eval_losses: [step, loss] pairs, up to a divergence. overrides: the point's own
    fields of the sweep. steps, tokens: as configured, also where the run diverged before. seconds: wall
    time of the run; in a sweep, of its chunk divided by the points in it.
    """

    id: str
    group: str
    status: str  # ok or diverged
    diverged_at_step: int | None
    model: str
    width: int
    depth: int
    parameterization: str
    optimizer: str
    learning_rate: float
    weight_decay: float
    seed: int
    steps: int
    tokens: int
    final_loss: float | None
    best_loss: float | None
    best_step: int | None
    eval_losses: list[list[float]]
    n_params: int
    overrides: dict[str, Any]
    table_hash: str
    data_fingerprint: str
    code_version: str
    jax_version: str
    device: str
    seconds: float


def make_row(
    run: Run,
    *,
    overrides: Mapping[str, Any],
    diverged_at_step: int | None,
    eval_losses: Sequence[tuple[int, float]],
    data_fingerprint: str,
    seconds: float,
) -> dict[str, Any]:
    """The row of a finished run. A diverged run carries null losses, never a number an argmin could take."""
    cfg = run.cfg
    diverged = diverged_at_step is not None
    end = math.inf if diverged_at_step is None else diverged_at_step
    finite = [[step, loss] for step, loss in eval_losses if math.isfinite(loss) and step <= end]
    best_step, best_loss = min(finite, key=lambda pair: pair[1]) if not diverged else (None, None)
    row = Row(
        id=cfg.id,
        group=run.group,
        status="diverged" if diverged else "ok",
        diverged_at_step=diverged_at_step,
        model=cfg.model_name,
        width=cfg.model.d_model,
        depth=cfg.model.num_layers,
        parameterization=cfg.parameterization.name,
        optimizer=cfg.optim.name,
        learning_rate=cfg.optim.learning_rate,
        weight_decay=cfg.optim.weight_decay,
        seed=cfg.seed,
        steps=cfg.train.steps,
        tokens=cfg.train.steps * run.tokens_per_step,
        final_loss=None if diverged else eval_losses[-1][1],
        best_loss=best_loss,
        best_step=best_step,
        eval_losses=finite,
        n_params=run.num_params,
        overrides=dict(overrides),
        table_hash=run.table_hash,
        data_fingerprint=data_fingerprint,
        code_version=code_version(),
        jax_version=jax.__version__,
        device=device_description(),
        seconds=round(seconds, 3),
    )
    return dataclasses.asdict(row)


@functools.cache
def code_version() -> str:
    """Package version, with the commit if the package runs from a git checkout."""
    root = Path(mujax.__file__).parent.parent
    if not (root / ".git").exists():
        return mujax.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=9"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return mujax.__version__
    return f"{mujax.__version__}+{commit}"
