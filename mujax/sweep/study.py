"""A sweep of many points: grouped, trained side by side, one row per point; none is lost, and none
is trained twice."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mujax.config import canonical, hashed
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.storage import files, locks
from mujax.storage.records import Row, first_by_id, read_manifest, read_rows
from mujax.sweep.engine import Progress, Snapshot, train_runs
from mujax.sweep.migration import carry_over
from mujax.sweep.points import Point, Shard, group_points, make_points
from mujax.sweep.refine import propose, refine_config
from mujax.sweep.snapshots import Unusable, load_snapshots, save_snapshots
from mujax.sweep.trackers import Tracker
from mujax.training.distributed import deferred_signals
from mujax.training.metrics import metric_records
from mujax.training.results import code_version, make_row
from mujax.training.steps import METRICS

# What is in flight is saved at a signal, and this often against being killed without one: but the
# saving of much state may take no more than a twentieth of the time.
SAVE_SECONDS = 60.0

Trackers = Callable[[Path], Sequence[Tracker]]
TrainRuns = Callable[..., Iterator[tuple[int, Progress]]]  # as train_runs


def sweep(
    tree: Mapping[str, Any],
    workdir: str | Path,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    open_trackers: Trackers = lambda root: (),
    train_runs: TrainRuns = train_runs,
) -> list[Row]:
    """Runs every point of `config.sweep` that `workdir` has no row of; returns the rows of all
    points.

    A finished point leaves points/<id>/metrics.jsonl and, as the mark of its completion, its line
    of results.jsonl. Interrupted, the sweep saves what is in flight in in_flight/ and raises
    KeyboardInterrupt; the same call goes on. With `refine`, points are added until each curve's
    optimum is settled.

    Args:
      open_trackers: given the workdir, what finished points are copied to.
      train_runs: what trains the points of a group.

    Raises:
      UserError: a bad config, data source or workdir, or a workdir in use; nothing has been
        compiled. Or the workdir was moved away meanwhile; what is in flight is saved in it.
    """
    grid = make_points(tree)
    refinement = refine_config(tree, grid)
    grid = shard.take(grid, refinement.field if refinement else None)
    if not grid:
        raise UserError(
            f"--shard={shard.index}/{shard.count} holds no point: the sweep has fewer than "
            f"{shard.count}"
        )
    part = f"--shard={shard.index}/{shard.count}" + (
        f" by curves of {refinement.field}" if refinement else ""
    )
    root = files.open_workdir(files.local_path(workdir), "manifest.json", tree)
    with locks.locked(root) as held, deferred_signals() as is_interrupted:
        carry_over(root)
        own_part, trackers = part if shard.count > 1 else "", open_trackers(root)
        study = _Study(tree, root, held, grid, own_part, trackers, is_interrupted, train_runs)
        points, notes = grid, []
        while True:
            study.run(points, notes)
            if refinement is None:
                break
            new, notes = propose(tree, grid, points, study.rows, refinement)
            print("\n".join(notes), file=sys.stderr)
            points = [*points, *new]
            if not new:
                study.run(points, notes)  # every point has its row; leaves the last notes
                break
        return [study.rows[point.id] for point in points]


class _Study:
    """A sweep in its workdir."""

    def __init__(
        self,
        tree,
        root: Path,
        held: locks.Held,
        grid: Sequence[Point],
        part: str,
        trackers: Sequence[Tracker],
        is_interrupted: Callable[[], bool],
        train_runs: TrainRuns,
    ):
        self._tree, self._root, self._held, self._part = tree, root, held, part
        self._trackers, self._train_runs = trackers, train_runs
        self._is_interrupted = is_interrupted
        manifest_file, results_file = root / "manifest.json", root / "results.jsonl"
        self._recorded = read_manifest(manifest_file) if manifest_file.exists() else {}
        recorded_rows = read_rows(results_file) if results_file.exists() else []
        if self._recorded.get("part", part) != part:
            raise UserError(
                f"--workdir={root} was begun as {self._recorded['part'] or 'the whole sweep'}, now "
                f"it is to be {part or 'the whole sweep'}; choose a new workdir (mujax merge joins "
                "them)"
            )
        # Reads the text, so that a bad source, or another one than before, is known before anything
        # compiles
        self._data = dict(self._recorded.get("data", {}))
        for cfg in [members[0].run.cfg for members in group_points(grid)]:
            fingerprint = load_batches(cfg, seeds=())[2].fingerprint
            recorded = self._data.setdefault(hashed(canonical(cfg.data)), fingerprint)
            if recorded != fingerprint:
                raise UserError(
                    f"--workdir={root} was begun on other text (fingerprint {recorded}, now "
                    f"{fingerprint}); choose a new workdir"
                )
        self.rows: dict[str, Row] = first_by_id(recorded_rows)
        self._check_tables(grid)
        if files.drop_torn_line(results_file):
            print(
                f"{results_file}: dropped a last line torn by a crash; its point runs again",
                file=sys.stderr,
            )

    def _check_tables(self, points: Sequence[Point]) -> None:
        """Raises UserError where a point's table or text is another than the workdir recorded.

        Rows may have been copied from another workdir: they count if table and text are those of
        the point.
        """
        for point in points:
            recorded = (
                self._recorded.get("points", {})
                .get(point.id, {})
                .get("table_hash", point.run.table_hash)
            )
            if recorded != point.run.table_hash:
                raise UserError(
                    f"--workdir={self._root} was begun with another parameterization table: "
                    f"{point.overrides} resolved to {recorded}, now to {point.run.table_hash}; "
                    "choose a new workdir, or go back to that code"
                )
            row = self.rows.get(point.id)
            here = point.run.table_hash, self._data[hashed(canonical(point.run.cfg.data))]
            if row and (row.get("table_hash"), row.get("data_fingerprint")) != here:
                raise UserError(
                    f"--workdir={self._root}: its row of {point.overrides} is of another table or "
                    f"text ({row.get('table_hash')}, {row.get('data_fingerprint')}; here "
                    f"{', '.join(here)}); choose a new workdir"
                )

    def run(self, points: Sequence[Point], refinement: Sequence[str]) -> None:
        """Trains the points that have no row yet."""
        self._check_tables(points)
        self._stop_if_asked()
        entries = {p.id: {"overrides": p.overrides, "table_hash": p.run.table_hash} for p in points}
        known = self._recorded.get("points", {})
        self._recorded = {
            "config": self._tree,
            "part": self._part,
            "data": self._data,
            "points": {**known, **entries},
        }
        files.write_json(
            self._held.path / "manifest.json", {**self._recorded, "refinement": list(refinement)}
        )
        todo = [point for point in points if point.id not in self.rows]
        groups = group_points(todo)
        for number, members in enumerate(groups, start=1):
            self._stop_if_asked()
            done = len(points) - sum(point.id not in self.rows for point in points)
            title = (
                f"group {number}/{len(groups)}, {_title(members)}; {done}/{len(points)} points "
                "finished"
            )
            print(title, file=sys.stderr)
            with _Bar(members, self.rows.values()) as bar:
                self._run_group(members, bar)
        self._stop_if_asked()
        # whatever is left there has its rows
        shutil.rmtree(self._root / "in_flight", ignore_errors=True)

    def _run_group(self, members: Sequence[Point], bar: "_Bar") -> None:
        cfg = members[0].run.cfg  # train and data are the same in the whole group
        batches, validation, corpus = load_batches(cfg, {p.run.cfg.seed for p in members})
        ids = [point.id for point in members]
        name = f"in_flight/{members[0].run.group}.npz"
        next_save = time.monotonic() + SAVE_SECONDS

        def interrupt(take_snapshots: Callable[[], list[Snapshot]]) -> None:
            nonlocal next_save
            start = time.monotonic()
            if self._is_interrupted() or start > next_save or not self._held.is_in_place():
                file = self._held.path / name
                try:
                    save_snapshots(file, take_snapshots(), ids, code_version())
                except OSError as e:
                    # the rows are what counts; this is tried again, or these points start again
                    print(f"{file} could not be saved: {e}", file=sys.stderr)
                now = time.monotonic()
                next_save = now + max(SAVE_SECONDS, 20 * (now - start))
            self._stop_if_asked()

        snapshots = self._load_snapshots(name, members)
        bar.resumed({entry.index: entry.progress.done for entry in snapshots})
        runs = [point.run for point in members]
        for i, progress in self._train_runs(
            runs, batches, validation, snapshots, bar.trained, interrupt
        ):
            row = make_row(
                runs[i],
                progress.outcome,
                overrides=members[i].overrides,
                corpus=corpus,
                seconds=progress.seconds,
            )
            self._keep(members[i], row, progress, corpus.bits_per_byte)
            bar.finished(i, row)
        (self._held.path / name).unlink(missing_ok=True)

    def _keep(self, point: Point, row: Row, progress: Progress, bits_per_byte: Callable) -> None:
        history = dict(zip(METRICS, progress.history.tolist(), strict=True))
        records = metric_records(
            history, progress.outcome.evals, point.run.cfg.train.log_interval, bits_per_byte
        )
        root = self._held.path
        files.write_jsonl(root / "points" / point.id / "metrics.jsonl", records)
        files.append_jsonl(root / "results.jsonl", row)
        self.rows[point.id] = row
        if not self._held.is_in_place():
            # trackers know the folder by its name, and would make another
            return
        for tracker in self._trackers:
            tracker.point(row, records, point.run.cfg.as_dict())

    def _load_snapshots(self, name: str, members: Sequence[Point]) -> list[Snapshot]:
        """Reads the snapshots that an interrupted call has left of these points; a file that cannot
        be used is set aside."""
        root = self._held.path
        if not (root / name).exists():
            return []
        try:
            indices = {point.id: i for i, point in enumerate(members)}
            return load_snapshots(root / name, members[0].run, indices, code_version())
        except Unusable as e:
            folder = files.set_aside(root, [name])
            print(
                f"{root / name}: {e}; it was moved to {folder}, and its points start again",
                file=sys.stderr,
            )
            return []

    def _stop_if_asked(self) -> None:
        self._held.check_in_place()
        if self._is_interrupted():
            raise KeyboardInterrupt


def _title(members: Sequence[Point]) -> str:
    cfg = members[0].run.cfg
    names = list(dict.fromkeys(point.run.cfg.parameterization.name for point in members))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"width {cfg.model.d_model}, depth {cfg.model.num_layers}, {shown}: {len(members)} points"
    )


class _Bar:
    """The progress bar of one group: steps done, tokens per second, and the best point so far."""

    def __init__(self, members: Sequence[Point], rows):
        self._members = members
        self._steps = [0] * len(members)
        self._tokens, self._num_done, self._start = 0, 0, time.monotonic()
        self._width = members[0].run.cfg.model.d_model
        self._best: Row | None = None
        self._lowest = math.inf
        for row in rows:
            self._keep_best(row)
        self._bar = tqdm(
            total=sum(point.run.cfg.train.steps for point in members),
            bar_format="  {n_fmt}/{total_fmt} steps |{bar:20}| {percentage:3.0f}% {elapsed} (ETA "
            "{remaining}){postfix}",
            mininterval=0.2 if sys.stderr.isatty() else 20,
            miniters=1,
            dynamic_ncols=True,
        )
        # With its own, the time of day, it stands still when that is set back
        self._bar._time = time.monotonic  # pyright: ignore[reportAttributeAccessIssue]
        self._bar.start_t = self._bar.last_print_t = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._bar.close()

    def resumed(self, steps: Mapping[int, int]) -> None:
        """Counts the steps that runs had before they went on."""
        for index, done in steps.items():
            self._steps[index] = done
        self._bar.initial = self._bar.n = sum(self._steps)

    def trained(self, indices: Sequence[int], steps: int) -> None:
        """Counts steps by which each of these runs has advanced."""
        for index in indices:
            self._steps[index] += steps
            self._tokens += self._members[index].run.tokens_per_step * steps
        self._show()

    def finished(self, index: int, row: Row) -> None:
        # also of a run that ended before
        self._steps[index] = self._members[index].run.cfg.train.steps
        self._num_done += 1
        self._keep_best(row)
        self._show()

    def _keep_best(self, row: Row) -> None:
        loss = row["final_loss"]
        if (
            row["status"] == "ok"
            and row["width"] == self._width
            and loss is not None
            and loss < self._lowest
        ):
            self._best, self._lowest = row, loss

    def _show(self) -> None:
        rate = self._tokens / max(time.monotonic() - self._start, 1e-9)
        parts = [f"{self._num_done}/{len(self._members)} points", f"{rate:.3g} tokens/s"]
        if best := self._best:
            where = f"{best['parameterization']} at LR {best['learning_rate']:.3g}"
            parts.append(f"best of width {self._width} {self._lowest:.3f} ({where})")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(sum(self._steps) - self._bar.n)
