"""Grouping of values, seeds and fields: values that are one number, seeds with common luck, fields
that follow a learning rate.

Axes: X learning rates, S seeds.
"""

import dataclasses
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SAME_RATE = 1e-6  # relative; float32 keeps a number to 6e-8
ON_A_LINE = 2e-4  # relative, of constants: values of a config may have been rounded
_EXPONENTS = (-1.0, 1.0, -0.5, 0.5, -2.0, 2.0)
_FEWEST = 3  # learning rates that a field must follow: any two values lie on a line


def same_values(values: Iterable[float], tolerance: float = SAME_RATE) -> dict[float, float]:
    """Maps each value to the one that stands for all within `tolerance` of it: that with the
    shortest decimals."""
    groups: list[list[float]] = []
    for value in sorted(set(values)):
        if groups and math.isclose(value, groups[-1][0], rel_tol=tolerance):
            groups[-1].append(value)
        else:
            groups.append([value])
    return {value: min(group, key=lambda v: len(repr(v))) for group in groups for value in group}


def level_seeds(
    seeds: Sequence[Sequence[Hashable]], losses: Sequence[Sequence[float | None]]
) -> tuple[tuple[float | None, ...], ...]:
    """Removes what a seed adds at every learning rate, if some rates have other seeds than the
    rest.

    A seed's luck is largely common to all learning rates. Where each rate has the same seeds it
    shifts the whole curve and is left in; else means over seeds would differ by who is in them.
    Fits loss = f(rate) + offset(seed), offsets with mean 0, to the rates where no seed diverged,
    those near the best rate above all, as noise grows away from it. Each seed's losses are shifted
    by one number, so its own curve keeps its shape. Seeds that share no rate with others cannot be
    compared with them and are left as they are.

    Args:
      seeds, losses: per learning rate, the seed and the loss of each run; None: it diverged.
    """
    whole = [i for i, cell in enumerate(losses) if cell and None not in cell]
    if len({tuple(sorted(map(str, seeds[i]))) for i in whole}) <= 1:
        return tuple(map(tuple, losses))
    names = list(dict.fromkeys(seed for i in whole for seed in seeds[i]))
    count_XS, sum_XS = np.zeros((2, len(whole), len(names)))
    for row, i in enumerate(whole):
        for seed, loss in zip(seeds[i], losses[i], strict=True):
            count_XS[row, names.index(seed)] += 1
            sum_XS[row, names.index(seed)] += loss
    count_X = count_XS.sum(1)
    mean_X = sum_XS.sum(1) / count_X
    above_X = mean_X - mean_X.min()
    weight_X = 1 / (1 + (above_X / (np.median(above_X) or 1.0)) ** 2)
    # The normal equations without f: a graph's Laplacian, whose kernel is a constant per group of
    # connected seeds. So the shortest solution has mean 0 in each group.
    between_SS = (
        np.diag(weight_X @ count_XS) - (count_XS * (weight_X / count_X)[:, None]).T @ count_XS
    )
    offset_S = np.linalg.pinv(between_SS, rcond=1e-9, hermitian=True) @ (
        weight_X @ (sum_XS - count_XS * mean_X[:, None])
    )
    offsets = dict(zip(names, offset_S.tolist(), strict=True))
    return tuple(
        tuple(
            None if y is None else y - offsets.get(s, 0.0)
            for s, y in zip(at_seeds, at, strict=True)
        )
        for at_seeds, at in zip(seeds, losses, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Coupling:
    """A field that follows the learning rate: value = constant * rate^exponent.

    exponent: None where each rate has a value of its own, in order, but by no power of the rate.
    """

    exponent: float | None

    def constant(self, rate: float, value: float) -> float:
        """Returns the constant of the line that a pair of values is on; 0 where there is no power
        law."""
        if self.exponent is None or not value:
            return 0.0
        return 2.0 ** (math.log2(value) - self.exponent * math.log2(rate))

    def value(self, rate: float, at: tuple[float, float]) -> float:
        """Returns the field's value at a rate, on the line through another pair (rate, value).

        Raises:
          ValueError: no power law tells it.
        """
        if self.exponent is None:
            raise ValueError("no power law")
        return at[1] * (rate / at[0]) ** self.exponent

    def text(self, name: str, rate_name: str, constant: float) -> str:
        """Writes the rule out, e.g. 'weight_decay=0.002/learning_rate'."""
        if self.exponent is None:
            return f"{name} along with {rate_name}"
        if not constant:
            return f"{name}=0"
        if self.exponent == -1:
            return f"{name}={constant:.6g}/{rate_name}"
        power = "" if self.exponent == 1 else f"^{self.exponent:.3g}"
        return f"{name}={constant:.6g}*{rate_name}{power}"


def find_coupling(runs: Iterable[tuple[Hashable, float, Any]]) -> Coupling | None:
    """Finds how a field follows the learning rate: as a power of it, or at least in its order; None
    if it does not.

    It does if, in each group, all runs lie on one line constant * rate^exponent, or each rate has
    one value and each value one rate in the same or the opposite order. And if they lie on several
    lines, of more rates each, that are fewer than the values there are; so not in a grid of both.

    Args:
      runs: (what else tells runs apart, learning rate, the field's value).
    """
    groups: dict[Hashable, dict[tuple[float, Any], None]] = {}
    for group, rate, value in runs:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < math.inf
        ):
            return None
        groups.setdefault(group, {})[rate, value] = None
    largest = max(groups.values(), key=len, default={})
    lines = {
        e: [_lines(pairs, e) for pairs in groups.values()] for e in (*_EXPONENTS, *_slope(largest))
    }
    if len(largest) >= _FEWEST:
        for exponent, found in lines.items():
            if all(len(rates) == 1 for rates in found):
                return Coupling(exponent)
        if all(map(_is_ordered, groups.values())):
            return Coupling(None)
    fewest, best = sum(len({value for _, value in pairs}) for pairs in groups.values()), None
    for exponent, found in lines.items():
        sizes = sum(found, [])
        if len(sizes) < fewest and max(sizes) >= _FEWEST and min(sizes) > 1:
            fewest, best = len(sizes), Coupling(exponent)
    return best


def _slope(pairs: Iterable[tuple[float, float]]) -> tuple[float, ...]:
    ends = sorted(pair for pair in pairs if pair[1])
    if len(ends) < 2 or ends[0][0] == ends[-1][0]:
        return ()
    (low, first), (high, last) = ends[0], ends[-1]
    slope = math.log2(last / first) / math.log2(high / low)
    return (slope,) if slope else ()


def _lines(pairs: Collection[tuple[float, float]], exponent: float) -> list[int]:
    """Counts the learning rates on each line constant * rate^exponent; a pair with a 0 is on a line
    of its own."""
    logs = sorted(math.log2(value) - exponent * math.log2(rate) for rate, value in pairs if value)
    ends = [i for i in range(1, len(logs)) if logs[i] - logs[i - 1] > ON_A_LINE]
    lines = [b - a for a, b in zip([0, *ends], [*ends, len(logs)], strict=True)] if logs else []
    zeros = sum(not value for _, value in pairs)
    return [*lines, zeros] if zeros else lines


def _is_ordered(pairs: Iterable[tuple[float, float]]) -> bool:
    pairs = sorted(pairs)
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(pairs, pairs[1:], strict=False)]
    return all(rate > 0 for rate, _ in steps) and (
        all(v > 0 for _, v in steps) or all(v < 0 for _, v in steps)
    )


def relation_texts(
    coupling: Coupling, runs: Sequence[tuple[float, float]], name: str, rate_name: str
) -> Mapping[tuple[float, float], str]:
    """Says of each pair (rate, value) what holds for its line, in the same words for all of one
    line."""
    constants = same_values((coupling.constant(*run) for run in runs), ON_A_LINE)
    return {run: coupling.text(name, rate_name, constants[coupling.constant(*run)]) for run in runs}
