r"""Tables and figures of Kalra & Barkeshli 2026 (2605.21486): small-scale sweeps beside the paper.

    python experiments/kalra2026/account.py experiments/kalra2026/small \
        --out=experiments/kalra2026/figures

The folder holds sweeps of configs/kalra2026/studies.py, each named as its study. Prints the account
and writes account.txt, phase.png (ours above, the paper's below) and studies.png to --out.
Intervals are 68% intervals. "?" marks a flagged value (too few widths, an exponent at its bound, an
optimum that is not bracketed): no verdict rests on it.
"""

import argparse
import itertools
import math
import statistics
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.kalra2026.studies import EMBD, FROZEN, MUP, REASONS, SP, SQRT_EMBD, STEPS, STUDIES
from mujax.columns import align
from mujax.errors import UserError
from mujax.report.rows import load_rows
from mujax.report.summary import Measured, compare, make_studies, measure
from mujax.report.tables import parse_columns, read_table
from mujax.report.text import estimate_text
from mujax.transfer.laws import Estimate
from mujax.transfer.phase import PhasePoint, main_effects, mean_interval, paired, switches

HERE = Path(__file__).parent
WORDS = {"attn": "Attn", "embd": "Embd", "ln": "LN", "last": "Last"}  # in the paper's order
SWITCHES = tuple(WORDS)
METRICS = ("E", "kappa", "R(inf)")
COLUMNS = "parameterization=display,R_inf=R_inf_unscaled"


def load(folder: Path) -> dict[str, list[Measured]]:
    """Returns the measurements of each study in the folder; R is relative to its envelope."""
    folders = {name: folder / name for name in STUDIES | REASONS if (folder / name).is_dir()}
    if not folders:
        raise UserError(f"{folder} holds no sweep that is named as one of {', '.join(STUDIES)}")
    found = {}
    for name, path in folders.items():
        found[name], _ = compare(
            [measure(study) for study in make_studies({name: load_rows(path)[0]})]
        )
    return found


def published() -> list[PhasePoint]:
    return read_table(str(HERE / "published.csv"), parse_columns(COLUMNS)).points


def phase_points(measured: Sequence[Measured]) -> list[PhasePoint]:
    """Returns the points of the studies that have all three metrics."""
    return [point for m in measured if (point := m.phase_point())]


def paper_name(table: str) -> str:
    """Returns the paper's name of a table: 'factorial+embd' -> 'SP+Embd'.

    With three or four switches on it is muP or muP-X.
    """
    on = switches(table) or frozenset()
    if len(on) >= 3:
        return "-".join(["muP", *(WORDS[s] for s in WORDS if s not in on)])
    return "+".join(["SP", *(WORDS[s] for s in WORDS if s in on)])


def short(m: Measured) -> str:
    """Returns a study's name with the paper's word for its table."""
    table = m.study.facets["parameterization"]
    name = paper_name(table.replace("sqrt_embd", "embd").replace("+sqrt_decay", ""))
    name += " (Embd by sqrt n)" * ("sqrt_embd" in table) + " (hidden decay by sqrt n)" * (
        "sqrt_decay" in table
    )
    said = (
        m.study.name.replace(table, name)
        .replace("weight_decay=", "decay ")
        .replace(", override=[]", "")
    )
    return said.replace(f"override={list(FROZEN)}", "frozen")


def study_table(measured: Sequence[Measured]) -> str:
    """Tabulates, one line per study, where its optimum is and moves, and what that costs.

    noise: standard deviation of a run's loss behind the intervals; "*" if it is widened because the
      fitted curves miss the points by more than seeds explain.
    seeds: standard deviation between seeds at the best learning rates.
    optimum: standard deviation of a seed's own optimum, log2 LR; "b" if it is borrowed from other
      studies.
    """
    lines = [
        [
            "study",
            "best log2 LR",
            "drift per doubling",
            "verdict",
            "loss at the widest",
            *METRICS,
            "noise",
            "seeds",
            "optimum",
        ]
    ]
    for m in measured:
        best = " ".join("-" if o is None else f"{o.log2_lr:g}" for o in m.optima)
        last = m.optima[-1]
        loss = "-"
        if last:
            minimum = last.loss if last.vertex is None else last.minimum
            loss = f"{minimum:.4f}" + (
                f" ± {last.minimum_error:.4f}" if math.isfinite(last.minimum_error) else ""
            )
        e = Estimate(m.joint.mse, m.joint.intervals.get("mse"), m.joint.flags) if m.joint else None
        numbers = [estimate_text(x, 2) for x in (e, m.kappa, m.r_inf)]
        word = m.verdict.word if has_seeds(m) else "one seed"
        noise = next((o.noise for o in m.optima if o), None)
        sigma = f"{noise.sigma:.3f}" + "*" * ("widened" in noise.source) if noise else "-"
        spread_of = f"{noise.spread:.2f}" + " b" * (noise.spread_dof is None) if noise else "-"
        lines.append(
            [
                short(m),
                best,
                estimate_text(m.drift, 2),
                word,
                loss,
                *numbers,
                sigma,
                seeds_apart(m),
                spread_of,
            ]
        )
    return "\n".join(align(lines))


def seeds_apart(m: Measured) -> str:
    at_best = [
        curve.raw_losses[curve.log2_lrs.index(o.log2_lr)]
        for curve, o in zip(m.study.curves, m.optima, strict=True)
        if o
    ]
    variances = [np.var(losses, ddof=1) for losses in at_best if len(losses) > 1]
    return f"{math.sqrt(np.mean(variances)):.3f}" if variances else "-"


def has_seeds(m: Measured) -> bool:
    """Tells whether the best learning rate of every width has several seeds, as a verdict needs."""
    return all(
        o is not None and curve.num_seeds[curve.log2_lrs.index(o.log2_lr)] > 1
        for curve, o in zip(m.study.curves, m.optima, strict=True)
    )


def medians(ours: Sequence[Measured], theirs: Sequence[PhasePoint]) -> str:
    """Tabulates medians over weight decay, ours beside the published ones.

    "?" marks a median of flagged values alone.
    """
    lines = [
        ["", "E", "published", "R(inf)", "published", "kappa", "published", "fits", "drift", "of"]
    ]
    for table in dict.fromkeys(m.study.facets["parameterization"] for m in ours):
        members = [m for m in ours if m.study.facets["parameterization"] == table]
        points = phase_points(members)
        same = [
            p for p in theirs if switches(p.facets["parameterization"], SWITCHES) == switches(table)
        ]
        cells = [paper_name(table)]
        for field in ("e", "r_inf", "kappa"):
            for of in (points, same):
                cells.append(median_text([getattr(p, field) for p in of], ".3g"))
        drifts = [m.drift for m in members if m.drift]
        lines.append([*cells, f"{len(points)}", median_text(drifts, "+.2f"), f"{len(drifts)}"])
    legend = (
        f"fits, of: of {len(members)} weight decays, how many have E, R(inf) and kappa; a drift."
    )
    return "\n".join([*align(lines), legend])


def median_text(estimates: Sequence[Estimate], form: str) -> str:
    if not estimates:
        return "-"
    return f"{statistics.median(e.value for e in estimates):{form}}" + " ?" * all(
        e.flags for e in estimates
    )


def by_decay(ours: Sequence[Measured], theirs: Sequence[PhasePoint]) -> str:
    """Tabulates whether more weight decay makes for better fits.

    Pairs differ in the decay alone and have equally many seeds.
    """
    by_key = {(m.study.facets["weight decay"], m.study.facets["parameterization"]): m for m in ours}
    paper = {(float(p.facets["weight decay"]), p.facets["parameterization"]): [p] for p in theirs}
    lines = [
        [
            "weight decay",
            "published",
            "E times",
            "lower in",
            "published",
            "lower in",
            "loss at the widest by",
        ]
    ]
    for low, high in itertools.pairwise(dict.fromkeys(decay for decay, _ in by_key)):
        pairs = [(m, by_key[high, table]) for (decay, table), m in by_key.items() if decay == low]
        fair = [phase_points(pair) for pair in pairs if has_seeds(pair[0]) == has_seeds(pair[1])]
        shrinking = [
            round(float(decay) * STEPS["small"] / STEPS["full"], 8) for decay in (low, high)
        ]
        same = [
            paper.get((shrinking[0], table), []) + paper.get((shrinking[1], table), [])
            for table in dict.fromkeys(table for _, table in paper)
        ]
        cells = [f"{low} to {high}", "{:g} to {:g}".format(*shrinking)]
        for found in (fair, same):
            logs = [math.log(pair[1].e.value / pair[0].e.value) for pair in found if len(pair) == 2]
            cells += (
                [factor_text(logs), f"{sum(x < 0 for x in logs)} of {len(logs)}"]
                if logs
                else ["-", "-"]
            )
        losses = [loss_draws(second) - loss_draws(first) for first, second in pairs]
        finite = [float(np.mean(x)) for x in losses if np.isfinite(x).all()]
        lines.append([*cells, estimate_text(mean_interval(finite), 2)])
    return "\n".join(align(lines))


def factor_text(logs: Sequence[float]) -> str:
    """Returns '0.57 (0.38 to 0.91)': geometric mean and 68% interval, from natural logarithms."""
    said = mean_interval(logs)
    bars = " ({:.2g} to {:.2g})".format(*map(math.exp, said.interval)) if said.interval else ""
    return f"{math.exp(said.value):.3g}{bars}"


def effects(ours: Sequence[Measured], theirs: Sequence[PhasePoint]) -> str:
    """Tabulates how each switch changes E, the size of the drift, and the loss at the widest width.

    Each effect is a mean over the pairs of parameterizations that differ in that switch alone.
    """
    on_e, paper = (
        {e.switch: e for e in main_effects(points)} for points in (phase_points(ours), theirs)
    )
    drifts, losses = {}, {}
    for m in ours:
        key = (
            switches(m.study.facets["parameterization"]) or frozenset(),
            m.study.facets.get("weight decay"),
        )
        if m.drift:
            drifts[key] = abs(m.drift.value)
        if m.optima[-1]:
            losses[key] = m.optima[-1].loss
    lines = [
        [
            "switch",
            "E times",
            "lower in",
            "published",
            "lower in",
            "|drift| by",
            "loss at the widest by",
        ]
    ]
    for switch in SWITCHES:
        cells = [switch]
        for e in (on_e.get(switch), paper.get(switch)):
            bars = f" ({e.interval[0]:.2g} to {e.interval[1]:.2g})" if e and e.interval else ""
            cells += [f"{e.factor:.3g}{bars}", f"{e.better} of {e.pairs}"] if e else ["-", "-"]
        for values, digits in ((drifts, 2), (losses, 4)):
            pairs = paired(values, switch).values()
            said = (
                mean_interval([statistics.fmean(on - off for off, on in own) for own in pairs])
                if pairs
                else None
            )
            low, high = said.interval if said and said.interval else (math.nan, math.nan)
            cells.append(
                f"{said.value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
                if said
                else "-"
            )
        lines.append(cells)
    flags = [bool(point.e.flags) for point in phase_points(ours)]
    note = (
        f"{sum(flags)} of {len(flags)} values of E are flagged, and count here. Intervals: 68%, "
        "over settings."
    )
    return "\n".join([*align(lines), note])


def embedding_share(ours: Sequence[Measured]) -> str:
    """Tabulates how much of muP's gain over SP comes from the embedding's learning rate, by decay.

    share: the part of the way from SP to muP, in log E or in the loss at the widest width, that
      SP+Embd goes; "-" where muP is not ahead by twice its error. Intervals come from draws of the
      estimates.
    """
    by_key = {
        (m.study.facets["parameterization"], m.study.facets.get("weight decay")): m for m in ours
    }
    lines = [[
        "weight decay", "E, muP / SP", "SP+Embd / SP", "share", "|drift|, SP+Embd / SP",
        "loss, muP - SP", "SP+Embd - SP", "share",
    ]]  # fmt: skip
    for decay in dict.fromkeys(decay for _, decay in by_key):
        found = [by_key.get((table, decay)) for table in (SP, EMBD, MUP)]
        if None in found:
            continue
        sp, embd, mup = (log_e_draws(m) for m in found if m)
        drifts = [np.abs(drift_draws(m)) for m in found[:2] if m]
        losses = [loss_draws(m) for m in found if m]
        lines.append([
            decay or "0", spread(np.exp(mup - sp)), spread(np.exp(embd - sp)),
            share(embd - sp, mup - sp), spread(drifts[1] / drifts[0]),
            spread(losses[2] - losses[0], 3), spread(losses[1] - losses[0], 3),
            share(losses[1] - losses[0], losses[2] - losses[0]),
        ])  # fmt: skip
    return "\n".join(align(lines))


def share(part: np.ndarray, whole: np.ndarray) -> str:
    """Returns the text of a share of a gain; a gain is below 0."""
    return spread(part / whole) if np.mean(whole) < -2 * np.std(whole) else "-"


def draws(m: Measured, what: str, value: float, error: float) -> np.ndarray:
    """Draws from a normal distribution, with a seed of each study and quantity."""
    return np.random.default_rng(zlib.crc32(f"{m.study.name} {what}".encode())).normal(
        value, error, 10_000
    )


def log_e_draws(m: Measured) -> np.ndarray:
    low, high = (
        m.joint.intervals.get("mse", (math.nan, math.nan)) if m.joint else (math.nan, math.nan)
    )
    return draws(
        m, "E", math.log(m.joint.mse) if m.joint else math.nan, (math.log(high) - math.log(low)) / 2
    )


def drift_draws(m: Measured) -> np.ndarray:
    low, high = m.drift.interval if m.drift and m.drift.interval else (math.nan, math.nan)
    return draws(m, "drift", m.drift.value if m.drift else math.nan, (high - low) / 2)


def loss_draws(m: Measured) -> np.ndarray:
    last = m.optima[-1]
    return draws(m, "loss", *((last.minimum, last.minimum_error) if last else (math.nan, math.nan)))


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Returns '0.31 (0.20 to 0.48)': median and 68% interval."""
    low, middle, high = np.percentile(values, (16, 50, 84))
    return (
        f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
        if math.isfinite(middle)
        else "-"
    )


TITLES = {
    "embedding_rate": "Learning rate of the embedding over that of the hidden matrices: 1, "
    "sqrt(n), n",
    "frozen_embedding": "A frozen embedding",
    "warmup": "Warm-up, in steps",
    "fixed_tokens": "Fixed tokens a parameter, decay lambda n; without decay the fourth is muP "
    "itself",
    "fixed_tokens_timescale": "Fixed tokens a parameter, decay lambda n / steps",
    "first_layer": "Images: learning rate of the first layer over that of the others: 1, sqrt(n), "
    "n",
    "longer": "Four times as many steps",
    "path": "From SP to muP, a switch at a time",
    "path_embd_last": "From SP to muP, the embedding last",
    "tied": "Tied embeddings",
}


def account(found: Mapping[str, Sequence[Measured]]) -> str:
    parts = []
    if slices := found.get("factorial"):
        theirs = published()
        parts += [
            "Medians over weight decay, beside the published (8 decays, widths 128 to 2048)\n"
            + medians(slices, theirs),
            "What more weight decay does\n" + by_decay(slices, theirs),
            *(
                f"What a switch does {word} weight decay, over pairs that differ in it alone\n"
                + effects(
                    [m for m in slices if (m.study.facets["weight decay"] == "0") == is_zero],
                    [p for p in theirs if (p.facets["weight decay"] == "0") == is_zero],
                )
                for word, is_zero in (("without", True), ("with", False))
            ),
            "Is the embedding's learning rate most of it?\n" + embedding_share(slices),
            "All slices of the factorial\n" + study_table(slices),
        ]
    parts += [
        f"{title}\n{study_table(found[name])}" for name, title in TITLES.items() if name in found
    ]
    return "\n\n".join(parts)


def draw(found: Mapping[str, Sequence[Measured]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figures = {"studies": draw_studies(plt, found)}
        if "factorial" in found:
            figures["phase"] = draw_phase(plt, phase_points(found["factorial"]), published())
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=110)
            plt.close(figure)


def draw_phase(plt, ours: Sequence[PhasePoint], theirs: Sequence[PhasePoint]):
    """Draws the phase diagrams, ours above and the published below; color: Embd; marker: LN."""
    from mujax.report import figures  # imports matplotlib

    figure, axes = plt.subplots(
        2, 3, figsize=(12, 7), sharex="col", sharey="col", layout="constrained"
    )

    def look(p: PhasePoint) -> tuple[str, str]:
        on = switches(p.facets["parameterization"], SWITCHES) or frozenset()
        return "#00798c" if "embd" in on else "#d1495b", "^" if "ln" in on else "o"

    for row, points, who in zip(axes, (ours, theirs), ("small scale", "published"), strict=True):
        for axis, (x, y) in zip(row, figures.PHASES, strict=True):
            figures.draw_phase_panel(axis, points, x, y, look)
            for name, side in ((x, axis.xaxis), (y, axis.yaxis)):
                if name == "R_inf":
                    side.set_ticks((-1, 0, 0.1, 1, 10))
            axis.set_title(who)
    for label, color, marker in (
        ("Embd on", "#00798c", "o"), ("Embd off", "#d1495b", "o"),
        ("LN off", "0.4", "o"), ("LN on", "0.4", "^"), ("flagged: hollow", "0.4", "o"),
    ):  # fmt: skip
        axes[0][0].plot(
            [],
            [],
            marker,
            color=color,
            mfc="none" if "hollow" in label else color,
            label=label,
            ls="",
        )
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure


def draw_studies(plt, found: Mapping[str, Sequence[Measured]]):
    """Draws the fitted optimum against width, one panel per question; flagged optima are hollow."""
    shown = {name: found[name] for name in ("factorial", *TITLES) if name in found}
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(6.4 * columns, 3.0 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (name, measured) in zip(axes.flat, shown.items(), strict=False):
        if name == "factorial":
            measured = [
                m
                for m in measured
                if m.study.facets["parameterization"] in (SP, EMBD, SQRT_EMBD, MUP)
            ]
        for m in measured:
            optima = [(n, o) for n, o in zip(m.study.widths, m.optima, strict=True) if o]
            best = [o.log2_lr if o.vertex is None else o.vertex for _, o in optima]
            (line,) = axis.plot([n for n, _ in optima], best, "o-", ms=3.5, lw=1.2, label=short(m))
            flagged = [(n, x) for (n, o), x in zip(optima, best, strict=True) if o.flags]
            axis.plot(
                [n for n, _ in flagged],
                [x for _, x in flagged],
                "o",
                color=line.get_color(),
                mfc="white",
                ms=3.5,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({n for m in measured for n in m.study.widths}))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(title=name, xlabel="width", ylabel=r"optimal $\log_2\eta$")
        axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        axis.grid(alpha=0.25)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--out", type=Path, help="folder for account.txt, phase.png and studies.png"
    )
    args = parser.parse_args()
    try:
        found = load(args.folder)
    except UserError as e:
        parser.exit(2, f"account: {e}\n")
    text = account(found)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "account.txt").write_text(text + "\n")
        draw(found, args.out)


if __name__ == "__main__":
    main()
