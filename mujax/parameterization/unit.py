"""u-muP (Blake et al. 2024, 2407.17465, Table 2) as far as it is a table of multipliers.

Not included: unit scaling of operations (factors in the attention, the activation and the loss, and
factors of the backward pass alone), which changes a model's code and not its table. A residual
branch is multiplied by L^-1/2: unrolled, and with its two hyperparameters at 1, their scheme gives
each of the 2L branches this weight relative to the embedding, up to a factor common to the whole
stream, which the next norm removes. The learning rate of every tensor of the stack has a factor
L^-1/2, as in their library. eps and decay are not scaled.
"""

from mujax.parameterization.table import Intention, Parameterization, Power, Row, ScaleRules

_SOURCE = "2407.17465 Table 2"
_INVERSE, _HALF = Power(fan_in=-1), Power(fan_in=-0.5)
_DEPTH = Power(layers=-0.5)

U_MUP = Parameterization(
    name="u_mup",
    source="Blake et al. 2024 (2407.17465), Table 2, without the unit scaling of operations",
    rows={
        "input": Row(_SOURCE, lr={"adam": Power(fan_out=-0.5)}),
        "hidden": Row(_SOURCE, forward=_HALF, lr={"adam": _HALF * _DEPTH}),
        "output": Row(_SOURCE, forward=_INVERSE),
        "vector": Row(_SOURCE, lr={"adam": _DEPTH}),
    },
    scales=ScaleRules(attention=_INVERSE, residual=_DEPTH),
    relative=False,
    intends={
        "embedding rate": Intention(-0.5, "the embedding trains at 1/sqrt(fan_out) (2407.17465)")
    },
)
