"""Rows and points with ids of an earlier schema, given those of today by the configs that they were
trained with."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mujax.config import (
    RunConfig,
    canonical,
    config_of_today,
    hashed,
    is_of_today,
    make_run_config,
    renamed_fields,
)
from mujax.errors import UserError
from mujax.storage import files
from mujax.storage.records import Row, load_rows
from mujax.sweep.grid import expand_sweep
from mujax.sweep.settings import Settings, is_single_run, record_of


class Workdir(NamedTuple):
    """The content of a sweep's or a single run's workdir, as today's code would have written it.

    record: see sweep.settings.record_of. old_names: id -> the id in the files, where that is
    another one.
    """

    record: dict[str, Any]
    rows: list[Row]
    old_names: Mapping[str, str]


def read_workdir(root: Path) -> Workdir:
    """Reads a workdir, and changes nothing in it.

    Raises:
      UserError: a file is damaged, or a run of an earlier schema has a config that none can have
        today.
    """
    record, rows = record_of(root), load_rows(root) or []
    try:
        runs = _earlier_single(record, rows) if is_single_run(root) else _earlier(record, rows)
    except UserError as e:
        code = next((row.get("code_version") for row in rows), "an earlier version")
        raise UserError(f"{root} was written by {code}, and its runs cannot be read: {e}") from e
    if not runs:
        return Workdir(record, rows, {})
    for row in rows:
        if row["id"] in runs:
            row["id"] = runs[row["id"]].id
            row["overrides"] = renamed_fields(row["overrides"])
            row.pop("group", None)  # of the earlier schema too
    return Workdir(_of_today(record, rows, runs), rows, {cfg.id: old for old, cfg in runs.items()})


def carry_over(root: Path) -> None:
    """Writes what a sweep of an earlier version has left as today's code would have; the files as
    they were are kept in earlier/.

    The manifest comes last: a call that was cut short is made again.

    Raises:
      UserError: see read_workdir.
    """
    workdir = read_workdir(root)
    if not workdir.old_names:
        return
    folder = files.keep_copies(root, ("manifest.json", "results.jsonl"))
    for new, old in workdir.old_names.items():
        if (root / "points" / old).exists():
            files.move(root / "points" / old, root / "points" / new)
    if workdir.rows:
        files.write_jsonl(root / "results.jsonl", workdir.rows)
    files.write_json(root / "manifest.json", workdir.record)
    print(
        f"{root}: {len(workdir.old_names)} points have ids of today; as they were: {folder}",
        file=sys.stderr,
    )


def _earlier_single(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, RunConfig]:
    """Returns the run of `mujax train`, by its id if that is of an earlier schema."""
    old = [row["id"] for row in rows if not is_of_today(row["id"])]
    return {id: make_run_config(config_of_today(record["config"])) for id in old}


def _earlier(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, RunConfig]:
    """Returns the runs of a sweep that have ids of an earlier schema, by these."""
    if not record:
        return {}
    settings, configs = Settings(record), record.get("merged", [record["config"]])
    named = [{"id": id} for id in record.get("points", {})] or rows
    found: list[dict[str, Any]] = [{} for _ in configs]
    for row in named:
        entry = settings.entry(row)
        if not is_of_today(row["id"]) and entry.config is not None:
            number = next(i for i, c in enumerate(settings.configs) if c is entry.config)
            found[number][row["id"]] = renamed_fields(entry.overrides or {})
    runs: dict[str, RunConfig] = {}
    for config, points in zip(configs, found, strict=True):
        if points:
            tree = {**config_of_today(config), "sweep": {"points": tuple(points.values())}}
            runs |= dict(zip(points, (cfg for _, cfg in expand_sweep(tree)), strict=True))
    return runs


def _of_today(
    record: Mapping[str, Any], rows: Sequence[Row], runs: Mapping[str, RunConfig]
) -> dict[str, Any]:
    """Returns the record of a workdir whose rows have ids of today."""
    by_id = {cfg.id: cfg for cfg in runs.values()}
    points = {
        runs[id].id if id in runs else id: {
            **point,
            "overrides": renamed_fields(point.get("overrides", {})),
        }
        for id, point in record.get("points", {}).items()
    }
    data = {
        hashed(canonical(by_id[row["id"]].data)): row["data_fingerprint"]
        for row in rows
        if row["id"] in by_id and "data_fingerprint" in row
    }
    found = {**record, "config": config_of_today(record["config"])}
    if "merged" in record:
        found["merged"] = [config_of_today(config) for config in record["merged"]]
    if "points" in record:
        found["points"] = points
    if "data" in record:
        is_all = all(row["id"] in by_id for row in rows)
        found["data"] = data if is_all else {**record["data"], **data}
    return found
