"""A parameterization as data: one row per role, of powers of a tensor's sizes.

No other code in mujax knows SP from muP: modules draw with unit variance, and optimizers apply the
numbers that `resolve` makes from a table.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from mujax.errors import UserError, suggest
from mujax.params import ROLES, ParamMeta


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes that a rule may depend on.

    layers: the depth of the stack that a tensor is repeated over, or 1.
    width: the model's width, whatever the tensor's own sizes; 0 where no tensor tells it.
    """

    fan_in: int
    fan_out: int = 1
    layers: int = 1
    width: int = 0


def size_of(meta: ParamMeta, width: int = 0) -> Size:
    return Size(
        meta.fan_in, meta.fan_out, meta.size("layers") if "layers" in meta.batch else 1, width
    )


@dataclasses.dataclass(frozen=True)
class Power:
    """A coefficient times a product of sizes to the named exponents.

    ratio_x is the exponent of x over the same size at the base width. A forward scale is a power of
    one size, its fan_in: d_head for attention, the width for the others.
    """

    coefficient: float = 1.0
    fan_in: float = 0.0
    fan_out: float = 0.0
    layers: float = 0.0
    width: float = 0.0
    ratio_in: float = 0.0
    ratio_out: float = 0.0
    ratio_layers: float = 0.0

    def __call__(self, size: Size, base: Size) -> float:
        return (
            self.coefficient
            * float(size.fan_in) ** self.fan_in
            * float(size.fan_out) ** self.fan_out
            * float(size.layers) ** self.layers
            * float(size.width) ** self.width
            * (size.fan_in / base.fan_in) ** self.ratio_in
            * (size.fan_out / base.fan_out) ** self.ratio_out
            * (size.layers / base.layers) ** self.ratio_layers
        )

    @property
    def needs_depth(self) -> bool:
        return bool(self.layers or self.ratio_layers)

    @property
    def compares_depths(self) -> bool:
        return bool(self.ratio_layers)

    def __mul__(self, other: "Power") -> "Power":
        exponents = {name: getattr(self, name) + getattr(other, name) for name in _SYMBOLS}
        return Power(self.coefficient * other.coefficient, **exponents)

    def absolute(self) -> "Power":
        """Returns the same exponents of the sizes themselves, without a base width."""
        return Power(
            self.coefficient,
            fan_in=self.fan_in + self.ratio_in,
            fan_out=self.fan_out + self.ratio_out,
            layers=self.layers + self.ratio_layers,
            width=self.width,
        )

    def __str__(self) -> str:
        """Returns e.g. 'fan_in^-1/2 m_in^-1/2'; '1' if nothing varies."""
        factors = [f"{self.coefficient:.4g}"] if self.coefficient != 1 else []
        for name, symbol in _SYMBOLS.items():
            exponent = getattr(self, name)
            if exponent == 1:
                factors.append(symbol)
            elif exponent:
                factors.append(f"{symbol}^{Fraction(exponent).limit_denominator(100)}")
        return "0" if self.coefficient == 0 else " ".join(factors) or "1"


# How a rule is written: n is the width, m is a size over the same size at the base width.
_SYMBOLS = {
    "fan_in": "fan_in",
    "fan_out": "fan_out",
    "layers": "L",
    "width": "n",
    "ratio_in": "m_in",
    "ratio_out": "m_out",
    "ratio_layers": "m_L",
}

ONE = Power()
ZERO = Power(coefficient=0.0)

# The columns of learning rates. Lion follows Adam; Muon orthogonalizes hidden matrices and leaves
# the rest to Adam.
COLUMNS = ("adam", "sgd", "adafactor", "muon")


@dataclasses.dataclass(frozen=True)
class Row:
    """The scaling of one role: the numbers of Scaling, each as a Power of the tensor's sizes.

    lr: column -> factor on the learning rate; an absent column is an optimizer without a rule.
    readout: for a tied embedding, the factor on the logits where it serves as the readout.
    source: the paper, and the table or equation in it.
    """

    source: str
    init: Power = ONE
    forward: Power = ONE
    lr: Mapping[str, Power] = dataclasses.field(default_factory=lambda: {"adam": ONE})
    eps: Power = ONE
    weight_decay: Power = ONE
    readout: Power = ONE

    def replace(self, **changes) -> "Row":
        return dataclasses.replace(self, **changes)

    @property
    def powers(self) -> tuple[Power, ...]:
        return self.init, self.forward, self.eps, self.weight_decay, self.readout, *self.lr.values()

    def absolute(self) -> "Row":
        powers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changes = {
            name: power.absolute() for name, power in powers.items() if isinstance(power, Power)
        }
        return self.replace(
            **changes, lr={column: power.absolute() for column, power in self.lr.items()}
        )


@dataclasses.dataclass(frozen=True)
class ScaleRules:
    """Factors that the forward pass applies to activations.

    attention: on q.k, a power of d_head (its fan_in).
    residual: on the output of a residual branch, a power of the width and the number of layers.
    logits, embedding: on the logits and on the embedded tokens, powers of the width.
    """

    attention: Power
    residual: Power = ONE
    logits: Power = ONE
    embedding: Power = ONE


class Intention(NamedTuple):
    """An intended deviation from the maximal-update limit, with the reason that its source gives.

    exponent: of the effective weight, learning rate or decay per step, as a power of the width.
    """

    exponent: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """A table: a rule for each role, and the rules of the forward scales.

    name: as in parameterization.name.
    source: paper and table, as `explain` prints it.
    rows: role -> Row; the four roles of BASIC_ROLES are required.
    scales: the rules of the forward scales.
    tensors: name pattern (fnmatch) -> Row, for tensors that differ from the others of their role.
    relative: whether the table equals `sp` at the base width, so that a base learning rate means
      the same in both.
    repeated: axes that a matrix may be repeated over, each copy scaled as a matrix of its own.
    intends: deviation from the maximal-update limit (one of INTENTIONS) -> its exponent in the
      width, and the reason; `check` reports that exponent, and no other, as benign.

    Raises:
      UserError: an unknown or missing role, column or intention.
    """

    name: str
    source: str
    rows: Mapping[str, Row]
    scales: ScaleRules
    tensors: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    relative: bool = True
    repeated: tuple[str, ...] = ("layers",)
    intends: Mapping[str, "Intention"] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        here = f"parameterization {self.name!r}"
        for role in self.rows:
            if role not in ROLES:
                raise UserError(
                    f"{here} has a row for {role!r}, which is no role{suggest(role, ROLES)}"
                )
        for role in BASIC_ROLES:
            if role not in self.rows:
                raise UserError(
                    f"{here} has no row for role {role!r}; every table needs "
                    f"{', '.join(BASIC_ROLES)}"
                )
        for target, row in {**self.rows, **self.tensors}.items():
            for column in row.lr:
                if column not in COLUMNS:
                    raise UserError(
                        f"{here}, row {target!r}: {column!r} is no column{suggest(column, COLUMNS)}"
                    )
        for key in self.intends:
            if key not in INTENTIONS:
                raise UserError(
                    f"{here} intends {key!r}, which is not one of {', '.join(INTENTIONS)}"
                )

    def replace(self, **changes) -> "Parameterization":
        return dataclasses.replace(self, **changes)

    @property
    def compares_depths(self) -> bool:
        """Whether a rule reads the base's number of layers, parameterization.base_num_layers."""
        rows = (*self.rows.values(), *self.tensors.values())
        powers = [*vars(self.scales).values(), *(power for row in rows for power in row.powers)]
        return any(power.compares_depths for power in powers)

    def absolute(self) -> "Parameterization":
        """Returns the form without a base width, in which every ratio becomes the size itself."""
        scales = {
            f.name: getattr(self.scales, f.name).absolute() for f in dataclasses.fields(self.scales)
        }
        return self.replace(
            name=f"{self.name}_abs",
            source=f"{self.source}; absolute",
            rows={role: row.absolute() for role, row in self.rows.items()},
            tensors={pattern: row.absolute() for pattern, row in self.tensors.items()},
            scales=ScaleRules(**scales),
            relative=False,
        )


BASIC_ROLES = ("input", "hidden", "output", "vector")
INTENTIONS = ("initial logits", "embedding rate", "decay")
