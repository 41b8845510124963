"""Configs as trees: leaves, differences, and JSON that does not depend on the order of keys."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any


def hashed(text: str) -> str:
    """Returns the first 12 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Itself:
    """A dictionary key that stands for one object and not for its equals: 1, 1.0 and True are not
    the same JSON."""

    def __init__(self, thing):
        self.thing = thing

    def __hash__(self):
        return id(self.thing)

    def __eq__(self, other):
        return self.thing is other.thing


def canonical(section) -> str:
    """Returns what a frozen dataclass has other than its defaults, as JSON with sorted keys.

    A field without a default follows from others, and is left out.
    """
    return _canonical(Itself(section))


@functools.lru_cache(maxsize=1024)  # the points of a sweep share most of their sections
def _canonical(section: Itself) -> str:
    values = dataclasses.asdict(section.thing)
    own = {
        field.name: values[field.name]
        for field in dataclasses.fields(section.thing)
        if field.default is not dataclasses.MISSING and values[field.name] != field.default
    }
    return json.dumps(own, sort_keys=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fields in which two nested configs differ, and how.

    E.g. {'optim.learning_rate': '0.1 -> 0.2'}.
    """
    a, b = dict(leaves(old)), dict(leaves(new))
    return {
        field: f"{_short(a.get(field, 'absent'))} -> {_short(b.get(field, 'absent'))}"
        for field in sorted(a.keys() | b.keys())
        if a.get(field) != b.get(field)
    }


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field of a nested config."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
