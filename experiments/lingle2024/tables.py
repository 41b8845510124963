"""The tables and figure of Lingle 2024 (2404.05728) from finished sweeps, beside the published numbers.

python experiments/lingle2024/tables.py runs/lingle/*
python experiments/lingle2024/tables.py baseline=runs/lingle_baseline --out=experiments/lingle2024/desk

A folder holds a sweep of configs/lingle2024/ablations.py and is named as the ablation, or is given as NAME=FOLDER.
Prints the tables and leaves in --out tables.txt and losses.png. Losses are the best of a run's evaluations, as in the
paper. Verdicts are its own, too: Yes if one learning rate of the grid is best at every width.
"""

import argparse
import csv
import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.lingle2024.ablations import ABLATIONS, get_config
from mujax.config import differences
from mujax.errors import UserError
from mujax.transfer.optimum import fit_optima
from mujax.transfer.rows import load_rows
from mujax.transfer.verdict import ArgminVerdict, argmin_verdict
from mujax.workdir import read_json, same_study

HERE = Path(__file__).parent
# Of one run's loss: gaps below 0.02 nats, so twice this, are called undecided in published.csv's source
NOISE = 0.01
MISSING, DIVERGED = ".", "div"
# The published tables' names of what the ablations call differently
PUBLISHED_NAME = {"wd_coupled": "wd_coupled_0.1", "combined": "combined_large_scale"}


@dataclasses.dataclass(frozen=True)
class Study:
    """Losses of one ablation. cells: width -> log2 learning rate -> loss of each seed, None where diverged.

    grid: the log2 learning rates there should be. notes: what a reader must know of it.
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
        """(log2 learning rates, losses of their seeds), of the cells that are there."""
        lrs = [x for x in self.grid if x in self.cells[width]]
        return lrs, [self.cells[width][x] for x in lrs]

    def verdict(self) -> ArgminVerdict:
        verdict = argmin_verdict(self.widths, *zip(*map(self.curve, self.widths), strict=True))
        complete = all(len(self.cells[width]) == len(self.grid) for width in self.widths)
        return verdict if complete else dataclasses.replace(verdict, word="undecided")


def mean(seeds: Sequence[float | None]) -> float | None:
    numbers = [y for y in seeds if y is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(seeds) else None


def published() -> dict[str, Study]:
    """Ablation -> its published losses, of those that are at hand.

    A run that diverged shows its initial loss there, ln(32100) + 1 / (2 width).
    """
    groups = {PUBLISHED_NAME.get(name, name): name for name in ABLATIONS}
    cells: dict[str, dict[int, dict[float, tuple[float | None, ...]]]] = {}
    for row in csv.DictReader((HERE / "published.csv").read_text().splitlines()):
        losses = cells.setdefault(groups[row["group"]], {}).setdefault(int(row["width"]), {})
        loss, initial = float(row["loss"]), math.log(32_100) + 1 / (2 * int(row["width"]))
        losses[float(row["log2_lr"])] = (loss if abs(loss - initial) > 0.002 else None,)
    return {name: Study(name, "published", tuple(sorted(set().union(*c.values()))), c) for name, c in cells.items()}


def published_verdicts() -> dict[str, str]:
    rows = csv.DictReader((HERE / "published_verdicts.csv").read_text().splitlines())
    return {row["group"]: row["transfers"] for row in rows}


def load_study(argument: str) -> Study:
    """The sweep in a folder that is named as an ablation, or in FOLDER of NAME=FOLDER.

    Raises:
      UserError: no such ablation, or no finished points.
    """
    name, _, folder = argument.rpartition("=")
    name = name or Path(folder).name
    if name not in ABLATIONS:
        raise UserError(f"{argument}: no ablation {name!r}; name the folder as one, or write NAME=FOLDER")
    rows, _ = load_rows(folder)
    if not (Path(folder) / "manifest.json").exists():
        raise UserError(f"{argument}: no manifest.json, so it is no workdir of mujax sweep")
    grid, widths, notes = _closest_config(name, read_json(Path(folder) / "manifest.json")["config"])
    cells: dict[int, dict[float, tuple[float | None, ...]]] = {width: {} for width in widths}
    for row in rows:
        losses, x = cells.setdefault(row["width"], {}), round(math.log2(row["learning_rate"]), 9)
        losses[x] = (*losses.get(x, ()), row["best_loss"] if row["status"] == "ok" else None)
    grid = tuple(sorted({*grid, *(x for losses in cells.values() for x in losses)}))
    return Study(name, "ours", grid, cells, notes)


def _closest_config(name: str, config: Mapping[str, Any]) -> tuple[list[float], Sequence[int], tuple[str, ...]]:
    """(log2 learning rates, widths, notes) of the shipped profile and scale that a sweep's config is nearest to."""
    found = []
    for profile in ("paper", "head"):
        for scale in ("full", "desk"):
            shipped = same_study(get_config(f"{name},profile={profile},scale={scale}").to_dict())
            changes = [f"{field}: {change}" for field, change in differences(shipped, same_study(config)).items()]
            found.append((len(changes), shipped, (f"profile {profile}, scale {scale}", *changes)))
    _, shipped, notes = min(found, key=lambda item: item[0])
    rates = shipped["sweep"]["optim"]["learning_rate"]
    return [round(math.log2(rate), 9) for rate in rates], shipped["sweep"]["model"]["d_model"], notes


def study_table(studies: Sequence[Study]) -> str:
    """The losses of one ablation, ours and published, with the optima and what is wrong with them."""
    grid = sorted(set().union(*(study.grid for study in studies)))
    lines = [["width", "", *(f"2^{x:g}" for x in grid), "best", "optimum (68%)"]]
    flags = []
    for study in studies:
        for width, best, optimum in zip(study.widths, study.verdict().best, optima(study), strict=True):
            cells = [cell_text(study.cells[width].get(x)) if x in study.grid else "" for x in grid]
            text, flagged = "-", optimum.flags if optimum else ()
            if optimum and optimum.parabola:
                parabola = optimum.parabola
                text = f"{parabola.vertex:.2f}"
                if parabola.interval:
                    text += " ({:.2f} to {:.2f})".format(*parabola.interval)
            lines.append(
                [f"{width}", study.source, *cells, "-" if best is None else f"2^{best:g}", text + "*" * bool(flagged)]
            )
            flags += [f"* {study.source}, width {width}: {'; '.join(flagged)}"] if flagged else []
    notes = [note for study in studies for note in study.notes]
    head = studies[0].name + (f" ({'; '.join(notes)})" if notes else "")
    return "\n".join([head, *aligned(lines), *flags])


def optima(study: Study):
    """Of each width; noise from the seeds where there are several, else NOISE."""
    curves = [study.curve(width) for width in study.widths]
    has_seeds = any(len(seeds) > 1 for _, losses in curves for seeds in losses)
    lrs, losses = zip(*curves, strict=True)
    return fit_optima(lrs, losses, None if has_seeds else NOISE) if all(lrs) else [None] * len(lrs)


def cell_text(seeds: Sequence[float | None] | None) -> str:
    if seeds is None:
        return MISSING
    loss = mean(seeds)
    return DIVERGED if loss is None else f"{loss:.3f}"


def overview(ours: Mapping[str, Study], theirs: Mapping[str, Study]) -> str:
    """A line an ablation: the verdict and the best learning rate of each width, published and ours."""
    verdicts = published_verdicts()
    lines = [["ablation", "published", "best at 128, 512, ...", "ours", "best", "at widths"]]
    for name in ABLATIONS:
        line = [name, verdicts.get(name, MISSING), best_text(theirs.get(name))]
        if study := ours.get(name):
            line += [study.verdict().word, best_text(study), ", ".join(map(str, study.widths))]
        else:
            line += [MISSING, MISSING, "not run"]
        lines.append(line)
    legend = f"Does one learning rate of the grid win at every width? {MISSING} is what nobody has measured here."
    return "\n".join([legend, *aligned(lines)])


def best_text(study: Study | None) -> str:
    return ", ".join("-" if x is None else f"2^{x:g}" for x in study.verdict().best) if study else MISSING


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]


def draw(ours: Mapping[str, Study], theirs: Mapping[str, Study], file: Path) -> None:
    """A row an ablation that we ran: our losses against the learning rate, and the published ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in ABLATIONS if name in ours]
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 2.6 * len(names)), squeeze=False, layout="constrained")
    for name, row in zip(names, axes, strict=True):
        for study, axis in zip((ours[name], theirs.get(name)), row, strict=True):
            axis.set_title(f"{name}, {study.source}" if study else f"{name}: no published losses at hand", fontsize=9)
            if study is None:
                axis.axis("off")
                continue
            shades = plt.get_cmap("viridis")([i / len(study.widths) for i in range(len(study.widths))])
            for width, shade in zip(study.widths, shades, strict=True):
                points = [(x, y) for x in study.grid if (y := mean(study.cells[width].get(x, (None,)))) is not None]
                if not points:
                    continue
                axis.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, color=shade, label=f"{width}")
                axis.plot(*min(points, key=lambda point: point[1]), "*", ms=11, color=shade)
            axis.set_xlabel("log2 learning rate", fontsize=8)
            axis.set_ylabel("best loss, nats", fontsize=8)
            axis.legend(title="width", fontsize=7, title_fontsize=7)
    figure.savefig(file, dpi=110)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", metavar="[NAME=]FOLDER")
    parser.add_argument("--out", type=Path, help="folder for tables.txt and losses.png")
    args = parser.parse_args(None if argv is None else list(argv))
    try:
        ours = {study.name: study for study in map(load_study, args.sweeps)}
    except UserError as e:
        parser.exit(2, f"tables: {e}\n")
    theirs = published()
    shown = [[s for s in (ours.get(name), theirs.get(name)) if s] for name in ABLATIONS]
    text = "\n\n".join([overview(ours, theirs), *(study_table(studies) for studies in shown if studies)])
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "tables.txt").write_text(text + "\n")
        if ours:
            draw(ours, theirs, args.out / "losses.png")


if __name__ == "__main__":
    main()
