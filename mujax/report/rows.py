"""Rows of results, read and checked, from the workdir of a sweep or a run, or from several."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from mujax.errors import UserError
from mujax.report.curves import TrainingCurve
from mujax.report.studies import Naming
from mujax.storage import files, records
from mujax.storage.records import first_by_id, is_number, read_manifest, read_metrics
from mujax.sweep.settings import Fields, Settings, among, comparable, is_single_run, record_of

MAX_RUNS, MAX_STEPS = 3000, 200  # training curves on the page, and points per curve
MAX_TRAINING_POINTS = 120_000


class Row(records.Row):
    """A row with its workdir and the config it was trained with, by dotted field.

    config: None if it is unknown. Rows of a table from elsewhere have neither config nor workdir.
    """

    config: Fields | None
    folder: Path


def load_rows(workdir: str | Path, flag: str = "workdir") -> tuple[list[Row], int]:
    """Returns the rows of a sweep's or a run's workdir, and the number of repeated rows.

    Of rows with one id the first counts.

    Raises:
      UserError: no workdir, no rows, or a row that mujax did not write.
    """
    root = files.local_path(workdir)
    if not root.is_dir():
        raise UserError(f"--{flag}={workdir}: no such folder")
    found = records.load_rows(root)
    if found is None:
        raise UserError(
            f"--{flag}={workdir} has no results.jsonl and no result.json: run mujax sweep or "
            "train first"
        )
    if not found:
        raise UserError(f"--{flag}={workdir}: results.jsonl is empty; no point has finished yet")
    rows, settings = [], Settings(record_of(root))
    for row in first_by_id(found).values():
        entry = settings.entry(row)
        own = {} if entry.overrides is None else {"overrides": entry.overrides}
        rows.append(cast(Row, {**row, **own, "config": entry.config, "folder": root}))
    return rows, len(found) - len(rows)


def load_sources(
    workdir: str | Path, patterns: Sequence[str]
) -> tuple[dict[str, list[Row]], dict[str, Path], int]:
    """Returns rows and folder of each source by name, and the number of repeated rows.

    The workdir's own source comes first if it holds any rows. A source is named as its folder, with
    as much of the path as tells it apart. The row of a single run joins the sweep whose point it is
    or could be; other single runs form one source.

    Raises:
      UserError: see load_rows.
    """
    own = files.local_path(workdir)
    folders = (
        [own] if any((own / name).exists() for name in ("results.jsonl", "result.json")) else []
    )
    folders += [folder for pattern in patterns for folder in files.find_folders(pattern)]
    folders = list({folder.resolve(): folder for folder in folders})
    loaded = {folder: load_rows(folder, "sources") for folder in folders}
    repeated = sum(again for _, again in loaded.values())
    rows = {folder: found for folder, (found, _) in loaded.items() if not is_single_run(folder)}
    singles = [row for folder in folders if folder not in rows for row in loaded[folder][0]]
    alone, sweeps = [], [_Sweep(folder, rows[folder]) for folder in rows if singles]
    for row in singles:
        home = next((sweep.folder for sweep in sweeps if sweep.takes(row)), None)
        if home is None:
            alone.append(row)
        elif any(_is_one_run(row, other) for other in rows[home]):
            repeated += 1
        else:
            rows[home].append(row)
    if alone:
        bases = []
        for row in alone:
            if row["config"] is not None:
                row["config"], row["overrides"] = among(row["config"], bases)
        first = first_by_id(alone)
        rows[alone[0]["folder"]] = list(first.values())
        repeated += len(alone) - len(first)
    depth, names = 1, [folder.name for folder in rows]
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(folder.parts[-depth:]) for folder in rows]
    if len(alone) > 1:
        names[-1] = "single runs"
    return (
        dict(zip(names, rows.values(), strict=True)),
        dict(zip(names, rows, strict=True)),
        repeated,
    )


def _is_one_run(row: Row, other: Row) -> bool:
    """Returns whether two rows of a sweep are of one run, which ids of two schemas name
    differently."""
    a, b = row["config"], other["config"]
    if row["id"] == other["id"] or a is None or b is None:
        return row["id"] == other["id"]
    return comparable({**a, **row["overrides"]}) == comparable({**b, **other["overrides"]})


class _Sweep:
    """A sweep that single runs may join."""

    def __init__(self, folder: Path, rows: Sequence[Row]):
        self.folder, self._settings = folder, Settings(record_of(folder))
        self._own = self._settings.own_fields(rows)
        # The same objects that the sweep's rows hold, as rows of one config are grouped by
        # identity.
        known = list(
            {id(row["config"]): row["config"] for row in rows if row["config"] is not None}.values()
        )
        self._configs = [
            next((same for same in known if same == config), config)
            for config in self._settings.configs
        ]

    def takes(self, row: Row) -> bool:
        """Tells whether a single run is or could be a point of this sweep.

        If so, its row is given the sweep's config and its own overrides.
        """
        found = self._settings.place(row, row["config"], self._own)
        if found is not None:
            row["config"], row["overrides"] = self._configs[found[0]], found[1]
        return found is not None


def load_training(
    rows: Sequence[Row], best: Mapping[tuple[str, int], float], naming: Naming
) -> tuple[list[TrainingCurve], int]:
    """Returns training curves from the metrics.jsonl of runs, and how many there are.

    If there are more than MAX_RUNS, those next to the best learning rate (log2, by study and width)
    are read. Long curves are thinned to MAX_STEPS points each, and to MAX_TRAINING_POINTS in all.
    """
    found = []
    for row in rows:
        home = row["folder"]
        candidates = (home / "points" / row["id"] / "metrics.jsonl", home / "metrics.jsonl")
        if file := next((file for file in candidates if file.exists()), None):
            key = (naming.name(row), row["width"])
            x = math.log2(naming.rate(row))
            found.append((abs(x - best.get(key, x)), len(found), *key, x, row["seed"], file))
    chosen = sorted(sorted(found)[:MAX_RUNS], key=lambda item: item[1])
    limit, curves = max(8, min(MAX_STEPS, MAX_TRAINING_POINTS // max(len(chosen), 1))), []
    for _, _, study, width, x, seed, file in chosen:
        records = [r for r in read_metrics(file) if is_number(r.get("loss"))]
        if records:
            stride = -(-len(records) // limit)
            kept = records[: -1 if len(records) > 1 else 1 : stride] + records[-1:] * (
                len(records) > 1
            )
            steps, losses = zip(*((r["step"], r["loss"]) for r in kept), strict=True)
            curves.append(TrainingCurve(study, width, x, seed, steps, losses))
    return curves, len(found)


def warnings(root: Path, rows: Sequence[Row], repeated: int = 0) -> list[str]:
    """Returns warnings about points that are missing and rows that do not belong together."""
    found = []
    if (root / "manifest.json").exists():
        manifest = read_manifest(root / "manifest.json")
        num_points, notes = len(manifest.get("points", {})), manifest.get("refinement")
        if len(rows) < num_points:
            found.append(f"{len(rows)} of {num_points} points have finished; curves are incomplete")
        notes = notes if isinstance(notes, list) else []
        found += [f"refinement of {note}" for note in notes if "no further" in str(note)]
    if repeated:
        found.append(f"{repeated} rows repeat the id of another; the first of each counts")
    if stopped := sum(row["status"] == "stopped" for row in rows):
        found.append(
            f"{stopped} runs were given up by the rule of train.give_up_step; here they count as "
            "diverged"
        )
    if untold := sum(row.get("config") is None for row in rows):
        found.append(
            f"{untold} rows do not tell their whole config ({_why_untold(root)}); what they carry "
            "themselves decides which of them count as seeds of each other"
        )
    if lost := sum(row["status"] == "ok" and row["final_loss"] is None for row in rows):
        found.append(f"{lost} rows have no loss although they did not diverge; they are left out")
    return found + mixed(rows)


def _why_untold(root: Path) -> str:
    settings = Settings(record_of(root))
    if len(settings.configs) > 1:
        return (
            f"manifest.json has {len(settings.configs)} configs and does not say of which; merge "
            "the sources again"
        )
    if settings.configs == [None]:
        return f"there is no {'config in ' * (root / 'manifest.json').exists()}manifest.json"
    return "they are no points of manifest.json"


def mixed(rows: Sequence[Row]) -> list[str]:
    """Returns warnings about rows that were made with different text or code."""
    found = []
    for field in ("data_fingerprint", "code_version", "jax_version"):
        values = dict.fromkeys(str(row[field]) for row in rows if field in row)
        if len(values) > 1:
            shown = ", ".join(list(values)[:6]) + (
                f" and {len(values) - 6} more" if len(values) > 6 else ""
            )
            found.append(f"rows differ in {field.replace('_', ' ')}: {shown}")
    return found
