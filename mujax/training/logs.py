"""What a run writes as it goes: metrics.jsonl, the same however often it stops; performance.jsonl;
heartbeat.json.

In a bucket the first two are written anew at each evaluation and before each checkpoint.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mujax.hardware import peak_flops
from mujax.storage import files
from mujax.storage.buckets import is_bucket, write
from mujax.storage.records import read_bytes, read_metrics

HEARTBEAT_SECONDS = 10.0


class _Lines:
    """A JSONL file that a run adds to; it is opened by name for each line, so one that is moved
    away is begun anew."""

    def __init__(self, where: Callable[[], Path], name: str):
        self._where, self._name = where, name

    @property
    def file(self) -> Path:
        return self._where() / self._name

    def append(self, record) -> None:
        files.append_jsonl(self.file, record, is_synced=False)

    def show(self) -> None:
        """Who reads the file finds all lines so far."""

    def sync(self) -> None:
        """Until all lines so far are on disk."""
        if self.file.exists():
            with open(self.file, "rb") as stream:
                os.fsync(stream.fileno())


class _BucketLines(_Lines):
    """Nothing can be appended to an object: lines are kept here, and all are written anew when they
    are to be seen."""

    def __init__(self, where: Callable[[], Path], name: str):
        super().__init__(where, name)
        self._content, self._is_shown = bytearray(), True

    def append(self, record) -> None:
        if not self._content and self.file.exists():
            self._content += read_bytes(self.file)
        self._content += files.as_line(record)
        self._is_shown = False

    def show(self) -> None:
        if not self._is_shown:
            write(self.file, bytes(self._content))
            self._is_shown = True

    def sync(self) -> None:
        self.show()


class RunLog:
    """The files of one run; those of processes that are not the primary one are not written."""

    def __init__(self, root: Path, is_writer: bool, where: Callable[[], Path] | None = None):
        """where: says where the folder is now, if it may be moved meanwhile."""
        lines, self._where = _BucketLines if is_bucket(root) else _Lines, where or (lambda: root)
        self._metrics, self._performance = (
            lines(self._where, f"{name}.jsonl") for name in ("metrics", "performance")
        )
        self._is_writer = is_writer
        self._last_beat = -HEARTBEAT_SECONDS

    def go_on_from(self, step: int, eval_steps: Sequence[int]) -> None:
        """Drops records of what is done again: training from `step` on, and evaluations other than
        these.

        Raises:
          UserError: a line is not of a run.
        """
        if not self._is_writer:
            return
        file, kept = self._metrics.file, []
        if file.exists():
            for record in read_metrics(file):
                is_kept = (
                    record["step"] in eval_steps if "eval_loss" in record else record["step"] < step
                )
                kept += [record] * is_kept
        files.drop_torn_line(self._performance.file)
        if file.exists():
            files.write_jsonl(file, kept)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """A record of steps, or of an evaluation, after which all so far can be seen."""
        if self._is_writer:
            self._metrics.append(record)
            if "eval_loss" in record:
                self._metrics.show()

    def performance(self, record: Mapping[str, Any]) -> None:
        """A line an evaluation."""
        if self._is_writer:
            self._performance.append(record)
            self._performance.show()

    def sync(self) -> None:
        """Until the metrics so far are on disk: before a checkpoint or a result that they must not
        be behind."""
        if self._is_writer:
            self._metrics.sync()

    def beat(self, step: int) -> None:
        """Says in heartbeat.json, every HEARTBEAT_SECONDS at most, that the run lives; that it
        cannot ends no run."""
        if self._is_writer and time.monotonic() - self._last_beat > HEARTBEAT_SECONDS:
            self._last_beat = time.monotonic()
            file = self._where() / "heartbeat.json"
            try:
                files.write_json(file, {"time": time.time(), "step": step})
            except OSError as e:
                print(f"{file}: {e.strerror or e}", file=sys.stderr)


class StepTimer:
    """Times of steps between two reports, and what follows from them."""

    def __init__(self, tokens_per_step: int, flops_per_step: float, num_devices: int):
        self._tokens, self._flops, self._num_devices = tokens_per_step, flops_per_step, num_devices
        self._seconds: list[float] = []
        self._last: float | None = None

    def step_ended(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._last = now

    def pause(self) -> None:
        """What comes now is no step."""
        self._last = None

    def report(self, step: int) -> dict[str, Any] | None:
        """A record of performance.jsonl, and a new beginning; None if no two steps have followed
        each other.

        tokens_per_second: by the median step. mfu: model FLOPs over the peak in bfloat16 of all
        devices (peak_flops: of one); both None where that is not known. step_seconds: of steps
        alone, without evaluations and saves.
        """
        if not self._seconds:
            return None
        median, p90, p99 = np.percentile(self._seconds, (50, 90, 99)).tolist()
        device = jax.devices()[0].device_kind
        peak = peak_flops(device)
        mfu = None if peak is None else self._flops / median / (peak * self._num_devices)
        record = {
            "step": step,
            "time": time.time(),
            "tokens_per_second": self._tokens / median,
            "mfu": mfu,
            "device": device,
            "peak_flops": peak,
            "step_seconds": {"p50": median, "p90": p90, "p99": p99, "max": max(self._seconds)},
            **_memory(),
        }
        self._seconds.clear()
        return record


def _memory() -> dict[str, int]:
    """Peak bytes of this process' devices, the fullest of them, or of the process itself where
    devices do not tell."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"device_peak_bytes": max(peaks)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
