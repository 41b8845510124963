"""The findings of a check, and their wording."""

import dataclasses
from collections.abc import Iterable
from fractions import Fraction

LEVELS = ("pass", "benign", "undecided", "fail")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One deviation from the maximal-update limit.

    subject: the tensor, forward scale ('attention scale') or activation that deviates.
    level: benign (with the reason in `text`), undecided (by these widths and seeds) or fail.
    part: the part of the check that found it: static, oracle, causality, coordinates or loss.
    about: the number that deviates: role, init, learning rate, eps, decay, update, or empty.
    text: what is measured or read from the table, and what would be right.
    fix: what to change, by which power of the width ratio m; empty if the check cannot know.
    """

    subject: str
    level: str
    part: str
    about: str
    text: str
    fix: str = ""


def worst(findings: Iterable[Finding]) -> str:
    """Returns the most severe level, 'pass' if there is no finding."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="pass")


def power(exponent: float) -> str:
    """Formats an exponent as 'm^-1/2', 'm' or '1', rounded to a half if one is near.

    All tables of the field have multiples of a half.
    """
    half = round(2 * exponent) / 2
    if abs(half - exponent) > 0.2:
        return f"m^{exponent:.2f}"
    if half in (0, 1):
        return "m" if half else "1"
    return f"m^{Fraction(half)}"
