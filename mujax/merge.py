"""Results of several workdirs, joined without duplicates."""

import glob
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax import workdir as files
from mujax.errors import UserError

# Two rows of one run that differ in one of these are not of one run
_IDENTITY = ("table_hash", "data_fingerprint")


def merge(workdir: str, sources: Sequence[str]) -> str:
    """Adds to `workdir` the rows and curves of other workdirs that it does not have; returns a line that says how many.

    Of several rows with one id the first counts: those of `workdir`, then in the order of the sources.

    Args:
      sources: workdirs of sweeps, or patterns of them.

    Raises:
      UserError: a source is no sweep, or two disagree about table or data of one id; nothing has been written.
    """
    folders = [folder for source in sources for folder in _expand(source)]
    root = files.make_writable(files.local_path(workdir))
    if (root / "config.json").exists():
        raise UserError(f"--workdir={workdir} holds config.json, the record of a single run; choose a new workdir")
    folders = [folder for folder in folders if folder.resolve() != root.resolve()]
    with files.locked(root):
        manifest, rows, added, again = _read(root), _rows(root), [], 0
        for folder in folders:
            other = _read(folder)
            if not other:
                raise UserError(f"--sources: {folder} holds no manifest.json; it is not the workdir of a sweep")
            for row in _rows(folder).values():
                if row["id"] not in rows:
                    rows[row["id"]] = row
                    added.append((folder, row))
                    continue
                again += 1
                for field in _IDENTITY:
                    if row.get(field) != rows[row["id"]].get(field):
                        raise UserError(
                            f"{folder}: point {row['id']} has {field} {row.get(field)}, elsewhere "
                            f"{rows[row['id']].get(field)}; results of different code or data cannot be joined"
                        )
            manifest = _joined(manifest, other, folder)
        files.write_json(root / "manifest.json", manifest)
        files.drop_torn_line(root / "results.jsonl")
        for folder, row in added:
            curve = folder / "points" / row["id"] / "metrics.jsonl"
            if curve.exists():
                target = root / "points" / row["id"] / "metrics.jsonl"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(curve, target)
            files.append_jsonl(root / "results.jsonl", row)
    return f"{root}: {len(added)} rows added, {again} were there already, {len(rows)} in all"


def _expand(pattern: str) -> list[Path]:
    folders = [Path(name) for name in sorted(glob.glob(str(files.local_path(pattern)))) if Path(name).is_dir()]
    if not folders:
        raise UserError(f"--sources: no folder {pattern}")
    return folders


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "manifest.json"
    return files.read_json(file) if file.exists() else {}


def _rows(folder: Path) -> dict[str, Any]:
    """By id; the first of each."""
    file = folder / "results.jsonl"
    rows: dict[str, Any] = {}
    for number, row in enumerate(files.read_jsonl(file) if file.exists() else (), start=1):
        if not isinstance(row.get("id"), str):
            raise UserError(f"{file}, row {number} has no id")
        rows.setdefault(row["id"], row)
    return rows


def _joined(a: Mapping[str, Any], b: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Parts of one sweep stay that sweep; others become a list of configs, which no sweep takes for its own."""
    a = a or {"config": b["config"]}
    for data, fingerprint in b.get("data", {}).items():
        if a.get("data", {}).get(data, fingerprint) != fingerprint:
            raise UserError(
                f"{folder} was trained on other text (fingerprint {fingerprint}, elsewhere {a['data'][data]}); results "
                "of different data cannot be joined"
            )
    configs = [*a.get("merged", [a["config"]]), *b.get("merged", [b["config"]])]
    studies = [files.same_study(config) for config in configs]
    distinct = [config for i, config in enumerate(configs) if studies[i] not in studies[:i]]
    which = {"config": distinct[0]} if len(distinct) == 1 else {"config": {"merged": "several"}, "merged": distinct}
    return {
        **which,
        "data": {**a.get("data", {}), **b.get("data", {})},
        "points": {**b.get("points", {}), **a.get("points", {})},
        "refinement": list(dict.fromkeys([*a.get("refinement", ()), *b.get("refinement", ())])),
    }
