"""RunConfig: a typed, frozen, validated config, made from a ConfigDict's tree, and its id.

All errors are UserError, raised before any compilation or data work.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from mujax.config.cross_checks import DATASETS, check_together
from mujax.config.ids import renamed_fields, run_id
from mujax.config.sections import (
    OPERATION_SECTIONS,
    RULES,
    SECTIONS,
    SEED,
    STUDY_SECTIONS,
    WEIGHT_AXES,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    MonitorConfig,
    OptimConfig,
    ParameterizationConfig,
    RefineConfig,
    ScheduleConfig,
    TrainConfig,
)
from mujax.config.trees import Itself
from mujax.config.typed import cast, check_names, type_hints, typed_fields, typed_section
from mujax.errors import UserError, shown, suggest
from mujax.fields import DTYPES, check_numbers, defaults, one_of
from mujax.parameterization import PARAMETERIZATIONS

DERIVED = ("vocab_size", "seq_len")  # of a model's fields, what follows from the data


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The checked config of one run. `model` is a Config of mujax.models, `model_name` its name."""

    seed: int
    model_name: str
    model: Any
    parameterization: ParameterizationConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: TrainConfig
    data: DataConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    monitor: MonitorConfig

    @property
    def base_model(self):
        """The model at the base width, where every parameterization agrees."""
        changes = {"d_model": self.parameterization.base_width}
        for name in ("d_head", "num_layers"):
            if base := getattr(self.parameterization, f"base_{name}"):
                changes[name] = base
        return dataclasses.replace(self.model, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Returns the resolved config as nested dicts of JSON values, without derived fields."""
        sections = {key: dataclasses.asdict(getattr(self, key)) for key in SECTIONS}
        model = {"name": self.model_name, **dataclasses.asdict(self.model)}
        for name in DERIVED:
            model.pop(name, None)
        # Through JSON, so that it equals what is read back: tuples become lists
        return json.loads(json.dumps({"seed": self.seed, "model": model, **sections}))

    @functools.cached_property
    def id(self) -> str:
        """The name of the run, see mujax.config.ids."""
        sections = {k: getattr(self, k) for k in SECTIONS if k not in OPERATION_SECTIONS}
        return run_id(self.seed, self.model_name, self.model, sections)


def _models() -> Mapping[str, Any]:
    """Returns the architectures by name. They bring JAX, which who only reads a config need not
    wait for."""
    from mujax.models import MODELS

    return MODELS


def default_config(model: str = "transformer") -> dict[str, Any]:
    """Returns the tree of all fields at their defaults: what configs/base.py starts from.

    Raises:
      UserError: there is no such architecture.
    """
    one_of("model.name", model, _models())
    cls = _models()[model][0]
    sections = {name: defaults(section) for name, section in SECTIONS.items()}
    sections["data"].update(getattr(cls, "data", {}))
    tree = {"seed": SEED.default, "model": {"name": model, **defaults(cls)}, **sections}
    return {**tree, "sweep": {}, "refine": defaults(RefineConfig)}


def config_of_today(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recorded config with today's names of fields, and at their defaults those that were
    declared after it.

    What is no config, or of an architecture that there is none of, stays as it is.
    """
    tree = renamed_fields(tree)
    name = tree["model"].get("name") if isinstance(tree.get("model"), Mapping) else None
    if not isinstance(name, str) or name not in _models():
        return tree
    for key, section in default_config(name).items():
        if isinstance(section, dict) and isinstance(own := tree.get(key, {}), Mapping):
            tree[key] = {**own, **{field: section[field] for field in section if field not in own}}
    return tree


def make_run_config(tree: Mapping[str, Any]) -> RunConfig:
    """Returns the RunConfig that a nested mapping (ConfigDict.to_dict()) describes; `sweep` and
    `refine` are ignored.

    Raises:
      UserError: an unknown or missing field, a wrong type, a value out of range, or a combination
        that cannot work; the message names the field.
    """
    return ConfigMaker()(tree)


class ConfigMaker:
    """A maker of RunConfigs from trees that share sections, see make_run_config.

    A section that is the same object as in an earlier tree is checked once. No section may change
    between calls.
    """

    def __init__(self):
        self._typed: dict[Any, Any] = {}

    def __call__(self, tree: Mapping[str, Any]) -> RunConfig:
        tree = {key: value for key, value in tree.items() if key not in STUDY_SECTIONS}
        check_names(tree, ("seed", "model", *SECTIONS), "")
        sections = {key: self._once(tree[key], cls, key) for key, cls in SECTIONS.items()}
        name, fields = self._once(tree["model"], None, "model")
        model_cls = _models()[name][0]
        seed = cast(tree["seed"], int, "seed")
        SEED.metadata["within"].check("seed", seed)
        check_together(**sections)
        reads, holds = getattr(model_cls, "reads", "text"), DATASETS[sections["data"].name]
        if reads != holds:
            raise UserError(
                f"data.name = {sections['data'].name!r} is {holds}; model.name = {name!r} reads "
                f"{reads}"
            )
        model = self._model(tree["model"], model_cls, fields, sections["data"])
        cfg = RunConfig(seed=seed, model_name=name, model=model, **sections)
        _check_base(cfg)
        _check_rules(cfg)
        return cfg

    def _once(self, section, cls, where: str):
        key = Itself(section), where
        if key not in self._typed:
            self._typed[key] = (
                _typed_model(section) if cls is None else typed_section(cls, section, where)
            )
        return self._typed[key]

    def _model(self, section, cls, fields: Mapping[str, Any], data: DataConfig):
        key = Itself(section), data.vocab_size, data.seq_len
        if key not in self._typed:
            derived = {name: getattr(data, name) for name in DERIVED if name in type_hints(cls)}
            self._typed[key] = cls(**fields, **derived)
        return self._typed[key]


def _typed_model(tree) -> tuple[str, dict[str, Any]]:
    """Returns (name, fields) of the section `model`, without what follows from the data."""
    if not isinstance(tree, Mapping):
        raise UserError(f"model = {shown(tree)} is not a section of fields")
    fields = dict(tree)
    name = fields.pop("name", None)
    one_of("model.name", name, _models())
    _check_fields_of(name, fields)
    fields = typed_fields(_models()[name][0], fields, "model", derived=DERIVED)
    check_numbers(_models()[name][0], "model", fields)
    one_of("model.dtype", fields["dtype"], DTYPES)
    return name, fields


def _check_fields_of(model_name: str, model_tree: Mapping[str, Any]) -> None:
    """Raises UserError where model.name alone was changed, and the fields are those of another
    model."""
    fields = {name: set(type_hints(cls)) - set(DERIVED) for name, (cls, _) in _models().items()}
    others = [name for name, own in fields.items() if own == set(model_tree)]
    if others and model_name not in others:
        raise UserError(
            f"model.name = {model_name!r}, but the fields of model are those of {others[0]!r}; use "
            f"--config=configs/base.py:{model_name}, or its model in your config"
        )


def _check_base(cfg: RunConfig) -> None:
    for name in ("d_head", "num_layers"):
        if getattr(cfg.parameterization, f"base_{name}") and not hasattr(cfg.model, name):
            raise UserError(
                f"parameterization.base_{name}: model {cfg.model_name!r} has no {name}; set it to 0"
            )
    _check_base_depth(cfg.parameterization)
    try:
        cfg.base_model  # noqa: B018 - the base model must be a valid model too
    except UserError as e:
        raise UserError(
            f"parameterization.base_width = {cfg.parameterization.base_width}: {e}"
        ) from e


def _check_base_depth(parameterization: ParameterizationConfig) -> None:
    """Raises UserError where a depth is given for tables that never look at it."""
    # An override takes rows from other tables: "hidden=completep", "residual=completep"
    values = [
        override.partition("=")[2].strip().partition(".")[0]
        for override in parameterization.override
    ]
    tables = [
        PARAMETERIZATIONS[name]
        for name in (parameterization.name, *values)
        if name in PARAMETERIZATIONS
    ]
    if parameterization.base_num_layers and not any(table.compares_depths for table in tables):
        have = ", ".join(name for name, table in PARAMETERIZATIONS.items() if table.compares_depths)
        raise UserError(
            f"parameterization.base_num_layers = {parameterization.base_num_layers}: "
            f"{parameterization.name!r} has no rule that compares depths, so it would have no "
            f"effect; set it to 0, or choose a table that has: {have}"
        )


def _check_rules(cfg: RunConfig) -> None:
    # One list of rules serves every architecture, so those of base.py may name axes that this one
    # lacks
    known = (*cfg.model.dims, *(axis for axis, _ in RULES if axis not in cfg.model.dims))
    seen = set()
    for rule, (axis, mesh_axis) in zip(cfg.mesh.rules, cfg.mesh.axis_rules, strict=True):
        where = f"mesh.rules: {rule!r}"
        if axis not in known:
            raise UserError(f"{where} names no axis of a weight{suggest(axis, known)}")
        if mesh_axis not in WEIGHT_AXES:
            raise UserError(
                f"{where} names no mesh axis that splits weights{suggest(mesh_axis, WEIGHT_AXES)}"
            )
        if axis in seen:
            raise UserError(f"{where} is a second rule for {axis}")
        seen.add(axis)
