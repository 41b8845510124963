"""A run resolved: from a validated config to a program and the numbers it is called with."""

import dataclasses
import math
from typing import Any

import jax

from mujax.config import RunConfig, digest
from mujax.hps import Hps, as_float32
from mujax.optim import OPTIMIZERS
from mujax.parameterization import (
    PARAMETERIZATIONS,
    ScaleRules,
    Scales,
    apply_overrides,
    check_depth,
    format_table,
    resolve,
    resolve_scales,
    table_hash,
)
from mujax.params import num_params
from mujax.steps import Program, abstract_metas


@dataclasses.dataclass(frozen=True)
class Run:
    """hps and scalings are trees of float32 scalars; metas and rows (of the table) are trees beside them."""

    cfg: RunConfig
    program: Program
    metas: dict[str, Any]
    rows: dict[str, Any]
    rules: ScaleRules
    hps: Hps
    scalings: dict[str, Any]

    @property
    def group(self) -> str:
        """Names the compiled program and all else that lanes of one chunk must share, but for the mesh."""
        shared = (self.program, self.cfg.train, self.cfg.data)
        return digest([dataclasses.asdict(part) for part in shared])

    @property
    def num_params(self) -> int:
        return num_params(self.metas)

    @property
    def scales(self) -> Scales:
        return Scales(*(getattr(self.hps, f"{name}_scale") for name in Scales._fields))

    @property
    def table(self) -> str:
        """The resolved parameterization, a line a tensor."""
        return format_table(self.metas, self.scalings, self.scales)

    @property
    def table_hash(self) -> str:
        return table_hash(self.metas, self.scalings, self.scales)

    @property
    def tokens_per_step(self) -> int:
        return self.cfg.train.batch_size * self.cfg.data.seq_len

    @property
    def flops_per_step(self) -> float:
        return self.tokens_per_step * self.cfg.model.flops_per_token(self.cfg.data.seq_len)


def make_run(cfg: RunConfig) -> Run:
    """Resolves the parameterization of a config; compiles and allocates nothing.

    Raises:
      UserError: a tensor without a rule, an override that fits nothing, or an optimizer without a column.
    """
    table = PARAMETERIZATIONS[cfg.parameterization.name]
    metas, base_metas = (abstract_metas(cfg.model_name, model) for model in (cfg.model, cfg.base_model))
    rows, rules = apply_overrides(table, cfg.parameterization.override, metas, PARAMETERIZATIONS)
    scalings = resolve(rows, metas, base_metas, OPTIMIZERS[cfg.optim.name].column)
    check_depth(table, rows, rules, metas, cfg.model.dims)
    scales = resolve_scales(rules, cfg.model.dims, cfg.base_model.dims)
    hps = Hps(
        learning_rate=cfg.optim.learning_rate,
        weight_decay=cfg.optim.weight_decay,
        b1=cfg.optim.b1,
        b2=cfg.optim.b2,
        eps=cfg.optim.eps,
        grad_clip=cfg.optim.grad_clip or math.inf,
        warmup_steps=cfg.schedule.warmup_steps,
        decay_steps=cfg.schedule.decay_steps,
        total_steps=cfg.train.steps,
        final_ratio=cfg.schedule.final_ratio,
        **{f"{name}_scale": value for name, value in scales._asdict().items()},
    )
    program = Program(
        model_name=cfg.model_name,
        model=cfg.model,
        optimizer=cfg.optim.name,
        decay_form=cfg.optim.decay_form,
        momentum_dtype=None if cfg.optim.momentum_dtype == "float32" else cfg.optim.momentum_dtype,
        schedule=cfg.schedule.name,
        accumulation=cfg.train.accumulation,
        eos_id=None if cfg.data.eos_id < 0 else cfg.data.eos_id,
        batch_size=cfg.train.batch_size,
        seq_len=cfg.data.seq_len,
    )
    return Run(cfg, program, metas, rows, rules, as_float32(hps), as_float32(scalings))


def device_description() -> str:
    """E.g. '2 x cpu' or '8 x TPU v4'."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
