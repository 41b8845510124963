"""The report of one or several sweeps or of a file: text, page, figures and transfer.json."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.errors import UserError
from mujax.report.curves import TrainingCurve
from mujax.report.rows import Row, load_rows, load_sources, load_training, mixed, warnings
from mujax.report.studies import Naming
from mujax.report.summary import Measured, as_json, compare, make_studies, measure, study_json
from mujax.report.tables import parse_columns, read_table
from mujax.report.text import format_report, provenance
from mujax.storage import files
from mujax.sweep.settings import record_of
from mujax.transfer.phase import PhasePoint, main_effects

# manifest -> {title: table of tensors with a header}
Parameters = Callable[[Mapping[str, Any]], Mapping[str, Sequence[Sequence[str]]]]
MAX_CONFIG = 200_000  # characters of a config on the page at most


def report(
    workdir: str | Path,
    sources: Sequence[str] = (),
    input: str | None = None,
    columns: str | None = None,
    noise: float | None = None,
    parameters: Parameters | None = None,
    target_width: int | None = None,
) -> str:
    """Writes report.html, figures/ and transfer.json into `workdir`; returns the table as text.

    Args:
      sources: workdirs to compare, or patterns of them, beside `workdir` if it has results.
      input: a CSV or JSONL file instead.
      columns: what the columns of `input` are, see tables.parse_columns.
      noise: standard deviation of the loss of one run, nats; None: from seeds, else from the fits'
        residuals.
      target_width: a width that was not trained; the verdict tells the cost of the narrowest
        width's optimum there.

    Raises:
      UserError: see rows.load_rows and tables.read_table; or the plotting packages are not
        installed.
    """
    try:
        from mujax.report import figures, page
    except ImportError as e:
        raise UserError(f"mujax report needs {e.name}: pip install 'mujax[report]'") from e
    if input and sources:
        raise UserError("--input and --sources: give one of them")
    if columns and not input:
        raise UserError("--columns says what the columns of --input=FILE are; give that too")
    found, notes, points, averaged = _load(workdir, sources, input, columns)
    naming = Naming(row for rows in _rows(found).values() for row in rows)
    studies = make_studies(_rows(found), naming)
    measured, references = compare([measure(study, noise, target_width) for study in studies])
    if any(o and o.loss <= 0 for m in measured for o in m.optima):
        notes.append(
            "losses at or below 0: no laws, kappa or E, whose limit of the loss is at least 0"
        )
    points = points + [point for m in measured if (point := m.phase_point())]
    if len({m.study.budget for m in measured}) > 1:
        notes.append(
            "studies differ in text, tokens or steps; R and the gap to tuned SP are within one "
            "of them only"
        )
    elif any(m.r_inf for m in measured) and measured[0].study.budget is None:
        notes.append(
            "rows do not say on how many tokens they were trained; R takes it to be the same for "
            "all"
        )
    notes += [
        f"a figure shows the first {figures.MAX_STUDIES} of {len(measured)} studies; the page has "
        "all"
    ] * (len(measured) > figures.MAX_STUDIES)
    root = files.make_writable(files.local_path(workdir))
    training, num_training = _training(found, measured, naming)
    rows = [row for own in found.values() for row in own[1]]
    facts = provenance(rows) if rows else {}
    homes = dict.fromkeys(
        str(r.get("folder", folder)) for folder, own in found.values() for r in own or [{}]
    )
    facts |= {"rows from": ", ".join(list(homes)[:12])} if sources or input else {}
    facts |= {"averaged": averaged} if averaged else {}
    manifests = {name: record_of(folder) for name, (folder, _) in found.items()}
    configs = {}
    for name, manifest in manifests.items():
        if "config" in manifest:
            file = next(
                file
                for file in ("manifest.json", "config.json")
                if (found[name][0] / file).exists()
            )
            configs[f"{name} ({file})"] = json.dumps(manifest["config"], indent=1)[:MAX_CONFIG]
    text = page.render(
        measured,
        points,
        _rows(found),
        training,
        num_training,
        notes,
        facts,
        configs,
        {
            title: table
            for m in manifests.values()
            for title, table in (parameters(m) if parameters else {}).items()
        },
    )
    figures.save_figures(measured, points, root / "figures")
    document = {
        "studies": {m.study.name: study_json(m) for m in measured},
        "phase": as_json(points),
        "main_effects_on_E": as_json(main_effects(points)),
        "references": [
            {"budget": as_json(budget), "law": as_json(law)} for budget, law in references.items()
        ],
        "warnings": notes,
        "provenance": facts,
    }
    files.write_json(root / "transfer.json", document)
    (root / "report.html").write_text(text, encoding="utf-8")
    table = (
        [format_report(measured)] if measured else [f"{len(points)} points of the phase diagrams"]
    )
    for e in main_effects(points):
        bars = " ({:.3g} to {:.3g})".format(*e.interval) if e.interval else ""
        table.append(f"{e.switch}: E x{e.factor:.3g}{bars}, lower in {e.better} of {e.pairs} pairs")
    table += [averaged] if averaged else []
    return "\n".join([*table, *(f"Warning: {line}" for line in notes)])


Found = dict[str, tuple[Path, list[Row]]]


def _rows(found: Found) -> dict[str, list[Row]]:
    return {name: rows for name, (_, rows) in found.items() if rows}


def _load(
    workdir: str | Path, sources: Sequence[str], input: str | None, columns: str | None
) -> tuple[Found, list[str], list[PhasePoint], str]:
    """Returns (folder and rows by source, warnings, points of the phase diagrams, averaging).

    Averaging says how many runs of a table a point is the mean of.
    """
    if input:
        table = read_table(input, parse_columns(columns))
        return (
            {Path(input).name: (Path(input), table.rows)},
            table.warnings,
            table.points,
            table.averaged,
        )
    if not sources:
        rows, repeated = load_rows(workdir)
        root = files.local_path(workdir)
        return {root.resolve().name: (root, rows)}, warnings(root, rows, repeated), [], ""
    loaded, folders, repeated = load_sources(workdir, sources)
    found = {name: (folders[name], rows) for name, rows in loaded.items()}
    notes = [
        f"{name}: {line}"
        for name, (folder, rows) in found.items()
        for line in warnings(folder, rows)
    ]
    notes += (
        [f"{repeated} rows repeat the id of another; the first of each counts"] if repeated else []
    )
    return found, [*notes, *mixed([row for rows in loaded.values() for row in rows])], [], ""


def _training(
    found: Found, measured: Sequence[Measured], naming: Naming
) -> tuple[list[tuple[str, TrainingCurve]], int]:
    """Returns training curves with the names of their studies, and how many there are."""
    curves, total, several = [], 0, len(_rows(found)) > 1
    for name, (folder, rows) in found.items():
        if folder.is_dir():
            prefix = f"{name}: " if several else ""
            best = {
                (m.study.name.removeprefix(prefix), n): o.log2_lr
                for m in measured
                if m.study.source == name
                for n, o in zip(m.study.widths, m.optima, strict=True)
                if o
            }
            own, count = load_training(rows, best, naming)
            curves += [(prefix + run.study, run) for run in own]
            total += count
    return curves, total
