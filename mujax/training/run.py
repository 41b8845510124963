"""The resolution of a validated config to a run: a program and the numbers it is called with."""

import dataclasses
import functools
import json
import math
from typing import Any, cast

import jax
import numpy as np

from mujax.config import RunConfig, canonical, hashed
from mujax.errors import UserError
from mujax.hps import Hps, as_float32
from mujax.models import MODELS
from mujax.models.module import MuModule
from mujax.optimizers import OPTIMIZERS
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
from mujax.params import check_num_params, named_leaves, num_params
from mujax.training.steps import Program, abstract_metas


@dataclasses.dataclass(frozen=True, eq=False)
class Resolved:
    """A parameterization resolved for a model and an optimizer.

    scalings: tree of float32 scalars.
    metas, rows: trees beside it; rows are those of the table.

    Runs that differ in other numbers share one.
    """

    metas: dict[str, Any]
    rows: dict[str, Any]
    rules: ScaleRules
    scalings: dict[str, Any]
    scales: Scales

    @functools.cached_property
    def table_hash(self) -> str:
        return table_hash(self.metas, self.scalings, self.scales)

    @functools.cached_property
    def num_params(self) -> int:
        return num_params(self.metas)


@dataclasses.dataclass(frozen=True)
class Run:
    """A resolved run; hps is a tuple of float32 scalars."""

    cfg: RunConfig
    program: Program
    resolved: Resolved
    hps: Hps

    @property
    def metas(self) -> dict[str, Any]:
        return self.resolved.metas

    @property
    def rows(self) -> dict[str, Any]:
        return self.resolved.rows

    @property
    def rules(self) -> ScaleRules:
        return self.resolved.rules

    @property
    def scalings(self) -> dict[str, Any]:
        return self.resolved.scalings

    @property
    def scales(self) -> Scales:
        return self.resolved.scales

    @functools.cached_property
    def group(self) -> str:
        """The name of all that lanes of one chunk share: the program and more, without the mesh."""
        program = _canonical_program(self.program, self.cfg.model_name, self.cfg.optim.name)
        return hashed(f"[{program}, {canonical(self.cfg.train)}, {canonical(self.cfg.data)}]")

    @property
    def num_params(self) -> int:
        return self.resolved.num_params

    @property
    def table(self) -> str:
        """The resolved parameterization, one line per tensor."""
        return format_table(self.metas, self.scalings, self.scales)

    @property
    def table_hash(self) -> str:
        return self.resolved.table_hash

    @property
    def tokens_per_step(self) -> int:
        return self.cfg.train.batch_size * self.cfg.data.seq_len

    @property
    def flops_per_step(self) -> float:
        return self.tokens_per_step * self.cfg.model.flops_per_token(self.cfg.data.seq_len)


class RunMaker:
    """A maker of Runs, see make_run; it resolves once what several runs share."""

    def __init__(self):
        self._resolved: dict[Any, Resolved] = {}
        self._programs: dict[Program, Program] = {}

    def __call__(self, cfg: RunConfig) -> Run:
        key = cfg.model_name, cfg.model, cfg.parameterization, cfg.optim.name
        if key not in self._resolved:
            self._resolved[key] = _resolve(cfg)
        resolved = self._resolved[key]
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
            **{f"{name}_scale": value for name, value in resolved.scales._asdict().items()},
        )
        program = Program(
            model_class=_model_class(cfg),
            model=cfg.model,
            optimizer=OPTIMIZERS[cfg.optim.name],
            decay_form=cfg.optim.decay_form,
            momentum_dtype=None
            if cfg.optim.momentum_dtype == "float32"
            else cfg.optim.momentum_dtype,
            schedule=cfg.schedule.name,
            accumulation=cfg.train.accumulation,
            eos_id=None if cfg.data.eos_id < 0 else cfg.data.eos_id,
            batch_size=cfg.train.batch_size,
            seq_len=cfg.data.seq_len,
        )
        # as_float32 of a tuple, ten times as fast
        hps = Hps(*(cast(Any, np.float32(value)) for value in hps))
        return Run(cfg, self._programs.setdefault(program, program), resolved, hps)


def make_run(cfg: RunConfig) -> Run:
    """Resolves the parameterization of a config; compiles and allocates nothing.

    Raises:
      UserError: a tensor without a rule, an override that fits nothing, an optimizer without a
        column, a model that no machine could train, or a number of the table beyond float32.
    """
    return RunMaker()(cfg)


def _model_class(cfg: RunConfig) -> type[MuModule]:
    return MODELS[cfg.model_name][1]


@functools.lru_cache(maxsize=1024)  # points of a sweep share few programs
def _canonical_program(program: Program, model_name: str, optimizer: str) -> str:
    """Returns a program as sorted JSON, with the names of the model's class and the optimizer."""
    fields = {**dataclasses.asdict(program), "model_name": model_name, "optimizer": optimizer}
    del fields["model_class"]
    return json.dumps(fields, sort_keys=True)


def _resolve(cfg: RunConfig) -> Resolved:
    table = PARAMETERIZATIONS[cfg.parameterization.name]
    metas = abstract_metas(_model_class(cfg), cfg.model)
    check_num_params(num_params(metas), f"model {cfg.model_name!r} of width {cfg.model.d_model}")
    try:
        base_metas = abstract_metas(_model_class(cfg), cfg.base_model)
    except UserError as e:
        raise UserError(
            f"the model at parameterization.base_width = {cfg.parameterization.base_width}: {e}"
        ) from e
    rows, rules = apply_overrides(table, cfg.parameterization.override, metas, PARAMETERIZATIONS)
    scalings = resolve(rows, metas, base_metas, OPTIMIZERS[cfg.optim.name].column)
    check_depth(table, rows, rules, metas, cfg.model.dims)
    scales = resolve_scales(rules, cfg.model.dims, cfg.base_model.dims)
    for name, numbers in {**named_leaves(scalings), "a forward scale": scales}.items():
        for number, value in numbers._asdict().items():
            if not float(value) < 3.4e38:
                raise UserError(
                    f"{name}: its {number} under {table.name!r} is {float(value):g}, beyond float32"
                )
    return Resolved(metas, rows, rules, as_float32(scalings), as_float32(scales))


def device_description() -> str:
    """Returns e.g. '2 x cpu' or '8 x TPU v4'."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
