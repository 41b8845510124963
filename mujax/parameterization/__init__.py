"""Parameterizations as tables of data: `table` defines their form, `resolve` makes them numbers."""

from mujax.parameterization import decay, depth, everett, kalra, lingle, mup, sp, unit
from mujax.parameterization.override import apply_overrides
from mujax.parameterization.resolve import (
    Scales,
    Scaling,
    assign_rows,
    check_depth,
    format_table,
    is_scaling,
    resolve,
    resolve_scales,
    table_hash,
)
from mujax.parameterization.table import (
    Intention,
    Parameterization,
    Power,
    Row,
    ScaleRules,
    Size,
    size_of,
)

_TABLES = (
    sp.SP,
    *mup.FORMS,
    *mup.ABSOLUTE,
    mup.MUP_SQRT_EMBEDDING,
    decay.MUP_CONSTANT_SHRINK,
    decay.MUP_SQRT_DECAY,
    *depth.COMPLETEP,
    unit.U_MUP,
    *everett.EVERETT,
    *lingle.LINGLE,
    *kalra.FACTORIAL,
    kalra.MUP_SQRT_DECAY,
)
PARAMETERIZATIONS: dict[str, Parameterization] = {table.name: table for table in _TABLES}

__all__ = [
    "Intention",
    "PARAMETERIZATIONS",
    "Parameterization",
    "Power",
    "Row",
    "ScaleRules",
    "Scales",
    "Scaling",
    "Size",
    "apply_overrides",
    "assign_rows",
    "check_depth",
    "format_table",
    "is_scaling",
    "resolve",
    "resolve_scales",
    "size_of",
    "table_hash",
]
