"""Points of the phase diagrams of arXiv 2605.21486, and the effects of switches between parameterizations on E."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

from mujax.transfer.laws import Estimate

GUIDES = {"E": 0.01, "kappa": 0.0, "R_inf": 0.1}  # guide lines
LINEAR_R = 0.01  # up to here the axis of R is linear


@dataclasses.dataclass(frozen=True)
class PhasePoint:
    """E: mean squared residual of the joint law, nats^2. kappa: robustness of extrapolation. r_inf: nats; each with
    interval and flags. facets: what the point may be filtered by."""

    name: str
    facets: Mapping[str, str]
    e: Estimate
    r_inf: Estimate
    kappa: Estimate

    @classmethod
    def plain(cls, name: str, facets: Mapping[str, str], e: float, r_inf: float, kappa: float) -> "PhasePoint":
        """A published point, of which nothing but the numbers is known."""
        return cls(name, facets, *(Estimate(value, None) for value in (e, r_inf, kappa)))


def symlog(r: float, linear: float = LINEAR_R) -> float:
    """Symmetric log10 axis, linear within +-linear, where it reaches +-1; continuous."""
    size = abs(r) / linear
    return math.copysign(size if size <= 1 else 1 + math.log10(size), r)


@dataclasses.dataclass(frozen=True)
class Effect:
    """Turning a switch on multiplies E by `factor` (geometric mean over pairs); it lowers E in `better` of `pairs`."""

    switch: str
    factor: float
    better: int
    pairs: int


def switches(name: str, known: Sequence[str] = ()) -> frozenset[str] | None:
    """'SP+Embd+LN' -> {embd, ln}; 'muP-LN' -> all known but ln; 'factorial+embd' likewise; None for other names."""
    found = re.fullmatch(r"(sp|factorial)((?:\+\w+)*)|((?:mu|µ|μ)p)((?:-\w+)*)", name.lower())
    if not found:
        return None
    if found[1]:
        return frozenset(found[2].split("+")[1:])
    return frozenset(known) - frozenset(found[4].split("-")[1:])


def main_effects(points: Sequence[PhasePoint]) -> list[Effect]:
    """Paired over all other switches and facets; empty unless parameterizations are named by their switches."""
    named = [name for point in points if switches(name := point.facets.get("parameterization", "")) is not None]
    known = sorted(
        set(itertools.chain(*(switches(n) or () for n in named if not n.lower().startswith(("m", "µ", "μ")))))
    )
    cells: dict[tuple, float] = {}
    for point in points:
        on = switches(point.facets.get("parameterization", ""), known)
        if on is not None and point.e.value > 0 and math.isfinite(point.e.value):
            rest = tuple(sorted((k, v) for k, v in point.facets.items() if k != "parameterization"))
            cells[on, rest] = point.e.value
    effects = []
    for switch in known:
        ratios = [
            cells[on | {switch}, rest] / value
            for (on, rest), value in cells.items()
            if switch not in on and (on | {switch}, rest) in cells
        ]
        if ratios:
            factor = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            effects.append(Effect(switch, factor, sum(ratio < 1 for ratio in ratios), len(ratios)))
    return effects
