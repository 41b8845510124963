"""The factorial of Kalra & Barkeshli 2026 (2605.21486): four switches between SP and muP.

Their gauge: in SP every tensor trains at eta / n and matrices decay with lambda * n, so that one
step shrinks a matrix by eta * lambda at any width (n is the width; decay is decoupled). The same
holds for gains and biases of other sizes than n, which their GPT lacks: those of queries and keys,
of the MLP, of the logits. For a matrix, n is the side that it shares with the residual stream; in
models other than a GPT, such as a convolution, n is its fan_in. LN covers all gains and biases (our
choice; the paper's GPT has no biases). Where a switch raises the learning rate of a matrix, the
decay is lowered so that the shrink stays (our choice; the paper's is not known to us). Gains do not
decay. Matrices that write to the residual stream start at 1/sqrt(2 L n) with L layers, as in the
authors' related code (inferred); their learning rate is eta / n, not eta / 4n.

Tied embeddings (the paper's rule is not known to us): the embedding keeps its own row and unit
variance. The readout is the embedding times n^-1/2, or n^-1 with Last, which is the size of the
untied unembedding at initialization. With Embd and Last the readout's learning rate is then eta /
n, too, as in the untied model.
"""

import itertools

from mujax.parameterization.sp import FAN_IN
from mujax.parameterization.table import (
    ONE,
    ZERO,
    Intention,
    Parameterization,
    Power,
    Row,
    ScaleRules,
)

_INTO, _OUT_OF, _WIDTH = Power(fan_out=-1), Power(fan_in=-1), Power(width=-1)


def factorial(embd: bool | str, ln: bool, attn: bool, last: bool) -> Parameterization:
    """Makes one of the 16 tables: each switch is False (SP) or True (muP).

    Args:
      embd: embedding learning rate eta instead of eta / n; 'sqrt': eta / sqrt(n) (Hayou & Liu,
        2506.15025).
      ln: LayerNorm scale learning rate eta instead of eta / n.
      attn: attention scale 1 / d_head instead of 1 / sqrt(d_head).
      last: unembedding of variance 1 / n^2 instead of 1 / n.
    """
    source = "2605.21486, factorial"
    embed_lr = {False: _INTO, True: ONE, "sqrt": Power(fan_out=-0.5)}[embd]
    embed_decay = {False: Power(fan_out=1), True: ONE, "sqrt": Power(fan_out=0.5)}[embd]
    on = [{False: "", True: "embd", "sqrt": "sqrt_embd"}[embd]]
    on += [name for name, switch in (("ln", ln), ("attn", attn), ("last", last)) if switch]
    switches = list(filter(None, on))
    matrix = Row(source, init=FAN_IN, lr={"adam": _OUT_OF}, weight_decay=Power(fan_in=1))
    return Parameterization(
        name="+".join(["factorial", *switches]),
        source="Kalra & Barkeshli 2026 (2605.21486), "
        f"SP{''.join(f' + {name}' for name in switches)}",
        rows={
            "input": Row(source, lr={"adam": embed_lr}, weight_decay=embed_decay),
            "hidden": matrix,
            "output": matrix.replace(init=_OUT_OF) if last else matrix,
            "vector": Row(source, lr={"adam": ONE if ln else _WIDTH}, weight_decay=ZERO),
            "tied": Row(
                f"{source}; readout as large as the unembedding",
                lr={"adam": embed_lr},
                weight_decay=embed_decay,
                readout=_OUT_OF if last else FAN_IN,
            ),
        },
        tensors={
            "*/wo": Row(
                f"{source}; init (2 L n)^-1/2 inferred",
                init=Power(coefficient=2**-0.5, layers=-0.5, fan_out=-0.5),
                lr={"adam": _INTO},
                weight_decay=Power(fan_out=1),
            )
        },
        scales=ScaleRules(attention=_OUT_OF if attn else FAN_IN),
        relative=False,
        intends={
            **(
                {}
                if last
                else {"initial logits": Intention(-0.5, "Last is off: variance 1/n (2605.21486)")}
            ),
            **(
                {"embedding rate": Intention(-0.5, "Embd is at sqrt(width) (2506.15025)")}
                if embd == "sqrt"
                else {}
            ),
        },
    )


_SWITCHES = tuple(itertools.product((False, True), repeat=3))
FACTORIAL = tuple(factorial(embd, *rest) for embd in (False, True, "sqrt") for rest in _SWITCHES)

_MUP = factorial(embd=True, ln=True, attn=True, last=True)
_TOWARDS_RESIDUAL = _MUP.tensors["*/wo"]
# In this gauge decay lambda * n is a constant shrink. Here sqrt(m) replaces m; both are equal at
# the base width.
MUP_SQRT_DECAY = _MUP.replace(
    name=f"{_MUP.name}+sqrt_decay",
    source=f"{_MUP.source}, decay of hidden matrices x sqrt(m), of the rest 0 (Fan et al. 2025, "
    "2510.15262)",
    rows={
        role: row.replace(
            weight_decay=Power(fan_in=1, ratio_in=-0.5) if role == "hidden" else ZERO,
            source=f"{row.source}; decay 2510.15262",
        )
        for role, row in _MUP.rows.items()
    },
    tensors={
        "*/wo": _TOWARDS_RESIDUAL.replace(
            weight_decay=Power(fan_out=1, ratio_out=-0.5),
            source=f"{_TOWARDS_RESIDUAL.source}; decay 2510.15262",
        )
    },
    intends={
        "decay": Intention(
            -0.5, "decay x sqrt(m) keeps the gain of sublayers, not the timescale (2510.15262)"
        )
    },
)
