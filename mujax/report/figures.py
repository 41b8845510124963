"""The figures of a report for papers, as PNG and PDF."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mujax.report.curves import Curve
from mujax.report.summary import Measured, law_point
from mujax.transfer.laws import Kind
from mujax.transfer.phase import GUIDES, LINEAR_R, PhasePoint

LOG2_LR = "log2 learning rate"
LOSS = "validation loss (nats/token)"
COLORS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#8d6a9f", "#2e4057")
MARKERS = "osD^vP"
MAX_PANELS, COLUMNS = 24, 4  # in transfer.png; the page shows further studies
MAX_STUDIES = 24  # lines of one figure at most


def width_colors(measured: Sequence[Measured]) -> dict[int, tuple[float, float, float, float]]:
    """Returns a color per width, light for narrow to dark for wide, safe for color blindness."""
    widths = sorted({width for m in measured for width in m.study.widths})
    scale = matplotlib.colormaps["viridis_r"]
    return {
        width: scale(0.15 + 0.7 * i / max(len(widths) - 1, 1)) for i, width in enumerate(widths)
    }


def loss_range(measured: Sequence[Measured]) -> tuple[float, float]:
    """Returns a vertical range that shows the optima: up to the 85th percentile of losses.

    Outliers would flatten the curves.
    """
    losses = sorted(
        loss for m in measured for c in m.study.curves for loss in c.losses if loss is not None
    )
    if not losses:
        return 0.0, 1.0
    low, high = losses[0], losses[int(0.85 * (len(losses) - 1))]
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def drift_text(m: Measured) -> str:
    if m.drift is None:
        return ""
    flagged = ", flagged" if m.drift.flags else ""
    return f"optimum moves {m.drift.value:+.2f} log2 LR per doubling of width{flagged}"


def save_figures(
    measured: Sequence[Measured], points: Sequence[PhasePoint], folder: Path
) -> list[Path]:
    """Writes each figure that has data as .png and .pdf; returns the paths.

    transfer: loss against LR, a panel per study. optimum, loss, curvature: against width, with
      their laws. phase: the three phase diagrams. Only the first studies are drawn if there are
      many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Callable[[], Figure]] = {}
    if measured:
        drawn["transfer"] = lambda: _draw_curves(measured[:MAX_PANELS])
        drawn["optimum"] = lambda: _draw_law(
            measured[:MAX_STUDIES], "optimum", f"optimal {LOG2_LR}"
        )
    if any(o and o.vertex is not None for m in measured for o in m.optima):
        drawn["loss"] = lambda: _draw_law(
            measured[:MAX_STUDIES], "loss", "loss at the optimum (nats/token)"
        )
        drawn["curvature"] = lambda: _draw_law(
            measured[:MAX_STUDIES], "curvature", "curvature, nats per (ln LR)$^2$"
        )
    if points:
        drawn["phase"] = lambda: _draw_phase(points)
    for name in ("transfer", "optimum", "loss", "curvature", "phase"):
        # Figures of an earlier report go.
        for suffix in ("png", "pdf"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    paths = []
    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "pdf.fonttype": 42,
    }
    with plt.rc_context(style), warnings.catch_warnings():
        # characters of a name; the page shows all
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for name, draw in drawn.items():
            figure = draw()
            for suffix in ("png", "pdf"):
                paths.append(folder / f"{name}.{suffix}")
                figure.savefig(paths[-1], dpi=160, bbox_inches="tight")
            plt.close(figure)
    return paths


def _plain(name: str) -> str:
    """Returns a name without matplotlib formulas, cut to fit over a panel."""
    name = " ".join(name.split())
    return (name if len(name) <= 60 else name[:59] + "…").replace("$", r"\$")


def _finite(curve: Curve) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for x, y in zip(curve.log2_lrs, curve.losses, strict=True) if y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _draw_curves(measured: Sequence[Measured]):
    colors, columns = width_colors(measured), min(len(measured), COLUMNS)
    rows = math.ceil(len(measured) / columns)
    size = (4.4 * columns, 3.9 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(measured) :]:
        axis.set_axis_off()
    for axis, m in zip(axes.flat, measured, strict=False):
        for curve, optimum in zip(m.study.curves, m.optima, strict=True):
            axis.plot(
                *_finite(curve),
                "o-",
                color=colors[curve.width],
                ms=3.5,
                lw=1.6,
                label=f"{curve.width}",
            )
            if optimum:
                axis.plot(
                    optimum.log2_lr,
                    optimum.loss,
                    "*",
                    color=colors[curve.width],
                    ms=15,
                    mec="white",
                    zorder=3,
                )
        axis.set(xlabel=LOG2_LR, ylim=loss_range(measured))
        axis.set_title(f"{_plain(m.study.name)}\n", fontsize=12)
        axis.text(0.5, 1.02, drift_text(m), transform=axis.transAxes, ha="center", fontsize=8.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel(LOSS)
    labels = {
        f"{width}": Line2D([], [], color=color, marker="o", ms=3.5)
        for width, color in colors.items()
    }
    axes[0][-1].legend(
        labels.values(),
        labels,
        title="width",
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )
    return figure


def _draw_law(measured: Sequence[Measured], kind: Kind, label: str):
    """Draws a quantity against width with 68% intervals, and its law.

    Flagged points are hollow, a flagged law is dotted.
    """
    figure, axis = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    widths = sorted({width for m in measured for width in m.study.widths})
    marks: list[Line2D] = []
    for i, m in enumerate(measured):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]
        law = m.laws.get(kind)
        if law:
            n = np.geomspace(min(law.widths), 2 * max(law.widths), 60)
            axis.plot(
                n,
                [float(law(w)) for w in n],
                ":" if law.exponent.flags else "-",
                color=color,
                lw=1.2,
            )
        found = [
            (n, *at)
            for n, o in zip(m.study.widths, m.optima, strict=True)
            if (at := law_point(o, kind))
        ]
        for hollow in (False, True):
            some = [(n, y, low, high) for n, y, low, high, flagged in found if flagged is hollow]
            if some:
                n, y, low, high = map(np.array, zip(*some, strict=True))
                axis.errorbar(
                    n, y, np.maximum([y - low, high - y], 0), fmt=marker, color=color, ms=5,
                    capsize=2, mfc="none" if hollow else color,
                )  # fmt: skip
        if not law and found:
            axis.plot(
                [p[0] for p in found], [p[1] for p in found], "-", color=color, alpha=0.4, lw=1
            )
        marks.append(Line2D([], [], marker=marker, color=color))
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.set(xlabel="width", ylabel=label)
    outside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(measured) > 4 else {}
    _legend(axis, [m.study.name for m in measured], marks, fontsize=8, **outside)
    axis.grid(alpha=0.25)
    return figure


def _legend(axis, names: Sequence[str], marks: Sequence[Line2D], **style) -> None:
    """Draws a legend of all these names.

    matplotlib would leave a name out as a label if it begins with an underscore.
    """
    legend = axis.legend(marks, [str(i) for i in range(len(marks))], frameon=False, **style)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_plain(name))


PHASE_AXES = {"E": "E (nats$^2$)", "kappa": r"$\kappa$", "R_inf": r"$R(\infty)$ (nats)"}
PHASES = (("kappa", "E"), ("R_inf", "E"), ("kappa", "R_inf"))  # (x, y) of each diagram


def draw_phase_panel(
    axis,
    points: Sequence[PhasePoint],
    x: str,
    y: str,
    look: Callable[[PhasePoint], tuple[str, str]],
) -> None:
    """Draws one of PHASES with 68% intervals; flagged points are hollow.

    look: point -> its color and marker.
    """
    for name, scale, line in (
        (x, axis.set_xscale, axis.axvline),
        (y, axis.set_yscale, axis.axhline),
    ):
        line(GUIDES[name], color="gray", ls="--", lw=0.8)
        if name == "E":
            scale("log")
        elif name == "R_inf":
            scale("symlog", linthresh=LINEAR_R)
    for p in points:
        values = {"E": p.e, "kappa": p.kappa, "R_inf": p.r_inf}
        ends = [
            None
            if e.interval is None
            else [[max(e.value - e.interval[0], 0)], [max(e.interval[1] - e.value, 0)]]
            for e in (values[x], values[y])
        ]
        flagged, (color, marker) = values[x].flags or values[y].flags, look(p)
        axis.errorbar(
            values[x].value, values[y].value, ends[1], ends[0], fmt=marker,
            color=color, mfc="none" if flagged else color, ms=5, lw=0.7, alpha=0.85,
        )  # fmt: skip
    axis.set(xlabel=PHASE_AXES[x], ylabel=PHASE_AXES[y])
    axis.grid(alpha=0.25)


def _draw_phase(points: Sequence[PhasePoint]):
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
    names = list(dict.fromkeys(p.facets.get("parameterization", p.name) for p in points))

    def look(p: PhasePoint) -> tuple[str, str]:
        i = names.index(p.facets.get("parameterization", p.name))
        return COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]

    for axis, (x, y) in zip(axes, PHASES, strict=True):
        draw_phase_panel(axis, points, x, y, look)
        for name, side in ((x, axis.xaxis), (y, axis.yaxis)):
            if name == "R_inf":
                side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    marks = [
        Line2D(
            [],
            [],
            marker=MARKERS[i // len(COLORS) % len(MARKERS)],
            color=COLORS[i % len(COLORS)],
            ls="",
        )
        for i in range(min(len(names), 36))
    ]
    _legend(axes[-1], names[:36], marks, fontsize=7.5, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
