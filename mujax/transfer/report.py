"""The report of a sweep: a table, a self-contained page, figures and transfer.json."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax import workdir as files
from mujax.errors import UserError
from mujax.transfer.curves import (
    Curve,
    TrainingCurve,
    find_drift,
    find_optimum,
    make_curves,
    study_name,
    varying_fields,
)

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def load_rows(workdir: str | Path) -> list[dict[str, Any]]:
    """Rows of a sweep's workdir, or the one row of a run's.

    Raises:
      UserError: no workdir, no rows, or a row that is not one of ours.
    """
    root = files.local_path(workdir)
    if not root.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder")
    if (root / "results.jsonl").exists():
        rows = list(files.read_jsonl(root / "results.jsonl"))
    elif (root / "result.json").exists():
        rows = [files.read_json(root / "result.json")]
    else:
        raise UserError(f"--workdir={workdir} has no results.jsonl and no result.json: run mujax sweep or train first")
    if not rows:
        raise UserError(f"--workdir={workdir}: results.jsonl is empty; no point has finished yet")
    for number, row in enumerate(rows, start=1):
        for field, is_right in _CHECKS.items():
            if field not in row or not is_right(row[field]):
                value = repr(row[field]) if field in row else "missing"
                raise UserError(f"--workdir={workdir}: row {number}, field {field!r} is {value}")
    return list({row["id"]: row for row in reversed(rows)}.values())[::-1]  # the first of each id


def _is_number(x) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


# What the report reads of a row, and what it must be
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "id": lambda x: isinstance(x, str),
    "status": lambda x: x in ("ok", "diverged", "stopped"),
    "diverged_at_step": lambda x: x is None or _is_number(x),
    "width": lambda x: type(x) is int and x > 0,
    "parameterization": lambda x: isinstance(x, str),
    "learning_rate": lambda x: _is_number(x) and x > 0,
    "seed": lambda x: type(x) is int,
    "final_loss": lambda x: x is None or _is_number(x),
    "overrides": lambda x: isinstance(x, dict),
}


def report(workdir: str | Path) -> str:
    """Writes report.html, figures/ and transfer.json into `workdir`; returns the table as text.

    Raises:
      UserError: see load_rows; or the plotting packages are not installed.
    """
    rows, root = load_rows(workdir), files.local_path(workdir)
    try:
        import jinja2

        from mujax.transfer import figures
    except ImportError as e:
        raise UserError(f"mujax report needs {e.name}: pip install 'mujax[report]'") from e
    curves = make_curves(rows)
    figures.save_figures(curves, root / "figures")
    files.write_json(root / "transfer.json", summarize(curves))

    plots = {
        "Loss against learning rate": figures.interactive_curves(curves),
        "Optimum against width": figures.interactive_optima(curves),
        "Training curves": figures.interactive_training(load_training(root, rows), curves),
    }
    config_file = next((root / name for name in ("manifest.json", "config.json") if (root / name).exists()), None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        plots={
            # The first figure brings plotly's code along, so the page needs no network.
            title: figure.to_html(full_html=False, include_plotlyjs=i == 0, config={"displayModeBar": False})
            for i, (title, figure) in enumerate(plots.items())
        },
        optima=optimum_table(curves),
        drifts=drift_lines(curves),
        warnings=warnings(root, rows),
        rows=rows,
        provenance=provenance(rows),
        config=config_file.read_text(encoding="utf-8") if config_file else "",
        config_name=config_file.name if config_file else "",
    )
    (root / "report.html").write_text(page, encoding="utf-8")
    return "\n".join([format_report(curves), *(f"Warning: {line}" for line in warnings(root, rows))])


def warnings(root: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before trusting the curves: points still missing, rows that do not belong together."""
    found = []
    if (root / "manifest.json").exists():
        manifest = files.read_json(root / "manifest.json")
        num_points = len(manifest.get("points", ()))
        if len(rows) < num_points:
            found.append(f"{len(rows)} of {num_points} points have finished; curves are incomplete")
        found += [f"refinement of {note}" for note in manifest.get("refinement", ()) if "no further" in note]
    if stopped := sum(row["status"] == "stopped" for row in rows):
        found.append(f"{stopped} runs were given up by the rule of train.give_up_step; here they count as diverged")
    for field in ("data_fingerprint", "code_version", "jax_version"):
        values = dict.fromkeys(str(row[field]) for row in rows if field in row)
        if len(values) > 1:
            found.append(f"rows differ in {field.replace('_', ' ')}: {', '.join(values)}")
    return found


def load_training(root: Path, rows: Sequence[Mapping[str, Any]]) -> list[TrainingCurve]:
    """Training curves from metrics.jsonl of each point of a sweep, or of the one run; rows without one are left out."""
    varying = varying_fields(rows)
    found = []
    for row in rows:
        candidates = (root / "points" / row["id"] / "metrics.jsonl", root / "metrics.jsonl")
        file = next((file for file in candidates if file.exists()), None)
        records = [r for r in files.read_jsonl(file) if r.get("loss") is not None] if file else []
        if records:
            steps, losses = zip(*((r["step"], r["loss"]) for r in records), strict=True)
            log2_lr = math.log2(row["learning_rate"])
            found.append(TrainingCurve(study_name(row, varying), row["width"], log2_lr, row["seed"], steps, losses))
    return found


def summarize(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """JSON values: per study its curves, optima and drift."""
    return {
        study: {
            "curves": [dataclasses.asdict(curve) for curve in members],
            "optima": [
                {"width": curve.width, **dataclasses.asdict(optimum)}
                for curve in members
                if (optimum := find_optimum(curve))
            ],
            "drift": dataclasses.asdict(drift) if (drift := find_drift(members)) else None,
        }
        for study, members in curves.items()
    }


OPTIMUM_HEADER = ("parameterization", "width", "best LR", "log2", "interpolated", "loss", "runs", "diverged", "note")


def optimum_table(curves: Mapping[str, Sequence[Curve]]) -> list[tuple[str, ...]]:
    """Lines under OPTIMUM_HEADER, one a study and width."""
    table: list[tuple[str, ...]] = [OPTIMUM_HEADER]
    for study, members in curves.items():
        for curve in members:
            runs, diverged = f"{sum(curve.num_seeds)}", f"{sum(curve.diverged)}"
            optimum = find_optimum(curve)
            if optimum is None:
                table.append((study, f"{curve.width}", "-", "-", "-", "-", runs, diverged, "every point diverged"))
                continue
            vertex = "-" if optimum.vertex is None else f"{optimum.vertex:.2f}"
            note = "at the edge of the grid: widen it" if optimum.on_edge else ""
            lr = f"{2**optimum.log2_lr:.4g}"
            loss = f"{optimum.loss:.4f}"
            table.append((study, f"{curve.width}", lr, f"{optimum.log2_lr:g}", vertex, loss, runs, diverged, note))
    return table


def drift_lines(curves: Mapping[str, Sequence[Curve]]) -> list[str]:
    """One sentence a study on how its optimum moves with width."""
    lines = []
    for study, members in curves.items():
        drift = find_drift(members)
        if drift is None:
            lines.append(f"{study}: no drift, which takes two widths that have an optimum")
            continue
        if drift.edge_widths:
            widths = ", ".join(map(str, drift.edge_widths))
            lines.append(
                f"{study}: not measured, the optimum is at the edge of the grid at width {widths}; widen the grid"
            )
            continue
        (first, narrow), (last, wide) = drift.narrowest, drift.widest
        lines.append(
            f"{study}: x{2**drift.per_doubling:.2f} per doubling of width ({drift.per_doubling:+.2f} in log2); "
            f"on the grid from 2^{narrow:g} at width {first} to 2^{wide:g} at width {last}"
        )
    return lines


def format_report(curves: Mapping[str, Sequence[Curve]]) -> str:
    """The table and the drift of each study, for a terminal."""
    table = optimum_table(curves)
    wide = [max(len(line[column]) for line in table) for column in range(len(OPTIMUM_HEADER))]

    def aligned(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, wide, strict=True)]
        return "  ".join([line[0].ljust(wide[0]), *cells[1:-1], line[-1]]).rstrip()

    return "\n".join([*map(aligned, table), "", "The optimal learning rate moves", *drift_lines(curves)])


def provenance(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What made these rows; several values where the rows disagree."""
    fields = ("code_version", "jax_version", "device", "data_fingerprint", "model", "optimizer", "steps", "tokens")
    facts = {
        field.replace("_", " "): ", ".join(dict.fromkeys(str(r[field]) for r in rows if field in r)) for field in fields
    }
    status = collections.Counter(row["status"] for row in rows)
    facts["points"] = ", ".join(f"{count} {name}" for name, count in status.items())
    facts["compute"] = f"{math.fsum(row.get('seconds', 0) for row in rows):.0f} s of wall time over all points"
    return facts
