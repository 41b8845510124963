"""Ids of runs: a schema's number and a hash of what a config has other than the defaults.

So a field that is declared anew changes no id, if its default leaves runs as they were. Where a
field gets another name, meaning or default, SCHEMA counts up, and mujax.sweep.migration carries
earlier rows over.
"""

from collections.abc import Mapping
from typing import Any

from mujax.config.trees import canonical, hashed

SCHEMA = 2
# earlier name of a field, dotted -> today's
RENAMED: Mapping[str, str] = {"model.separator_id": "model.separator_id"}


def run_id(seed: int, model_name: str, model, sections: Mapping[str, Any]) -> str:
    """Returns SCHEMA and 12 hex digits of a SHA-256, e.g. '2-2581fabbee5d'.

    Args:
      model, sections: dataclasses of declared fields; a section at its defaults adds nothing.
    """
    parts = {name: canonical(section) for name, section in sections.items()}
    own = [f"{name}: {part}" for name, part in sorted(parts.items()) if part != "{}"]
    return f"{SCHEMA}-" + hashed(
        "\n".join([f"seed: {seed}", f"{model_name}: {canonical(model)}", *own])
    )


def is_of_today(id: str) -> bool:
    """Returns whether an id is of SCHEMA."""
    return id.startswith(f"{SCHEMA}-")


def renamed_fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recorded config, or overrides by dotted field, with today's names of fields."""
    found = dict(tree)
    for old, new in RENAMED.items():
        if old in found:
            found[new] = found.pop(old)
        section, _, field = old.partition(".")
        own = found.get(section)
        if isinstance(own, Mapping) and field in own:
            found[section] = {new.partition(".")[2] if k == field else k: own[k] for k in own}
    return found
