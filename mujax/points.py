"""The points of a sweep: grouped by what they can share, and split into shards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mujax.config import digest, leaves
from mujax.errors import UserError
from mujax.grid import Overrides, expand_sweep
from mujax.run import Run, make_run


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
    """Config with `sweep` -> its points, in the order of the sweep.

    Raises:
      UserError: see mujax.grid.expand_sweep and mujax.run.make_run.
    """
    return [Point(overrides, make_run(cfg)) for overrides, cfg in expand_sweep(tree)]


def group_points(points: Sequence[Point]) -> list[list[Point]]:
    """Points that can train side by side together, the cheapest group first."""
    groups: dict[Any, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.run.flops_per_step):
        groups.setdefault((point.run.group, point.run.cfg.mesh), []).append(point)
    return list(groups.values())


def field_value(point: Point, field: str) -> Any:
    """The value of a dotted field of a point's run; None if there is no such field."""
    return dict(leaves(point.run.cfg.as_dict())).get(field)


def curve_of(point: Point, field: str) -> str:
    """Names the points that differ from this one in `field` and in the seed alone."""
    fields = dict(leaves(point.run.cfg.as_dict()))
    return digest([(name, value) for name, value in fields.items() if name not in (field, "seed")])


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """'1/4' -> the second of four.

        Raises:
          UserError: it is something else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"--shard={text} is not i/n with i from 0 to n - 1, e.g. --shard=0/4")
        return cls(int(index), int(count))

    def take(self, points: Sequence[Point], curve_field: str | None = None) -> list[Point]:
        """This shard's points: every count-th of each group, so that all shards have like work.

        With curve_field, the points of a curve along it stay together.
        """
        hands: dict[str, set[str]] = {}
        for members in group_points(points):
            for point in members:
                hands.setdefault(curve_of(point, curve_field) if curve_field else point.id, set()).add(point.id)
        own = set().union(*list(hands.values())[self.index :: self.count])
        return [point for point in points if point.id in own]
