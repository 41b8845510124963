"""The second pass of a sweep: points around the best value of a field, until it is bracketed and
resolved.

A pure function of the points and their rows, so that a sweep which was cut short proposes the same
again.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mujax.config import RefineConfig, typed_section
from mujax.errors import UserError
from mujax.sweep.grid import point_config
from mujax.sweep.points import Point, curves_along, field_value
from mujax.sweep.pooling import Coupling, level_seeds, same_values
from mujax.training.run import make_run


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The needs of one curve: log2 values to add, none when it is settled, and where it stands in
    words.

    bracket: the best value and those within two steps of it, once it is settled between its
    neighbours; they decide where the optimum is. Diverged ones are left out, which more seeds would
    not mend.
    """

    add: tuple[float, ...]
    note: str
    bracket: tuple[float, ...] = ()


def refine_config(tree: Mapping[str, Any], points: Sequence[Point]) -> RefineConfig | None:
    """Checks the section `refine` against the points; returns None if it asks for nothing.

    Raises:
      UserError: a wrong type or range, or a field that no point has as a positive number.
    """
    cfg = typed_section(RefineConfig, tree["refine"], "refine") if "refine" in tree else None
    if cfg is None or not cfg.log2_step:
        return None
    if cfg.log2_step < 2.0**-10:
        raise UserError(f"refine.log2_step = {cfg.log2_step:g} must be at least {2.0**-10:g}, or 0")
    for point in points:
        if point.run.cfg.train.give_up_step:
            raise UserError(
                "refine goes by final losses, and a run given up by train.give_up_step has none; "
                "choose one"
            )
        value = field_value(point, cfg.field)
        if not (type(value) is float and value > 0):
            raise UserError(
                f"refine.field = {cfg.field!r} is {value!r} in a point; it must be a number above 0"
            )
    return cfg


def propose(
    tree: Mapping[str, Any],
    grid: Sequence[Point],
    points: Sequence[Point],
    rows: Mapping[str, Any],
    cfg: RefineConfig,
) -> tuple[list[Point], list[str]]:
    """Returns the points that the next round adds, and one line per curve that says why they are
    needed, or where the optimum is.

    Args:
      grid: the points of the config; points: these and what earlier rounds have added. rows: by id,
        of all points.
    """
    curves, coupled = curves_along(points, cfg.field)
    in_grid = {point.id for point in grid}
    new, notes = [], []
    for members in curves:
        values = same_values(field_value(point, cfg.field) for point in members)
        by_x: dict[float, list[Point]] = {}
        for point in members:
            by_x.setdefault(math.log2(values[field_value(point, cfg.field)]), []).append(point)
        seeds = [[point.run.cfg.seed for point in at_x] for at_x in by_x.values()]
        level = level_seeds(
            seeds, [[rows[point.id]["final_loss"] for point in at_x] for at_x in by_x.values()]
        )
        losses = dict(zip(by_x, map(_mean, level), strict=True))
        original = [x for x, at_x in by_x.items() if any(point.id in in_grid for point in at_x)]
        proposal = refine_curve(
            losses, (min(original), max(original)), cfg.log2_step, cfg.max_extension
        )
        # one for each seed of the config
        templates = [point for point in by_x[original[0]] if point.id in in_grid]
        of_config = [template.run.cfg.seed for template in templates]
        added = [(templates[0], {"seed": seed}, 2.0**x) for x in proposal.add for seed in of_config]
        for x in proposal.bracket:
            known = {point.run.cfg.seed for point in by_x[x]}
            wanted = range(min(of_config), min(of_config) + cfg.num_seeds)
            added += [(by_x[x][0], {"seed": seed}, None) for seed in wanted if seed not in known]
        note = proposal.note
        if added and not proposal.add:
            note += f"; {len(added)} runs of more seeds there"
        try:
            new += [
                _at(
                    template,
                    fields | ({} if value is None else _along(members, cfg.field, value, coupled)),
                    tree,
                )
                for template, fields, value in added
            ]
        except (UserError, OverflowError) as e:  # e.g. a decay rate above 1
            note = f"{note.partition(';')[0]}; the grid can grow no further: {e}"
        notes.append(_named(note, templates[0], cfg.field, coupled))
    return new, notes


def _along(
    members: Sequence[Point], field: str, value: float, coupled: Mapping[str, Coupling]
) -> dict[str, Any]:
    """Returns a value of the refined field together with the fields that follow it.

    Raises:
      UserError: what does so by no rule that could be continued.
    """
    fields: dict[str, Any] = {field: value}
    at = field_value(members[0], field)
    for name, coupling in coupled.items():
        known = field_value(members[0], name)
        if coupling.exponent is None:
            raise UserError(
                f"{name} goes along with {field} by no power law, so its value between and beyond "
                "the grid's points cannot be told; add points to the sweep"
            )
        found = coupling.value(value, (at, known))
        if type(known) is int and abs(found - round(found)) > 1e-6 * abs(found):
            raise UserError(
                f"{name} goes along with {field} and would be {found:g}, which is no whole number"
            )
        fields[name] = round(found) if type(known) is int else found
    return fields


def _named(note: str, template: Point, field: str, coupled: Mapping[str, Coupling]) -> str:
    own = {k: v for k, v in template.overrides.items() if k not in (field, "seed", *coupled)}
    parts = [f"{name.rpartition('.')[2]}={value}" for name, value in own.items()]
    for name, coupling in coupled.items():
        constant = coupling.constant(field_value(template, field), field_value(template, name))
        parts.append(coupling.text(name.rpartition(".")[2], field.rpartition(".")[2], constant))
    return f"{', '.join(parts)}: {note}" if parts else note


def _at(template: Point, fields: Mapping[str, Any], tree: Mapping[str, Any]) -> Point:
    overrides = {**template.overrides, **fields}
    return Point(overrides, make_run(point_config(tree, overrides)))


def refine_curve(
    losses: Mapping[float, float | None],
    grid: tuple[float, float],
    log2_step: float,
    max_extension: float,
) -> Proposal:
    """Returns the values that a curve needs until its best one has a worse neighbour on each side,
    within log2_step.

    Args:
      losses: log2 value -> loss; None where a run diverged, which is worse than any loss.
      grid: lowest and highest log2 value of the config's own grid.
      max_extension: how far beyond the grid values may be added, each way.
    """
    xs = sorted(losses)
    finite = [x for x in xs if losses[x] is not None]
    # all diverged: try lower
    best = min(finite, key=lambda x: losses[x] or 0.0) if finite else xs[0]
    i = xs.index(best)
    for is_edge, neighbour, sign in ((i == 0, 1, -1), (i == len(xs) - 1 and bool(finite), -2, 1)):
        if not is_edge:
            continue
        step = abs(xs[neighbour] - best) if len(xs) > 1 else log2_step
        beyond = best + sign * step
        edge = (
            f"the best value is at the edge of the grid, 2^{best:g}"
            if finite
            else "every point diverged"
        )
        if sign * (beyond - grid[sign > 0]) > max_extension * (1 + 1e-9):
            return Proposal(
                (), f"{edge}; refine.max_extension = {max_extension:g} lets it grow no further"
            )
        return Proposal((beyond,), f"{edge}; extended to 2^{beyond:g}")
    gaps = [(xs[i - 1], best), (best, xs[i + 1])]
    halves = tuple((low + high) / 2 for low, high in gaps if high - low > log2_step * (1 + 1e-9))
    if halves:
        added = " and ".join(f"2^{x:g}" for x in halves)
        return Proposal(halves, f"bracketed by 2^{xs[i - 1]:g} and 2^{xs[i + 1]:g}; added {added}")
    bracket = tuple(x for x in finite if abs(x - best) <= 2 * log2_step * (1 + 1e-9))
    return Proposal(
        (), f"best at 2^{best:g}, bracketed by 2^{xs[i - 1]:g} and 2^{xs[i + 1]:g}", bracket
    )


def _mean(losses: Sequence[float | None]) -> float | None:
    finite = [loss for loss in losses if loss is not None]
    return sum(finite) / len(finite) if len(finite) == len(losses) else None
