"""The wrong tensors and activations, and the power of the width by which they are wrong.

What is wrong at one place shows everywhere behind it, so an activation is judged by its sources: it
is to blame only if it misses while all its sources pass (mujax.check.dataflow). Initialization
comes first: after a wrong forward pass, training tells little.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from mujax.check.coordinates import Slope
from mujax.check.dataflow import Origin
from mujax.check.findings import LEVELS, Finding, power, worst

# How far a slope may be off. The mildest bugs are off by 1/2; right models of width 32 to 256 are
# off by at most 0.21 after 10 steps (measured on mup, five optimizers, three seeds). Weights and
# activations at initialization are almost exact.
INITIAL_TOLERANCE = 0.2
TOLERANCE = 0.3
# A slope at initialization counts as growing if it is certainly steeper, by this much, without the
# narrowest width than without the widest. In right models effects of finite width shrink with
# width.
GROWTH = 0.03

# Some changes may decline down to this exponent in a right model. A wrong scale shows at
# initialization, too.
LARGEST_DECLINE = -0.6


@dataclasses.dataclass(frozen=True)
class Line:
    """Measured and wanted exponents of one tensor or activation, initially and at each horizon.

    first_initial, first_later: exponents of the first layer alone, for an activation of several
      layers.
    """

    name: str
    role: str
    initial: Slope | None
    wants_initial: float | None
    later: tuple[Slope | None, ...]
    wants_later: float
    first_initial: Slope | None = None
    first_later: tuple[Slope | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """The input of coordinate_findings.

    activations: in the order of the forward pass.
    declining: activation -> why its change may decline with width in a right model.
    degrees: as in verdict.judge.
    frozen: tensors that are never updated.
    """

    tensors: tuple[Line, ...]
    activations: tuple[Line, ...]
    origins: Mapping[str, Origin]
    declining: Mapping[str, str]
    degrees: Mapping[tuple[str, str], float]
    frozen: Collection[str]
    widths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Miss:
    """The amount by which a slope is off, and its level: fail, or undecided with a reason.

    by_seeds: whether the interval over seeds leaves it undecided, not the choice of widths.
    """

    level: str
    exponent: float
    why: str = ""
    by_seeds: bool = False


def assess(slope: Slope | None, wants: float | None, tolerance: float) -> Miss | None:
    """Returns how a slope misses; None if it passes.

    Near the tolerance, between two thirds and four thirds of it, a slope passes or fails only if
    its whole interval does, and so do the slopes without the widest and without the narrowest
    width. Beyond, it fails unless the interval reaches halfway into the tolerance. Below, it passes
    unless it certainly fails without one of these widths.
    """
    if slope is None or wants is None:
        return None
    exponent = slope.mean - wants
    off = abs(exponent)
    ends = [math.copysign(1, exponent) * (end.mean - wants) for end in slope.ends]
    low, high = min(off - slope.half_width, *ends, off), max(off + slope.half_width, *ends, off)
    shown = " and ".join(f"{off:.2f}" for off in ends)
    varies = (
        f"its slope depends on the widths: it is off by {shown} without the widest and without "
        "the narrowest"
    )
    noisy = (
        f"it is off by {off:.2f} ±{slope.half_width:.2f}, on both sides of the tolerance of "
        f"{tolerance:g}"
    )
    by_seeds = not ends or max(ends) - min(ends) <= slope.half_width
    undecided = Miss("undecided", exponent, noisy if by_seeds else varies, by_seeds)
    if off > tolerance * 4 / 3:
        return Miss("fail", exponent) if low > tolerance / 2 else undecided
    if off >= tolerance * 2 / 3:
        if high <= tolerance:
            return None
        return Miss("fail", exponent) if low > tolerance else undecided
    certain = any(abs(end.mean - wants) - end.half_width > tolerance for end in slope.ends)
    return Miss("undecided", exponent, varies) if certain else None


def grows_late(slope: Slope | None, wants: float | None) -> Miss | None:
    """Returns the miss of a size within tolerance that grows faster the wider the model is.

    A part of the size starts small and will outgrow the rest.
    """
    if slope is None or wants is None or slope.bend is None:
        return None
    end = slope.ends[1]
    if slope.bend.mean <= 0 or end.low - wants <= GROWTH:
        return None
    why = (
        f"it grows the faster the wider the model: as m^{end.mean - wants:.2f} without the "
        "narrowest width"
    )
    return Miss("undecided", end.mean - wants, why)


def coordinate_findings(case: Case, earlier: Sequence[Finding], eps: float) -> list[Finding]:
    """Returns findings from slopes alone, beside `earlier` ones.

    eps: the optimizer's eps.
    """
    findings: list[Finding] = []
    for line in case.tensors:
        findings += _initial_tensor(
            line, [f for f in earlier if f.subject == line.name], case.widths
        )
    forward = _activation_findings(case, "starts", [*earlier, *findings])
    findings += forward
    if worst(forward) == "fail":  # gradients, and so every change, have wrong sizes too
        return findings
    for line in case.tensors:
        own = [finding for finding in earlier if finding.subject == line.name]
        findings += _updates(line, own, line.name in case.frozen, eps, case.widths)
    said = [*earlier, *findings]
    tensors = {line.name for line in case.tensors}
    if any(finding.level == "fail" and finding.subject in tensors for finding in said):
        return findings
    return findings + _activation_findings(case, "changes", said)


def _initial_tensor(line: Line, earlier: Sequence[Finding], widths: Sequence[int]) -> list[Finding]:
    miss = assess(line.initial, line.wants_initial, INITIAL_TOLERANCE)
    said = {finding.about for finding in earlier if finding.level == "fail"}
    said |= {
        finding.about
        for finding in earlier
        if finding.level == "benign" and finding.about == "init"
    }
    if not miss or line.wants_initial is None or said & {"role", "init"}:
        return []
    starts, wants = (power(x) for x in (line.wants_initial + miss.exponent, line.wants_initial))
    text = f"starts as {starts}, the limit wants {wants}, and the table has it right"
    if miss.level == "undecided":
        return [_undecided(line.name, "init", text, miss, widths)]
    return [
        Finding(
            line.name,
            "fail",
            "coordinates",
            "init",
            text,
            f"initial size x {power(-miss.exponent)}",
        )
    ]


def _updates(
    line: Line, earlier: Sequence[Finding], is_frozen: bool, eps: float, widths: Sequence[int]
) -> list[Finding]:
    """Finds wrong updates that the static part cannot see.

    The static part reads the table; training shows how it is applied.
    """
    if is_frozen:
        fix = "look at masks and stopped gradients"
        return [Finding(line.name, "fail", "coordinates", "update", "is never updated", fix)]
    if any(slope is None for slope in line.later):
        text = "its update is zero or not finite at some widths and not at others"
        return [Finding(line.name, "fail", "coordinates", "update", text)]
    failed = {finding.about for finding in earlier if finding.level == "fail"}
    benign = {finding.about: finding for finding in earlier if finding.level == "benign"}
    misses = [miss for slope in line.later if (miss := assess(slope, line.wants_later, TOLERANCE))]
    if not misses or failed & {"role", "learning rate"} or "learning rate" in benign:
        return []
    miss = _largest(misses)
    text = (
        f"its update goes as {power(line.wants_later + miss.exponent)}, the limit wants "
        f"{power(line.wants_later)}"
    )
    if miss.level == "undecided":
        return [_undecided(line.name, "update", text, miss, widths)]
    fix = (
        f"update x {power(-miss.exponent)}: the table has it right, what applies it (optimizer, "
        "mask, schedule) has not"
    )
    if "eps" in benign and miss.exponent < 0:
        text = f"{text}; {benign['eps'].text.partition(';')[0]}"
        fix = f"{benign['eps'].fix} (eps = {eps:g} is not small beside the gradient)"
    return [Finding(line.name, "fail", "coordinates", "update", text, fix)]


def _largest(misses: Sequence[Miss]) -> Miss:
    return max(misses, key=lambda miss: (LEVELS.index(miss.level), abs(miss.exponent)))


def _undecided(subject: str, about: str, text: str, miss: Miss, widths: Sequence[int]) -> Finding:
    """Returns a finding with the widths that would decide it.

    At four times the width, effects of finite width are smaller and seeds differ less.
    """
    decides = f"--widths={','.join(str(4 * width) for width in widths)}"
    if miss.by_seeds:
        decides = f"more seeds (--seeds), or {decides}"
    return Finding(subject, "undecided", "coordinates", about, f"{text}, and {miss.why}", decides)


def _misses(line: Line, when: str, is_first: bool) -> Miss | None:
    """Returns how an activation misses, in all layers or in the first.

    when: at initialization (`starts`) or in its change (`changes`). A change that grows counts at
      any horizon, a decline at the last horizon only: earlier changes still carry a part from
      initialization, which vanishes with width.
    """
    if when == "starts":
        slope = line.first_initial if is_first else line.initial
        miss = assess(slope, line.wants_initial, INITIAL_TOLERANCE)
        return miss or grows_late(slope, line.wants_initial)
    slopes = line.first_later if is_first else line.later
    changes = [assess(slope, line.wants_later, TOLERANCE) for slope in slopes]
    counted = [miss for miss in changes if miss and (miss.exponent > 0 or miss is changes[-1])]
    return _largest(counted) if counted else None


def _activation_findings(case: Case, when: str, earlier: Sequence[Finding]) -> list[Finding]:
    """Returns findings on the activations that miss while all their sources pass.

    Where the first of several layers misses, it alone counts, as the sources of the later layers
    include the layers before them.
    """
    stacked = {line.name for line in case.activations if line.first_initial is not None}
    whole = {line.name: miss for line in case.activations if (miss := _misses(line, when, False))}
    first = {
        line.name: miss
        for line in case.activations
        if (miss := _misses(line, when, line.name in stacked))
    }
    # An activation outside the stack may read the last layer, whether the first misses or not.
    of_sources = {name: first if name in stacked else {**whole, **first} for name in first}
    findings = _blamed(case, when, first, of_sources, earlier)
    return findings or _blamed(case, when, whole, dict.fromkeys(whole, whole), earlier)


def _blamed(
    case: Case,
    when: str,
    misses: Mapping[str, Miss],
    of_sources: Mapping[str, Mapping[str, Miss]],
    earlier: Sequence[Finding],
) -> list[Finding]:
    """Returns a finding per miss that neither of_sources[name] nor failed tensors explain."""
    of_training = ("learning rate", "eps", "decay", "update")
    failed = {
        finding.subject
        for finding in earlier
        if finding.level == "fail" and not (when == "starts" and finding.about in of_training)
    }
    lines = {line.name: line for line in case.activations}
    findings = []
    for name, miss in misses.items():
        origin = case.origins[name]
        behind = {
            of_sources[name][source].level
            for source in origin.activations
            if source in of_sources[name]
        }
        if behind & {"fail", miss.level} or failed & (origin.tensors | origin.scales):
            continue
        text = f"{when} as {power(miss.exponent)} relative to what the limit wants"
        if when == "changes" and LARGEST_DECLINE <= miss.exponent < 0 and name in case.declining:
            findings.append(
                Finding(
                    name, "benign", "coordinates", "", f"{text}; harmless: {case.declining[name]}"
                )
            )
        elif miss.level == "undecided":
            findings.append(_undecided(name, "", text, miss, case.widths))
        else:
            made_of = ", ".join(sorted(origin.activations | origin.tensors)) or "the tokens"
            text = f"{text}, though all that it is made of passes: {made_of}"
            findings.append(
                Finding(
                    name,
                    "fail",
                    "coordinates",
                    "",
                    text,
                    _fix(case, lines[name], origin, when, miss),
                )
            )
    return findings


def _fix(case: Case, line: Line, origin: Origin, when: str, miss: Miss) -> str:
    """Returns the forward scale to change, if a power of one fits, else where to look."""
    for scale in sorted(origin.scales):
        if degree := case.degrees.get((line.name, scale)):
            return f"{scale} x {power(-miss.exponent / degree)}"
    if when == "changes":
        return (
            "look at the operation that makes it of them, and at gradients that are stopped there"
        )
    return f"take a factor {power(miss.exponent)} out of the operation that makes it of them"
