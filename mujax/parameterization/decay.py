"""muP (Table 3 of 2203.03466) with rules for the decay of AdamW and Lion, decay_form `decoupled`.

Plain muP leaves the coefficient alone, so a hidden matrix, whose learning rate falls as 1/m,
forgets m times more slowly: the timescale of decay grows with width. Other optimizers have other
learning rates, so these tables refuse them.
"""

from mujax.parameterization.mup import MUP
from mujax.parameterization.table import ONE, ZERO, Intention, Power, Row


def _adam_alone(row: Row, **changes) -> Row:
    return row.replace(lr={"adam": row.lr["adam"]}, **changes)


# Learning rate x decay does not depend on width, as in microsoft/mup's MuAdamW and 2505.01618,
# Table 1. MuAdamW, in the form of Table 8, changes neither decay nor learning rate of the readout;
# their product is the same as in this row.
MUP_CONSTANT_SHRINK = MUP.replace(
    name="mup_constant_shrink",
    source="mup with decay x m, so that rate x decay is constant (2505.01618 Table 1; "
    "microsoft/mup, MuAdamW)",
    rows={
        role: _adam_alone(
            row,
            weight_decay=Power(ratio_in=1) if role in ("hidden", "output", "kv") else ONE,
            source=f"{row.source}; decay 2505.01618 Table 1",
        )
        for role, row in MUP.rows.items()
    },
)

# Embeddings and readout count as vector-like, as in muP's papers. The paper's own list of tensors
# was not at hand.
MUP_SQRT_DECAY = MUP.replace(
    name="mup_sqrt_decay",
    source="mup with decay of hidden matrices x sqrt(m), of the rest 0 (Fan et al. 2025, "
    "2510.15262)",
    rows={
        role: _adam_alone(
            row,
            weight_decay=Power(ratio_in=0.5) if role in ("hidden", "kv") else ZERO,
            source=f"{row.source}; decay 2510.15262",
        )
        for role, row in MUP.rows.items()
    },
    intends={
        "decay": Intention(
            -0.5, "decay x sqrt(m) keeps the gain of sublayers, not the timescale (2510.15262)"
        )
    },
)
