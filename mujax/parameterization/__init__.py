"""Parameterizations as tables of data; see `table` for what they mean and how they resolve."""

from mujax.parameterization.mup import MUP
from mujax.parameterization.sp import SP
from mujax.parameterization.table import (
    Parameterization,
    Scaling,
    format_table,
    is_scaling,
    resolve,
    table_hash,
    tensor_name,
)

PARAMETERIZATIONS: dict[str, Parameterization] = {table.name: table for table in (SP, MUP)}

__all__ = [
    "PARAMETERIZATIONS",
    "Parameterization",
    "Scaling",
    "format_table",
    "is_scaling",
    "resolve",
    "table_hash",
    "tensor_name",
]
