"""Overrides of single rows, tensors and numbers of a table, as a config gives them.

An override is TARGET=VALUE or TARGET.NUMBER=VALUE.

    TARGET  a role, a tensor's name or pattern ('blocks/*/wq'), or a forward scale
    NUMBER  one of a row's numbers: init, forward, lr, eps, weight_decay, readout;
            without it, the whole row is replaced
    VALUE   a table ('sp': its row for that role), a row of a table ('sp.hidden'), or,
            for a single number or a forward scale, the number itself
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from mujax.errors import UserError, suggest
from mujax.parameterization.resolve import assign_rows, scale_rules
from mujax.parameterization.table import COLUMNS, Parameterization, Power, Row, ScaleRules
from mujax.params import ROLES, map_params, named_leaves

NUMBERS = tuple(f.name for f in dataclasses.fields(Row) if f.name != "source")
SCALES = tuple(f.name for f in dataclasses.fields(ScaleRules))


@dataclasses.dataclass(frozen=True)
class Override:
    """One parsed override; `number` is empty where it replaces the whole row or a forward scale."""

    text: str
    target: str
    number: str
    value: str


def parse(text: str) -> Override:
    """Parses 'unembed.lr=0.5' into an Override.

    Raises:
      UserError: it is not of the form TARGET=VALUE or TARGET.NUMBER=VALUE.
    """
    left, found, value = (part.strip() for part in text.partition("="))
    target, _, number = left.partition(".")
    if not (found and target and value):
        raise UserError(f"{_here(text)} is not TARGET=VALUE, e.g. 'unembed=sp' or 'unembed.lr=0.5'")
    if target in SCALES and number:
        raise UserError(
            f"{_here(text)}: the forward scale {target!r} is one number; write '{target}={value}'"
        )
    if number and number not in NUMBERS:
        raise UserError(
            f"{_here(text)}: {number!r} is no number of a row{suggest(number, NUMBERS)}"
        )
    if not number and target not in SCALES and _as_number(value) is not None:
        raise UserError(
            f"{_here(text)}: say which number, e.g. '{target}.lr={value}'; one of "
            f"{', '.join(NUMBERS)}"
        )
    return Override(text, target, number, value)


def apply_overrides(
    table: Parameterization, overrides: Sequence[str], metas, tables: Mapping[str, Parameterization]
) -> tuple[dict, ScaleRules]:
    """Returns the rows and forward-scale rules of a model, after the overrides.

    Returns:
      tree of Row beside the parameters; the ScaleRules.

    Raises:
      UserError: an override that cannot be parsed, matches nothing, names no table, or sets a
        number that another override also sets; or a tensor without a rule.
    """
    metas_by_name = named_leaves(metas)
    replaced: dict[tuple[str, str], Override] = {}  # (tensor or scale, number) -> who set it

    def reserve(owner: str, numbers: Sequence[str], override: Override):
        for number in numbers:
            other = replaced.setdefault((owner, number), override)
            if other is not override:
                what = f"{owner}'s {number}" if number else f"the {owner} scale"
                raise UserError(
                    f"parameterization.override: {other.text!r} and {override.text!r} both set "
                    f"{what}"
                )

    rules, targets = {}, {}
    for override in map(parse, overrides):
        if override.target in SCALES:
            reserve(override.target, ("",), override)
            rules[override.target] = _scale(override, tables)
            continue
        matched = [
            name
            for name, meta in metas_by_name.items()
            if (
                meta.role == override.target
                if override.target in ROLES
                else fnmatchcase(name, override.target)
            )
        ]
        if not matched:
            known = (*metas_by_name, *sorted({m.role for m in metas_by_name.values()}), *SCALES)
            hint = suggest(override.target, known)
            raise UserError(
                f"{_here(override.text)} matches no tensor, role or forward scale of the "
                f"model{hint}"
            )
        for name in matched:
            reserve(name, (override.number,) if override.number else NUMBERS, override)
            targets.setdefault(name, []).append(override)

    whole = {
        name: _row(override, name, metas_by_name[name].role, tables)
        for name, entries in targets.items()
        for override in entries
        if not override.number
    }
    # Overridden tensors come first in the order of patterns, so that they need no other rule.
    others = {pattern: row for pattern, row in table.tensors.items() if pattern not in whole}
    rows = assign_rows(table.replace(tensors={**whole, **others}), metas)

    def changed(name: str, row: Row) -> Row:
        for override in targets.get(name, ()):
            if override.number:
                row = _with_number(row, override, name, metas_by_name[name].role, tables)
        return row

    rows = map_params(changed, rows)
    return rows, dataclasses.replace(scale_rules(table, rows, metas), **rules)


def _row(override: Override, tensor: str, role: str, tables: Mapping[str, Parameterization]) -> Row:
    """Returns a table's row for this tensor, or for the role that the override names."""
    name, _, other_role = override.value.partition(".")
    table = _table(override, name, tables)
    own = [row for pattern, row in table.tensors.items() if fnmatchcase(tensor, pattern)]
    role = other_role or role
    if role not in table.rows:
        raise UserError(
            f"{_here(override.text)}: table {name!r} has no row for "
            f"{role!r}{suggest(role, table.rows)}"
        )
    row = own[0] if own and not other_role else table.rows[role]
    return row.replace(source=f"{row.source} [override {override.text}]")


def _with_number(
    row: Row, override: Override, tensor: str, role: str, tables: Mapping[str, Parameterization]
) -> Row:
    constant = _as_number(override.value)
    if override.number == "readout" and role != "tied":
        raise UserError(
            f"{_here(override.text)}: {tensor} is {role!r}; only a tied embedding has a readout "
            "factor"
        )
    if constant is None:
        value = getattr(_row(override, tensor, role, tables), override.number)
        return row.replace(
            **{override.number: value}, source=f"{row.source} [override {override.text}]"
        )
    # Zero init, a frozen tensor and no decay are choices; any other factor of zero is a mistake.
    _check_number(override, constant, may_be_zero=override.number in ("init", "lr", "weight_decay"))
    power = Power(coefficient=constant)
    value = dict.fromkeys(COLUMNS, power) if override.number == "lr" else power
    return row.replace(
        **{override.number: value}, source=f"{row.source} [override {override.text}]"
    )


def _scale(override: Override, tables: Mapping[str, Parameterization]) -> Power:
    constant = _as_number(override.value)
    if constant is None:
        return getattr(_table(override, override.value, tables).scales, override.target)
    _check_number(override, constant, may_be_zero=False)
    return Power(coefficient=constant)


def _check_number(override: Override, value: float, may_be_zero: bool) -> None:
    fits = may_be_zero and value == 0 or 1e-37 < value < 1e38
    if not fits:
        bound = "at least 0" if may_be_zero else "above 0"
        raise UserError(f"{_here(override.text)}: the number must be {bound} and fit float32")


def _table(
    override: Override, name: str, tables: Mapping[str, Parameterization]
) -> Parameterization:
    if name not in tables:
        raise UserError(
            f"{_here(override.text)}: {name!r} is no number and no table{suggest(name, tables)}"
        )
    return tables[name]


def _as_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _here(text: str) -> str:
    return f"parameterization.override {text!r}"
