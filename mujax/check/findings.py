"""What a check finds, and how it is said."""

import dataclasses
from collections.abc import Iterable
from fractions import Fraction

LEVELS = ("pass", "benign", "undecided", "fail")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as the maximal-update limit wants it.

    subject: the tensor, forward scale ('attention scale') or activation it is about.
    level: benign (with the reason in `text`), undecided (by these widths and seeds) or fail.
    part: static, oracle, causality, coordinates or loss: which part of the check found it.
    about: which of its numbers: role, init, learning rate, eps, decay, update, or empty.
    text: what is measured or read from the table, and what would be right.
    fix: what to change, by which power of the width ratio m; empty where the check cannot know.
    """

    subject: str
    level: str
    part: str
    about: str
    text: str
    fix: str = ""


def worst(findings: Iterable[Finding]) -> str:
    """The most severe level, 'pass' if there is no finding."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="pass")


def power(exponent: float) -> str:
    """'m^-1/2', 'm', '1'; rounded to a half where one is near, as in every table of the field."""
    half = round(2 * exponent) / 2
    if abs(half - exponent) > 0.2:
        return f"m^{exponent:.2f}"
    if half in (0, 1):
        return "m" if half else "1"
    return f"m^{Fraction(half)}"
