"""The declaration of a config field: its type, default, meaning and range in one place.

    learning_rate: float = declare(2.0**-7, "peak, of a tensor whose table factor is 1")

Validation (check_numbers), the defaults in configs/base.py and the text of `mujax train --helpfull`
follow from it. A range follows from the use of a number: an int32 index, a float32 step, a size
that some machine can hold.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mujax.errors import UserError, cut, not_one_of, shown

DTYPES = ("float32", "bfloat16")
INT32 = 2**31 - 1
# float32 holds every whole number up to this one
EXACT = 2**24
NUM_BYTES = 256  # vocabulary size of text that is read as bytes


class Range(NamedTuple):
    """A range of values of a field; `above` is an exclusive lower bound.

    words: text that replaces the bound in the message. why: the reason for the upper bound.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    words: str = ""
    why: str = ""

    def check(self, field: str, value) -> None:
        """Raises UserError unless the value is in the range."""
        if value > self.above and self.least <= value <= self.most:
            return
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {self.least:g}"
        high = f"at most {self.most:.10g}" + (f": {self.why}" if self.why else "")
        words = self.words or (high if value > self.most else low)
        raise UserError(f"{field} = {shown(value)} must be {words}")


POSITIVE, NOT_NEGATIVE = Range(above=0), Range(least=0)
BETA = Range(
    0, float(np.nextafter(np.float32(1), np.float32(0))), words="in [0, 1), as a float32 too"
)
DEPTH = Range(
    above=0, most=2**14, why="no network has trained with more layers than 10,000 (1806.05393)"
)
TAPS = Range(above=0, most=2**10, why="each is traced by itself")


def declare(default, doc: str, within: Range = POSITIVE) -> Any:
    """Declares a field of a section of the config.

    Args:
      default: its default value.
      doc: its meaning, with its unit.
      within: the range of a number. Besides, whole numbers must fit int32 and others float32.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "within": within})


def declared_in(cls: Any, name: str) -> Any:
    """Declares a field with the default, meaning and range that another section gives it."""
    (found,) = (f for f in dataclasses.fields(cls) if f.name == name)
    return dataclasses.field(default=found.default, metadata=found.metadata)


def defaults(cls: Any) -> dict[str, Any]:
    """Returns {field: default} of a section, without the fields that have no default."""
    return {
        f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
    }


def explain_fields(cls: Any, section: str) -> list[tuple[str, str, str]]:
    """Returns (dotted name, default, meaning) of each field of a section."""
    return [
        (f"{section}.{f.name}", repr(f.default), f.metadata.get("doc", ""))
        for f in dataclasses.fields(cls)
        if f.default is not dataclasses.MISSING
    ]


def check_numbers(cls: Any, section: str, values: Mapping[str, Any]) -> None:
    """Raises UserError unless each number of a section is in its range, by default above 0."""
    within = {f.name: f.metadata.get("within", POSITIVE) for f in dataclasses.fields(cls)}
    for name, value in values.items():
        if type(value) in (int, float):
            within[name].check(f"{section}.{name}", value)


def one_of(field: str, value, choices) -> None:
    """Raises UserError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(
            f"{field} = {shown(value)} "
            f"{not_one_of(cut(str(value)) if isinstance(value, str) else '', choices)}"
        )
