"""The folder of a run, which may be moved to another name while the run trains."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from mujax.storage import files, locks
from mujax.storage.records import Row
from mujax.training.distributed import agreed, is_primary


class Workdir:
    """The folder of one run, held by its primary process.

    root: its name when the processes last agreed on it.
    """

    def __init__(self, root: Path, held: locks.Held | None):
        """Takes `held` on the primary process, None on all others."""
        self.root = root
        self._held, self._has_told = held, False

    @property
    def now(self) -> Path:
        """The name that the folder has now, as far as this process knows."""
        return self._held.path if self._held else self.root

    def must_stop(self, is_asked: Callable[[int], bool], step: int) -> bool:
        """Returns whether to save and stop before a step: as asked to, or because the folder was
        moved away."""
        if self._held is None or self._held.is_in_place():
            return is_asked(step)
        if jax.process_count() > 1 and not self._has_told:
            # the others stop with this one, at the same step
            self._has_told = True
            signal.raise_signal(signal.SIGTERM)
        return is_asked(step) or jax.process_count() == 1

    def follow(self) -> bool:
        """Agrees on where the folder is now; returns whether it was moved."""

        def where() -> str:
            return str(self.now)

        now = agreed(where)
        if now == str(self.root):
            return False
        if is_primary():
            print(f"{self.root} was moved to {now}; saving there", file=sys.stderr)
        self.root = Path(now)
        return True

    def check_in_place(self) -> None:
        """Raises UserError, on all processes, if the folder has another name than the run was
        given."""
        agreed(lambda: self._held.check_in_place() if self._held else None)

    def write_result(self, row: Row) -> None:
        """Writes the row of a finished run, the mark of its completion."""
        if is_primary():
            files.write_json(self.root / "result.json", row)
