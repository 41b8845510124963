"""The verb `explain`: every number of a parameterization per tensor, with its rule and source."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from mujax.columns import align
from mujax.config import RunConfig
from mujax.errors import UserError, suggest
from mujax.parameterization import PARAMETERIZATIONS, Row, Scaling
from mujax.params import ParamMeta, named_leaves
from mujax.training.run import Run, make_run

COLUMNS = 100
NUMBERS = ("init", "forward", "learning_rate", "eps", "weight_decay", "decay_steps")
SHORT = {"learning_rate": "lr", "weight_decay": "decay", "decay_steps": "steps"}


def describe(run: Run) -> dict[str, Any]:
    """Returns everything that `explain` says about one run, as JSON values.

    Per tensor: role, signature, shape, fans, draw; init (standard deviation of the stored weight),
    forward multiplier, learning rate, eps and decay coefficient as the optimizer uses them (null
    where it reads none); decay_steps, the steps in which decay alone shrinks the weight by a factor
    e at the peak learning rate (null: never); the rule of each number; and the source.
    """
    metas, rows = named_leaves(run.metas), named_leaves(run.rows)
    scalings = named_leaves(run.scalings)
    tensors = {name: _tensor(run, meta, rows[name], scalings[name]) for name, meta in metas.items()}
    table = PARAMETERIZATIONS[run.cfg.parameterization.name]
    scales = {
        name: {"value": float(value), "rule": _scale_rule(name, str(getattr(run.rules, name)))}
        for name, value in run.scales._asdict().items()
    }
    return {
        "parameterization": table.name,
        "source": table.source,
        "overrides": list(run.cfg.parameterization.override),
        "model": run.cfg.model_name,
        "optimizer": run.cfg.optim.name,
        "decay_form": run.cfg.optim.decay_form,
        "width": run.cfg.model.d_model,
        "base_width": run.cfg.parameterization.base_width,
        "tensors": tensors,
        "scales": scales,
        "table_hash": run.table_hash,
    }


def _tensor(run: Run, meta: ParamMeta, row: Row, scaling: Scaling) -> dict[str, Any]:
    optimizer, optim = run.program.optimizer, run.cfg.optim
    init, forward, lr, eps, decay = (float(value) for value in scaling)
    rate = optim.learning_rate * lr
    shrink = {
        "decoupled": rate
        * float(optimizer.decay_gauge(meta, scaling))
        * optim.weight_decay
        * decay,
        "l2": 0.0,
    }.get(optim.decay_form, optim.weight_decay * decay)
    rules = {name: str(getattr(row, name)) for name in ("init", "forward", "eps", "weight_decay")}
    if meta.dist != "normal":
        rules["init"] = meta.dist
    if "eps" not in optimizer.hps:
        del rules["eps"]
    return {
        "role": meta.role,
        "signature": meta.text,
        "shape": list(meta.sizes),
        "fan_in": meta.fan_in,
        "fan_out": meta.fan_out,
        "draw": meta.dist,
        "init": init if meta.dist == "normal" else 0.0,
        "forward": forward,
        "learning_rate": rate,
        "eps": optim.eps * eps if "eps" in optimizer.hps else None,
        "weight_decay": optim.weight_decay * decay,
        "decay_steps": 1 / shrink if shrink else None,
        "rules": {"lr": str(row.lr[optimizer.column]), **rules},
        "source": row.source,
    }


def _scale_rule(name: str, rule: str) -> str:
    """Returns the rule of a forward scale, with the name of its size: d_head or the width."""
    size = "d_head" if name == "attention" else "width"
    ratio = f"({size} / base {size})" if name == "attention" else "m"
    return rule.replace("fan_in", size).replace("m_in", ratio)


def explain(cfgs: Sequence[RunConfig], diff: str = "", as_json: bool = False) -> str:
    """Returns the text (at most COLUMNS wide) or JSON for one config at one or several widths.

    Args:
      cfgs: configs that differ in width alone.
      diff: name of a table; only the differences from it are shown.

    Raises:
      UserError: `diff` names no table, or a config cannot be resolved.
    """
    if diff and diff not in PARAMETERIZATIONS:
        raise UserError(f"--diff={diff} is no table{suggest(diff, PARAMETERIZATIONS)}")
    ours = [describe(make_run(cfg)) for cfg in cfgs]
    theirs = [describe(make_run(_under(cfg, diff))) for cfg in cfgs] if diff else []
    if as_json:
        return json.dumps({"runs": ours, "against": theirs} if diff else {"runs": ours}, indent=1)
    if diff:
        return "\n\n".join(
            _differences(mine, other) for mine, other in zip(ours, theirs, strict=True)
        )
    return _several(ours) if len(ours) > 1 else _one(ours[0])


def _under(cfg: RunConfig, table: str) -> RunConfig:
    plain = dataclasses.replace(cfg.parameterization, name=table, override=())
    return dataclasses.replace(cfg, parameterization=plain)


def _heading(d: Mapping[str, Any], one_width: bool = True) -> str:
    lines = [f"{d['parameterization']}: {d['source']}"]
    lines += [f"override: {override}" for override in d["overrides"]]
    width = f"width {d['width']}, " if one_width else ""
    lines.append(
        f"{d['model']}, {d['optimizer']}, decay {d['decay_form']}; {width}base width "
        f"{d['base_width']}"
    )
    return "\n".join(textwrap.fill(line, COLUMNS, subsequent_indent="  ") for line in lines)


def _one(description: Mapping[str, Any]) -> str:
    tensors = description["tensors"]
    # Rules are numbered in the order of their first tensor.
    numbers: dict[tuple, int] = {}
    for tensor in tensors.values():
        numbers.setdefault(_rule_key(tensor), len(numbers) + 1)
    head = [
        "tensor",
        "role",
        "fan_in",
        "fan_out",
        *(SHORT.get(name, name) for name in NUMBERS),
        "rule",
    ]
    rows = [
        [
            name,
            tensor["role"],
            str(tensor["fan_in"]),
            str(tensor["fan_out"]),
            *(_cell(tensor, number) for number in NUMBERS),
            f"[{numbers[_rule_key(tensor)]}]",
        ]
        for name, tensor in tensors.items()
    ]
    what = [
        [name, tensor["signature"], "x".join(map(str, tensor["shape"]))]
        for name, tensor in tensors.items()
    ]
    scales = [
        [f"{name} scale", f"{scale['value']:.5g}", scale["rule"]]
        for name, scale in description["scales"].items()
    ]
    rules = []
    for (rule, source), number in numbers.items():
        text = (
            " · ".join(f"{SHORT.get(name, name)} {power}" for name, power in rule if power != "1")
            or "all 1"
        )
        rules.append(
            textwrap.fill(f"[{number}] {text}  ({source})", COLUMNS, subsequent_indent="    ")
        )
    return "\n\n".join(
        [
            _heading(description),
            format_columns([head, *rows]),
            "rules; m is a size over the same at the base, n the width, L the number of layers\n"
            + "\n".join(rules),
            format_columns([["forward scale", "value", "rule"], *scales]),
            format_columns([["tensor", "signature", "shape"], *what]),
            _NOTES,
        ]
    )


_NOTES = textwrap.fill(
    "init: standard deviation of the stored weight; forward: effective weight / stored weight; lr, "
    "eps, decay: as the optimizer uses them, at the peak of the schedule; steps: in which decay "
    "alone shrinks the weight by a factor e. Clipping, l2 and decoupled decay act on effective "
    "weights, so forms of one table that store other weights (rescaled by theta, forward by "
    "1/theta) train alike.",
    COLUMNS,
)


def _rule_key(tensor: Mapping[str, Any]) -> tuple:
    return tuple(tensor["rules"].items()), tensor["source"]


def _cell(tensor: Mapping[str, Any], number: str) -> str:
    value = tensor[number]
    if number == "init" and tensor["draw"] != "normal":
        return tensor["draw"]
    if value is None:
        return "-"
    return f"{value:.0f}" if number == "decay_steps" else f"{value:.3g}"


def _several(descriptions: Sequence[Mapping[str, Any]]) -> str:
    """Tabulates each number that varies with width: one line per tensor, one column per width."""
    blocks = [_heading(descriptions[0], one_width=False)]
    widths = [f"{d['width']}" for d in descriptions]
    names = list(descriptions[0]["tensors"])
    for number in NUMBERS:
        rule_name = {"learning_rate": "lr", "decay_steps": ""}.get(number, number)
        rows = [
            [
                name,
                *(_cell(d["tensors"][name], number) for d in descriptions),
                descriptions[0]["tensors"][name]["rules"].get(rule_name, ""),
            ]
            for name in names
        ]
        if any(len(set(row[1:-1])) > 1 for row in rows):
            blocks.append(
                format_columns(
                    [[number.replace("_", " "), *widths, "rule" if rule_name else ""], *rows]
                )
            )
    scales = [
        [
            f"{name} scale",
            *(f"{d['scales'][name]['value']:.4g}" for d in descriptions),
            scale["rule"],
        ]
        for name, scale in descriptions[0]["scales"].items()
    ]
    blocks.append(format_columns([["forward scale", *widths, "rule"], *scales]))
    return "\n\n".join(blocks)


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Tabulates only the numbers that differ, theirs -> ours."""
    rows = []
    for name, tensor in ours["tensors"].items():
        other = theirs["tensors"][name]
        for number in NUMBERS:
            a, b = _cell(other, number), _cell(tensor, number)
            if not _same(other[number], tensor[number]):
                rule = {"learning_rate": "lr", "decay_steps": "weight_decay"}.get(number, number)
                rows.append(
                    [
                        name,
                        SHORT.get(number, number),
                        a,
                        b,
                        other["rules"].get(rule, ""),
                        tensor["rules"][rule],
                    ]
                )
    for name, scale in ours["scales"].items():
        other = theirs["scales"][name]
        if not _same(scale["value"], other["value"]):
            cells = [f"{x['value']:.4g}" for x in (other, scale)]
            rows.append([f"{name} scale", "", *cells, other["rule"], scale["rule"]])
    title = _heading(ours) + f"\nagainst {theirs['parameterization']}: {theirs['source']}"
    if not rows:
        return f"{title}\n\nno difference"
    head = ["tensor", "number", "there", "here", "rule there", "rule here"]
    return f"{title}\n\n{format_columns([head, *rows])}"


def _same(a: float | None, b: float | None) -> bool:
    """Tells whether two numbers are equal as float32 numbers, or both absent."""
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6))


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns to the left; the longest names lose their middle where COLUMNS is exceeded."""
    others = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
    first = max(COLUMNS - sum(others) - 2 * len(others), 12)

    def shorten(text: str) -> str:
        return (
            text
            if len(text) <= first
            else f"{text[: first // 3]}..{text[len(text) - (first - first // 3 - 2) :]}"
        )

    return "\n".join(align([[f"{shorten(name):<12}", *cells] for name, *cells in rows]))
