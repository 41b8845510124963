"""The symmetry oracle: storing theta * W in place of W must not change a run.

With every number scaled to match (init and learning rate x theta, forward and eps / theta, in the
optimizer's gauge), effective weights are equal at every step. Code that treats a stored weight as
if it were the effective one (a clip, a decay, an eps, a schedule that overwrites per-tensor
learning rates) breaks the equality, by ten orders of magnitude more than float64 rounding.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from mujax.check.findings import Finding
from mujax.parameterization import is_scaling
from mujax.params import named_leaves
from mujax.training.run import Run
from mujax.training.steps import make_train_fns

# Relative difference of losses. Right code stays below 1e-13, bugs are above 1e-8
# (tests/test_check.py).
TOLERANCE = 1e-10
LARGEST_THETA = 8.0


class Symmetry(NamedTuple):
    """The result of the oracle.

    difference: the largest relative difference of a loss, over all steps.
    broken_by: the tensors that cause it.
    """

    difference: float
    broken_by: tuple[str, ...]


def stretch(scalings, thetas, gauge: int):
    """Returns the scalings of a run that stores theta times each weight."""

    def stretched(s, theta):
        return s._replace(
            init=s.init * theta, forward=s.forward / theta,
            lr=s.lr * theta**gauge, eps=s.eps / theta,
        )  # fmt: skip

    return jax.tree.map(stretched, scalings, thetas, is_leaf=is_scaling)


def symmetry(run: Run, rows, seed: int = 0, compiler_options=None) -> Symmetry:
    """Trains a run twice in float64, unchanged and with a random theta per tensor.

    Args:
      run: any run; its weights are kept and computed in float64 here.
      rows: integer batches [steps, B, T + 1].
      seed: seed of the thetas, which are log-uniform between 1 / LARGEST_THETA and LARGEST_THETA.
    """
    with jax.enable_x64(True):
        model = dataclasses.replace(run.program.model, dtype="float64")
        fns = make_train_fns(dataclasses.replace(run.program, model=model))
        init, step = (jax.jit(f, compiler_options=compiler_options) for f in (fns.init, fns.step))
        hps, scalings = (jax.tree.map(np.float64, tree) for tree in (run.hps, run.scalings))
        gauge = run.program.optimizer.gauge

        def losses(numbers) -> np.ndarray:
            numbers = jax.tree.map(np.float64, numbers)
            state, history = init(run.cfg.seed, hps, numbers), []
            for batch in rows:
                state, metrics = step(state, batch, hps, numbers)
                history.append(metrics["loss"])
            return np.asarray(history)

        plain = losses(scalings)
        if not np.all(np.isfinite(plain)):
            return Symmetry(np.nan, ())  # diverged, so there is nothing to compare

        def difference(thetas) -> float:
            relative = np.abs(losses(stretch(scalings, thetas, gauge)) / plain - 1)
            return float(np.max(np.where(np.isfinite(relative), relative, np.inf)))

        names = list(named_leaves(run.metas))
        bound = np.log(LARGEST_THETA)
        values = np.exp(np.random.default_rng(seed).uniform(-bound, bound, len(names)))
        treedef = jax.tree.structure(run.metas)
        total = difference(jax.tree.unflatten(treedef, list(values)))
        broken_by = ()
        if total > TOLERANCE:
            alone = [np.where(np.arange(len(names)) == i, values, 1.0) for i in range(len(names))]
            each = [difference(jax.tree.unflatten(treedef, list(thetas))) for thetas in alone]
            broken_by = tuple(name for name, d in zip(names, each, strict=True) if d > TOLERANCE)
        return Symmetry(total, broken_by)


def symmetry_findings(result: Symmetry) -> list[Finding]:
    if np.isnan(result.difference):
        return [
            Finding(
                "loss",
                "fail",
                "oracle",
                "",
                "diverges in the symmetry oracle",
                "a smaller learning rate",
            )
        ]
    if result.difference <= TOLERANCE:
        return []
    text = f"losses differ by {result.difference:.1e} when stored weights are rescaled"
    fix = "the optimizer must see effective weights: look at clip, decay, eps, schedule"
    return [
        Finding(name, "fail", "oracle", "", text, fix)
        for name in result.broken_by or ("optimizer",)
    ]
