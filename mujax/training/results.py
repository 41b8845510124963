"""Result rows, one per run: all that is needed to group, repeat and trust it."""

import functools
import math
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import mujax
from mujax.data.text import Corpus
from mujax.storage.records import Row
from mujax.training.outcome import Outcome
from mujax.training.run import Run, device_description


def make_row(
    run: Run, outcome: Outcome, *, overrides: Mapping[str, Any], corpus: Corpus, seconds: float
) -> Row:
    """Returns the row of a run at its end; losses are null unless the run finished.

    A number could be taken for the minimum.
    """
    cfg = run.cfg
    status = outcome.status
    finite = [[step, loss] for step, loss in outcome.evals if math.isfinite(loss)]
    best_step, best_loss = min(finite, key=lambda pair: pair[1]) if status == "ok" else (None, None)
    return Row(
        id=cfg.id,
        group=run.group,
        status=status,
        diverged_at_step=outcome.diverged_at,
        stopped_at_step=outcome.stopped_at,
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
        final_loss=outcome.evals[-1][1] if status == "ok" else None,
        best_loss=best_loss,
        best_step=best_step,
        bits_per_byte=corpus.bits_per_byte(outcome.evals[-1][1]) if status == "ok" else None,
        eval_losses=finite,
        n_params=run.num_params,
        overrides=dict(overrides),
        table_hash=run.table_hash,
        data_fingerprint=corpus.fingerprint,
        code_version=code_version(),
        jax_version=jax.__version__,
        device=device_description(),
        seconds=round(seconds, 3),
    )


@functools.cache
def code_version() -> str:
    """Returns the package version, with the commit of the git checkout or MUJAX_COMMIT."""
    if commit := os.environ.get("MUJAX_COMMIT"):
        return f"{mujax.__version__}+{commit}"
    root = Path(mujax.__file__).parent.parent
    if not (root / ".git").exists():
        return mujax.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=9"]
    try:
        commit = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return mujax.__version__
    return f"{mujax.__version__}+{commit}"
