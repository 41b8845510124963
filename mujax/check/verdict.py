"""The verdict, from measurements: slopes, the wanted exponents, and who is to blame."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mujax.check.blame import Case, Line, coordinate_findings
from mujax.check.coordinates import Measurements, Quantity, Slope, fit_slope
from mujax.check.dataflow import Origin
from mujax.check.findings import Finding, worst
from mujax.check.static import growth, initial_exponent, wanted
from mujax.parameterization import PARAMETERIZATIONS
from mujax.params import named_leaves
from mujax.training.run import Run

LOSS_TOLERANCE = 0.02  # relative rise of the loss with width

# Reasons why a change may decline in a right model
SUM_DECLINES = "at finite width what it multiplies, which passes, lines up less in larger models"
READOUT_DECLINES = (
    "after few or small steps the initial readout, of size width^-1/2, has most of a part in "
    "their change"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict: a Line per tensor and activation, and the findings of all parts of a check."""

    tensors: tuple[Line, ...]
    activations: tuple[Line, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return worst(self.findings) in ("pass", "benign")

    def level(self, subject: str) -> str:
        return worst(finding for finding in self.findings if finding.subject == subject)

    @property
    def culprits(self) -> tuple[str, ...]:
        """The subjects that failed, without repetition, in the order found.

        The loss is among them only if nothing else explains it.
        """
        failed = self._subjects("fail")
        return tuple(subject for subject in failed if subject != "loss" or len(failed) == 1)

    @property
    def undecided(self) -> tuple[str, ...]:
        """The subjects that these widths and seeds do not decide, without repetition."""
        return tuple(self._subjects("undecided"))

    def _subjects(self, level: str) -> dict[str, None]:
        return dict.fromkeys(finding.subject for finding in self.findings if finding.level == level)


def judge(
    runs: Mapping[int, Run],
    measured: Mapping[int, Measurements],
    earlier: Sequence[Finding],
    origins: Mapping[int, Mapping[str, Origin]],
    degrees: Mapping[tuple[str, str], float] | None = None,
) -> Verdict:
    """Judges the measurements of a check.

    Args:
      runs: width -> a run (of any seed) of the checked table.
      measured: width -> {Quantity: values [seeds]} of that table.
      earlier: findings of the static part, of the oracle and of the forward pass.
      origins: width -> the Origin of each activation, at the narrowest and the widest width.
      degrees: (activation, forward scale) -> the power of the scale that the activation is
        proportional to.
    """
    widths = sorted(measured)
    first = measured[widths[0]]
    horizons = sorted({quantity.horizon for quantity in first if quantity.kind == "update"})

    def slope(kind: str, name: str, horizon: int = 0) -> Slope | None:
        quantity = Quantity(kind, name, horizon)
        return (
            fit_slope(widths, [measured[width][quantity] for width in widths])
            if quantity in first
            else None
        )

    def is_zero(name: str) -> bool:
        return not any(
            measured[w][Quantity("update", name, horizon)].any()
            for w in widths
            for horizon in horizons
        )

    run, wide = runs[widths[0]], runs[widths[-1]]
    wide_metas = named_leaves(wide.metas)
    scalings = [named_leaves(runs[width].scalings) for width in widths]
    tensors = []
    outputs: dict[str, float | None] = {}  # output tensor -> initial exponent of its product
    for name, meta in named_leaves(run.metas).items():
        grows = growth(meta, wide_metas[name], widths[-1] / widths[0])
        starts_as = initial_exponent(widths, [by_name[name] for by_name in scalings])
        want = wanted(meta, grows, run, starts_as)
        if meta.role == "output":
            outputs[name] = starts_as + grows.fan_in / 2  # a random sum over width
        elif meta.role == "tied":
            outputs[name] = None  # a token's own logit is not a random sum
        is_drawn = meta.dist == "normal"
        later = tuple(slope("update", name, horizon) for horizon in horizons)
        initial = (slope("weight", name), want.init) if is_drawn else (None, None)
        tensors.append(Line(name, meta.role, *initial, later, want.update))

    narrow_origins, wide_origins = origins[widths[0]], origins[widths[-1]]
    sums = {
        name: _growth_of_sum(origin, wide_origins.get(name), widths)
        for name, origin in narrow_origins.items()
    }
    roles = {line.name: line.role for line in tensors}
    activations = []
    for name, origin in narrow_origins.items():
        later, first_later = (
            tuple(slope(kind, name, horizon) for horizon in horizons)
            for kind in ("change", "first change")
        )
        wants = _initial_activation(origin, outputs, sums[name]), later, _change(origin, roles, run)
        starts = slope("activation", name), slope("first activation", name)
        activations.append(Line(name, "", starts[0], *wants, starts[1], first_later))
    activations = tuple(activations)
    frozen = {line.name for line in tensors if is_zero(line.name)}
    declining = {name: SUM_DECLINES for name, grows in sums.items() if grows}
    declining |= {
        n: READOUT_DECLINES
        for n, o in narrow_origins.items()
        if o.readouts and o.readouts <= outputs.keys()
    }
    case = Case(
        tuple(tensors), activations, narrow_origins, declining, degrees or {}, frozen, tuple(widths)
    )
    losses_WS = np.stack(
        [measured[width][Quantity("loss", "loss", horizons[-1])] for width in widths]
    )
    findings = list(earlier)
    if np.all(np.isfinite(losses_WS)):  # otherwise training tells nothing
        findings += coordinate_findings(case, earlier, float(run.cfg.optim.eps))
    findings += _loss_findings(widths, losses_WS)
    if worst(findings) == "fail":  # leaves out findings that may be its consequences
        findings = [finding for finding in findings if finding.level != "undecided"]
    return Verdict(tuple(tensors), activations, tuple(findings))


def _growth_of_sum(narrow: Origin, wide: Origin | None, widths: Sequence[int]) -> float:
    """Returns the exponent of the axis over which activations are multiplied by activations.

    Such an axis is that of a head; 0 if there is none.
    """
    if wide is None or not narrow.summed or not wide.summed:
        return 0.0
    return math.log(wide.summed / narrow.summed) / math.log(widths[-1] / widths[0])


def _initial_activation(
    origin: Origin, outputs: Mapping[str, float | None], sum_grows: float
) -> float | None:
    """Returns the wanted exponent of an activation at initialization; None if it is unknown.

    A product with an output tensor starts as that tensor lets it; a mean over an axis that grows,
    as q.k / d_head, starts as a random sum; all others are of order 1.
    """
    if origin.readouts and origin.readouts <= outputs.keys():
        starts = [outputs[name] for name in origin.readouts]
        return None if None in starts else max(start for start in starts if start is not None)
    return -sum_grows / 2 + 0.0  # + 0.0 avoids minus zero


def _change(origin: Origin, roles: Mapping[str, str], run: Run) -> float:
    """Returns the wanted exponent of a change: order 1, except for the embedded tokens.

    Embedded tokens change at the learning rate that their table means.
    """
    meant = PARAMETERIZATIONS[run.cfg.parameterization.name].intends.get("embedding rate")
    embeds = not origin.activations and {roles[name] for name in origin.tensors} in (
        {"input"},
        {"tied"},
    )
    return meant.exponent if meant and embeds else 0.0


def _loss_findings(widths: Sequence[int], losses_WS: np.ndarray) -> list[Finding]:
    if not np.all(np.isfinite(losses_WS)):
        worse = [
            str(width)
            for width, losses in zip(widths, losses_WS, strict=True)
            if not np.all(np.isfinite(losses))
        ]
        return [
            Finding(
                "loss",
                "fail",
                "loss",
                "",
                f"diverged at width {', '.join(worse)}",
                "a smaller learning rate",
            )
        ]
    slope = fit_slope(widths, losses_WS)
    narrow, wide = losses_WS[0].mean(), losses_WS[-1].mean()
    if slope and slope.low > 0 and wide > narrow * (1 + LOSS_TOLERANCE):
        text = f"wider is worse: {narrow:.3f} at width {widths[0]}, {wide:.3f} at {widths[-1]}"
        return [Finding("loss", "fail", "loss", "", text)]
    return []
