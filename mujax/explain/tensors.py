"""The tensors of a sweep as tables for its report: one point of each parameterization."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = (
    "tensor",
    "role",
    "shape",
    "init std",
    "forward",
    "LR / global LR",
    "eps",
    "decay",
    "rule of LR",
    "source",
)
MAX_TABLES = 20


def tensor_tables(manifest: Mapping[str, Any]) -> dict[str, list[Sequence[str]]]:
    """Returns {title: table of tensors} for the widest point of each parameterization.

    Tables that today's code cannot make are left out.
    """
    # Imported here because runs import JAX, and a table from elsewhere has no tensors.
    from mujax.config import make_run_config
    from mujax.explain.explain import describe
    from mujax.training.run import make_run

    config, widest = manifest.get("config"), {}
    points = manifest.get("points") or {"": {}}
    if not isinstance(config, dict) or not isinstance(points, dict):
        return {}
    for point in points.values():
        overrides = point.get("overrides", {}) if isinstance(point, dict) else None
        if isinstance(overrides, dict):
            name, width = str(overrides.get("parameterization.name")), _width(overrides)
            if name not in widest or width > _width(widest[name]):
                widest[name] = overrides
    tables = {}
    for overrides in list(widest.values())[:MAX_TABLES]:
        try:
            cfg = make_run_config(_with(config, overrides))
            told = describe(make_run(cfg))
        except Exception:
            # The manifest may be edited or of another version: its rows can be reported without
            # tables.
            continue
        title = (
            f"{told['parameterization']}, width {told['width']} (base width "
            f"{told['base_width']}): {told['source']}"
        )
        lr = cfg.optim.learning_rate
        lines = [
            (
                name, t["role"], " x ".join(map(str, t["shape"])),
                f"{t['init']:.4g}" if t["draw"] == "normal" else t["draw"], f"{t['forward']:.4g}",
                f"{t['learning_rate'] / lr:.4g}", "-" if t["eps"] is None else f"{t['eps']:.3g}",
                f"{t['weight_decay']:.3g}", t["rules"]["lr"], t["source"],
            )
            for name, t in told["tensors"].items()
        ]  # fmt: skip
        tables[title] = [HEADER, *lines]
    return tables


def _width(overrides: Mapping[str, Any]) -> int:
    width = overrides.get("model.d_model", 0)
    return width if type(width) is int else 0


def _with(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(dict(config))
    for field, value in overrides.items():
        *sections, last = field.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[last] = value
    return tree
