"""Points per hour of a sweep: one process per point, a loop in one process, and mujax.sweep.engine.

    python experiments/benchmarks/sweep_engine.py --case=narrow-8,narrow-32,middle-8,middle-32
    python experiments/benchmarks/sweep_engine.py --plot

README.md beside this file has the question, the results and their limits. This process starts the
others, sweep_engine_child.py, and measures their time; it does not import JAX.
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MODES = {
    "process": "a process per point",
    "loop": "one process, a loop",
    "engine": "one process, mujax.sweep.engine",
}
TOLERANCE = 1e-4  # relative difference between two modes' losses of a point
RESULTS = Path(__file__).with_name("results.jsonl")
CHILD = Path(__file__).with_name("sweep_engine_child.py")


@dataclasses.dataclass(frozen=True)
class Case:
    """A workload: points that differ only in their learning rate; units as in configs/base.py."""

    points: int
    steps: int
    d_model: int
    num_layers: int
    d_head: int
    vocab_size: int  # at 256 a token is a byte; above, a pair of bytes, folded
    batch_size: int
    seq_len: int


NARROW = Case(
    8, 100, d_model=64, num_layers=2, d_head=16, vocab_size=256, batch_size=16, seq_len=64
)
MIDDLE = Case(
    8, 100, d_model=128, num_layers=4, d_head=32, vocab_size=8192, batch_size=8, seq_len=128
)
CASES = {
    "narrow-8": NARROW,
    "narrow-32": dataclasses.replace(NARROW, points=32, steps=25),
    "middle-8": MIDDLE,
    "middle-32": dataclasses.replace(MIDDLE, points=32, steps=10),
    "narrow-128-8": dataclasses.replace(NARROW, d_model=128),
}


def start(*args) -> dict:
    """Runs a child to its end and returns what it printed."""
    # Every child has JAX's defaults.
    unset = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR")
    env = {key: value for key, value in os.environ.items() if key not in unset}
    # The mujax of this checkout.
    env |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": str(CHILD.parents[2])}
    command = [sys.executable, CHILD, *map(str, args)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, modes: Sequence[str]) -> list[dict]:
    """Returns one result per mode.

    Raises:
      RuntimeError: two modes disagree on a loss, so that they have not done the same work.
    """
    case, about, losses, results = CASES[name], start(), {}, []
    for mode in modes:
        # The processes of points run one after the other, each with all cores.
        spans = [[i] for i in range(case.points)] if mode == "process" else [range(case.points)]
        began = time.perf_counter()
        parts = [start(mode, name, *span) for span in spans]
        seconds = time.perf_counter() - began
        losses[mode] = [loss for part in parts for point in part["losses"] for loss in point]
        work = {"case": name, "mode": mode, "points": case.points, "steps": case.steps}
        times = {
            "seconds": round(seconds, 2),
            "points_per_hour": round(3600 * case.points / seconds, 1),
        }
        results.append({**work, **times, **about, "date": datetime.date.today().isoformat()})
        differences = [
            abs(a - b) / abs(a) for a, b in zip(losses[modes[0]], losses[mode], strict=True)
        ]
        print(
            f"{name}, {mode}: {times}, losses within {max(differences):.1e} of {modes[0]}",
            file=sys.stderr,
        )
        if not all(difference <= TOLERANCE for difference in differences):  # also at NaN
            raise RuntimeError(f"{name}: {mode} and {modes[0]} have not done the same work")
    return results


def read_results() -> dict[tuple[str, str, str], dict]:
    """Returns {(device, case, mode): result}."""
    results = (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    return {(r["device"], r["case"], r["mode"]): r for r in results}


def keep(results: Sequence[dict]) -> None:
    """Replaces older results of the same device, case and mode; the file is rewritten whole."""
    merged = read_results() | {(r["device"], r["case"], r["mode"]): r for r in results}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(result) + "\n" for result in merged.values()))
    temporary.replace(RESULTS)


def table(device: str, cases: Mapping[str, Sequence[dict]]) -> str:
    origins = {
        f"jax {r['jax_version']}, mujax {r['code_version']}"
        for of_case in cases.values()
        for r in of_case
    }
    lines = [f"{device}; {'; '.join(sorted(origins))}:", ""]
    lines += [
        "| case | points x steps | process (s) | loop (s) | engine (s) | engine / process | "
        "engine / loop |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, of_case in cases.items():
        *others, engine = of_case
        seconds = " | ".join(f"{r['seconds']:.0f}" for r in of_case)
        ratios = " | ".join(
            f"{engine['points_per_hour'] / r['points_per_hour']:.2f}x" for r in others
        )
        lines.append(f"| {name} | {engine['points']} x {engine['steps']} | {seconds} | {ratios} |")
    return "\n".join(lines)


def plot(devices: Mapping[str, Mapping[str, Sequence[dict]]], file: Path) -> None:
    """Plots points per hour relative to one process per point: a panel per device."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        size = (max(7, 1.8 * max(map(len, devices.values())) + 1.6), 3.6 * len(devices))
        fig, axes = plt.subplots(len(devices), figsize=size, squeeze=False, layout="constrained")
        for ax, (device, cases) in zip(axes[:, 0], devices.items(), strict=True):
            for k, (label, color) in enumerate(
                zip(MODES.values(), ("#9fb8ad", "#00798c", "#d1495b"), strict=True)
            ):
                rates = [r[k]["points_per_hour"] / r[0]["points_per_hour"] for r in cases.values()]
                bars = ax.bar(
                    [x + 0.27 * (k - 1) for x in range(len(cases))],
                    rates,
                    0.25,
                    color=color,
                    label=label,
                )
                ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
            work = [
                f"{name}\n{r[0]['points']} points x {r[0]['steps']} steps"
                for name, r in cases.items()
            ]
            ax.set_xticks(range(len(cases)), work)
            ax.margins(y=0.12)
            ax.set(title=device, ylabel="points per hour, relative\nto a process per point")
        fig.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        fig.savefig(file, dpi=150)


def report() -> None:
    """Prints a table per device, and writes the figure, for cases that all modes finished."""
    results = read_results()
    devices: dict[str, dict[str, list[dict]]] = {}
    for device in dict.fromkeys(device for device, *_ in results):
        for name in CASES:
            if all((device, name, mode) in results for mode in MODES):
                devices.setdefault(device, {})[name] = [
                    results[device, name, mode] for mode in MODES
                ]
    if not devices:
        sys.exit(f"{RESULTS} holds no case that all modes have finished")
    print("\n\n".join(table(device, cases) for device, cases in devices.items()))
    plot(devices, Path(__file__).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", default="", help=f"of {', '.join(CASES)}; several between commas")
    parser.add_argument(
        "--modes", default=",".join(MODES), help="several between commas; all by default"
    )
    parser.add_argument(
        "--plot", action="store_true", help="table and figure of what has been measured"
    )
    args = parser.parse_args()
    cases, modes = (text.split(",") if text else [] for text in (args.case, args.modes))
    if not (set(cases) <= set(CASES) and set(modes) <= set(MODES) and (cases or args.plot)):
        parser.error(
            f"give --case of {', '.join(CASES)}, with --modes of {', '.join(MODES)}; or --plot"
        )
    for name in cases:
        keep(measure(name, modes))
    if args.plot:
        report()


if __name__ == "__main__":
    main()
