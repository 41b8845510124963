"""All measurements of each study, and comparisons between studies."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mujax.report.curves import Curve, make_curves
from mujax.report.rows import Row
from mujax.report.studies import Naming
from mujax.transfer.exponents import bootstrap, bootstrap_intervals, fast_transfer, fit_laws, kappa
from mujax.transfer.joint import JointLaw, asymptotic_regret, fit_joint, reference_envelope, regret
from mujax.transfer.laws import Estimate, Kind, Law
from mujax.transfer.optimum import Cell, Optimum, fit_optima
from mujax.transfer.phase import PhasePoint
from mujax.transfer.verdict import (
    ArgminVerdict,
    StableRange,
    Verdict,
    argmin_verdict,
    drift_per_doubling,
    judge,
    loss_gap,
    penalties,
    stable_range,
)

STABLE = 0.02  # nats above the best point within a stable range
_SIZES = ("n_params", "tokens", "steps", "depth")
_PLAIN_SP = ("sp", "lingle_sp", "factorial")  # parameterizations that count as SP


@dataclasses.dataclass(frozen=True)
class Study:
    """A parameterization, and whatever else tells its rows from others.

    facets: properties that it may be filtered by.
    sizes: width -> facts of the model and its budget, where rows have them.
    budget: text and tokens (or steps, if rows have no tokens); losses are compared only between
      studies of one budget. None if rows do not tell.
    """

    name: str
    source: str
    facets: Mapping[str, str]
    curves: tuple[Curve, ...]
    sizes: Mapping[int, Mapping[str, float]]
    budget: tuple | None

    @property
    def widths(self) -> list[int]:
        return [curve.width for curve in self.curves]

    @property
    def grids(self) -> list[tuple[float, ...]]:
        return [curve.log2_lrs for curve in self.curves]

    @property
    def losses(self) -> list[tuple[tuple[float | None, ...], ...]]:
        return [curve.seed_losses for curve in self.curves]


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of one study; lists go with its widths.

    laws: need 3 widths with an unflagged optimum, as do kappa, fast and joint, which follow from
      them.
    bootstrap: 68% intervals of alpha, beta, gamma and kappa, a second opinion beside those of the
      laws.
    regret: width -> nats above the reference envelope.
    loss_gap: width -> nats above tuned SP.
    """

    study: Study
    optima: tuple[Optimum | None, ...]
    drift: Estimate | None
    verdict: Verdict
    argmin: ArgminVerdict
    penalties: tuple[Estimate | None, ...]
    stable: tuple[StableRange | None, ...]
    laws: Mapping[Kind, Law]
    kappa: Estimate | None
    fast: Estimate | None
    joint: JointLaw | None
    bootstrap: Mapping[str, tuple[float, float]]
    regret: Mapping[int, float] = dataclasses.field(default_factory=dict)
    r_inf: Estimate | None = None
    loss_gap: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def phase_point(self) -> PhasePoint | None:
        if self.joint is None or self.kappa is None or self.r_inf is None:
            return None
        e = Estimate(self.joint.mse, self.joint.intervals.get("mse"), self.joint.flags)
        return PhasePoint(self.study.name, self.study.facets, e, self.r_inf, self.kappa)


def make_studies(sources: Mapping[str, Sequence[Row]], naming: Naming | None = None) -> list[Study]:
    """Returns the studies of each source in the order of their rows.

    With several sources, names begin with the source, and tell what differs between sources.
    """
    studies, naming = [], naming or Naming(row for rows in sources.values() for row in rows)
    for source, rows in sources.items():
        members: dict[str, list[Row]] = {}
        for row in rows:
            members.setdefault(naming.name(row), []).append(row)
        for name, curves in make_curves(rows, naming).items():
            facets = {"source": source} if len(sources) > 1 else {}
            facets |= naming.facets(members[name][0])
            sizes: dict[int, dict[str, float]] = {}
            for row in members[name]:
                sizes.setdefault(row["width"], {}).update(
                    {k: row[k] for k in _SIZES if row.get(k) is not None}
                )
            name_here = f"{source}: {name}" if len(sources) > 1 else name
            studies.append(
                Study(name_here, source, facets, tuple(curves), sizes, _budget(members[name]))
            )
    return studies


def _budget(rows: Sequence[Row]) -> tuple | None:
    text = tuple(sorted({str(row.get("data_fingerprint")) for row in rows}))
    if all(row.get("tokens") is not None for row in rows):
        return text, tuple(sorted({row["tokens"] for row in rows}))
    if all(row.get("steps") is not None for row in rows):  # a table without tokens
        return text, tuple(f"{steps} steps" for steps in sorted({row["steps"] for row in rows}))
    return None


def measure(study: Study, noise: float | None = None, target: int | None = None) -> Measured:
    """Measures one study alone.

    Args:
      noise: standard deviation of a run's loss, nats; None: from its seeds or residuals.
      target: a width up to which the verdict follows the optimum; None: the widest.
    """
    widths, grids, losses = study.widths, study.grids, study.losses
    optima = fit_optima(grids, losses, noise)
    laws = fit_laws(widths, optima)
    verdict = judge(
        widths, optima, target=target if target and widths and target > widths[-1] else None
    )
    if alone := seed_drifts(widths, grids, losses):
        said = "each seed alone: " + ", ".join(
            "flagged" if drift is None else f"{drift:+.2f}" for drift in alone
        )
        verdict = dataclasses.replace(verdict, reasons=(*verdict.reasons, said))
    return Measured(
        study,
        tuple(optima),
        drift_per_doubling(widths, optima),
        verdict,
        argmin_verdict(widths, grids, losses),
        tuple(penalties(widths, optima)),
        tuple(stable_range(grid, loss, STABLE) for grid, loss in zip(grids, losses, strict=True)),
        laws,
        kappa(laws, optima) if laws else None,
        fast_transfer(laws, optima) if laws else None,
        fit_joint(widths, grids, losses, laws) if laws else None,
        bootstrap_intervals(bootstrap(widths, optima)) if laws else {},
    )


def compare(measured: Sequence[Measured]) -> tuple[list[Measured], dict[tuple | None, Law]]:
    """Adds regret against the lower envelope of all studies of one budget, and the gap to tuned SP.

    Returns:
      The studies in their order, with regret, r_inf and loss_gap; and {budget: law of its
        envelope}, where three widths have one.
    """
    references = {}
    for budget in dict.fromkeys(m.study.budget for m in measured):
        members = [m for m in measured if m.study.budget == budget]
        widths = sorted({width for m in members for width in m.study.widths})
        minima = [[_minimum(m, width) for width in widths] for m in members]
        errors = [o.minimum_error for m in members for o in m.optima if o and o.usable]
        if sum(any(column[i] is not None for column in minima) for i in range(len(widths))) >= 3:
            references[budget] = reference_envelope(
                widths, minima, float(np.sqrt(np.mean(np.square(errors))))
            )
    done = []
    for m in measured:
        found: dict[str, Any] = {"loss_gap": _loss_gaps(m, measured)}
        if reference := references.get(m.study.budget):
            pairs = [(n, v) for n in m.study.widths if (v := _minimum(m, n)) is not None]
            values = regret([n for n, _ in pairs], [v for _, v in pairs], reference)
            found["regret"] = {n: value for (n, _), value in zip(pairs, values, strict=True)}
            found["r_inf"] = asymptotic_regret(m.laws["loss"], reference) if m.laws else None
        done.append(dataclasses.replace(m, **found))
    return done, references


def _minimum(m: Measured, width: int) -> float | None:
    """Returns L* of a width from its fitted curve; None if it is flagged."""
    optimum = m.optima[m.study.widths.index(width)] if width in m.study.widths else None
    return optimum.minimum if optimum and optimum.usable else None


def seed_drifts(
    widths: Sequence[int], grids: Sequence[Sequence[float]], losses: Sequence[Sequence[Cell]]
) -> list[float | None]:
    """Measures the drift of each seed alone, log2 LR per doubling; None if its optima are flagged.

    Empty unless each point has the same seeds.
    """
    counts = {np.atleast_1d(np.asarray(cell)).size for curve in losses for cell in curve}
    if len(counts) != 1 or counts == {1}:
        return []
    alone = [
        [[np.atleast_1d(np.asarray(cell))[i] for cell in curve] for curve in losses]
        for i in range(counts.pop())
    ]
    drifts = [drift_per_doubling(widths, fit_optima(grids, own)) for own in alone]
    return [drift.value if drift else None for drift in drifts] if any(drifts) else []


def _loss_gaps(m: Measured, others: Sequence[Measured]) -> dict[int, float]:
    """Returns {width: loss at the narrowest width's best learning rate less the loss of tuned SP}.

    SP is the study that differs in the parameterization alone: its budget and other facets are
    equal, and its source too if possible.
    """
    study = m.study
    if study.budget is None or not m.optima or m.optima[0] is None:
        return {}
    rest = _rest(study)
    same = [
        o.study
        for o in others
        if _is_sp(o.study) and _rest(o.study) == rest and o.study.budget == study.budget
    ]
    same.sort(key=lambda s: s.source != study.source)
    first = m.optima[0]
    proxy = first.vertex if first.usable and first.vertex is not None else first.log2_lr
    found = {}
    for curve in study.curves[1:]:
        for sp in same[:1]:
            tuned = next((c for c in sp.curves if c.width == curve.width), None)
            value = (
                loss_gap(curve.log2_lrs, curve.seed_losses, proxy, tuned.seed_losses)
                if tuned
                else None
            )
            if value is not None:
                found[curve.width] = value
    return found


def _is_sp(study: Study) -> bool:
    return study.facets["parameterization"].lower() in _PLAIN_SP


def _rest(study: Study) -> dict[str, str]:
    return {k: v for k, v in study.facets.items() if k not in ("parameterization", "source")}


def law_point(optimum: Optimum | None, kind: Kind) -> tuple[float, float, float, bool] | None:
    """Returns (value, low, high, flagged) of one width, with a 68% interval.

    Without a fit, the value is that of the grid's best point.
    """
    if optimum is None:
        return None
    flagged, noise, parabola = not optimum.usable, optimum.noise, optimum.parabola
    if optimum.vertex is None:
        value = {"optimum": optimum.log2_lr, "loss": optimum.loss, "curvature": None}[kind]
        return None if value is None else (value, value, value, True)
    if kind == "optimum":
        low, high = optimum.interval or (optimum.vertex, optimum.vertex)
        return optimum.vertex, low, high, flagged
    value, error = optimum.minimum, optimum.minimum_error
    if kind == "curvature":
        if parabola is None:
            return None
        value, error = parabola.curvature, parabola.error(2)
    half = error * noise.quantile(1) if noise and math.isfinite(error) else 0.0
    return value, value - half, value + half, flagged


def as_json(value: Any) -> Any:
    """Converts dataclasses, tuples and NumPy numbers to JSON values.

    Numbers that are not finite become null, and keys become strings.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def study_json(m: Measured) -> dict[str, Any]:
    """Returns the measurements of one study as JSON values, with each optimum's width."""
    found = {
        f.name: getattr(m, f.name)
        for f in dataclasses.fields(m)
        if f.name not in ("study", "optima")
    }
    parts = [f.name for f in dataclasses.fields(Optimum) if f.name not in ("fit", "index")] + [
        "interval"
    ]
    optima = [
        {"width": n, **{name: getattr(o, name) for name in parts}}
        for n, o in zip(m.study.widths, m.optima, strict=True)
        if o
    ]
    return as_json({
        "source": m.study.source, "facets": m.study.facets, "curves": m.study.curves,
        "sizes": m.study.sizes, "optima": optima, **found, "phase": m.phase_point(),
    })  # fmt: skip
