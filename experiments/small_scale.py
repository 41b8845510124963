"""Both papers at small scale: runs missing studies, keeps their rows, and repeats a part of them.

    python experiments/small_scale.py run lingle2024
        trains every study; with names, these: run lingle2024 baseline sp
    python experiments/small_scale.py keep lingle2024
        copies the rows of finished studies to experiments/lingle2024/small
    python experiments/small_scale.py again lingle2024 --share=0.1
        trains a random tenth of the kept points, and compares losses

The same for kalra2026. `run` writes to runs/small and resumes after an interruption. STUDIES lists
the studies; the configs say what each changes.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs.kalra2026 import studies as kalra2026
from configs.lingle2024 import ablations as lingle2024
from mujax.cli.devices import make_cores_devices

ROOT = Path(__file__).parents[1]
MODULES = {"lingle2024": lingle2024, "kalra2026": kalra2026}
SOURCES = {
    "lingle2024": "configs/lingle2024/ablations.py",
    "kalra2026": "configs/kalra2026/studies.py",
}
STUDIES = {
    "lingle2024": tuple(lingle2024.ABLATIONS | lingle2024.REASONS),
    "kalra2026": tuple(kalra2026.STUDIES | kalra2026.REASONS),
}
# A second sweep adds seeds: in studies that have some, at the two narrowest widths, where runs are
# cheap and optima flat; in the factorial, which has one per point, without decay
NARROW_SEEDS = {"lingle2024": 9, "kalra2026": 3}
TOLERANCE = 1e-3  # nats, for a point that is repeated on the same kind of device
# Fields of a committed row: those that a report reads, and the row's origin
KEPT = (
    "id", "status", "diverged_at_step", "width", "parameterization", "learning_rate",
    "weight_decay", "seed", "steps", "tokens", "final_loss", "best_loss", "n_params", "overrides",
    "table_hash", "data_fingerprint", "code_version", "jax_version", "device", "seconds",
)  # fmt: skip


def which(paper: str, name: str) -> str:
    return f"{SOURCES[paper]}:{name},scale=small"


def run(paper: str, name: str) -> int:
    """Returns the exit code of a study's sweep or, if that succeeds, of the one that adds seeds."""
    sweeps = [(name, []), *more_seeds(paper, name)]
    return next(
        (code for folder, flags in sweeps if (code := run_sweep(paper, name, folder, *flags))), 0
    )


def more_seeds(paper: str, name: str) -> list[tuple[str, list[str]]]:
    """Returns folder and flags of the second sweep, if any."""
    if name == "factorial":
        return [
            (
                f"{name}-no_decay",
                ["--config.sweep.optim.weight_decay=(0.0,)", "--config.refine.num_seeds=3"],
            )
        ]
    config = MODULES[paper].get_config(f"{name},scale=small")
    widths, seeds = config.sweep.get("model", {}).get("d_model", ()), NARROW_SEEDS[paper]
    if not widths or not 0 < config.refine.num_seeds < seeds:
        return []
    flags = [f"--config.sweep.model.d_model={widths[:2]}", f"--config.refine.num_seeds={seeds}"]
    return [(f"{name}-narrow", flags)]


def run_sweep(paper: str, name: str, folder_name: str, *flags: str) -> int:
    """Runs a sweep and returns its exit code.

    Points that another sweep has trained count as done if their table and text are the same; `keep`
    leaves out points of other studies.
    """
    folder = ROOT / "runs" / "small" / paper / folder_name
    if not (folder / "results.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        others = [file.read_text() for file in sorted(folder.parent.glob("*/results.jsonl"))]
        # Each row once, without a last line that is still being written.
        lines = dict.fromkeys(
            line for text in others for line in text[: text.rfind("\n") + 1].splitlines()
        )
        (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
    # Studies that differ only in numbers share compiled programs.
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / "runs" / "small" / "programs")}
    command = [
        sys.executable,
        "-m",
        "mujax",
        "sweep",
        f"--config={which(paper, name)}",
        f"--workdir={folder}",
        *flags,
    ]
    start = time.time()
    code = subprocess.run(command, cwd=ROOT, env=env).returncode
    print(
        f"{folder_name}: exit code {code} after {time.time() - start:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return code


def keep(paper: str, name: str) -> bool:
    """Copies rows and config of a study, without training curves.

    Returns False, and copies nothing, if points are missing.
    """
    source, target = (
        ROOT / "runs" / "small" / paper / name,
        ROOT / "experiments" / paper / "small" / name,
    )
    points, by_id, manifests = {}, {}, {}
    for folder in (source, *(source.with_name(other) for other, _ in more_seeds(paper, name))):
        if (folder / "manifest.json").exists():
            manifests[folder.name] = json.loads((folder / "manifest.json").read_text())
            points |= manifests[folder.name]["points"]
            by_id |= {
                row["id"]: row
                for row in map(json.loads, (folder / "results.jsonl").read_text().splitlines())
            }
        elif manifests:
            print(f"{name}: {folder.name}, which adds seeds, has not been run", file=sys.stderr)
    if missing := points.keys() - by_id.keys():
        print(
            f"{name}: {len(missing)} of {len(points)} points have not finished; not kept",
            file=sys.stderr,
        )
        return False
    target.mkdir(parents=True, exist_ok=True)
    rows = [
        {field: by_id[i][field] for field in KEPT} | {"overrides": points[i]["overrides"]}
        for i in points
    ]
    lines = [json.dumps(row) for row in rows]
    (target / "results.jsonl").write_text("\n".join(lines) + "\n")
    # The manifests of both sweeps tell how curves were refined.
    kept = {"config": manifests[name]["config"]}
    kept["refinement"] = {folder: manifest["refinement"] for folder, manifest in manifests.items()}
    (target / "manifest.json").write_text(json.dumps(kept, indent=1) + "\n")
    diverged = sum(row["status"] == "diverged" for row in rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    print(
        f"{name}: {len(rows)} points, {diverged} diverged, {minutes:.1f} min of training on "
        f"{rows[0]['device']}"
    )
    return True


def again(paper: str, names: tuple[str, ...], share: float, seed: int) -> None:
    """Trains a random part of the kept points again, and prints how far their losses are apart.

    Exits with 1 if losses differ by more than TOLERANCE, and with 2 if the text differs, as with
    another version of Python.
    """
    make_cores_devices()
    from mujax.sweep.study import sweep

    kept = {name: kept_rows(paper, name) for name in names}
    every = [(name, row) for name, rows in kept.items() for row in rows]
    chosen = random.Random(seed).sample(every, max(1, round(share * len(every))))
    worst = 0.0
    for name in names:
        rows = [row for other, row in chosen if other == name]
        if not rows:
            continue
        config = MODULES[paper].get_config(f"{name},scale=small")
        config.sweep = {"points": tuple(row["overrides"] for row in rows)}
        config.refine.log2_step = 0.0
        with tempfile.TemporaryDirectory() as folder:
            repeated = {row["id"]: row for row in sweep(config.to_dict(), folder)}
        for row in rows:
            other = repeated[row["id"]]
            if other["data_fingerprint"] != row["data_fingerprint"]:
                sys.exit(
                    f"{name}: rows are of text {row['data_fingerprint']}, here it is "
                    f"{other['data_fingerprint']}"
                )
            worst = max(worst, compare(name, row, other))
    print(f"{len(chosen)} of {len(every)} points again: losses at most {worst:.2e} nats apart")
    if worst > TOLERANCE:
        sys.exit(1)


def kept_rows(paper: str, name: str) -> list[dict[str, Any]]:
    file = ROOT / "experiments" / paper / "small" / name / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def compare(name: str, row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Returns the difference of a point's two losses, nats; inf if one of them diverged."""
    if (row["final_loss"] is None) != (other["final_loss"] is None):
        print(f"{name}, {row['overrides']}: {row['final_loss']}, now {other['final_loss']}")
        return float("inf")
    return abs(row["final_loss"] - other["final_loss"]) if row["final_loss"] is not None else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "keep", "again"))
    parser.add_argument("paper", choices=tuple(STUDIES))
    parser.add_argument("studies", nargs="*", help="default: all")
    parser.add_argument(
        "--share", type=float, default=0.1, help="of the points that `again` trains"
    )
    parser.add_argument("--seed", type=int, default=0, help="of which points these are")
    args = parser.parse_args()
    names = tuple(args.studies) or STUDIES[args.paper]
    if unknown := set(names) - set(STUDIES[args.paper]):
        parser.error(
            f"no study {', '.join(sorted(unknown))}; one of {', '.join(STUDIES[args.paper])}"
        )
    if args.verb == "run":
        sys.exit(next((code for name in names if (code := run(args.paper, name))), 0))
    if args.verb == "keep":
        begun = [
            name
            for name in names
            if (ROOT / "runs" / "small" / args.paper / name / "manifest.json").exists()
        ]
        sys.exit(0 if all([keep(args.paper, name) for name in begun]) else 1)
    else:
        again(args.paper, names, args.share, args.seed)


if __name__ == "__main__":
    main()
