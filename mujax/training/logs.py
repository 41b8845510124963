"""The logs of a run: metrics.jsonl, performance.jsonl and heartbeat.json.

metrics.jsonl is the same however often the run stops. In a bucket the first two are rewritten at
each evaluation and before each checkpoint.
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
    """A JSONL file that a run appends to.

    It is opened by name for each line, so a file that is moved away is begun anew.
    """

    def __init__(self, where: Callable[[], Path], name: str):
        self._where, self._name = where, name

    @property
    def file(self) -> Path:
        return self._where() / self._name

    def append(self, record) -> None:
        files.append_jsonl(self.file, record, is_synced=False)

    def show(self) -> None:
        """Makes all lines so far visible to readers."""

    def sync(self) -> None:
        """Blocks until all lines so far are on disk."""
        if self.file.exists():
            with open(self.file, "rb") as stream:
                os.fsync(stream.fileno())


class _BucketLines(_Lines):
    """A JSONL file in a bucket: lines are kept here, and all are rewritten to be visible.

    Objects in a bucket cannot be appended to.
    """

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
    """The log files of one run; only the primary process writes them."""

    def __init__(self, root: Path, is_writer: bool, where: Callable[[], Path] | None = None):
        """Opens the files; `where` returns the folder's current place, if it may be moved."""
        lines, self._where = _BucketLines if is_bucket(root) else _Lines, where or (lambda: root)
        self._metrics, self._performance = (
            lines(self._where, f"{name}.jsonl") for name in ("metrics", "performance")
        )
        self._is_writer = is_writer
        self._last_beat = -HEARTBEAT_SECONDS

    def go_on_from(self, step: int, eval_steps: Sequence[int]) -> None:
        """Drops records that will be repeated: training from `step` on, and other evaluations.

        eval_steps: steps of the evaluations to keep.

        Raises:
          UserError: a line is not from a run.
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
        """Appends a record of steps or of an evaluation; an evaluation makes all lines visible."""
        if self._is_writer:
            self._metrics.append(record)
            if "eval_loss" in record:
                self._metrics.show()

    def performance(self, record: Mapping[str, Any]) -> None:
        """Appends a record of the speed since the last evaluation."""
        if self._is_writer:
            self._performance.append(record)
            self._performance.show()

    def sync(self) -> None:
        """Blocks until the metrics so far are on disk: a checkpoint must not be ahead of them."""
        if self._is_writer:
            self._metrics.sync()

    def beat(self, step: int) -> None:
        """Writes heartbeat.json, at most every HEARTBEAT_SECONDS; failures do not end the run."""
        if self._is_writer and time.monotonic() - self._last_beat > HEARTBEAT_SECONDS:
            self._last_beat = time.monotonic()
            file = self._where() / "heartbeat.json"
            try:
                files.write_json(file, {"time": time.time(), "step": step})
            except OSError as e:
                print(f"{file}: {e.strerror or e}", file=sys.stderr)


class StepTimer:
    """Times of the steps between two reports, and the speed that follows from them."""

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
        """Leaves out the time until the next step."""
        self._last = None

    def report(self, step: int) -> dict[str, Any] | None:
        """Returns a record of performance.jsonl and starts anew; None without consecutive steps.

        tokens_per_second: by the median step.
        mfu: model FLOPs over the bfloat16 peak of all devices (peak_flops: per device); both None
          if unknown.
        step_seconds: steps alone, without evaluations and saves.
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
    """Returns the peak bytes of this process's fullest device, or else of the process itself."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    most = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if most:
        return {"device_peak_bytes": max(most)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
