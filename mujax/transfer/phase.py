"""Points of the phase diagrams of arXiv 2605.21486, and effects of switches on E."""

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence

from scipy import stats

from mujax.transfer.laws import Estimate

GUIDES = {"E": 0.01, "kappa": 0.0, "R_inf": 0.1}  # where guide lines are drawn
LINEAR_R = 0.01  # the axis of R is linear up to here, and logarithmic above


@dataclasses.dataclass(frozen=True)
class PhasePoint:
    """A point of the phase diagrams, with intervals and flags.

    e: mean squared residual of the joint law, nats^2.
    kappa: robustness of extrapolation.
    r_inf: asymptotic regret, nats.
    facets: properties that the points may be filtered by.
    """

    name: str
    facets: Mapping[str, str]
    e: Estimate
    r_inf: Estimate
    kappa: Estimate

    @classmethod
    def plain(
        cls, name: str, facets: Mapping[str, str], e: float, r_inf: float, kappa: float
    ) -> "PhasePoint":
        """Makes a point from published numbers without intervals."""
        return cls(name, facets, *(Estimate(value, None) for value in (e, r_inf, kappa)))


@dataclasses.dataclass(frozen=True)
class Effect:
    """The effect of one switch on E: turned on, it multiplies E by `factor`.

    factor: geometric mean over pairs.
    interval: 68% interval of the factor, from the spread over settings of the other switches; None
      with one setting. Pairs of one setting at several weight decays share seeds, data and most of
      training.
    better: number of `pairs` in which the switch lowers E.
    """

    switch: str
    factor: float
    interval: tuple[float, float] | None
    better: int
    pairs: int


def switches(name: str, known: Sequence[str] = ()) -> frozenset[str] | None:
    """Returns the switches that a name turns on; None for other names.

    'SP+Embd+LN' -> {embd, ln}; 'muP-LN' -> all known but ln; 'factorial+embd' as 'SP+Embd'.
    """
    found = re.fullmatch(r"(sp|factorial)((?:\+\w+)*)|((?:mu|µ|μ)p)((?:-\w+)*)", name.lower())
    if not found:
        return None
    if found[1]:
        return frozenset(found[2].split("+")[1:])
    return frozenset(known) - frozenset(found[4].split("-")[1:])


def paired(
    cells: Mapping[tuple[frozenset[str], Hashable], float], switch: str
) -> dict[frozenset[str], list[tuple[float, float]]]:
    """Returns (value off, on) of each pair of cells that differ in this switch alone.

    Pairs are grouped by the other switches that are on. cells: (switches on, all else) -> value.
    """
    pairs: dict[frozenset[str], list[tuple[float, float]]] = {}
    for (on, rest), value in cells.items():
        if switch not in on and (on | {switch}, rest) in cells:
            pairs.setdefault(on, []).append((value, cells[on | {switch}, rest]))
    return pairs


def mean_interval(values: Sequence[float]) -> Estimate:
    """Returns the mean of independent values with its 68% interval by Student's t.

    The interval of a single value is None.
    """
    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return Estimate(mean, None)
    half = (
        statistics.stdev(values)
        / math.sqrt(count)
        * float(stats.t.ppf(stats.norm.cdf(1), count - 1))
    )
    return Estimate(mean, (mean - half, mean + half))


def main_effects(points: Sequence[PhasePoint]) -> list[Effect]:
    """Returns the effect of each switch, paired over all other switches and facets.

    Empty unless parameterizations are named by their switches.
    """
    named = [
        name
        for point in points
        if switches(name := point.facets.get("parameterization", "")) is not None
    ]
    known = sorted(
        set(
            itertools.chain(
                *(switches(n) or () for n in named if not n.lower().startswith(("m", "µ", "μ")))
            )
        )
    )
    cells: dict[tuple[frozenset[str], Hashable], float] = {}
    for point in points:
        on = switches(point.facets.get("parameterization", ""), known)
        if on is not None and point.e.value > 0 and math.isfinite(point.e.value):
            cells[
                on,
                tuple(sorted((k, v) for k, v in point.facets.items() if k != "parameterization")),
            ] = point.e.value
    effects = []
    for switch in known:
        if pairs := paired(cells, switch):
            e = mean_interval(
                [statistics.fmean(math.log(on / off) for off, on in own) for own in pairs.values()]
            )
            interval = (math.exp(e.interval[0]), math.exp(e.interval[1])) if e.interval else None
            every = [pair for own in pairs.values() for pair in own]
            factor = math.exp(statistics.fmean(math.log(on / off) for off, on in every))
            effects.append(
                Effect(switch, factor, interval, sum(on < off for off, on in every), len(every))
            )
    return effects
