"""The maximal update parameterization in three equivalent forms (Yang et al. 2022, 2203.03466).

The forms store different weights and train the same effective weights: an Adam or SGD trajectory is
equal in all three (appendix J.2.1 there; tests/test_parameterization.py). Relative tables equal
`sp` at the base width. The absolute ones, `*_abs`, have no base width: the learning rate of a
hidden matrix is alpha / fan_in.

Choices. fan_in of an embedding counts as 1, as its inputs are one-hot. In Table 9 the paper gives
biases the multiplier of the input weights; here vectors keep the form of Table 8, equal by the
symmetry, since gains start at one and not at a draw that an init could scale down. Shared keys and
values (`kv`) follow the hidden matrices, as in Lingle 2024 (2404.05728) for multi-query attention;
the learning rate of SGD follows fan_out / fan_in by the spectral condition (2310.17813), as their
fan_out may not grow. eps: the paper (appendix B.3) scales eps of all parameters by 1 / fan_in,
which is exact for the readout in the form of Table 8 alone; here eps follows the gradient in every
form. microsoft/mup leaves eps as it is.

Decay: the paper's tables have no rule for it, and these leave the coefficient alone. Decoupled
decay acts on the effective weight with the effective weight's learning rate, so that the forms stay
one trajectory: the readout shrinks by eta lambda / m per step in Table 3, where its learning rate
is eta / m, and in Tables 8 and 9 too. AdamW on the weights that Table 8 stores would shrink the
readout by eta lambda, and hidden matrices by eta lambda / m. microsoft/mup's MuAdamW (mup/optim.py)
also multiplies the decay of hidden matrices by m, so that everything shrinks by eta lambda: that is
`mup_constant_shrink`.
"""

from mujax.parameterization.sp import FAN_IN, REPEATED, SPECTRAL
from mujax.parameterization.table import ONE, Intention, Parameterization, Power, Row, ScaleRules

# The gradient of an effective weight falls as 1 / fan_out wherever fan_out grows with width (it is
# one of fan_out coordinates that together move the loss by order 1), and is constant for the
# readout. Adam compares eps with that gradient, so the factor of eps follows fan_out, not the
# learning rate, and is 1 for the readout (Yang & Littwin 2023, 2308.01814, on eps; the exponents
# are measured in tests/test_parameterization.py). A weight with forward factor f has gradients, and
# so eps, f times as large.
EPS = Power(ratio_out=-1)
HALF = Power(ratio_in=-0.5)
INVERSE = Power(ratio_in=-1)

# Muon: the update should have spectral norm sqrt(fan_out / fan_in) (2310.17813, Condition 1), and
# an orthogonalized update has spectral norm 1. Adafactor: the update is relative to the RMS of the
# weight, fan_in^-1/2, so a hidden update of order 1 / fan_in needs another m^-1/2 (2203.03466, B.3;
# 2407.05872, full alignment).
HIDDEN_LR = {"adam": INVERSE, "sgd": ONE, "adafactor": HALF, "muon": SPECTRAL}
INPUT_LR = {"adam": ONE, "sgd": Power(ratio_out=1), "adafactor": ONE, "muon": ONE}
OUTPUT_LR = {"adam": INVERSE, "sgd": INVERSE, "adafactor": ONE, "muon": INVERSE}

_TABLE_3, _TABLE_8, _TABLE_9 = (f"2203.03466 Table {n}" for n in (3, 8, 9))

MUP = Parameterization(
    name="mup",
    source="Yang et al. 2022 (2203.03466), Table 3; attention by Definition 4.1",
    rows={
        "input": Row(_TABLE_3, lr=INPUT_LR, eps=EPS),
        "hidden": Row(_TABLE_3, init=FAN_IN, lr=HIDDEN_LR, eps=EPS),
        "output": Row(_TABLE_3, init=FAN_IN * HALF, lr=OUTPUT_LR),
        "vector": Row(_TABLE_3, lr=INPUT_LR, eps=EPS),
        "tied": Row(_TABLE_8, lr=INPUT_LR, eps=EPS, readout=FAN_IN * HALF),
        "kv": Row(
            f"{_TABLE_3}; kv as hidden, 2404.05728",
            init=FAN_IN,
            lr={**HIDDEN_LR, "sgd": Power(ratio_in=-1, ratio_out=1)},
            eps=EPS,
        ),
    },
    scales=ScaleRules(attention=FAN_IN * HALF),
    repeated=REPEATED,
)

MUP_TABLE8 = MUP.replace(
    name="mup_table8",
    source="Yang et al. 2022 (2203.03466), Table 8; attention by Definition 4.1",
    rows={
        **MUP.rows,
        "output": Row(
            f"{_TABLE_8}; decays as in Table 3",
            init=FAN_IN * Power(ratio_in=0.5),
            forward=INVERSE,
            lr={"adam": ONE, "sgd": Power(ratio_in=1), "adafactor": ONE, "muon": ONE},
            eps=INVERSE,
        ),
    },
)

MUP_TABLE9 = MUP.replace(
    name="mup_table9",
    source="Yang et al. 2022 (2203.03466), Table 9; attention by Definition 4.1",
    rows={
        **MUP.rows,
        "input": Row(
            _TABLE_9,
            init=Power(ratio_out=-0.5),
            forward=Power(ratio_out=0.5),
            lr={
                "adam": Power(ratio_out=-0.5),
                "sgd": ONE,
                "adafactor": ONE,
                "muon": Power(ratio_out=-0.5),
            },
            eps=EPS * Power(ratio_out=0.5),
        ),
        "output": Row(
            f"{_TABLE_9}; decays as in Table 3",
            init=FAN_IN,
            forward=HALF,
            lr={"adam": HALF, "sgd": ONE, "adafactor": ONE, "muon": HALF},
            eps=HALF,
        ),
    },
)

FORMS = (MUP, MUP_TABLE8, MUP_TABLE9)
ABSOLUTE = tuple(table.absolute() for table in FORMS)

# Large vocabularies: the ratio of the embedding's learning rate to the hidden one grows as
# sqrt(width), not as width.
MUP_SQRT_EMBEDDING = MUP.replace(
    name="mup_sqrt_embedding",
    source="mup with the embedding rate of Hayou & Liu 2025 (2506.15025)",
    rows={
        **MUP.rows,
        "input": Row(
            "2506.15025, large-vocabulary regime",
            lr={"adam": Power(ratio_out=-0.5)},
            eps=EPS,
        ),
    },
    intends={
        "embedding rate": Intention(
            -0.5, "embedding rate / hidden rate = sqrt(width), for large vocabularies (2506.15025)"
        )
    },
)
