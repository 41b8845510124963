"""Many points: grouped by program, trained in chunks of lanes, one row each, none ever lost."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mujax import workdir as files
from mujax.config import expand_sweep
from mujax.data.loader import TrainBatches, load_batches
from mujax.errors import UserError
from mujax.hps import stack
from mujax.lanes import LaneFns, make_lane_fns, sweep_mesh
from mujax.metrics import find_divergence, metric_records
from mujax.results import make_row
from mujax.run import Run, make_run
from mujax.steps import METRICS

# A signal is served, and the bar moves, between two calls of the compiled program.
MAX_STEPS_PER_CALL = 25

Row = dict[str, Any]
Records = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep: the fields it overrides, and the run they resolve to."""

    overrides: dict[str, Any]
    run: Run

    @property
    def id(self) -> str:
        return self.run.cfg.id


def plan_groups(tree: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Config with `sweep` -> points by group, cheapest first; the points of a group share every shape.

    Raises:
      UserError: see mujax.config.expand_sweep.
    """
    points = [Point(overrides, make_run(cfg)) for overrides, cfg in expand_sweep(tree)]
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.run.flops_per_step):
        groups.setdefault(point.run.group, []).append(point)
    return groups


def sweep(tree: Mapping[str, Any], workdir: str | Path) -> list[dict[str, Any]]:
    """Runs every point of `config.sweep` that `workdir` has no row of; returns the rows of all points.

    A finished point leaves points/<id>/metrics.jsonl and, as the mark of its completion, its line of
    results.jsonl. An interrupted point leaves nothing and runs again.

    Raises:
      UserError: a bad config, data source or workdir; nothing has been compiled.
    """
    groups = plan_groups(tree)
    points = [point for members in groups.values() for point in members]
    root = files.open_workdir(workdir, "manifest.json", tree)
    # Reads the text, so that a bad source, or another one than before, is known before anything compiles
    firsts = [members[0].run.cfg for members in groups.values()]
    fingerprints = sorted({load_batches(cfg.data, cfg.train, seeds=())[2] for cfg in firsts})
    manifest = {"config": tree, "data": fingerprints, "points": {p.id: p.overrides for p in points}}
    if (root / "manifest.json").exists():
        recorded = files.read_json(root / "manifest.json").get("data")
        if recorded != fingerprints:
            raise UserError(
                f"--workdir={workdir} was begun on other text (fingerprint {recorded}, now {fingerprints}); "
                "choose a new workdir"
            )
    files.write_json(root / "manifest.json", manifest)
    results = root / "results.jsonl"
    if files.drop_torn_line(results):
        print(f"{results}: dropped a last line torn by a crash; its point runs again", file=sys.stderr)
    rows = {str(row.get("id")): row for row in files.read_jsonl(results)} if results.exists() else {}

    with _Progress(points, rows) as progress:
        for members in groups.values():
            todo = [point for point in members if point.id not in rows]
            if not todo:
                continue
            for point, row, records in _run_group(todo, progress):
                files.write_jsonl(root / "points" / point.id / "metrics.jsonl", records)
                files.append_jsonl(results, row)
                rows[point.id] = row
                progress.finished(row)
    return [rows[point.id] for point in points]


def _run_group(points: Sequence[Point], progress: "_Progress") -> Iterator[tuple[Point, Row, Records]]:
    """Trains the points of one group, chunk by chunk, and yields each with what it measured."""
    cfg = points[0].run.cfg  # train and data are the same in the whole group
    num_devices = min(jax.device_count(), len(points))
    # CPU: a lane a device, so that every point is finished, and safe, as early as possible.
    is_cpu = jax.default_backend() == "cpu"
    per_device = 1 if is_cpu else math.ceil(len(points) / num_devices)
    num_lanes = per_device * num_devices
    fns = make_lane_fns(points[0].run.program, sweep_mesh(num_devices), vmapped=not is_cpu)
    seeds = {point.run.cfg.seed for point in points}
    batches, validation, fingerprint = load_batches(cfg.data, cfg.train, seeds)

    for first in range(0, len(points), num_lanes):
        chunk = points[first : first + num_lanes]
        start = time.time()
        # A short last chunk is filled with copies of its last point, whose results are dropped.
        runs = [point.run for point in chunk] + [chunk[-1].run] * (num_lanes - len(chunk))
        lanes, evals, history = _train_lanes(fns, runs, batches, validation, lambda n, c=chunk: progress.trained(c, n))
        seconds = (time.time() - start) / len(chunk)
        for i, point in enumerate(chunk):
            eval_losses = [(step, float(loss_N[i])) for step, loss_N in evals]
            diverged_at = find_divergence(int(lanes.diverged_at[i]), eval_losses, cfg.train.divergence_loss)
            row = make_row(
                point.run,
                overrides=point.overrides,
                diverged_at_step=diverged_at,
                eval_losses=eval_losses,
                data_fingerprint=fingerprint,
                seconds=seconds,
            )
            own = {name: values_NT[i] for name, values_NT in history.items()}
            yield point, row, metric_records(own, eval_losses, cfg.train.log_interval, diverged_at)


def _train_lanes(fns: LaneFns, runs: Sequence[Run], batches: Mapping[int, TrainBatches], validation, report_steps):
    """Trains one lane a run to the end, or until all have diverged.

    Returns:
      (LaneState, [(step, losses [N])], {metric: [N, steps]}), metrics NaN where a lane was frozen.
    """
    train = runs[0].cfg.train
    hps, scalings = stack([run.hps for run in runs]), stack([run.scalings for run in runs])
    seeds = [run.cfg.seed for run in runs]
    bounds = np.full(len(runs), train.divergence_loss, np.float32)
    steps_per_call = min(train.eval_interval, train.steps, MAX_STEPS_PER_CALL)

    def rows_NKBT(first: int, num_steps: int) -> np.ndarray:
        """Batches first .. first + num_steps of each run, filled up to one length: one shape, one program."""
        steps = [min(first + k, first + num_steps - 1) for k in range(steps_per_call)]
        by_seed = {seed: np.stack([batches[seed][t] for t in steps]) for seed in set(seeds)}
        return np.stack([by_seed[seed] for seed in seeds])

    lanes = fns.init(np.asarray(seeds, np.uint32), hps, scalings)
    evals, history, done = [], [], 0
    while True:
        if done % train.eval_interval == 0 or done == train.steps:
            evals.append((done, fns.evaluate(lanes, validation, hps, scalings)))
        if done == train.steps:
            break
        num_steps = min(steps_per_call, train.steps - done, train.eval_interval - done % train.eval_interval)
        lanes, metrics = fns.train(lanes, rows_NKBT(done, num_steps), num_steps, hps, scalings, bounds)
        history.append({name: np.asarray(values)[:, :num_steps] for name, values in metrics.items()})
        done += num_steps
        report_steps(num_steps)
        if np.all(np.asarray(lanes.diverged_at) >= 0):
            report_steps(train.steps - done)
            break
    merged = {name: np.concatenate([part[name] for part in history], axis=1) for name in METRICS}
    return lanes, evals, merged


class _Progress:
    """A bar over the arithmetic of all points, so that its ETA holds although widths differ in cost."""

    def __init__(self, points: Sequence[Point], rows: Mapping[str, Row]):
        todo = [point for point in points if point.id not in rows]
        self._num_points, self._num_done = len(points), len(points) - len(todo)
        self._best: dict[tuple[str, int], Row] = {}
        for row in rows.values():
            self._keep_best(row)
        total = sum(point.run.flops_per_step * point.run.cfg.train.steps for point in todo)
        self._bar = tqdm(
            desc=self._points_done(),
            total=total,
            bar_format="{desc} |{bar:24}| {percentage:3.0f}% {elapsed} (ETA {remaining}){postfix}",
            mininterval=0.2 if sys.stderr.isatty() else 20,
            dynamic_ncols=True,
            disable=not todo,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._bar.close()

    def trained(self, chunk: Sequence[Point], num_steps: int) -> None:
        self._bar.update(sum(point.run.flops_per_step for point in chunk) * num_steps)

    def finished(self, row: Row) -> None:
        self._num_done += 1
        self._keep_best(row)
        self._bar.set_description_str(self._points_done(), refresh=False)
        best = self._best.get((row["parameterization"], row["width"]))
        if best:
            name = f"{row['parameterization']} width {row['width']}"
            self._bar.set_postfix_str(
                f"best {name}: {best['final_loss']:.3f} at LR {best['learning_rate']:.3g}", refresh=False
            )

    def _keep_best(self, row: Row) -> None:
        key = (row["parameterization"], row["width"])
        if row["status"] == "ok" and row["final_loss"] < self._best.get(key, {"final_loss": math.inf})["final_loss"]:
            self._best[key] = row

    def _points_done(self) -> str:
        return f"{self._num_done}/{self._num_points} points"
