"""What a run writes as it goes: metrics.jsonl, the same however often it stops; performance.jsonl; heartbeat.json.

In a bucket the first two are written anew at each evaluation and before each checkpoint.
"""

import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mujax import workdir as files
from mujax.buckets import is_bucket, write
from mujax.errors import UserError
from mujax.peaks import peak_flops

HEARTBEAT_SECONDS = 10.0


class _Lines:
    """A JSONL file that a run adds to; it is opened by name for each line, so one that is moved away is begun anew."""

    def __init__(self, file: Path):
        self.file = file

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
    """Nothing can be appended to an object: lines are kept here, and all are written anew when they are to be seen."""

    def __init__(self, file: Path):
        super().__init__(file)
        self._content, self._is_shown = bytearray(), True

    def append(self, record) -> None:
        if not self._content and self.file.exists():
            self._content += self.file.read_bytes()
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

    def __init__(self, root: Path, is_writer: bool):
        lines = _BucketLines if is_bucket(root) else _Lines
        self._metrics, self._performance = lines(root / "metrics.jsonl"), lines(root / "performance.jsonl")
        self._heartbeat, self._is_writer = root / "heartbeat.json", is_writer
        self._last_beat = 0.0

    def go_on_from(self, step: int, eval_steps: Sequence[int]) -> None:
        """Drops records of what is done again: training from `step` on, and evaluations other than these.

        Raises:
          UserError: a line is not of a run.
        """
        if not self._is_writer:
            return
        for lines in (self._metrics, self._performance):
            files.drop_torn_line(lines.file)
        file = self._metrics.file
        if not file.exists():
            return

        def is_kept(number: int, record: Mapping[str, Any]) -> bool:
            at = record.get("step")
            if not isinstance(at, int):
                raise UserError(f"{file}, line {number} has no step; mujax train has not written it")
            return at in eval_steps if "eval_loss" in record else at < step

        files.write_jsonl(file, [r for n, r in enumerate(files.read_jsonl(file), start=1) if is_kept(n, r)])

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
        """Until the metrics so far are on disk: before a checkpoint or a result that they must not be behind."""
        if self._is_writer:
            self._metrics.sync()

    def beat(self, step: int) -> None:
        """Says in heartbeat.json, every HEARTBEAT_SECONDS at most, that the run lives; that it cannot ends no run."""
        if self._is_writer and time.monotonic() - self._last_beat > HEARTBEAT_SECONDS:
            self._last_beat = time.monotonic()
            try:
                files.write_json(self._heartbeat, {"time": time.time(), "step": step})
            except OSError as e:
                print(f"{self._heartbeat}: {e.strerror or e}", file=sys.stderr)


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
        """A record of performance.jsonl, and a new beginning; None if no two steps have followed each other.

        tokens_per_second: by the median step. mfu: model FLOPs over the peak in bfloat16 of all devices (peak_flops: of
        one); both None where that is not known. step_seconds: of steps alone, without evaluations and saves.
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
    """Peak bytes of this process' devices, the fullest of them, or of the process itself where devices do not tell."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return {"device_peak_bytes": max(peaks)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
