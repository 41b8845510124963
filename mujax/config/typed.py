"""Typed sections: names, types and ranges of a config's fields, checked against declarations."""

import functools
import math
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from mujax.errors import UserError, shown, suggest
from mujax.fields import INT32, check_numbers


def typed_section(cls, tree: Mapping[str, Any], where: str):
    """Returns a section of the config as the dataclass that names its fields.

    Raises:
      UserError: an unknown or missing field, a wrong type, or a number out of range.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} = {shown(tree)} is not a section of fields")
    fields = typed_fields(cls, tree, where)
    check_numbers(cls, where, fields)
    return cls(**fields)


def typed_fields(
    cls, tree: Mapping[str, Any], where: str, derived: tuple[str, ...] = ()
) -> dict[str, Any]:
    hints = {name: hint for name, hint in type_hints(cls).items() if name not in derived}
    check_names(tree, hints, f"{where}.")
    return {name: cast(tree[name], hint, f"{where}.{name}") for name, hint in hints.items()}


type_hints = functools.lru_cache(maxsize=64)(get_type_hints)  # a sweep asks thousands of times


def check_names(tree: Mapping[str, Any], names, prefix: str) -> None:
    for key in tree:
        if key not in names:
            raise UserError(f"unknown field {prefix}{key}{suggest(str(key), names)}")
    for name in names:
        if name not in tree:
            raise UserError(
                f"field {prefix}{name} is missing; start from configs/base.py, which sets all"
            )


def cast(value, kind: type, field: str) -> Any:
    """Checks a value's type; an int serves as a float, a NumPy scalar as its Python number; no
    other conversion."""
    if isinstance(value, np.generic):
        value = value.item()
    if get_origin(kind) is tuple:  # of any length, all entries of one type
        if not isinstance(value, tuple | list):
            raise UserError(f"{field} = {shown(value)} is {type(value).__name__}, not a tuple")
        return tuple(cast(entry, get_args(kind)[0], field) for entry in value)
    if kind is float and type(value) is int and abs(value) < 1e38:
        value = float(value)
    if kind is float and type(value) in (float, int):
        if type(value) is int or not (
            math.isfinite(value) and (value == 0 or 1e-37 < abs(value) < 1e38)
        ):
            raise UserError(f"{field} = {shown(value)} is not a finite number that fits float32")
        return value + 0.0  # -0.0 is 0.0
    if type(value) is not kind:
        raise UserError(f"{field} = {shown(value)} is {type(value).__name__}, not {kind.__name__}")
    if kind is int and not -INT32 <= value <= INT32:
        raise UserError(f"{field} = {shown(value)} is not a whole number that fits int32")
    return value
