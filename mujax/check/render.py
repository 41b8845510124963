"""The report of a check as text, as JSON and as the coordinate-check plot."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mujax.check.blame import Line
from mujax.check.coordinates import Quantity, Slope
from mujax.check.findings import Finding
from mujax.check.run import Report
from mujax.explain.explain import COLUMNS, format_columns
from mujax.storage import files
from mujax.training.run import device_description


def format_report(report: Report) -> str:
    """Returns tensors, activations, forward scales, findings and verdict; at most COLUMNS wide."""
    verdict, cfg = report.verdict, report.cfg
    horizons = report.plan.horizons
    widths = " ".join(map(str, report.widths))
    tensors = [_line(line, verdict.level(line.name)) for line in verdict.tensors]
    activations = [_line(line, verdict.level(line.name)) for line in verdict.activations]
    # Without a role, and without "pass" where an earlier fault may be the cause.
    activations = [[*line[:1], *line[2:-1], line[-1].replace("pass", "")] for line in activations]
    at = [f"@{horizon}" for horizon in horizons]
    blocks = [
        f"{cfg.parameterization.name}, {cfg.optim.name}, {cfg.model_name}: widths {widths}; "
        f"seeds {report.seeds[0]}-{report.seeds[-1]}; after {' and '.join(map(str, horizons))} "
        "steps\n"
        "exponents in the width, measured ±95% over seeds (wanted)",
        format_columns(
            [["tensor", "role", "init", *(f"update {a}" for a in at), "verdict"], *tensors]
        ),
        format_columns(
            [["activation", "init", *(f"change {a}" for a in at), "verdict"], *activations]
        ),
        _scales(report),
        f"symmetry oracle, float64: losses differ by {report.symmetry.difference:.0e} when stored "
        "weights are rescaled",
    ]
    if report.forward.is_causal is not None:
        blocks.append(
            "causal: "
            + ("no position sees the tokens after it" if report.forward.is_causal else "no")
        )
    for level in ("benign", "undecided", "fail"):
        grouped: dict[tuple[str, str], list[str]] = {}
        for finding in verdict.findings:
            if finding.level == level:
                grouped.setdefault((finding.text, finding.fix), []).append(finding.subject)
        if grouped:
            what = "what would decide it" if level == "undecided" else "fix"
            lines = [
                _finding(subjects, text, fix, what) for (text, fix), subjects in grouped.items()
            ]
            blocks.append(f"{level}\n" + "\n".join(lines))
    if verdict.passed:
        blocks.append("pass")
    else:
        state, subjects = (
            ("FAIL", verdict.culprits) if verdict.culprits else ("UNDECIDED", verdict.undecided)
        )
        blocks.append(_wrap(f"{state}: {', '.join(subjects)}", 6))
    return "\n\n".join(blocks)


def _line(line: Line, level: str) -> list[str]:
    initial = (
        "" if line.initial is None else f"{_slope(line.initial)} ({_fraction(line.wants_initial)})"
    )
    later = [_slope(slope) for slope in line.later]
    later[-1] += f" ({_fraction(line.wants_later)})"
    return [line.name, line.role, initial, *later, level]


def _slope(slope: Slope | None) -> str:
    return "none" if slope is None else f"{slope.mean:+.2f} ±{slope.half_width:.2f}"


def _fraction(exponent: float | None) -> str:
    if exponent is None:
        return ""
    return f"{round(exponent, 2) + 0.0:g}"  # + 0.0 avoids minus zero


def _scales(report: Report) -> str:
    runs = report.runs
    names = [name for name in runs[report.widths[0]].scales._fields]
    rows = [
        [
            f"{name} scale",
            *(f"{float(getattr(runs[width].scales, name)):.4g}" for width in report.widths),
            report.verdict.level(f"{name} scale"),
        ]
        for name in names
    ]
    return format_columns(
        [["forward scale", *(f"at {width}" for width in report.widths), "verdict"], *rows]
    )


def _finding(subjects: Sequence[str], text: str, fix: str, what: str) -> str:
    body = f"{', '.join(subjects)}: {text}" + (f"; {what}: {fix}" if fix else "")
    return "  " + _wrap(body, 4)


def _wrap(text: str, indent: int) -> str:
    return textwrap.fill(text, COLUMNS - 2, subsequent_indent=" " * indent, break_long_words=False)


def as_json(report: Report) -> dict[str, Any]:
    """Returns the report as JSON values; quantities as [widths][seeds], null for diverged runs."""

    def slope(value: Slope | None):
        return None if value is None else {"mean": value.mean, "half_width_95": value.half_width}

    def lines(members: Sequence[Line]):
        return {
            line.name: {
                "role": line.role or None,
                "initial": slope(line.initial),
                "wants_initial": line.wants_initial,
                "later": {
                    h: slope(s) for h, s in zip(report.plan.horizons, line.later, strict=True)
                },
                "wants_later": line.wants_later,
                "verdict": report.verdict.level(line.name),
            }
            for line in members
        }

    def finding(f: Finding):
        return {
            "subject": f.subject,
            "level": f.level,
            "part": f.part,
            "about": f.about,
            "text": f.text,
            "fix": f.fix,
        }

    quantities = list(report.measured[report.widths[0]])
    return {
        "passed": report.verdict.passed,
        "culprits": list(report.verdict.culprits),
        "undecided": list(report.verdict.undecided),
        "causal": report.forward.is_causal,
        "config": report.cfg.as_dict(),
        "widths": list(report.widths),
        "seeds": list(report.seeds),
        "horizons": list(report.plan.horizons),
        "device": device_description(),
        "symmetry": {
            "difference": _finite(report.symmetry.difference),
            "broken_by": list(report.symmetry.broken_by),
        },
        "findings": [finding(f) for f in report.verdict.findings],
        "tensors": lines(report.verdict.tensors),
        "activations": lines(report.verdict.activations),
        "measured": [
            {
                **quantity._asdict(),
                "values": [
                    [_finite(v) for v in report.measured[width][quantity]]
                    for width in report.widths
                ],
            }
            for quantity in quantities
        ],
    }


def write_report(report: Report, workdir: str) -> Path:
    """Writes check.json and check.png, and returns their folder.

    Files of an earlier check are moved to earlier/N.

    Raises:
      UserError: the folder cannot be written.
    """
    root = files.make_writable(files.local_path(workdir))
    files.set_aside(root, ("check.json", "check.png"))
    save_plot(report, root / "check.png")
    files.write_json(root / "check.json", as_json(report))
    return root


def _finite(value) -> float | None:
    return float(value) if math.isfinite(value) else None


def save_plot(report: Report, file: Path) -> None:
    """Plots size against width, a panel per activation and tensor; dashed: the wanted exponent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    verdict = report.verdict
    panels = [(line, "activation", "change") for line in verdict.activations]
    panels += [(line, "weight", "update") for line in verdict.tensors]
    columns = 5
    rows = math.ceil(len(panels) / columns)
    failed = {*verdict.culprits, *verdict.undecided}
    with plt.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        fig, axes = plt.subplots(
            rows,
            columns,
            figsize=(13, 2.3 * rows + 0.6),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for ax in axes.flat[len(panels) :]:
            ax.axis("off")
        for ax, (line, initial, later) in zip(axes.flat, panels, strict=False):
            _panel(ax, report, line, initial, later)
            short = line.name.removeprefix("blocks/")
            color = "#d1495b" if line.name in failed else "black"
            ax.set_title(f"{short} ({later})", fontsize=8, color=color)
        for ax in axes.flat[max(len(panels) - columns, 0) : len(panels)]:
            # the lowest panel of each column
            ax.set_xlabel("width")
            ax.tick_params(labelbottom=True)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        handles, labels = (
            [*handles, Line2D([], [], color="gray", linestyle="--")],
            [*labels, "wanted exponent"],
        )
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        state = "passes" if verdict.passed else "fails" if verdict.culprits else "is undecided"
        cfg = report.cfg
        fig.suptitle(
            f"Coordinate check: {cfg.parameterization.name}, {cfg.optim.name}, {cfg.model_name} "
            f"{state}"
        )
        fig.savefig(file, dpi=110)
        plt.close(fig)


def _panel(ax, report: Report, line: Line, initial: str, later: str) -> None:
    widths = np.asarray(report.widths, float)
    shades = ("#9fb8ad", "#00798c", "#2e4057")
    series = [(Quantity(initial, line.name, 0), "at initialization", line.wants_initial, shades[0])]
    series += [
        (
            Quantity(later, line.name, horizon),
            f"change after {horizon} steps",
            line.wants_later,
            color,
        )
        for horizon, color in zip(report.plan.horizons, shades[1:], strict=False)
    ]
    for quantity, label, wants, color in series:
        values_WS = np.stack([report.measured[width][quantity] for width in report.widths])
        if wants is None or not np.all(np.isfinite(values_WS)) or not np.all(values_WS > 0):
            continue
        mean_W = np.exp(np.mean(np.log(values_WS), axis=1))
        ax.plot(widths, values_WS, ".", color=color, alpha=0.35, markersize=3)
        ax.plot(widths, mean_W, "-o", color=color, markersize=3, linewidth=1.2, label=label)
        ax.plot(widths, mean_W[0] * (widths / widths[0]) ** wants, "--", color=color, linewidth=0.8)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(widths, [f"{int(w)}" for w in widths])
    ax.minorticks_off()
