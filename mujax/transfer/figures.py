"""The figures of a report: matplotlib for papers (PNG, PDF), plotly for the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from matplotlib.ticker import MaxNLocator
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mujax.transfer.curves import Curve, TrainingCurve, find_drift, find_optimum

Curves = Mapping[str, Sequence[Curve]]
LOG2_LR = "log2 learning rate"
LOSS = "validation loss (nats/token)"
STUDY_COLORS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#8d6a9f", "#2e4057")


def width_colors(curves: Curves) -> dict[int, str]:
    """A color a width, light for narrow to dark for wide, from a scale that survives color blindness."""
    widths = sorted({curve.width for members in curves.values() for curve in members})
    at = [0.15 + 0.7 * i / max(len(widths) - 1, 1) for i in range(len(widths))]
    return dict(zip(widths, map(str, sample_colorscale("Viridis_r", at, colortype="rgb")), strict=True))


def loss_range(curves: Curves) -> tuple[float, float]:
    """Vertical range that shows the optima: up to the 85th percentile of losses, so no outlier flattens them."""
    losses = sorted(loss for members in curves.values() for c in members for loss in c.losses if loss is not None)
    if not losses:
        return 0.0, 1.0
    low, high = losses[0], losses[int(0.85 * (len(losses) - 1))]
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def drift_text(curves: Sequence[Curve]) -> str:
    drift = find_drift(curves)
    if drift is None:
        return ""
    if drift.edge_widths:
        return "drift not measured: an optimum is at the grid's edge"
    return f"optimum moves {drift.per_doubling:+.2f} log2 LR per doubling of width"


def _finite(curve: Curve) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for x, y in zip(curve.log2_lrs, curve.losses, strict=True) if y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def save_figures(curves: Curves, folder: Path) -> list[Path]:
    """Writes transfer.png and .pdf (loss against LR, a panel a study) and optimum.png and .pdf; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}):
        for name, draw in (("transfer", _draw_curves), ("optimum", _draw_optima)):
            figure = draw(curves)
            for suffix in ("png", "pdf"):
                paths.append(folder / f"{name}.{suffix}")
                figure.savefig(paths[-1], dpi=160, bbox_inches="tight")
            plt.close(figure)
    return paths


def _matplotlib_color(rgb: str) -> tuple[float, ...]:
    return tuple(float(v) / 255 for v in rgb[4:-1].split(","))


def _draw_curves(curves: Curves):
    colors = {width: _matplotlib_color(rgb) for width, rgb in width_colors(curves).items()}
    size = (4.4 * len(curves), 3.9)
    figure, axes = plt.subplots(1, len(curves), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (study, members) in zip(axes[0], curves.items(), strict=True):
        for curve in members:
            axis.plot(*_finite(curve), "o-", color=colors[curve.width], ms=3.5, lw=1.6, label=f"{curve.width}")
            if optimum := find_optimum(curve):
                axis.plot(optimum.log2_lr, optimum.loss, "*", color=colors[curve.width], ms=15, mec="white", zorder=3)
        axis.set(xlabel=LOG2_LR, ylim=loss_range(curves))
        axis.set_title(f"{study}\n", fontsize=12)
        axis.text(0.5, 1.02, drift_text(members), transform=axis.transAxes, ha="center", fontsize=8.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(LOSS)
    axes[0][-1].legend(title="width", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _draw_optima(curves: Curves):
    figure, axis = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    for color, (study, members) in zip(STUDY_COLORS * len(curves), curves.items(), strict=False):
        found = [(curve.width, optimum) for curve in members if (optimum := find_optimum(curve))]
        best = [o.log2_lr if o.vertex is None else o.vertex for _, o in found]
        axis.plot([width for width, _ in found], best, "o-", color=color, label=study)
    widths = sorted(width_colors(curves))
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.set(xlabel="width", ylabel=f"optimal {LOG2_LR} (interpolated)")
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return figure


def interactive_curves(curves: Curves) -> go.Figure:
    """Loss against log2 LR, a panel a study, a line a width; hover tells seeds and diverged points."""
    titles = [f"{study}<br><sub>{drift_text(members)}</sub>" for study, members in curves.items()]
    figure = make_subplots(1, len(curves), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.04)
    colors = width_colors(curves)
    low, high = loss_range(curves)
    for column, members in enumerate(curves.values(), start=1):
        for curve in members:
            shared = {"legendgroup": str(curve.width), "row": 1, "col": column}
            _add_curve(figure, curve, colors[curve.width], high, shared, first=column == 1)
        figure.update_xaxes(title_text=LOG2_LR, row=1, col=column)
    figure.update_yaxes(range=[low, high])
    figure.update_yaxes(title_text=LOSS, row=1, col=1)
    figure.update_layout(legend_title_text="width")
    return _styled(figure, 460)


def _add_curve(figure: go.Figure, curve: Curve, color: str, top: float, shared: dict[str, Any], first: bool) -> None:
    group, place = shared["legendgroup"], {"row": shared["row"], "col": shared["col"]}
    detail = [[2**x, n] for x, y, n in zip(curve.log2_lrs, curve.losses, curve.num_seeds, strict=True) if y is not None]
    xs, ys = _finite(curve)
    hover = f"width {curve.width}<br>LR %{{customdata[0]:.4g}} = 2^%{{x:g}}<br>loss %{{y:.4f}}"
    figure.add_scatter(
        x=xs, y=ys, customdata=detail, mode="lines+markers", name=str(curve.width), legendgroup=group,
        showlegend=first, line_color=color,
        hovertemplate=hover + "<br>%{customdata[1]} seed(s)<extra></extra>", **place,
    )  # fmt: skip
    if optimum := find_optimum(curve):
        vertex = "not bracketed" if optimum.vertex is None else f"interpolated {optimum.vertex:.2f}"
        figure.add_scatter(
            x=[optimum.log2_lr], y=[optimum.loss], mode="markers", legendgroup=group, showlegend=False,
            marker={"symbol": "star", "size": 15, "color": color, "line": {"width": 1, "color": "white"}},
            hovertemplate=hover.replace("%{customdata[0]:.4g}", f"{2**optimum.log2_lr:.4g}")
            + f"<br>optimum, {vertex}<extra></extra>", **place,
        )  # fmt: skip
    diverged = [x for x, n in zip(curve.log2_lrs, curve.diverged, strict=True) if n]
    if diverged:
        figure.add_scatter(
            x=diverged, y=[top] * len(diverged), mode="markers", legendgroup=group, showlegend=False,
            marker={"symbol": "x", "size": 9, "color": color}, cliponaxis=False,
            hovertemplate=f"width {curve.width}<br>LR 2^%{{x:g}}<br>diverged<extra></extra>", **place,
        )  # fmt: skip


def interactive_optima(curves: Curves) -> go.Figure:
    """Interpolated optimum against width, a line a study."""
    figure = go.Figure()
    for color, (study, members) in zip(STUDY_COLORS * len(curves), curves.items(), strict=False):
        found = [(curve.width, optimum) for curve in members if (optimum := find_optimum(curve))]
        figure.add_scatter(
            x=[width for width, _ in found], name=study, mode="lines+markers", line_color=color,
            y=[o.log2_lr if o.vertex is None else o.vertex for _, o in found],
            hovertemplate=f"{study}<br>width %{{x}}<br>optimum 2^%{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    widths = sorted(width_colors(curves))
    figure.update_xaxes(type="log", tickvals=widths, ticktext=[str(width) for width in widths], title_text="width")
    figure.update_yaxes(title_text=f"optimal {LOG2_LR}")
    return _styled(figure, 380)


def interactive_training(runs: Sequence[TrainingCurve], curves: Curves) -> go.Figure:
    """Training loss against step of every run, a panel a study; the best learning rate of each width stands out."""
    figure = make_subplots(1, len(curves), shared_yaxes=True, subplot_titles=list(curves), horizontal_spacing=0.04)
    colors = width_colors(curves)
    columns = {study: column for column, study in enumerate(curves, start=1)}
    best = {
        (study, curve.width, optimum.log2_lr)
        for study, members in curves.items()
        for curve in members
        if (optimum := find_optimum(curve))
    }
    named = set()
    for run in sorted(runs, key=lambda run: run.width):
        is_best = (run.study, run.width, run.log2_lr) in best
        figure.add_scatter(
            x=run.steps, y=run.losses, mode="lines", legendgroup=str(run.width), name=str(run.width),
            showlegend=is_best and run.width not in named, line_color=colors[run.width],
            opacity=1.0 if is_best else 0.25, line_width=2.5 if is_best else 1,
            hovertemplate=f"width {run.width}<br>LR 2^{run.log2_lr:g}, seed {run.seed}"
            "<br>step %{x}<br>loss %{y:.4f}<extra></extra>", row=1, col=columns[run.study],
        )  # fmt: skip
        named |= {run.width} if is_best else set()
    # What rises above every start has left the question; the axis need not follow it.
    starts = [run.losses[0] for run in runs if run.losses]
    lowest = [loss for run in runs for loss in run.losses]
    if starts:
        figure.update_yaxes(range=[min(lowest) - 0.1, max(starts) + 0.1])
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="training loss (nats/token)", row=1, col=1)
    figure.update_layout(legend_title_text="width")
    return _styled(figure, 420)


def _styled(figure: go.Figure, height: int) -> go.Figure:
    """Transparent, with mid-gray text and grid that read on light and on dark pages."""
    figure.update_layout(
        height=height, margin={"l": 60, "r": 20, "t": 60, "b": 50}, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font_color="#808080",
    )  # fmt: skip
    grid = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.25)"}
    figure.update_xaxes(grid)
    figure.update_yaxes(grid)
    return figure
