"""The standard parameterization: fan-in init and one learning rate at every width."""

from mujax.parameterization.table import COLUMNS, ONE, Parameterization, Power, Row, ScaleRules

_SOURCE = "2203.03466 Table 3, SP"
# Spectral norm sqrt(fan_out / fan_in) of Muon's orthogonalized update (2310.17813), in every table
# that has a rule for Muon. SP with Muon is commonly trained nearly so
# (kellerjordan.github.io/posts/muon).
SPECTRAL = Power(fan_in=-0.5, fan_out=0.5)
FLAT: dict[str, Power] = dict.fromkeys(COLUMNS, ONE)
FLAT_MATRIX = {**FLAT, "muon": SPECTRAL}
FAN_IN = Power(fan_in=-0.5)
# Each layer, and each expert of a mixture, is a matrix of its own; the router is an output
# (2508.09752).
REPEATED = ("layers", "experts")

SP = Parameterization(
    name="sp",
    source="Yang et al. 2022 (2203.03466), Table 3, entries for SP: fan-in init, one learning rate",
    rows={
        "input": Row(_SOURCE, lr=FLAT),
        "hidden": Row(_SOURCE, init=FAN_IN, lr=FLAT_MATRIX),
        "output": Row(_SOURCE, init=FAN_IN, lr=FLAT),
        "vector": Row(_SOURCE, lr=FLAT),
        # An embedding of unit variance gives logits of order sqrt(width), hence the factor.
        "tied": Row(f"{_SOURCE}; logits x width^-1/2 for unit variance", lr=FLAT, readout=FAN_IN),
        "kv": Row(_SOURCE, init=FAN_IN, lr=FLAT_MATRIX),
    },
    scales=ScaleRules(attention=FAN_IN),
    repeated=REPEATED,
)
