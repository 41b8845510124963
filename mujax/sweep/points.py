"""The points of a sweep: grouped by what they can share, and split into shards."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mujax.config import leaves
from mujax.errors import UserError, cut
from mujax.sweep.grid import Overrides, expand_sweep
from mujax.sweep.pooling import ON_A_LINE, Coupling, find_coupling, same_values
from mujax.sweep.settings import comparable
from mujax.training.run import Run, RunMaker


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep: the fields it overrides, and the run they resolve to."""

    overrides: Overrides
    run: Run

    @property
    def id(self) -> str:
        return self.run.cfg.id

    @property
    def flops(self) -> float:
        return self.run.flops_per_step * self.run.cfg.train.steps

    @property
    def tokens(self) -> int:
        return self.run.tokens_per_step * self.run.cfg.train.steps


def make_points(tree: Mapping[str, Any]) -> list[Point]:
    """Returns the points of a config with `sweep`, in the order of the sweep.

    Raises:
      UserError: see mujax.sweep.grid.expand_sweep and mujax.training.run.make_run.
    """
    make_run = RunMaker()
    return [Point(overrides, make_run(cfg)) for overrides, cfg in expand_sweep(tree)]


def group_points(points: Sequence[Point]) -> list[list[Point]]:
    """Groups points that can train side by side; the cheapest group comes first."""
    groups: dict[Any, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.run.flops_per_step):
        groups.setdefault((point.run.group, point.run.cfg.mesh), []).append(point)
    return list(groups.values())


def field_value(point: Point, field: str) -> Any:
    """Returns the value of a dotted field of a point's run; None if there is no such field."""
    section, _, name = field.rpartition(".")
    return _fields(getattr(point.run.cfg, section, None) if section else point.run.cfg).get(name)


def curves_along(
    points: Sequence[Point], field: str
) -> tuple[list[list[Point]], dict[str, Coupling]]:
    """Sorts points into curves along `field`; returns the curves, and the fields that follow
    `field` by a rule.

    Points of one curve differ in `field`, in the fields that follow it and in the seed alone.
    """
    names = list(
        dict.fromkeys(n for p in points for n, _ in leaves(p.overrides) if n not in (field, "seed"))
    )
    values, rates = [], []
    for point in points:
        values.append({name: field_value(point, name) for name in names})
        rates.append(field_value(point, field))
    numeric = [
        f
        for f in names
        if f != "model.d_model" and all(type(own[f]) in (int, float) for own in values)
    ]
    others = [name for name in names if name not in numeric]
    same = same_values(rates)
    rates = [same[rate] for rate in rates]
    groups = [tuple(comparable(own[name]) for name in others) for own in values]
    found = {
        name: find_coupling(zip(groups, rates, (own[name] for own in values), strict=True))
        for name in numeric
    }
    coupled = {name: coupling for name, coupling in found.items() if coupling}
    constants = {
        name: [coupling.constant(rate, own[name]) for rate, own in zip(rates, values, strict=True)]
        for name, coupling in coupled.items()
    }
    lines = {name: same_values(line, ON_A_LINE) for name, line in constants.items()}
    curves: dict[Any, list[Point]] = {}
    for i, (point, own) in enumerate(zip(points, values, strict=True)):
        free = tuple(comparable(own[name]) for name in names if name not in coupled)
        curves.setdefault(
            (free, tuple(lines[name][constants[name][i]] for name in coupled)), []
        ).append(point)
    return list(curves.values()), coupled


def _fields(section) -> dict[str, Any]:
    """Returns a section's own fields, not those of sections inside it; of anything else none."""
    if not dataclasses.is_dataclass(section):
        return {}
    return {part.name: getattr(section, part.name) for part in dataclasses.fields(section)}


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parses INDEX/COUNT: '1/4' is the second of four.

        Raises:
          UserError: it is something else.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not index < count:
            raise UserError(
                f"--shard={cut(text)} is not i/n with i from 0 to n - 1, e.g. --shard=0/4"
            )
        return cls(index, count)

    def take(self, points: Sequence[Point], curve_field: str | None = None) -> list[Point]:
        """Returns this shard's points: every count-th of each group, so that all shards have like
        work.

        With curve_field, the points of a curve along it stay together.
        """
        curve: dict[str, Any] = {}
        if curve_field:
            curve = {
                p.id: number
                for number, along in enumerate(curves_along(points, curve_field)[0])
                for p in along
            }
        hands: dict[Any, set[str]] = {}
        for members in group_points(points):
            for point in members:
                hands.setdefault(curve.get(point.id, point.id), set()).add(point.id)
        own = set().union(*list(hands.values())[self.index :: self.count])
        return [point for point in points if point.id in own]
