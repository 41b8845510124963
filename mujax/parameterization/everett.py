"""Four parameterizations with per-layer learning rates (Everett et al. 2024, 2407.05872, Table 1).

A layer has forward multiplier n^-a, init n^-b and learning rate n^-c. Full alignment assumes that
updates and activations line up, so that fan_in terms add up to fan_in; no alignment, to
sqrt(fan_in). Each c is the largest that keeps every activation stable:

    Adam, Lion   alpha - a            with alpha = 1 (full) or 1/2 (none); for the embedding, where
    Adafactor    alpha - a - b        nothing is summed over, alpha = 0
    SGD          alpha - 2a - G       G = a + b of the readout, but 0 in the readout itself

G is how the gradient of an activation falls with width at initialization. Choices where copies of
the paper disagree or are silent: SGD without alignment takes the gradient at initialization (the
learned part of the readout would make it larger in muP and mean-field); Adafactor without alignment
follows the formula. Gains and biases move by order 1, as an embedding with a = 0. eps follows the
gradient of the stored weight: n^-(a + G), and n^-a in the readout. Attention is that of sp, as
d_head is fixed there.

Here n is relative to the base width, at which all four equal sp.
"""

import dataclasses

from mujax.parameterization.sp import FAN_IN
from mujax.parameterization.table import ONE, Intention, Parameterization, Power, Row, ScaleRules


@dataclasses.dataclass(frozen=True)
class Layers:
    """Exponents a and b of the embedding, the hidden layers and the readout."""

    title: str
    a: tuple[float, float, float]
    b: tuple[float, float, float]


LAYERS = {
    "standard": Layers("Standard", a=(0, 0, 0), b=(0, 0.5, 0.5)),
    "ntk": Layers("NTK", a=(0, 0.5, 0.5), b=(0, 0, 0)),
    "mean_field": Layers("Mean-field", a=(0, 0.5, 1), b=(0, 0, 0)),
    "everett_mup": Layers("muP", a=(-0.5, 0, 0.5), b=(0.5, 0.5, 0.5)),
}
ALIGNMENT = {"full": 1.0, "none": 0.5}


def per_layer(name: str, alignment: str) -> Parameterization:
    """Makes the table of a parameterization (a key of LAYERS) and an alignment (of ALIGNMENT)."""
    layers = LAYERS[name]
    words = {"full": "full alignment", "none": "no alignment"}[alignment]
    source = f"2407.05872 Table 1, {layers.title}, {words}"
    readout_scale = layers.a[2] + layers.b[2]

    def row(layer: int, alpha: float) -> Row:
        a, b, is_readout = layers.a[layer], layers.b[layer], layer == 2
        gradient = 0.0 if is_readout else readout_scale
        c = {"adam": alpha - a, "sgd": alpha - 2 * a - gradient, "adafactor": alpha - a - b}
        # The embedding's growing side is its output; sp has b = 0 there and 1/2 elsewhere.
        power = (lambda x: Power(ratio_out=x)) if layer == 0 else (lambda x: Power(ratio_in=x))
        sp_init, sp_b = (ONE, 0.0) if layer == 0 else (FAN_IN, 0.5)
        return Row(
            source,
            init=sp_init * power(sp_b - b),
            forward=power(-a),
            lr={column: power(-exponent) for column, exponent in c.items()},
            eps=power(-a - gradient),
        )

    vector_lr = {"adam": ONE, "sgd": Power(ratio_out=readout_scale), "adafactor": ONE}
    alpha = ALIGNMENT[alignment]
    reason = "logits of order 1 at initialization are stable in 2407.05872"
    return Parameterization(
        name=f"{name}_{alignment}",
        source=f"Everett et al. 2024 (2407.05872), Table 1: {layers.title}, {words}",
        rows={
            "input": row(0, alpha=0.0),
            "hidden": row(1, alpha),
            "output": row(2, alpha),
            "vector": Row(
                f"{source}; as an embedding", lr=vector_lr, eps=Power(ratio_out=-readout_scale)
            ),
        },
        scales=ScaleRules(attention=FAN_IN),
        intends={"initial logits": Intention(-0.5, reason)} if readout_scale == 0.5 else {},
    )


EVERETT = tuple(per_layer(name, alignment) for name in LAYERS for alignment in ALIGNMENT)
