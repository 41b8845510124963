"""CompleteP: width and depth together (Dey et al. 2025, 2505.01618, Table 1).

With m_L the number of layers over the number at the base, a branch is multiplied by m_L^-alpha;
inside the stack the learning rate is multiplied by m_L^(alpha - 1) and eps by m_L^-alpha. Decay is
scaled by m_N in hidden matrices, so that learning rate x decay does not depend on width, and is
zero for gains and biases. alpha = 1 is CompleteP, alpha = 1/2 the rule that the paper compares it
with. Tensors outside the stack (embedding, final norm, readout) need no depth rule: their number of
layers is 1 at every depth. The readout has the multiplier 1 / m_N (the form of 2203.03466, Table
8), hence its eps.

Differences from the authors' code (EleutherAI/nanoGPT-mup, branch completep, model.py). Attention:
their scale is 1 / d_head at every size. Here it is (base d_head)^1/2 / d_head: it falls with d_head
as theirs does, and equals the scale of sp at the base, as all of a relative table does. So where
heads do not grow it is d_head^-1/2, larger than theirs by d_head^1/2 (5.7 for heads of 32).
parameterization.override = ('attention=mup_abs',) gives their constant. Initial standard deviations
at the base are also those of sp, not their 0.02. Tied embeddings, which that code always has: the
matrix follows the embedding's row (learning rate 1, eps 1 / m_N, decay 1) and logits are multiplied
by 1 / m_N; the constant at the base is that of sp.
"""

from mujax.parameterization.mup import MUP_TABLE8
from mujax.parameterization.table import ONE, ZERO, Parameterization, Power, Row, ScaleRules


def completep(alpha: float) -> Parameterization:
    """Makes the table for one exponent of the residual scale, alpha in [1/2, 1]."""
    source = f"2505.01618 Table 1, alpha {alpha:g}"
    lr_factor, eps_factor = Power(ratio_layers=alpha - 1), Power(ratio_layers=-alpha)

    def in_stack(role: str, weight_decay: Power) -> Row:
        row = MUP_TABLE8.rows[role]
        lr = {"adam": row.lr["adam"] * lr_factor}
        return Row(
            source, init=row.init, lr=lr, eps=row.eps * eps_factor, weight_decay=weight_decay
        )

    embedding, readout = MUP_TABLE8.rows["input"], MUP_TABLE8.rows["output"]
    # Decay acts with the learning rate of the effective weight: 1 / m_N for the readout, where the
    # source has eta.
    return Parameterization(
        name={0.5: "completep_half", 1.0: "completep"}[alpha],
        source=f"Dey et al. 2025 (2505.01618), Table 1, alpha {alpha:g}; attention by Definition "
        "4.1 of 2203.03466",
        rows={
            "input": Row(source, lr={"adam": ONE}, eps=embedding.eps),
            "hidden": in_stack("hidden", weight_decay=Power(ratio_in=1)),
            "output": Row(
                source,
                init=readout.init,
                forward=readout.forward,
                lr={"adam": ONE},
                eps=readout.eps,
                weight_decay=Power(ratio_in=1),
            ),
            "vector": in_stack("vector", weight_decay=ZERO),
            "tied": Row(
                f"{source}; tied as in EleutherAI/nanoGPT-mup",
                lr={"adam": ONE},
                eps=embedding.eps,
                readout=MUP_TABLE8.rows["tied"].readout,
            ),
        },
        scales=ScaleRules(
            attention=MUP_TABLE8.scales.attention, residual=Power(ratio_layers=-alpha)
        ),
    )


COMPLETEP = (completep(0.5), completep(1.0))
