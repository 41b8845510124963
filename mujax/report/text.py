"""The report in words: the tables that a terminal and the page show."""

import collections
import math
from collections.abc import Mapping, Sequence

from mujax.columns import align
from mujax.report.rows import Row
from mujax.report.summary import Measured
from mujax.transfer.joint import tradeoff
from mujax.transfer.laws import NAMES, Estimate, Kind

OPTIMUM_HEADER = (
    "parameterization",
    "width",
    "best LR",
    "log2",
    "interpolated",
    "loss",
    "runs",
    "diverged",
    "note",
)
MAX_REASONS = 4  # reasons of a verdict in a terminal; the page shows all
UNITS: Mapping[Kind, str] = {
    "loss": "nats",
    "optimum": "log2 LR",
    "curvature": "nats per (ln LR)^2",
}


def optimum_table(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """Returns the lines under OPTIMUM_HEADER, one per study and width."""
    table: list[tuple[str, ...]] = [OPTIMUM_HEADER]
    for m in measured:
        for curve, optimum in zip(m.study.curves, m.optima, strict=True):
            study, runs, diverged = (
                m.study.name,
                f"{sum(curve.num_seeds)}",
                f"{sum(curve.diverged)}",
            )
            if optimum is None:
                table.append(
                    (
                        study,
                        f"{curve.width}",
                        "-",
                        "-",
                        "-",
                        "-",
                        runs,
                        diverged,
                        "every point diverged",
                    )
                )
                continue
            vertex = "-" if optimum.vertex is None else f"{optimum.vertex:.2f}"
            note = (
                "at the edge of the grid: widen it" if optimum.on_edge else "; ".join(optimum.flags)
            )
            lr = f"{2**optimum.log2_lr:.4g}"
            loss = f"{optimum.loss:.4f}"
            table.append(
                (
                    study,
                    f"{curve.width}",
                    lr,
                    f"{optimum.log2_lr:g}",
                    vertex,
                    loss,
                    runs,
                    diverged,
                    note,
                )
            )
    return table


def drift_lines(measured: Sequence[Measured]) -> list[str]:
    """Returns one sentence per study on how its optimum moves with width."""
    lines = []
    for m in measured:
        found = [(n, o) for n, o in zip(m.study.widths, m.optima, strict=True) if o]
        edges = ", ".join(f"{n}" for n, o in found if o.on_edge)
        if len(found) < 2:
            said = "no drift, which takes two widths that have an optimum"
        elif edges:
            said = (
                f"not measured, the optimum is at the edge of the grid at width {edges}; widen "
                "the grid"
            )
        else:
            (first, narrow), (last, wide) = found[0], found[-1]
            said = (
                f"on the grid from 2^{narrow.log2_lr:g} at width {first} to 2^{wide.log2_lr:g} at "
                f"width {last}"
            )
            if m.drift:
                flagged = ", flagged" if m.drift.flags else ""
                step = f"{m.drift.value:+.2f} in log2{flagged}"
                said = f"x{2**m.drift.value:.2f} per doubling of width ({step}); {said}"
        lines.append(f"{m.study.name}: {said}")
    return lines


def argmin_text(m: Measured) -> str:
    """Returns the verdict of arXiv 2404.05728: is the best grid point the same at every width?"""
    close = (
        f"; close calls at width {', '.join(map(str, m.argmin.close))}" if m.argmin.close else ""
    )
    return {
        "Yes": f"the best grid point is the same at every width{close}",
        "No": f"the best grid point is not the same at every width{close}",
        "undecided": "whether the best grid point is the same at every width is open: a learning "
        "rate is missing"
        " somewhere, or there are fewer than two widths",
    }[m.argmin.word]


def verdict_lines(measured: Sequence[Measured]) -> list[str]:
    lines = []
    for m in measured:
        reasons = [*m.verdict.reasons[:MAX_REASONS], argmin_text(m)]
        more = len(m.verdict.reasons) - MAX_REASONS
        reasons[-1:-1] = (
            [f"{more} more reason{'s' * (more > 1)} in report.html"] if more > 0 else []
        )
        lines += [f"{m.study.name}: {m.verdict.word}", *(f"  {reason}" for reason in reasons)]
    return lines


def format_report(measured: Sequence[Measured]) -> str:
    """Returns the table, the drift and the verdict of each study, for a terminal."""
    table = align(optimum_table(measured), "<" + ">" * (len(OPTIMUM_HEADER) - 2) + "<")
    drifts = ["", "The optimal learning rate moves", *drift_lines(measured)]
    return "\n".join([*table, *drifts, "", "Does it transfer?", *verdict_lines(measured)])


def estimate_text(e: Estimate | None, digits: int = 3) -> str:
    """Returns '0.41 (0.38 to 0.44)', with '?' if flagged."""
    if e is None or not math.isfinite(e.value):
        return "-"
    interval = f" ({e.interval[0]:.{digits}g} to {e.interval[1]:.{digits}g})" if e.interval else ""
    return f"{e.value:.{digits}g}{interval}{' ?' if e.flags else ''}"


LAW_HEADER = ("study", "law", "exponent", "bootstrap", "limit", "flags")


def law_table(m: Measured) -> list[tuple[str, ...]]:
    """Returns the lines under LAW_HEADER: a study's three laws, and what their exponents imply."""
    formulas = {
        "loss": "L* = L_inf + A n^-alpha",
        "optimum": "x* = x_inf + B n^-beta",
        "curvature": "H = H_0 n^gamma",
    }
    drawn = {name: f"{low:.3g} to {high:.3g}" for name, (low, high) in m.bootstrap.items()}
    lines = [
        (
            m.study.name,
            formulas[kind],
            f"{NAMES[kind]} = {estimate_text(law.exponent)}",
            drawn.get(NAMES[kind], ""),
            "" if kind == "curvature" else f"{estimate_text(law.limit, 4)} {UNITS[kind]}",
            "; ".join(law.exponent.flags),
        )
        for kind, law in m.laws.items()
    ]
    combined = (
        ("kappa = alpha - 2 beta + gamma", m.kappa, "those of its exponents"),
        ("fast transfer: beta - alpha/2", m.fast, "those of its exponents"),
        ("R(inf), nats", m.r_inf, "those of L_inf here and of the reference"),
    )
    lines += [
        (
            m.study.name,
            what,
            estimate_text(e),
            drawn.get(what.split()[0], ""),
            "",
            why if e.flags else "",
        )
        for what, e, why in combined
        if e
    ]
    if m.laws:
        alpha, beta = m.laws["loss"].exponent, m.laws["optimum"].exponent
        t = tradeoff(alpha.value, beta.value)
        powers = (
            f"F^-{t.direct:.3g} tuned directly, F^-{t.transfer:.3g} by a proxy of width "
            f"F^{t.proxy_width:.3g}"
        )
        why = "those of alpha and beta" if alpha.flags or beta.flags else ""
        lines.append(
            (
                m.study.name,
                "excess loss at compute F",
                f"{powers}{' ?' if why else ''}",
                "",
                "",
                why,
            )
        )
    if m.joint:
        fit = f"RMSE {m.joint.rmse:.3g} nats, R2 {m.joint.r2:.4f}, {m.joint.num_points} points"
        bars = " to ".join(f"{end:.3g}" for end in m.joint.intervals.get("mse", ()))
        lines.append(
            (
                m.study.name,
                "E of the joint law",
                f"{m.joint.mse:.3g}",
                bars,
                fit,
                "; ".join(m.joint.flags),
            )
        )
    return lines


WIDTH_HEADER = (
    "study",
    "width",
    "optimum (68%)",
    "L*",
    "curvature",
    "penalty",
    "stable range",
    "regret",
    "vs SP",
)
WIDTH_HEADER += ("parameters", "tokens", "flags")


def width_table(m: Measured) -> list[tuple[str, ...]]:
    """Returns the lines under WIDTH_HEADER; a penalty is that of using the narrowest optimum."""
    lines = []
    for i, (width, o) in enumerate(zip(m.study.widths, m.optima, strict=True)):
        p, where = o.parabola if o else None, "-"
        if o and o.vertex is not None:
            where = f"{o.vertex:.2f}" + (
                f" ({o.interval[0]:.2f} to {o.interval[1]:.2f})" if o.interval else ""
            )
        stable, sizes = m.stable[i], m.study.sizes.get(width, {})
        lines.append((
            m.study.name, f"{width}", where,
            f"{o.minimum:.4f}" if o and o.vertex is not None else "-",
            f"{p.curvature:.3g}" if p else "-",
            estimate_text(m.penalties[i], 2),
            f"{'<' if stable.open_low else ''}{stable.low:.2f} to "
            f"{'>' if stable.open_high else ''}{stable.high:.2f}"
            if stable else "-",
            *(f"{gaps[width]:+.4f}" if width in gaps else "-" for gaps in (m.regret, m.loss_gap)),
            *(f"{sizes[name]:,.0f}" if name in sizes else "-" for name in ("n_params", "tokens")),
            "; ".join((*o.flags, *o.cautions)) if o else "every point diverged",
        ))  # fmt: skip
    return lines


def provenance(rows: Sequence[Row]) -> dict[str, str]:
    """Returns what made these rows; several values where the rows disagree."""
    fields = (
        "code_version",
        "jax_version",
        "device",
        "data_fingerprint",
        "model",
        "optimizer",
        "steps",
        "tokens",
    )
    facts = {
        field.replace("_", " "): values
        for field in fields
        if (
            values := ", ".join(list(dict.fromkeys(str(r[field]) for r in rows if field in r))[:12])
        )
    }
    status = collections.Counter(row["status"] for row in rows)
    facts["points"] = ", ".join(f"{count} {name}" for name, count in status.items())
    if any(row.get("seconds") for row in rows):
        facts["compute"] = (
            f"{math.fsum(row.get('seconds') or 0 for row in rows):.0f} s of wall time over all "
            "points"
        )
    return facts
