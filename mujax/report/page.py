"""The page of a report: one HTML file with data, script and plotly inside; needs no network."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs

from mujax.report.curves import TrainingCurve
from mujax.report.rows import Row
from mujax.report.summary import Measured, as_json, law_point
from mujax.report.text import (
    LAW_HEADER,
    OPTIMUM_HEADER,
    WIDTH_HEADER,
    argmin_text,
    drift_lines,
    estimate_text,
    law_table,
    optimum_table,
    width_table,
)
from mujax.transfer.laws import NAMES, Kind
from mujax.transfer.phase import GUIDES, LINEAR_R, PhasePoint, main_effects

_HERE = Path(__file__).parent
MAX_TABLE = 200  # studies in the tables of the page at most
MAX_POINTS = 10_000  # rows in its table of points at most


def render(
    measured: Sequence[Measured],
    points: Sequence[PhasePoint],
    sources: Mapping[str, Sequence[Row]],
    training: Sequence[tuple[str, TrainingCurve]],
    num_training: int,
    warnings: Sequence[str],
    provenance: Mapping[str, str],
    configs: Mapping[str, str],
    parameters: Mapping[str, Sequence[Sequence[str]]],
) -> str:
    """Returns the HTML of the page.

    training: training curves with the names of their studies.
    configs: title -> text.
    parameters: title -> table with a header.
    """
    shown = measured[:MAX_TABLE]
    names = {m.study.name: i for i, m in enumerate(measured)}
    tables: dict[str, list[Any]] = {"optima": [], "widths": [], "laws": []}
    for i, m in enumerate(shown):
        tables["optima"] += [(i, line) for line in optimum_table([m])[1:]]
        tables["widths"] += [(i, line) for line in width_table(m)]
        tables["laws"] += [(i, line) for line in law_table(m)]
    data = {
        "studies": [_study(m) for m in measured],
        "phase": [_phase(p, names.get(p.name, -1)) for p in points],
        "guides": GUIDES | {"linear": LINEAR_R},
        "training": _training(training, names, num_training),
        "points": _points(sources),
    }
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(_HERE), trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        measured=shown,
        num_studies=len(measured),
        drifts=drift_lines(shown),
        argmins=[argmin_text(m) for m in shown],
        headers={
            "optima": ("study", *OPTIMUM_HEADER[1:]),
            "widths": WIDTH_HEADER,
            "laws": LAW_HEADER,
        },
        tables=tables,
        points=points,
        estimate=estimate_text,
        effects=main_effects(points),
        missing=[(i, why) for i, m in enumerate(shown) if (why := _why_no_phase(m))],
        warnings=warnings,
        provenance=provenance,
        configs=configs,
        parameters=parameters,
        data=_script_json(data),
        plotly=get_plotlyjs(),
        script=(_HERE / "report.js").read_text(encoding="utf-8"),
    )


def _script_json(data: Any) -> str:
    """Returns JSON that is safe in a script element, whatever its strings hold."""
    text = json.dumps(as_json(data), allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _study(m: Measured) -> dict[str, Any]:
    study = m.study
    return {
        "name": study.name,
        "facets": study.facets,
        "word": m.verdict.word,
        "curves": [
            {
                "width": c.width,
                "x": c.log2_lrs,
                "y": [None if y is None else round(y, 5) for y in c.losses],
                "seeds": [
                    [None if v is None else round(v, 4) for v in cell] for cell in c.seed_losses
                ]
                if max(c.num_seeds) > 1
                else None,
            }
            for c in study.curves
        ],
        "optima": [
            None if o is None else {"x": o.log2_lr, "y": o.loss, "text": line[2:]}
            for o, line in zip(m.optima, width_table(m), strict=True)
        ],
        "laws": {kind: _law(m, kind) for kind in NAMES},
    }


def _law(m: Measured, kind: Kind) -> dict[str, Any]:
    found = [
        (n, *at)
        for n, o in zip(m.study.widths, m.optima, strict=True)
        if (at := law_point(o, kind))
    ]
    law = m.laws.get(kind)
    line = None
    if law:
        widths = np.geomspace(min(law.widths), 2 * max(law.widths), 33)
        text = f"{NAMES[kind]} = {estimate_text(law.exponent)}"
        if kind != "curvature":
            text += f", limit {estimate_text(law.limit, 4)}"
        flags = law.exponent.flags
        line = {
            "x": [round(w, 2) for w in widths],
            "y": [float(law(w)) for w in widths],
            "text": text,
            "flags": flags,
        }
    return {"points": found, "line": line}


def _phase(p: PhasePoint, study: int) -> dict[str, Any]:
    return {
        "name": p.name,
        "study": study,
        "facets": p.facets,
        "E": p.e,
        "kappa": p.kappa,
        "R_inf": p.r_inf,
    }


def _why_no_phase(m: Measured) -> str:
    if m.phase_point():
        return ""
    flagged = [
        f"width {n}: {'; '.join(o.flags) if o else 'every point diverged'}"
        for n, o in zip(m.study.widths, m.optima, strict=True)
        if o is None or o.flags
    ]
    few = [f"{len(m.study.widths)} widths"] if len(m.study.widths) < 3 else []
    return (
        f"{m.study.name}: not in it, which takes 3 widths with an unflagged optimum; "
        f"{', '.join([*few, *flagged])}"
    )


def _training(training, names: Mapping[str, int], num_training: int) -> dict[str, Any]:
    steps: dict[tuple[int, ...], int] = {}
    runs = [
        {
            "s": names[study], "w": run.width, "x": round(run.log2_lr, 4), "seed": run.seed,
            "k": steps.setdefault(tuple(run.steps), len(steps)),
            "y": [float(f"{y:.4g}") for y in run.losses],
        }
        for study, run in training
    ]  # fmt: skip
    return {"steps": list(steps), "runs": runs, "total": num_training}


def _points(sources: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Returns the rows of the table that the page builds on demand."""
    rows = [(source, row) for source, found in sources.items() for row in found]
    several = len(sources) > 1
    return {
        "header": [
            *(["source"] if several else []), "id", "status", "parameterization", "width",
            "log2 LR", "seed", "final loss", "diverged at step", "overrides",
        ],
        "rows": [
            [
                *([source] if several else []), row["id"], row["status"], row["parameterization"],
                row["width"], round(math.log2(row["learning_rate"]), 3), row["seed"],
                None if row["final_loss"] is None else round(row["final_loss"], 5),
                row["diverged_at_step"], " ".join(f"{k}={v}" for k, v in row["overrides"].items()),
            ]
            for source, row in rows[:MAX_POINTS]
        ],
        "total": len(rows),
    }  # fmt: skip
