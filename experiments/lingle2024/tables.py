r"""Tables and figures of Lingle 2024 (2404.05728): finished sweeps beside the published numbers.

    python experiments/lingle2024/tables.py experiments/lingle2024/small/* \
        --out=experiments/lingle2024/figures
    python experiments/lingle2024/tables.py baseline=runs/lingle_baseline

A folder holds a sweep of configs/lingle2024/ablations.py and is named as the ablation, or is given
as NAME=FOLDER. Prints the tables and writes tables.txt, drift.png and losses.png to --out. Losses
are the best of a run's evaluations, as in the paper. The paper's verdict is Yes if one learning
rate of the grid is best at every width. Ours is about how the optimum moves with the width, and
what the narrowest width's optimum costs at the others, by 90% intervals
(mujax.transfer.verdict.judge).
"""

import argparse
import csv
import dataclasses
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.lingle2024.ablations import ABLATIONS, REASONS, get_config
from mujax.columns import align
from mujax.config import differences
from mujax.errors import UserError
from mujax.report.rows import load_rows
from mujax.storage.files import read_json, same_study
from mujax.transfer.optimum import Optimum, fit_optima
from mujax.transfer.verdict import LEVEL, ArgminVerdict, Verdict, argmin_verdict, judge, penalties

HERE = Path(__file__).parent
STUDIES = ABLATIONS | REASONS
# Noise of one run's loss, nats: the source of published.csv calls gaps below 0.02 nats, twice this,
# undecided.
NOISE = 0.01
MISSING, DIVERGED = ".", "div"
TOLERANCE = 0.25  # for the drift, log2 of the learning rate per doubling of width
LOSS_TOLERANCE = 0.02  # for the cost of the narrowest width's optimum at the others, nats
# Learning rates grow as the root of the batch, so these optima are shifted against the others.
LR_NOTES = {"bsz_large": ", rates x 2", "bsz_small": ", rates / 2"}
# name of an ablation -> its name in the published tables, if different
PUBLISHED_NAME = {"wd_coupled": "wd_coupled_0.1", "combined": "combined_large_scale"}


@dataclasses.dataclass(frozen=True)
class Study:
    """Losses of one ablation.

    cells: width -> log2 learning rate -> loss of each seed, None if diverged.
    grid: the log2 learning rates that each width should have; a refinement adds more to some.
    notes: what a reader should know about it.
    """

    name: str
    source: str
    grid: tuple[float, ...]
    cells: dict[int, dict[float, tuple[float | None, ...]]]
    notes: tuple[str, ...] = ()

    @property
    def widths(self) -> list[int]:
        return sorted(self.cells)

    def curve(self, width: int) -> tuple[list[float], list[tuple[float | None, ...]]]:
        """Returns (log2 learning rates, losses of their seeds) of the finished cells."""
        lrs = sorted(self.cells[width])
        return lrs, [self.cells[width][x] for x in lrs]

    def argmin(self) -> ArgminVerdict:
        """Returns the paper's verdict, on the grid that all widths share."""
        cells = [[x for x in self.grid if x in self.cells[width]] for width in self.widths]
        losses = [
            [self.cells[width][x] for x in lrs]
            for width, lrs in zip(self.widths, cells, strict=True)
        ]
        verdict = argmin_verdict(self.widths, cells, losses)
        complete = all(len(lrs) == len(self.grid) for lrs in cells)
        return verdict if complete else dataclasses.replace(verdict, word="undecided")

    def best(self) -> list[float | None]:
        """Returns log2 of the best learning rate of each width, of all that were tried."""
        return [o.log2_lr if o else None for o in self.optima()]

    def optima(self) -> list[Optimum | None]:
        """Finds the optimum at each width, None where nothing was run.

        The noise comes from the seeds if there are several, else it is NOISE.
        """
        there = [width for width in self.widths if self.cells[width]]
        lrs, losses = zip(*map(self.curve, there), strict=True) if there else ((), ())
        has_seeds = any(len(seeds) > 1 for curve in losses for seeds in curve)
        found = dict(zip(there, fit_optima(lrs, losses, None if has_seeds else NOISE), strict=True))
        return [found.get(width) for width in self.widths]

    def num_seeds(self) -> list[int]:
        """Returns the number of seeds of each width at its best learning rate."""
        return [
            len(self.cells[width][o.log2_lr]) if o else 0
            for width, o in zip(self.widths, self.optima(), strict=True)
        ]

    def verdict(self) -> Verdict:
        return judge(self.widths, self.optima(), TOLERANCE, LOSS_TOLERANCE)


def mean(seeds: Sequence[float | None]) -> float | None:
    numbers = [y for y in seeds if y is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(seeds) else None


def published() -> dict[str, Study]:
    """Returns {ablation: its published losses}, as far as they are at hand.

    A run that diverged shows its initial loss there, ln(32100) + 1 / (2 width).
    """
    groups = {PUBLISHED_NAME.get(name, name): name for name in ABLATIONS}
    cells: dict[str, dict[int, dict[float, tuple[float | None, ...]]]] = {}
    for row in csv.DictReader((HERE / "published.csv").read_text().splitlines()):
        losses = cells.setdefault(groups[row["group"]], {}).setdefault(int(row["width"]), {})
        loss, initial = float(row["loss"]), math.log(32_100) + 1 / (2 * int(row["width"]))
        losses[float(row["log2_lr"])] = (loss if abs(loss - initial) > 0.002 else None,)
    return {
        name: Study(name, "published", tuple(sorted(set().union(*c.values()))), c)
        for name, c in cells.items()
    }


def published_verdicts() -> dict[str, str]:
    rows = csv.DictReader((HERE / "published_verdicts.csv").read_text().splitlines())
    return {row["group"]: row["transfers"] for row in rows}


def load_study(argument: str) -> Study:
    """Loads the sweep in a folder named as an ablation, or in FOLDER of NAME=FOLDER.

    Raises:
      UserError: no such ablation, or no finished points.
    """
    name, _, folder = argument.rpartition("=")
    name = name or Path(folder).name
    if name not in STUDIES:
        raise UserError(
            f"{argument}: no ablation {name!r}; name the folder as one, or write NAME=FOLDER"
        )
    rows, _ = load_rows(folder)
    if not (Path(folder) / "manifest.json").exists():
        raise UserError(f"{argument}: no manifest.json, so it is no workdir of mujax sweep")
    grid, widths, notes = _closest_config(name, read_json(Path(folder) / "manifest.json")["config"])
    cells: dict[int, dict[float, tuple[float | None, ...]]] = {width: {} for width in widths}
    for row in rows:
        losses, x = cells.setdefault(row["width"], {}), round(math.log2(row["learning_rate"]), 9)
        losses[x] = (*losses.get(x, ()), row["best_loss"] if row["status"] == "ok" else None)
    return Study(name, "ours", tuple(grid), cells, notes)


def _closest_config(
    name: str, config: Mapping[str, Any]
) -> tuple[list[float], Sequence[int], tuple[str, ...]]:
    """Returns (log2 learning rates, widths, notes) of the shipped config closest to a sweep's.

    Shipped configs differ in profile and scale.
    """
    found = []
    for profile in ("paper", "head"):
        for scale in ("small",) if name in REASONS else ("full", "small"):
            shipped = same_study(get_config(f"{name},profile={profile},scale={scale}").to_dict())
            changes = [
                f"{field}: {change}"
                for field, change in differences(shipped, same_study(config)).items()
            ]
            found.append((len(changes), shipped, (f"profile {profile}, scale {scale}", *changes)))
    _, shipped, notes = min(found, key=lambda item: item[0])
    rates = shipped["sweep"]["optim"]["learning_rate"]
    return (
        [round(math.log2(rate), 9) for rate in rates],
        shipped["sweep"]["model"]["d_model"],
        notes,
    )


def study_table(studies: Sequence[Study]) -> str:
    """Tabulates the losses of one ablation, ours and published, with optima and flags."""
    grid = sorted(
        set().union(
            *(study.grid for study in studies), *(c for s in studies for c in s.cells.values())
        )
    )
    lines = [["width", "", *(f"2^{x:g}" for x in grid), "best", "optimum (68%)"]]
    flags = []
    for study in studies:
        for width, best, optimum in zip(study.widths, study.best(), study.optima(), strict=True):
            cells = [
                cell_text(study.cells[width].get(x))
                if x in study.grid or x in study.cells[width]
                else ""
                for x in grid
            ]
            text, flagged = "-", optimum.flags if optimum else ()
            if optimum and optimum.vertex is not None:
                text = f"{optimum.vertex:.2f}"
                if optimum.interval:
                    text += " ({:.2f} to {:.2f})".format(*optimum.interval)
            lines.append(
                [
                    f"{width}",
                    study.source,
                    *cells,
                    "-" if best is None else f"2^{best:g}",
                    text + "*" * bool(flagged),
                ]
            )
            flags += [f"* {study.source}, width {width}: {'; '.join(flagged)}"] if flagged else []
        noise = next((optimum.noise for optimum in study.optima() if optimum), None)
        if noise and "widened" in noise.source:
            flags.append(
                f"* {study.source}: the noise of a run, {noise.sigma:.3f} nats, is from "
                f"{noise.source} of the fits"
            )
    notes = [note for study in studies for note in study.notes]
    head = studies[0].name + (f" ({'; '.join(notes)})" if notes else "")
    return "\n".join([head, *align(lines), *flags])


def cell_text(seeds: Sequence[float | None] | None) -> str:
    if seeds is None:
        return MISSING
    loss = mean(seeds)
    return DIVERGED if loss is None else f"{loss:.3f}"


# (published verdict, ours) -> whether they agree
AGREEMENT = {
    ("Yes", "transfers"): "yes",
    ("No", "drifts"): "yes",
    ("Yes", "drifts"): "no",
    ("No", "transfers"): "no",
}
# The paper asks for one learning rate that serves at all widths.
AGREEMENT |= {("Yes", "moves at no cost"): "yes", ("No", "moves at no cost"): "no"}


def overview(ours: Mapping[str, Study], theirs: Mapping[str, Study]) -> str:
    """Tabulates, per ablation, verdict and best learning rate of each width, published and ours."""
    verdicts = published_verdicts()
    header = [
        "ablation",
        "published",
        "best",
        "ours",
        "best",
        "drift",
        "cost",
        "agree",
        "by its rule",
        "seeds",
    ]
    lines = [header]
    for name in STUDIES:
        said, their, our = verdicts.get(name, MISSING), theirs.get(name), ours.get(name)
        line = [name, said, best_text(their)]
        if our is None:
            lines.append([*line, *[MISSING] * 6, "not run"])
            continue
        seeds = our.num_seeds()
        word = our.verdict().word if min(seeds) > 1 else "one seed"
        agree = AGREEMENT.get((said, word), "open") if said != MISSING else MISSING
        rule = our.argmin()
        lines.append([
            *line, word, best_text(our), drift_text(our), cost_text(our), agree,
            rule.word + "?" * bool(rule.close), " ".join(map(str, seeds)),
        ])  # fmt: skip
    legend = (
        "Published: does one learning rate of the grid win at widths 128, 512, 2048? Ours: does "
        f"the optimum move by less than {TOLERANCE} log2 per doubling of width, and cost the "
        f"narrowest width's less than {LOSS_TOLERANCE} nats at the others? Drift: with its 90% "
        "interval. Cost: in nats, and in brackets the highest end of the 90% intervals. By its "
        "rule: the paper's on our grid of factor 4; ?: a gap below 0.02 nats. Seeds: at the best "
        f"of each width. {MISSING}: not known; *: flagged, see the ablation's table."
    )
    return "\n".join([*textwrap.wrap(legend, 120), *align(lines)])


def best_text(study: Study | None) -> str:
    return " ".join("-" if x is None else f"{x:g}" for x in study.best()) if study else MISSING


def drift_text(study: Study) -> str:
    drift = study.verdict().drift
    ends = drift.within(LEVEL) if drift else None
    if drift is None or ends is None:
        return MISSING
    return f"{drift.value:+.2f} ({ends[0]:+.2f} to {ends[1]:+.2f}){'*' * bool(drift.flags)}"


def cost_text(study: Study) -> str:
    """Returns the largest cost of the narrowest optimum, nats, and the highest interval end."""
    costs = [cost for cost in penalties(study.widths, study.optima())[1:] if cost]
    ends = [end for cost in costs if (end := cost.within(LEVEL))]
    if not ends or study.verdict().cost is None:
        return MISSING
    return f"{max(cost.value for cost in costs):.3f} ({max(high for _, high in ends):.3f})"


def draw(ours: Mapping[str, Study], folder: Path) -> None:
    """Draws drift.png (drift of each ablation) and losses.png (a panel of curves per ablation)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for name, figure in (("drift", draw_drift(plt, ours)), ("losses", draw_losses(plt, ours))):
            figure.savefig(folder / f"{name}.png", dpi=110)
            plt.close(figure)


def draw_drift(plt, ours: Mapping[str, Study]):
    names = [name for name in STUDIES if name in ours]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.27 * len(names)), layout="constrained")
    axis.axvspan(-TOLERANCE, TOLERANCE, color="0.92", zorder=0)
    for x, text in ((0.0, "transfer"), (-1.0, "1/width")):
        axis.axvline(x, color="0.6", lw=0.8, ls="--", zorder=1)
        axis.text(x, -1.0, text, ha="center", va="bottom", fontsize=8, color="0.35")
    color = "#00798c"
    axis.errorbar(
        [], [], [], [], fmt="o", color=color, ms=4.5, capsize=2, label=f"drift, {LEVEL:.0%}"
    )
    for row, name in enumerate(names):
        drift = ours[name].verdict().drift
        if drift and (interval := drift.within(LEVEL)):
            ends = [[abs(end - drift.value)] for end in interval]
            fill = "none" if drift.flags else color
            axis.errorbar(
                drift.value, row, None, ends, fmt="o", color=color, mfc=fill, ms=4.5, capsize=2
            )
    words = published_verdicts()
    told = {"Yes": "transfers", "No": "does not", MISSING: "not known"}
    axis.plot([], [], "o", color="0.3", mfc="none", ms=4.5, label="flagged")
    for row, name in enumerate(names):
        if ours[name].verdict().drift is None:
            axis.text(0, row, "undecided", ha="center", va="center", fontsize=8, color=color)
    labels = [f"{name}  (published: {told[words.get(name, MISSING)]})" for name in names]
    axis.set_yticks(range(len(names)), labels)
    axis.set(
        ylim=(len(names) - 0.3, -1.1),
        xlabel="drift of the optimal log2 learning rate per doubling of width",
    )
    axis.grid(axis="x", alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", fontsize=8, ncols=3)
    return figure


def draw_losses(plt, ours: Mapping[str, Study]):
    names, columns = [name for name in STUDIES if name in ours], 5
    rows = -(-len(names) // columns)
    size = (2.9 * columns, 2.3 * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    finite = [
        y
        for name in names
        for x in ours[name].cells.values()
        for c in x.values()
        if (y := mean(c)) is not None
    ]
    best = min(finite, default=0.0)
    for name, axis in zip(names, axes.flat, strict=False):
        study = ours[name]
        axis.set_title(name + LR_NOTES.get(name, ""))
        shades = plt.get_cmap("viridis_r")(
            [0.15 + 0.7 * i / len(study.widths) for i in range(len(study.widths))]
        )
        for width, shade in zip(study.widths, shades, strict=True):
            points = [
                (x, y)
                for x, seeds in sorted(study.cells[width].items())
                if (y := mean(seeds)) is not None
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True), "o-", ms=3, lw=1.2, color=shade, label=f"{width}"
                )
                axis.plot(
                    *min(points, key=lambda point: point[1]), "*", ms=11, color=shade, mec="white"
                )
        axis.grid(alpha=0.25)
    axes[0][0].set_ylim(best - 0.05, best + 0.8)  # no optimum is above
    for axis in axes[:, 0]:
        axis.set_ylabel("best loss, nats")
    for axis in axes.flat[max(len(names) - columns, 0) : len(names)]:
        axis.set_xlabel("log2 learning rate")
    axes[0][0].legend(title="width", fontsize=7, title_fontsize=7, frameon=False)
    return figure


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="*", metavar="[NAME=]FOLDER")
    parser.add_argument("--out", type=Path, help="folder for tables.txt, drift.png and losses.png")
    args = parser.parse_args(None if argv is None else list(argv))
    try:
        ours = {study.name: study for study in map(load_study, args.sweeps)}
    except UserError as e:
        parser.exit(2, f"tables: {e}\n")
    theirs = published()
    shown = [[s for s in (ours.get(name), theirs.get(name)) if s] for name in STUDIES]
    text = "\n\n".join(
        [overview(ours, theirs), *(study_table(studies) for studies in shown if studies)]
    )
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "tables.txt").write_text(text + "\n")
        if ours:
            draw(ours, args.out)


if __name__ == "__main__":
    main()
