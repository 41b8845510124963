"""Optional copies of finished points in TensorBoard and Weights & Biases, to look at.

results.jsonl and metrics.jsonl are the record: a tracker copies a point afterwards, under the same
id, and is never read.
"""

import abc
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mujax.errors import UserError

TAGS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "eval_loss": "eval/loss",
    "final_loss": "final_loss",
}
HPARAMS = ("learning_rate", "weight_decay", "width", "parameterization")
WANDB_MODES = ("offline", "online")
WANDB_SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_stats": True,  # they would be of the machine now, not during the run
    "init_timeout": 30,
    "finish_timeout": 30,
    "finish_timeout_raises": True,
}


def open_trackers(root: Path, study: str, tensorboard: bool, wandb_mode: str) -> list["Tracker"]:
    """Opens the trackers that were asked for and imports their packages; `wandb_mode` may be '' for
    none.

    Raises:
      UserError: a package is missing, the mode is unknown, or W&B is to be online and cannot log
        in.
    """
    trackers: list[Tracker] = [TensorBoard(root)] if tensorboard else []
    return [*trackers, Wandb(root, study, wandb_mode)] if wandb_mode else trackers


class Tracker(abc.ABC):
    """A tracker, which copies finished points and keeps nothing open between them; a failure costs
    one line on stderr, never the sweep."""

    name: str

    def point(
        self,
        row: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        config: Mapping[str, Any],
    ) -> None:
        """Copies a finished point: its line of results.jsonl, its metrics.jsonl and its resolved
        config."""
        try:
            self.copy(row, records, config)
        except Exception as e:
            print(f"{self.name} tracker, point {row['id']}: {one_line(e)}", file=sys.stderr)

    @abc.abstractmethod
    def copy(
        self,
        row: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        config: Mapping[str, Any],
    ) -> None:
        """Copies a point; may raise anything, which `point` catches."""


class TensorBoard(Tracker):
    """A tracker with one event file per point, tensorboard/ID/events.out.tfevents, replaced as a
    whole."""

    name = "TensorBoard"

    def __init__(self, root: Path):
        # Not SummaryWriter: its thread dies on a full disk, and the next add_scalar then waits
        # forever.
        try:
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.record_writer import RecordWriter
            from tensorboardX.summary import hparams
        except ImportError as e:
            raise UserError(
                "--tensorboard needs tensorboardX: pip install 'mujax[tensorboard]'"
            ) from e
        self.root, self.event, self.writer, self.hparams = root, Event, RecordWriter, hparams

    def copy(self, row, records, config):
        now = time.time()
        final = {"step": row["steps"], "final_loss": row["final_loss"]}
        events = [self.event(wall_time=now, file_version="brain.Event:2")]
        for summary in self.hparams(
            {name: row[name] for name in HPARAMS}, {"final_loss": row["final_loss"]}
        ):
            events.append(self.event(wall_time=now, summary=summary))
        for record in [*records, final]:
            values = [{"tag": tag, "simple_value": value} for tag, value in scalars(record).items()]
            events.append(self.event(wall_time=now, step=record["step"], summary={"value": values}))

        file = self.root / "tensorboard" / row["id"] / "events.out.tfevents"
        file.parent.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads only names with tfevents in them
        unfinished = file.with_name("unfinished")
        with contextlib.closing(self.writer(str(unfinished))) as writer:
            for event in events:
                writer.write(event.SerializeToString())
            writer.flush()
        os.replace(unfinished, file)


class Wandb(Tracker):
    """A tracker with one W&B run per point, under the point's id in the group of the study; files
    are in wandb/."""

    name = "W&B"

    def __init__(self, root: Path, study: str, mode: str):
        if mode not in WANDB_MODES:
            raise UserError(
                f"--wandb_mode={mode} is unknown; allowed: {', '.join(WANDB_MODES)}, or '' for no "
                "W&B"
            )
        try:
            # By name, because a folder ./wandb of earlier runs passes for an empty package.
            from wandb import init, login  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise UserError("--wandb_mode needs wandb: pip install 'mujax[wandb]'") from e
        if mode == "online":
            try:
                logged_in = login()
            except Exception as e:
                raise UserError(f"--wandb_mode=online cannot log in: {one_line(e)}") from e
            if not logged_in:
                raise UserError(
                    "--wandb_mode=online is not logged in; run `wandb login`, or choose offline"
                )
        self.root, self.study, self.mode, self.init = root, study, mode, init

    def copy(self, row, records, config):
        try:
            self.log_run(row, records, config)
        except Exception as e:
            if self.mode != "online":
                raise
            self.mode = "offline"  # or each further point would wait as long for the network
            raise ConnectionError(
                f"{one_line(e)}; further points are kept offline, for `wandb sync`"
            ) from e

    def log_run(self, row, records, config):
        with self.init(
            project="mujax",
            group=self.study,
            id=row["id"],
            name=row["id"],
            dir=str(self.root),  # W&B adds /wandb
            config=dict(config),
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,  # offline W&B warns and ignores it
            reinit="create_new",  # never the run of another point that failed to finish
            settings=WANDB_SETTINGS,
        ) as run:
            for record in records:
                run.log(scalars(record), step=record["step"])
            run.summary.update({name: row[name] for name in ("status", "final_loss", "best_loss")})


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns what a record measured, by tag; null (NaN) is left out."""
    return {tag: record[name] for name, tag in TAGS.items() if record.get(name) is not None}


def one_line(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())
