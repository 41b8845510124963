"""Maximal update parameterization for Adam, relative to a base width, where it equals SP."""

from mujax.parameterization.table import Parameterization, Power, Row

# The gradient of an effective weight falls as 1 / fan_out wherever fan_out grows with width (one of
# fan_out coordinates that together move the loss by order 1), and not at all for the readout. Adam's
# eps is compared with that gradient, so it follows fan_out, not the learning rate
# (Yang & Littwin 2023, 2308.01814, on eps; the exponents are measured in tests/test_parameterization.py).
EPS = Power(ratio_out=-1)

MUP = Parameterization(
    name="mup",
    source="Yang et al. 2022 (2203.03466), Table 3, Adam columns, and Definition 4.1 for attention",
    rows={
        "input": Row(eps=EPS),
        "hidden": Row(init=Power(fan_in=-0.5), lr=Power(ratio_in=-1), eps=EPS),
        "output": Row(init=Power(fan_in=-0.5, ratio_in=-0.5), lr=Power(ratio_in=-1), eps=EPS),
        "vector": Row(eps=EPS),
    },
    attention=-1.0,
)
