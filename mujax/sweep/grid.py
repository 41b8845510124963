"""Sweeps as data: the algebra that builds them, and their expansion into runs.

A point is a dict of the fields it sets, by dotted name; a sweep is a tuple of points. Values are
any that the config itself could hold, so an axis may run over any field: numbers, tables, model
options, meshes.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mujax.config import STUDY_SECTIONS, ConfigMaker, RunConfig, leaves, make_run_config
from mujax.errors import UserError, cut, shown, suggest

Overrides = dict[str, Any]
Sweep = tuple[Overrides, ...]
MOST_POINTS = 10**6  # each takes some 4 kB of this process


def axis(field: str, values: Iterable[Any]) -> Sweep:
    """Makes a point for each value of one field: axis("model.d_model", (32, 64)).

    Raises:
      UserError: no values; other functions here refuse an empty sweep too.
    """
    return _not_empty(f"axis({field!r})", tuple({field: value} for value in values))


def product(*sweeps: Iterable[Overrides]) -> Sweep:
    """Combines every point of one sweep with every point of the others; the last varies fastest.

    Raises:
      UserError: two of them set one field.
    """
    lists = [_not_empty("product", tuple(sweep)) for sweep in sweeps]
    if (count := math.prod(map(len, lists))) > MOST_POINTS:
        raise UserError(
            f"product: {shown(count)} points are more than {MOST_POINTS:,}, the most that one "
            "sweep may have"
        )
    return tuple(_joined("product", points) for points in itertools.product(*lists))


def zipped(*sweeps: Iterable[Overrides]) -> Sweep:
    """Combines the first points of all sweeps, then the second ones, and so on.

    Raises:
      UserError: their lengths differ, or two of them set one field.
    """
    lists = [_not_empty("zipped", tuple(sweep)) for sweep in sweeps]
    lengths = [len(points) for points in lists]
    if len(set(lengths)) > 1:
        raise UserError(
            f"zipped: sweeps of different lengths {lengths}; each must have as many points"
        )
    return tuple(_joined("zipped", points) for points in zip(*lists, strict=True))


def chain(*sweeps: Iterable[Overrides]) -> Sweep:
    """Appends the points of each sweep to those of the one before."""
    return tuple(point for sweep in sweeps for point in _not_empty("chain", tuple(sweep)))


def _not_empty(name: str, sweep: Sweep) -> Sweep:
    if not sweep:
        raise UserError(f"{name}: a sweep without points")
    return sweep


def _joined(name: str, points: Iterable[Overrides]) -> Overrides:
    joined: Overrides = {}
    for point in points:
        for field in point:
            if field in joined:
                raise UserError(f"{name}: {field} is set by two of its sweeps")
        joined.update(point)
    return joined


def sweep_points(section: Mapping[str, Any]) -> Sweep:
    """Returns the points of a config's section `sweep`: the product of its axes and of its
    `points`, if there are any.

    Every other entry has the shape of the config, with a tuple of values at each leaf.

    Raises:
      UserError: no axis, an empty axis, or an axis over a field that `points` set too.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"sweep = {section!r} is not a section of axes")
    axes = dict(leaves({key: value for key, value in section.items() if key != "points"}))
    for field, values in axes.items():
        if not isinstance(values, tuple | list) or not values:
            raise UserError(f"sweep.{field} = {values!r} is not a non-empty tuple of values")
    sweeps = [axis(field, values) for field, values in axes.items()]
    if "points" in section:
        points = section["points"]
        if (
            not isinstance(points, tuple | list)
            or not points
            or not all(isinstance(p, Mapping) for p in points)
        ):
            raise UserError(
                "sweep.points is not a non-empty tuple of dicts of fields; build it with "
                "mujax.sweep.grid"
            )
        sweeps.append(tuple(dict(point) for point in points))
    if not sweeps:
        raise UserError(
            "sweep has no axis: set e.g. c.sweep.optim.learning_rate = (0.001, 0.002) in the config"
        )
    points = product(*sweeps)
    for point in points:
        for field in point:
            if not isinstance(field, str):
                raise UserError(
                    f"sweep: a point sets {field!r}; fields are dotted names, e.g. "
                    "'optim.learning_rate'"
                )
    return points


def expand_sweep(tree: Mapping[str, Any]) -> list[tuple[Overrides, RunConfig]]:
    """Returns the points of a config with `sweep` as (overrides by dotted field, RunConfig).

    Raises:
      UserError: see sweep_points and point_config; or two points are the same run.
    """
    _check_recordable(tree)
    points: list[tuple[Overrides, RunConfig]] = []
    seen: dict[str, Overrides] = {}
    make_config, set_fields = ConfigMaker(), FieldSetter(tree)
    for overrides in sweep_points(tree.get("sweep", {})):
        cfg = make_config(set_fields(overrides))
        if cfg.id in seen:
            same = (
                f"{overrides} and {seen[cfg.id]}" if overrides != seen[cfg.id] else f"{overrides}"
            )
            raise UserError(
                f"sweep has one point twice: {same} are one run; make its points distinct"
            )
        seen[cfg.id] = overrides
        points.append((overrides, cfg))
    return points


def _check_recordable(tree: Mapping[str, Any]) -> None:
    """Raises UserError unless all of a sweep's config can be written as JSON, as manifest.json has
    it: also values that every point of the sweep sets anew, and that are checked by nothing
      else."""
    for field, value in leaves({key: value for key, value in tree.items() if key != "sweep"}):
        try:
            json.dumps(value, allow_nan=False, default=_as_number)
        except (TypeError, ValueError, RecursionError) as e:
            what = shown(value) if not isinstance(value, tuple | list) or not value else cut(str(e))
            raise UserError(
                f"{field} = {what}: the config of a sweep is recorded as JSON, which has no such "
                "value; put there what a run could have, though each point may set another"
            ) from e


def _as_number(value):
    if isinstance(value, np.generic):  # as in the files of a workdir
        return value.item()
    raise TypeError(f"{shown(value)} is {type(value).__name__}")


def point_config(tree: Mapping[str, Any], overrides: Overrides) -> RunConfig:
    """Returns the run of a config with these fields set.

    Raises:
      UserError: a field that does not exist, or not a valid config.
    """
    return make_run_config(FieldSetter(tree)(overrides))


class FieldSetter:
    """A setter of fields of a config.

    The trees that it returns share each section that is the same, so that a ConfigMaker checks it
    once; none may be changed.
    """

    def __init__(self, tree: Mapping[str, Any]):
        self._tree = {key: value for key, value in tree.items() if key not in STUDY_SECTIONS}
        self._sections: dict[tuple[str, str], Any] = {}

    def __call__(self, overrides: Overrides) -> dict[str, Any]:
        """Returns the tree with these dotted fields set.

        Raises:
          UserError: a field does not exist.
        """
        by_section: dict[str, Overrides] = {}
        for field, value in overrides.items():
            by_section.setdefault(field.partition(".")[0], {})[field] = value
        point = dict(self._tree)
        for section, fields in by_section.items():
            # By its repr, in which 1, 1.0 and True are three values
            key = (
                section,
                "\n".join(f"{field}={_exactly(value)}" for field, value in fields.items()),
            )
            if key not in self._sections:
                for field, value in fields.items():
                    _set(point, field, value)
                self._sections[key] = point[section]
            point[section] = self._sections[key]
        return point


def _exactly(value) -> str:
    """Returns the repr of a value; for a whole number too long to print, a stand-in that equals
    nothing else."""
    try:
        return repr(value)
    except Exception:
        return f"{type(value)} at {id(value)}"


def _set(tree: dict[str, Any], field: str, value) -> None:
    """Sets a dotted field that must exist, in copies of the sections that it is in."""
    *sections, last = field.split(".")
    for section in sections:
        inner = tree.get(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"sweep.{field}: {section} is a field, not a section")
        if section in tree:
            tree[section] = inner = dict(inner)
        tree = inner
    if last not in tree:
        raise UserError(f"sweep.{field}: the config has no field {field}{suggest(last, tree)}")
    tree[last] = value
