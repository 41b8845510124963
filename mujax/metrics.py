"""Records of metrics.jsonl: {step, loss, grad_norm, learning_rate} and {step, eval_loss}.

`step` counts finished updates, so a training loss and an evaluation at one step are of the same weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def is_bad(loss: float, bound: float) -> bool:
    """Not finite, or above the bound beyond which a run counts as diverged."""
    return not loss <= bound


def find_divergence(frozen_at: int, eval_losses: Sequence[tuple[int, float]], bound: float) -> int | None:
    """The step at which a run diverged, or None.

    Args:
      frozen_at: step whose training loss was bad, -1 if none was.
      eval_losses: (step, loss); the last weights are seen by an evaluation alone.
    """
    bad = [frozen_at] if frozen_at >= 0 else []
    bad += [step for step, loss in eval_losses if is_bad(loss, bound)]
    return min(bad, default=None)


def metric_records(
    history: Mapping[str, Sequence[float]],
    eval_losses: Sequence[tuple[int, float]],
    log_interval: int,
    diverged_at: int | None,
) -> list[dict[str, Any]]:
    """Records in order of step, evaluation before training, up to the step of a divergence.

    Args:
      history: each metric at steps 0, 1, ...
      eval_losses: (step, loss).
      log_interval: steps between training records.
    """
    num_steps = len(next(iter(history.values())))
    end = math.inf if diverged_at is None else diverged_at
    records = [
        {"step": step, **{name: json_number(values[step]) for name, values in history.items()}}
        for step in range(0, num_steps, log_interval)
        if step <= end
    ]
    records += [{"step": step, "eval_loss": json_number(loss)} for step, loss in eval_losses if step <= end]
    return sorted(records, key=lambda record: (record["step"], "loss" in record))


def json_number(value) -> float | None:
    """JSON has no NaN and no infinity: null."""
    return float(value) if math.isfinite(value) else None
