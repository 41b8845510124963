"""A table applied to the tensors of another framework: parameter groups for torch.optim, from shapes and base shapes.

Shapes are written as torch stores them: [out, in, ...] for linear layers and convolutions, [rows, width] for
embeddings. Base shapes are files of microsoft/mup (github.com/microsoft/mup, save_base_shapes), where null marks a size
that does not grow, or JSON of the same content.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from mujax.errors import UserError, suggest
from mujax.optim import OPTIMIZERS
from mujax.parameterization import PARAMETERIZATIONS, assign_rows, resolve
from mujax.params import ROLES, ParamMeta

Shape = tuple[int, ...]
BaseShape = tuple[int | None, ...]


def read_shapes(file: str, flag: str) -> dict[str, BaseShape]:
    """Name -> sizes, from YAML or JSON.

    Raises:
      UserError: the file is missing, or holds anything but lists of sizes and nulls.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--{flag}={file}: no such file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))  # which JSON is, too
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"--{flag}={file} is neither YAML nor JSON: {' '.join(str(e).split())}") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"--{flag}={file} names no tensors; write {{name: [sizes]}}")
    for name, sizes in tree.items():
        if not isinstance(sizes, list) or not all(s is None or (type(s) is int and s > 0) for s in sizes):
            raise UserError(f"--{flag}={file}: {name} is {sizes!r}, not a list of sizes, with null where none grows")
    return {str(name): tuple(sizes) for name, sizes in tree.items()}


def parse_roles(text: str | None) -> dict[str, str]:
    """'embed.*=input,head.weight=output' -> {pattern: role}.

    Raises:
      UserError: it is something else, or no role.
    """
    roles = {}
    for part in text.split(",") if text else ():
        pattern, equals, role = (piece.strip() for piece in part.partition("="))
        if not equals or role not in ROLES:
            raise UserError(f"--roles: {part!r} is not PATTERN=ROLE{suggest(role, ROLES)}; roles: {', '.join(ROLES)}")
        roles[pattern] = role
    return roles


def role_of(name: str, base: BaseShape, roles: Mapping[str, str]) -> str:
    """The role that a pattern gives, or the one that a shape has by what grows of it.

    Raises:
      UserError: an embedding [rows, width] and a readout [classes, width] grow alike; a role must tell them apart.
    """
    for pattern, role in roles.items():
        if fnmatchcase(name, pattern):
            return role
    grows = [size is not None for size in base]
    if len(base) < 2:
        return "vector"
    if not any(grows[:2]):
        raise UserError(f"{name} has no size that grows; give it a role, e.g. --roles={name}=vector")
    if grows[0]:
        return "hidden" if grows[1] else "input"
    raise UserError(
        f"{name} {list(base)} may be an embedding or a readout: give its role, --roles={name}=input or "
        f"--roles={name}=output"
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
    """{"groups": parameter groups of torch.optim, by names; "init": standard deviations; "forward": factors}.

    Args:
      base_shapes: at the base width, None where a size does not grow.
      optimizer: one of mujax's, whose learning-rate column is used.
      hyperparameters: lr, eps and weight_decay at the base width.

    Raises:
      UserError: an unknown table or optimizer, tensors that are not in both, shapes that do not fit, a missing role.
    """
    for flag, value, known in (
        ("parameterization", parameterization, PARAMETERIZATIONS), ("optimizer", optimizer, OPTIMIZERS),
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"--{flag}={value} is not one of {', '.join(known)}")
    if different := sorted(set(shapes) ^ set(base_shapes)):
        raise UserError(f"{different[0]} is in one of --shapes and --base_shapes, and not in the other")
    metas, base_metas = {}, {}
    for name, sizes in shapes.items():
        base = base_shapes[name]
        if len(base) != len(sizes) or None in sizes:
            raise UserError(f"{name} has shape {list(sizes)} and base shape {list(base)}; both need as many sizes")
        role = role_of(name, base, roles)
        at_base = tuple(size if b is None else b for size, b in zip(sizes, base, strict=True))
        is_embedding = role in ("input", "tied") and base[0] is None
        metas[name] = _meta(name, role, sizes, is_embedding)  # pyright: ignore[reportArgumentType]
        base_metas[name] = _meta(name, role, at_base, is_embedding)  # pyright: ignore[reportArgumentType]
    rows = assign_rows(PARAMETERIZATIONS[parameterization], metas)
    scalings = resolve(rows, metas, base_metas, OPTIMIZERS[optimizer].column)
    groups: dict[tuple, list[str]] = {}
    for name, s in scalings.items():
        numbers = {field: hyperparameters[field] * getattr(s, field) for field in ("lr", "eps", "weight_decay")}
        groups.setdefault(tuple(numbers.items()), []).append(name)
    return {
        "groups": [{"params": names, **dict(numbers)} for numbers, names in groups.items()],
        "init": {name: s.init for name, s in scalings.items() if metas[name].dist == "normal"},
        "forward": {name: s.forward for name, s in scalings.items()},
    }
