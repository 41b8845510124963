"""Ownership of a workdir: a run may resume from it if config, table and data match, except for
allowed changes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.config import is_of_today, leaves
from mujax.errors import UserError, suggest
from mujax.storage import files
from mujax.storage.records import Row, read_config, read_result
from mujax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Ownership:
    """A run's right to a workdir.

    allowed_changes: fields in which the config may differ from the one that the workdir was begun
    with; `table` and `data` stand for the resolved parameterization and the training text.
    """

    root: Path
    run: Run
    data_fingerprint: str
    allowed_changes: Sequence[str]

    def finished_row(self) -> Row | None:
        """Returns the row that is there already, if it is of this run and not of one before a
        change of the config.

        A row whose id is of an earlier schema gets that of today; the file stays as it is.

        Raises:
          UserError: it is, but was of another table or other data.
        """
        if not (self.root / "result.json").exists():
            return None
        row, config = read_result(self.root / "result.json"), self.root / "config.json"
        if not is_of_today(row["id"]) and config.exists():
            if files.is_same_study(read_config(config), self.run.cfg.as_dict()):
                row["id"] = self.run.cfg.id
        if row["id"] != self.run.cfg.id:
            return None
        self._check_sources(f"--workdir={self.root}: its result", row)
        return row

    def check_checkpoint(self, record: Mapping[str, Any]) -> None:
        """Raises UserError unless a checkpoint is of this very run, but for what is allowed to
        differ."""
        where = f"--workdir={self.root}: its checkpoint of step {record['step']}"
        files.check_same(where, record["config"], self.run.cfg.as_dict(), self.allowed_changes)
        self._check_sources(where, record)
        steps = self.run.cfg.train.steps
        if record["step"] > steps:
            raise UserError(f"{where} is beyond train.steps = {steps}")
        if record["step"] == steps and not self._is_own(record):
            raise UserError(
                f"{where} has had all its training before the change; raise train.steps, which is "
                f"{steps}"
            )

    def take(self) -> None:
        """Writes whose workdir it is from now on; what another config, as allowed, has left is set
        aside."""
        config, file = self.run.cfg.as_dict(), self.root / "config.json"
        if file.exists() and not files.is_same_study(read_config(file), config):
            files.set_aside(self.root, ("result.json", "config.json"), copied=("metrics.jsonl",))
        files.write_json(file, config)

    def _is_own(self, record: Mapping[str, Any]) -> bool:
        """Returns whether a checkpoint was saved by this run as it is, without a change."""
        same = files.is_same_study(record["config"], self.run.cfg.as_dict())
        sources = record["table_hash"], record["data_fingerprint"]
        return same and sources == (self.run.table_hash, self.data_fingerprint)

    def _check_sources(self, where: str, recorded: Mapping[str, Any]) -> None:
        """Raises UserError if a result or a checkpoint is of another table or of other data than
        the run."""
        if (
            recorded.get("table_hash") != self.run.table_hash
            and "table" not in self.allowed_changes
        ):
            old, new = recorded.get("table", "").splitlines(), self.run.table.splitlines()
            changed = [f"{a!r} -> {b!r}" for a, b in zip(old, new, strict=False) if a != b]
            what = (
                "; ".join(changed[:3]) or f"{recorded.get('table_hash')} -> {self.run.table_hash}"
            )
            raise UserError(
                f"{where} was saved under another parameterization table: {what}; use the code "
                "that saved it, or --allow_config_change=table"
            )
        old = recorded.get("data_fingerprint")
        if old != self.data_fingerprint and "data" not in self.allowed_changes:
            raise UserError(
                f"{where} was trained on other data: fingerprint {old} -> {self.data_fingerprint}; "
                "choose a new workdir, or --allow_config_change=data"
            )


def check_allowed(allowed_changes: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raises UserError at the name of a field that no config has."""
    fields = [field for field, _ in leaves(config)]
    known = [*fields, *config, "table", "data"]
    for name in allowed_changes:
        if name not in known:
            raise UserError(
                f"--allow_config_change={name}: the config has no such field{suggest(name, known)}"
            )
