"""Standard parameterization: what is done without thinking about width."""

from mujax.parameterization.table import Parameterization, Power, Row

SP = Parameterization(
    name="sp",
    source="Yang et al. 2022 (2203.03466), Table 3, entries for SP; fan-in init, one learning rate",
    rows={
        "input": Row(),
        "hidden": Row(init=Power(fan_in=-0.5)),
        "output": Row(init=Power(fan_in=-0.5)),
        "vector": Row(),
    },
    attention=-0.5,
)
