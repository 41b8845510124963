"""Parameter groups for torch.optim: a table applied to the tensors of another framework.

Tensors are given by shapes and base shapes, as torch stores them: [out, in, ...] for linear layers
and convolutions, [rows, width] for embeddings. Base shapes are files of microsoft/mup
(github.com/microsoft/mup, save_base_shapes), where null marks a size that does not grow, or JSON of
the same content.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from mujax.errors import UserError, not_one_of, suggest
from mujax.optimizers import OPTIMIZERS
from mujax.parameterization import PARAMETERIZATIONS, assign_rows, resolve
from mujax.parameterization.resolve import has_depth_rules
from mujax.parameterization.table import BASIC_ROLES, Parameterization, Size
from mujax.params import ROLES, ParamMeta

Shape = tuple[int, ...]
BaseShape = tuple[int | None, ...]


def read_shapes(file: str, flag: str) -> dict[str, BaseShape]:
    """Reads {name: sizes} from YAML or JSON; `flag` is named in errors.

    Raises:
      UserError: the file is missing, or holds anything but lists of sizes and nulls.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--{flag}={file}: no such file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(
            f"--{flag}={file} is neither YAML nor JSON: {' '.join(str(e).split())}"
        ) from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"--{flag}={file} names no tensors; write {{name: [sizes]}}")
    for name, sizes in tree.items():
        if not isinstance(sizes, list) or not all(
            s is None or (type(s) is int and s > 0) for s in sizes
        ):
            raise UserError(
                f"--{flag}={file}: {name} is {repr(sizes)[:60]}, not a list of sizes, with null "
                "where none grows"
            )
    return {str(name): tuple(sizes) for name, sizes in tree.items()}


def parse_roles(text: str | None) -> dict[str, str]:
    """Parses 'embed.*=input,head.weight=output' into {pattern: role}.

    Raises:
      UserError: the text is of another form, or a role is unknown.
    """
    roles = {}
    for part in text.split(",") if text else ():
        pattern, equals, role = (piece.strip() for piece in part.partition("="))
        if not equals or role not in ROLES:
            raise UserError(
                f"--roles: {part!r} is not PATTERN=ROLE{suggest(role, ROLES)}; roles: "
                f"{', '.join(ROLES)}"
            )
        roles[pattern] = role
    return roles


def role_of(name: str, base: BaseShape, roles: Mapping[str, str]) -> str:
    """Returns the role that a pattern gives, or else the role that follows from which sizes grow.

    Raises:
      UserError: an embedding [rows, width] and a readout [classes, width] grow alike; a role must
        tell them apart.
    """
    for pattern, role in roles.items():
        if fnmatchcase(name, pattern):
            return role
    if len(base) < 2:
        return "vector"
    grows = [size is not None for size in base]
    if not any(grows[:2]):
        raise UserError(
            f"{name} has no size that grows; give it a role, e.g. --roles={name}=vector"
        )
    if grows[0]:
        return "hidden" if grows[1] else "input"
    raise UserError(
        f"{name} {json.dumps(base)} may be an embedding or a readout: give its role, "
        f"--roles={name}=input or --roles={name}=output"
    )


def _meta(name: str, role: str, sizes: Shape, is_embedding: bool) -> ParamMeta:
    axes = tuple(f"axis{i}" for i in range(len(sizes)))
    if role == "vector":
        return ParamMeta("vector", (), (), axes, sizes, "zeros")
    ins, outs = (axes[:1], axes[1:]) if is_embedding else (axes[1:], axes[:1])
    by_axis = dict(zip(axes, sizes, strict=True))
    return ParamMeta(role, (), ins, outs, tuple(by_axis[axis] for axis in (*ins, *outs)))  # pyright: ignore


def export(
    shapes: Mapping[str, BaseShape],
    base_shapes: Mapping[str, BaseShape],
    parameterization: str,
    optimizer: str,
    hyperparameters: Mapping[str, float],
    roles: Mapping[str, str],
) -> dict[str, Any]:
    """Returns parameter groups for torch.optim, with the roles and factors of each tensor.

    Returns:
      {"groups": parameter groups with tensor names; and by tensor "roles", "init" (standard
        deviations), "forward" (factors on weights) and "readout" (factor on the logits of a tied
        embedding)}.

    Args:
      base_shapes: shapes at the base width, with None where a size does not grow.
      optimizer: one of mujax's, whose learning-rate column is used.
      hyperparameters: lr, eps and weight_decay, each of a tensor whose factor is 1.

    Raises:
      UserError: an unknown table or optimizer, a table with rules that shapes cannot follow,
        tensors that are not in both, shapes that do not fit, a missing role, or a pattern that
        matches no tensor.
    """
    for flag, value, known in (
        ("parameterization", parameterization, PARAMETERIZATIONS),
        ("optimizer", optimizer, OPTIMIZERS),
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"--{flag}={value} {not_one_of(value, known)}")
    table, column = PARAMETERIZATIONS[parameterization], OPTIMIZERS[optimizer].column
    _check_table(table, column, optimizer)
    _check_names(shapes, base_shapes, roles)
    base_shapes = _with_nulls(shapes, base_shapes, roles)
    metas, base_metas, embeddings = {}, {}, set()
    for name, sizes in shapes.items():
        base = base_shapes[name]
        role = role_of(name, base, roles)
        _check_stack(name, role, base)
        at_base = tuple(size if b is None else b for size, b in zip(sizes, base, strict=True))
        if role == "tied" or role == "input" and base[0] is None:
            embeddings.add(name)
        elif role == "input" and len(base) > 1 and base == sizes:
            raise UserError(
                f"{name} has shape {json.dumps(sizes)} in both files: is it an embedding or a "
                "layer? Write null in --base_shapes for the size that does not grow"
            )
        metas[name] = _meta(name, role, sizes, name in embeddings)  # pyright: ignore[reportArgumentType]
        base_metas[name] = _meta(name, role, at_base, name in embeddings)  # pyright: ignore[reportArgumentType]
    rows = assign_rows(table, metas)
    scalings = resolve(rows, metas, base_metas, column)
    groups: dict[tuple, list[str]] = {}
    for name, s in scalings.items():
        # torch decays a stored weight by its own learning rate; a table means the effective
        # weight's, see mujax.optimizers.
        decay = s.weight_decay * OPTIMIZERS[optimizer].decay_gauge(metas[name], s)
        factors = {"lr": s.lr, "eps": s.eps, "weight_decay": decay}
        numbers = tuple(
            (field, hyperparameters[field] * factor) for field, factor in factors.items()
        )
        groups.setdefault(numbers, []).append(name)

    def init(name: str) -> float:
        meta, std = metas[name], scalings[name].init
        # The tables' inputs are one-hot; a layer that sums over its inputs starts at fan_in^-1/2
        # (2203.03466, Table 3).
        return std * meta.fan_in**-0.5 if meta.role == "input" and name not in embeddings else std

    return {
        "groups": [{"params": names, **dict(numbers)} for numbers, names in groups.items()],
        "roles": {name: meta.role for name, meta in metas.items()},
        "init": {name: init(name) for name, meta in metas.items() if meta.dist == "normal"},
        "forward": {name: s.forward for name, s in scalings.items()},
        "readout": {
            name: rows[name].readout(
                Size(fan_in=meta.fan_out), Size(fan_in=base_metas[name].fan_out)
            )
            for name, meta in metas.items()
            if meta.role == "tied"
        },
    }


def _check_table(table: Parameterization, column: str, optimizer: str) -> None:
    """Raises UserError unless the table's rules follow from roles and shapes alone."""
    here = f"--parameterization={table.name}"
    if table.tensors:
        raise UserError(
            f"{here} has rules for single tensors of mujax's models ({', '.join(table.tensors)})"
        )
    if has_depth_rules(table.rows, table.scales):
        raise UserError(
            f"{here} has rules for depth, of which shapes say nothing; choose a table without"
        )
    without = [role for role in BASIC_ROLES if column not in table.rows[role].lr]
    if without:
        raise UserError(
            f"{here} has no learning rate of {without[0]} tensors for --optimizer={optimizer}; it "
            f"has those of {', '.join(table.rows[without[0]].lr)}"
        )


def _check_names(
    shapes: Mapping[str, BaseShape], base_shapes: Mapping[str, BaseShape], roles: Mapping[str, str]
):
    if different := sorted(set(shapes) ^ set(base_shapes)):
        raise UserError(
            f"{different[0]} is in one of --shapes and --base_shapes, and not in the other"
        )
    for pattern in roles:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise UserError(f"--roles: {pattern!r} matches no tensor{suggest(pattern, shapes)}")
    pairs = {
        name: list(zip(sizes, base_shapes[name], strict=False)) for name, sizes in shapes.items()
    }
    is_wider = any(
        size != base for sizes in pairs.values() for size, base in sizes if base is not None
    )
    for name, sizes in shapes.items():
        base = base_shapes[name]
        if len(base) != len(sizes) or None in sizes:
            both = f"{json.dumps(sizes)} and base shape {json.dumps(base)}"
            raise UserError(
                f"{name} has shape {both}; both need as many sizes, and null is for the base alone"
            )
        if is_wider and any(size == own for size, own in pairs[name]):
            raise UserError(
                f"{name} has shape {json.dumps(sizes)} in both files; write null in --base_shapes "
                "for a size that does not grow"
            )


def _with_nulls(
    shapes: Mapping[str, BaseShape], base_shapes: Mapping[str, BaseShape], roles: Mapping[str, str]
) -> Mapping[str, BaseShape]:
    """Returns the base shapes, with nulls added if they are the model's own shapes and have none.

    Nothing grows from a model to itself, so without nulls an embedding looks like a layer. A size
    that grows is the output of one matrix and the input of another; a vocabulary or an image's
    channels are not.
    """
    matrices = [sizes for sizes in base_shapes.values() if len(sizes) > 1]
    if shapes != base_shapes or any(None in sizes for sizes in base_shapes.values()):
        return base_shapes
    inside = {sizes[0] for sizes in matrices} & {sizes[1] for sizes in matrices}

    def told(name: str, sizes: BaseShape) -> BaseShape:
        is_hidden = any(
            role == "hidden" and fnmatchcase(name, pattern) for pattern, role in roles.items()
        )
        if len(sizes) < 2 or is_hidden:
            return sizes
        return (*(size if size in inside else None for size in sizes[:2]), *sizes[2:])

    return {name: told(name, sizes) for name, sizes in base_shapes.items()}


def _check_stack(name: str, role: str, base: BaseShape) -> None:
    if role == "hidden" and len(base) > 2 and None in base[:2]:
        raise UserError(
            f"{name} {json.dumps(base)}: the first two sizes of a hidden tensor grow; split a "
            "stack of them"
        )
