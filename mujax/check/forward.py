"""Probes of a small model by float64 forward passes: causality, and reach of forward scales.

A model that predicts each next token must not read the tokens after a position: otherwise its loss
means nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from mujax.check.dataflow import Origin
from mujax.check.findings import Finding
from mujax.params import named_leaves
from mujax.training.run import Run

# Relative change that counts. float64 rounds at 1e-16; a norm over the sequence changes values by
# 1e-2.
TOLERANCE = 1e-6


class Forward(NamedTuple):
    """The result of the probes.

    is_causal: None for a model that does not predict every next token, such as one of images.
    first_leak: the first recorded activation that changes, if the model is not causal; '' if none
      does.
    position, after: the logits at `position` change with the tokens after the later position
      `after`.
    degrees: (activation, forward scale) -> the power of the scale that the activation is
      proportional to.
    """

    is_causal: bool | None
    first_leak: str
    position: int
    after: int
    degrees: dict[tuple[str, str], float]


def probe_forward(run: Run, origins: Mapping[str, Origin], compiler_options=None) -> Forward:
    """Compares passes with other tokens after each position, and with each forward scale doubled.

    Weights are of order 1 by their fan-in, even where a table starts them at zero, so that nothing
    is hidden.
    """
    cfg, rng = run.program.model, np.random.default_rng(0)
    reads_text = getattr(type(cfg), "reads", "text") == "text"
    length = run.program.seq_len
    changes: dict[str, object] = {"dtype": "float64"}
    if reads_text and length > 2:
        length -= 1  # no width has this size, so it identifies the axis of positions
        if hasattr(cfg, "seq_len"):
            changes["seq_len"] = length
    module = run.program.model_class(dataclasses.replace(cfg, **changes))
    with jax.enable_x64(True):
        tokens_T = rng.integers(0, cfg.vocab_size, length)
        num_rows = length - 1 if reads_text else 2
        tokens_BT = np.tile(tokens_T, (num_rows, 1))
        is_seen_BT = np.arange(length)[None] <= np.arange(num_rows)[:, None]
        others_BT = (tokens_BT + rng.integers(1, cfg.vocab_size, tokens_BT.shape)) % cfg.vocab_size
        variables = jax.eval_shape(
            lambda tokens: module.init(jax.random.key(0), tokens, run.hps), tokens_BT
        )
        params = _weights(variables["params"], rng)

        def forward(tokens_BT, hps):
            logits, seen = cast(
                Any, module.apply({"params": params}, tokens_BT, hps, mutable=["activations"])
            )
            return logits, named_leaves(seen.get("activations", {}))

        jitted = jax.jit(forward, compiler_options=compiler_options)

        def arrays(tokens_BT, hps):
            return jax.tree.map(np.asarray, jitted(tokens_BT, hps))

        hps = jax.tree.map(np.float64, run.hps)
        logits, recorded = arrays(tokens_BT, hps)
        degrees = {}
        for scale in sorted(set().union(*(origin.scales for origin in origins.values()))):
            field = scale.replace(" ", "_")
            _, doubled = arrays(tokens_BT, hps._replace(**{field: 2 * getattr(hps, field)}))
            for name, origin in origins.items():
                if scale in origin.scales:
                    first = 0 if origin.is_stacked else ...
                    degree = _degree(recorded[name][first], doubled[name][first])
                    if degree:
                        degrees[name, scale] = degree
        if not reads_text or logits.shape[:2] != tokens_BT.shape:
            return Forward(None, "", 0, 0, degrees)
        other_logits, other = arrays(np.where(is_seen_BT, tokens_BT, others_BT), hps)
        leaks = np.argwhere(_leaks(logits, other_logits, is_seen_BT))
        if not len(leaks):
            return Forward(True, "", 0, 0, degrees)
        leaking = (
            name for name in origins if _leaks(recorded[name], other[name], is_seen_BT).any()
        )
        after, position = (int(i) for i in leaks[np.argmin(leaks[:, 1])])
        return Forward(False, next(leaking, ""), position, after, degrees)


def _weights(shapes, rng: np.random.Generator):
    """Draws arrays for boxed shapes."""

    def draw(box):
        size = rng.normal(size=box.meta.sizes) * max(box.meta.fan_in, 1) ** -0.5
        return size + (1.0 if box.meta.dist == "ones" else 0.0)

    return jax.tree.map(draw, shapes, is_leaf=lambda x: hasattr(x, "meta"))


def _degree(x, doubled) -> float:
    """Returns the power of a factor that x is proportional to, from doubling the factor; else 0."""
    size = np.sqrt(np.mean(np.square(x)))
    if not size > 0:
        return 0.0
    ratio = np.sqrt(np.mean(np.square(doubled))) / size
    is_proportional = np.max(np.abs(doubled - ratio * x)) <= TOLERANCE * np.max(np.abs(x))
    return round(float(np.log2(ratio)), 3) if is_proportional and ratio > 0 else 0.0


def _leaks(x, other, is_seen_BT) -> np.ndarray:
    """Returns [B, T]: whether x changes at a position where only later tokens have changed.

    Axes are identified by their sizes; all False without axes of rows and positions.
    """
    num_rows, length = is_seen_BT.shape
    rows = [axis for axis, size in enumerate(x.shape) if size == num_rows]
    positions = [axis for axis, size in enumerate(x.shape) if size == length]
    if not rows or not positions:
        return np.zeros(is_seen_BT.shape, bool)
    changes = np.abs(other - x)
    limit = TOLERANCE * max(np.max(changes), np.max(np.abs(x)) * TOLERANCE)
    found = np.moveaxis(changes > limit, rows[0], 0)
    positions = [axis + (axis < rows[0]) for axis in positions]
    for axis in positions:  # queries and keys: both positions must be unchanged
        shape = np.ones(found.ndim, int)
        shape[[0, axis]] = is_seen_BT.shape
        found = found & is_seen_BT.reshape(shape)
    return np.any(np.moveaxis(found, positions[0], 1), axis=tuple(range(2, found.ndim)))


def causality_findings(forward: Forward) -> list[Finding]:
    if forward.is_causal is not False:
        return []
    text = (
        f"reads the future: the logits at position {forward.position} change with the tokens after "
        f"position {forward.after}; the loss of a model that sees what it must predict is no loss"
    )
    fix = "look for a norm, a mean or a mix over the sequence axis without a causal mask"
    if forward.first_leak:
        fix += f"; {forward.first_leak} is the first that changes"
    return [Finding(forward.first_leak or "model", "fail", "causality", "", text, fix)]
