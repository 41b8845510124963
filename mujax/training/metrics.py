"""Records of metrics.jsonl: training and evaluation losses.

They are {step, loss, grad_norm, learning_rate} and {step, eval_loss, eval_bits_per_byte}. `step`
counts finished updates, so a training loss and an evaluation at one step are of the same weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def metric_records(
    history: Mapping[str, Sequence[float]],
    eval_losses: Sequence[tuple[int, float]],
    log_interval: int,
    bits_per_byte: Callable[[float], float | None],
) -> list[dict[str, Any]]:
    """Returns records in order of step, evaluation before training.

    Args:
      history: each metric at steps 0, 1, ..., as far as the run was trained.
      eval_losses: (step, loss).
      log_interval: steps between training records.
      bits_per_byte: see mujax.data.text.
    """
    num_steps = len(next(iter(history.values())))
    records = [
        {"step": step, **{name: json_number(values[step]) for name, values in history.items()}}
        for step in range(0, num_steps, log_interval)
    ]
    records += [eval_record(step, loss, bits_per_byte(loss)) for step, loss in eval_losses]
    return sorted(records, key=lambda record: (record["step"], "loss" in record))


def eval_record(step: int, loss: float, bits_per_byte: float | None) -> dict[str, Any]:
    """Returns the record of an evaluation, with bits per byte if the data is text."""
    per_byte = {} if bits_per_byte is None else {"eval_bits_per_byte": json_number(bits_per_byte)}
    return {"step": step, "eval_loss": json_number(loss), **per_byte}


def json_number(value) -> float | None:
    """Returns None for NaN and infinity, which JSON lacks."""
    return float(value) if math.isfinite(value) else None
