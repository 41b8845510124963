"""Results of several workdirs, joined without duplicates."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.config import DataConfig, canonical, config_of_today, hashed, typed_section
from mujax.errors import UserError
from mujax.storage import files, locks
from mujax.storage.records import Row, check_regular, first_by_id
from mujax.sweep.migration import Workdir, carry_over, read_workdir
from mujax.sweep.settings import Settings, is_single_run, run_fields

# Two rows of one run that differ in one of these are not of one run
_IDENTITY = ("table_hash", "data_fingerprint")


def merge(workdir: str, sources: Sequence[str]) -> str:
    """Adds to `workdir` the rows and curves of other workdirs that it does not have; returns a line
    that says how many.

    Of several rows with one id the first counts: those of `workdir`, then in the order of the
    sources. A run that was trained alone becomes a point of the sweep whose config it has, wherever
    among the sources that is.

    Args:
      sources: workdirs of sweeps or of single runs, or patterns of them.

    Raises:
      UserError: a source is neither, or two disagree about table or data of one id; nothing has
        been written.
    """
    folders = [folder for source in sources for folder in files.find_folders(source)]
    root = files.make_writable(files.local_path(workdir))
    if (root / "config.json").exists():
        raise UserError(
            f"--workdir={workdir} holds config.json, the record of a single run; choose a new "
            "workdir"
        )
    folders = [folder for folder in folders if folder.resolve() != root.resolve()]
    folders.sort(key=is_single_run)  # after the sweeps that they may be points of
    with locks.locked(root):
        carry_over(root)
        own = read_workdir(root)
        manifest, rows, added, again, unfinished = _manifest(root, own), _rows(own), [], 0, 0
        for folder in folders:
            source = read_workdir(folder)
            other = _manifest(folder, source)
            if not other:
                raise UserError(
                    f"--sources: {folder} holds neither manifest.json nor config.json; it is no "
                    "workdir of a sweep or run"
                )
            if is_single_run(folder):
                if not other["points"]:
                    unfinished += 1
                    continue
                (row,) = _rows(source).values()
                other = _as_points(other, row, manifest, rows)
            for row in _rows(source).values():
                if row["id"] not in rows:
                    if is_single_run(folder):
                        row["overrides"] = other["points"][row["id"]]["overrides"]
                    rows[row["id"]] = row
                    name = source.old_names.get(row["id"], row["id"])
                    added.append((_curve(folder, name), row))
                    continue
                again += 1
                for field in _IDENTITY:
                    if row.get(field) != rows[row["id"]].get(field):
                        raise UserError(
                            f"{folder}: point {row['id']} has {field} {row.get(field)}, elsewhere "
                            f"{rows[row['id']].get(field)}; results of different code or data "
                            "cannot be joined"
                        )
            manifest = _joined(manifest, other, folder)
        for curve, _ in added:
            check_regular(curve)
        files.write_json(root / "manifest.json", manifest)
        files.drop_torn_line(root / "results.jsonl")
        for curve, row in added:
            if curve.exists():
                target = root / "points" / row["id"] / "metrics.jsonl"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(curve, target)
            files.append_jsonl(root / "results.jsonl", row)
    left_out = f"; {unfinished} runs have not finished" if unfinished else ""
    return (
        f"{root}: {len(added)} rows added, {again} were there already, {len(rows)} in all{left_out}"
    )


def _curve(folder: Path, id: str) -> Path:
    """Returns where a workdir has the training curve of a run."""
    return (
        folder / "metrics.jsonl"
        if is_single_run(folder)
        else folder / "points" / id / "metrics.jsonl"
    )


def _manifest(folder: Path, workdir: Workdir) -> dict[str, Any]:
    """Returns what a workdir says of itself, with an entry for each of its points that names its
    config by number."""
    record, rows = workdir.record, _rows(workdir)
    if not record:
        return {}
    if is_single_run(folder):
        return {
            **record,
            "points": {name: _entry(row, {}) for name, row in rows.items()},
            "data": _data(record, rows),
        }
    settings, points = Settings(record), dict(record.get("points", {}))
    if "points" not in record:  # of results that were kept without them
        points = {id: _entry(row, row.get("overrides", {})) for id, row in rows.items()}
    fields = {id(config): number for number, config in enumerate(settings.configs)}
    for row in [*({"id": name} for name in points), *rows.values()]:
        config = settings.entry(row).config
        if row["id"] in points and config is not None and len(fields) > 1:
            points[row["id"]] = {**points[row["id"]], "config": fields[id(config)]}
    return {**record, "points": points}


def _entry(row: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {"overrides": overrides, "table_hash": row.get("table_hash")}


def _data(record: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fingerprint of a single run's text, under the name of its data section, as a
    manifest has it."""
    section = config_of_today(record["config"]).get("data", {})
    name = hashed(canonical(typed_section(DataConfig, section, "data")))
    fingerprints = [row.get("data_fingerprint") for row in rows.values()]  # one, if it has finished
    return dict.fromkeys([name], fingerprints[0]) if fingerprints else {}


def _as_points(
    run: Mapping[str, Any], row: Row, manifest: Mapping[str, Any], rows: Mapping[str, Row]
) -> dict[str, Any]:
    """Returns the record of a single run as that of the sweep in `manifest` that it is a point of;
    if there is none, as it is.

    row: of the single run. rows: of the sweep.
    """
    ((name, point),), settings = run["points"].items(), Settings(manifest)
    found = settings.place(row, run_fields(run["config"]), settings.own_fields(rows.values()))
    if found is None:
        return dict(run)
    number, overrides = found
    points = {name: {**point, "overrides": overrides}}
    return {"config": _configs(manifest)[number], "data": run["data"], "points": points}


def _rows(workdir: Workdir) -> dict[str, Row]:
    """Returns rows by run id; of duplicates the first."""
    return first_by_id(workdir.rows)


def _configs(manifest: Mapping[str, Any]) -> list[Any]:
    return manifest.get("merged", [manifest["config"]]) if manifest else []


def _joined(a: Mapping[str, Any], b: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Joins two manifests: parts of one sweep stay that sweep, others become a list of configs.

    No sweep takes such a list for its own; each point says by number which config is its own.
    """
    a = a or {"config": b["config"]}
    for data, fingerprint in b.get("data", {}).items():
        if a.get("data", {}).get(data, fingerprint) != fingerprint:
            raise UserError(
                f"{folder} was trained on other text (fingerprint {fingerprint}, elsewhere "
                f"{a['data'][data]}); results of different data cannot be joined"
            )
    distinct: list[Any] = []
    points: dict[str, Any] = {}
    for manifest in (a, b):
        numbers = []
        for config in _configs(manifest):
            same = [i for i, other in enumerate(distinct) if files.is_same_study(other, config)]
            numbers.append(same[0] if same else len(distinct))
            if not same:
                distinct.append(config)
        for name, point in manifest.get("points", {}).items():
            number = (
                numbers[point.get("config", 0)] if len(numbers) == 1 or "config" in point else None
            )
            points.setdefault(name, {**point, "config": number})
    for point in points.values():
        if len(distinct) == 1 or point["config"] is None:
            # of the one, or of results merged before points said so
            del point["config"]
    which = (
        {"config": distinct[0]}
        if len(distinct) == 1
        else {"config": {"merged": "several"}, "merged": distinct}
    )
    return {
        **which,
        "data": {**a.get("data", {}), **b.get("data", {})},
        "points": points,
        "refinement": list(dict.fromkeys([*a.get("refinement", ()), *b.get("refinement", ())])),
    }
