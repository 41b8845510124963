"""The tables of Lingle 2024 (2404.05728), after the author's public code.

The code's options are optim_rule, q_init, r_init and u_init. All learning rates and inits are the
author's; eps and decay are not scaled. `mup` is relative in its learning rates and absolute in its
inits (std 1/M of the unembedding) and attention scale (1/d_head), so it does not equal `sp` at a
base width. The author's width ratio is an integer division; ours is exact. In the absolute rule the
fan_in of the MLP's second matrix is its true one, F; in the relative rule all matrices follow the
ratio of M, which equals the ratio of F.
"""

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

_INVERSE = Power(fan_in=-1)
_MATRIX_LR = {"sp": ONE, "mup": Power(ratio_in=-1), "abs_mup": _INVERSE}
_U_INIT = {"sp": FAN_IN, "mup": _INVERSE, "zero": ZERO}


_SP_READOUT = {
    "initial logits": Intention(-0.5, "W_U of variance 1/M on purpose (2404.05728, u_init sp)")
}


def lingle(optim_rule: str, variant: str = "") -> Parameterization:
    """Makes a table of 2404.05728.

    Args:
      optim_rule: sp, mup or abs_mup.
      variant: '' (the default there), qzero (W_Q = 0), rzero (matrices that write to the residual
        stream = 0), uzero, usp or umup (unembedding 0, of variance 1/M, or 1/M^2).
    """
    source = "2404.05728, Section 3, optim_rule " + optim_rule
    lr = {"adam": _MATRIX_LR[optim_rule]}
    u_init = {"uzero": "zero", "usp": "sp", "umup": "mup"}.get(
        variant, "sp" if optim_rule == "sp" else "mup"
    )
    hidden = Row(source, init=FAN_IN, lr=lr)
    zeroed = {"qzero": ("*/wq",), "rzero": ("*/wo",)}.get(variant, ())
    return Parameterization(
        name="_".join(filter(None, ("lingle", optim_rule, variant))),
        source=f"Lingle 2024 (2404.05728), optim_rule {optim_rule}"
        + (f", {variant}" if variant else ""),
        rows={
            "input": Row(source),
            "hidden": hidden,
            "output": Row(f"{source}, u_init {u_init}", init=_U_INIT[u_init], lr=lr),
            "vector": Row(source),
            "kv": Row(f"{source}, as multi-query attention there", init=FAN_IN, lr=lr),
        },
        tensors={
            pattern: hidden.replace(init=ZERO, source=f"{source}, {variant}") for pattern in zeroed
        },
        scales=ScaleRules(attention=FAN_IN if optim_rule == "sp" else _INVERSE),
        relative=False,
        intends=_SP_READOUT if u_init == "sp" else {},
    )


LINGLE = tuple(
    lingle(rule, variant)
    for rule, variants in {
        "sp": ("", "qzero", "rzero", "uzero", "umup"),
        "mup": ("", "qzero", "rzero", "uzero", "usp"),
        "abs_mup": ("", "qzero", "rzero", "uzero", "usp"),
    }.items()
    for variant in variants
)
