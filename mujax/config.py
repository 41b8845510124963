"""ConfigDict -> typed, frozen, validated RunConfig; run ids.

`configs/base.py` names every field; nothing here has a default. All errors are UserError, raised
before any compilation or data work.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from mujax.errors import UserError, shown, suggest
from mujax.parameterization import PARAMETERIZATIONS
from mujax.ranges import DATASETS, DTYPES, INT32, RANGES, check_numbers, check_together, one_of


@dataclasses.dataclass(frozen=True)
class ParameterizationConfig:
    """Section `parameterization`; configs/base.py says what each field is, with its unit."""

    name: str
    base_width: int
    base_d_head: int
    base_num_layers: int
    override: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Section `optim`; configs/base.py says what each field is, with its unit."""

    name: str
    learning_rate: float
    weight_decay: float
    decay_form: str
    b1: float
    b2: float
    eps: float
    momentum_dtype: str
    grad_clip: float


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Section `schedule`; configs/base.py says what each field is, with its unit."""

    name: str
    warmup_steps: int
    decay_steps: int
    final_ratio: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Section `train`; configs/base.py says what each field is, with its unit."""

    steps: int
    batch_size: int
    accumulation: int
    eval_interval: int
    eval_batches: int
    log_interval: int
    divergence_loss: float
    give_up_step: int
    give_up_loss: float


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section `data`; configs/base.py says what each field is, with its unit."""

    name: str
    path: str
    glob: str
    seq_len: int
    vocab_size: int
    eos_id: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices that one run is split over; a sweep fills the others with more runs."""

    data: int
    fsdp: int
    tensor: int
    slices: int
    rules: tuple[str, ...]

    @property
    def num_devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def axis_rules(self) -> tuple[tuple[str, str], ...]:
        """`rules` as pairs: logical axis, mesh axis."""
        return tuple((axis, mesh_axis) for axis, _, mesh_axis in (rule.partition("=") for rule in self.rules))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Section `checkpoint`; configs/base.py says what each field is, with its unit."""

    interval: int
    keep: int
    best: bool
    grace_seconds: float


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
    """Section `monitor`; configs/base.py says what each field is, with its unit."""

    tensor_interval: int
    profile_step: int
    profile_steps: int


SECTIONS = {
    "parameterization": ParameterizationConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "data": DataConfig,
    "mesh": MeshConfig,
    "checkpoint": CheckpointConfig,
    "monitor": MonitorConfig,
}
# Sections that speak of many runs
STUDY_SECTIONS = ("sweep", "refine")
# Sections that say where and how a run is done, and may change while it is under way: no part of what it is
OPERATION_SECTIONS = ("mesh", "checkpoint", "monitor")
WEIGHT_AXES = ("fsdp", "tensor")  # mesh axes that split weights
# Logical axis -> mesh axis that splits it, if it divides it: of weights, and, but for those on fsdp, of activations
RULES = (("embed", "fsdp"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"))
DERIVED = ("vocab_size", "seq_len")  # of a model's fields, what follows from the data


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, validated. `model` is a Config of mujax.models; `model_name` says which."""

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
        """The resolved config as nested dicts of JSON values; derived fields left out."""
        sections = {key: dataclasses.asdict(getattr(self, key)) for key in SECTIONS}
        model = {"name": self.model_name, **dataclasses.asdict(self.model)}
        for name in DERIVED:
            model.pop(name, None)
        # Through JSON, so that it equals what is read back: tuples become lists
        return json.loads(json.dumps({"seed": self.seed, "model": model, **sections}))

    @functools.cached_property
    def id(self) -> str:
        """First 12 hex of the SHA-256 of the resolved config without OPERATION_SECTIONS: names the run."""
        parts = {key: canonical(getattr(self, key)) for key in SECTIONS if key not in OPERATION_SECTIONS}
        parts.update(seed=json.dumps(self.seed), model=_canonical_model(self.model_name, _Itself(self.model)))
        return hashed("{" + ", ".join(f'"{key}": {parts[key]}' for key in sorted(parts)) + "}")


def _models() -> Mapping[str, Any]:
    """Returns the architectures by name. They bring JAX, which who only reads a config need not wait for."""
    from mujax.models import MODELS

    return MODELS


def hashed(text: str) -> str:
    """First 12 hex of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest(tree) -> str:
    """First 12 hex of the SHA-256 of a tree of JSON values, whatever the order of its keys."""
    return hashed(json.dumps(tree, sort_keys=True))


class _Itself:
    """A key that stands for one object, not for its equals: 1, 1.0 and True are not the same JSON."""

    def __init__(self, thing):
        self.thing = thing

    def __hash__(self):
        return id(self.thing)

    def __eq__(self, other):
        return self.thing is other.thing


def canonical(section) -> str:
    """A frozen dataclass as JSON with sorted keys, as `digest` has it."""
    return _canonical(_Itself(section))


@functools.lru_cache(maxsize=1024)  # the points of a sweep share most of their sections
def _canonical(section: _Itself) -> str:
    return json.dumps(dataclasses.asdict(section.thing), sort_keys=True)


@functools.lru_cache(maxsize=1024)
def _canonical_model(name: str, model: _Itself) -> str:
    fields = {field: value for field, value in dataclasses.asdict(model.thing).items() if field not in DERIVED}
    return json.dumps({"name": name, **fields}, sort_keys=True)


def make_run_config(tree: Mapping[str, Any]) -> RunConfig:
    """Nested mapping (ConfigDict.to_dict()) -> the RunConfig of the run it names; `sweep` and `refine` are ignored.

    Raises:
      UserError: an unknown or missing field, a wrong type, a value out of range, or a combination
        that cannot work; the message names the field.
    """
    return ConfigMaker()(tree)


class ConfigMaker:
    """Makes RunConfigs, see make_run_config, of trees that share sections: one that is the same object as an earlier
    tree's is typed, and its numbers checked, once. No section may change meanwhile."""

    def __init__(self):
        self._typed: dict[Any, Any] = {}

    def __call__(self, tree: Mapping[str, Any]) -> RunConfig:
        tree = {key: value for key, value in tree.items() if key not in STUDY_SECTIONS}
        _check_names(tree, ("seed", "model", *SECTIONS), "")
        sections = {key: self._once(tree[key], cls, key) for key, cls in SECTIONS.items()}
        name, fields = self._once(tree["model"], None, "model")
        model_cls = _models()[name][0]
        seed = _cast(tree["seed"], int, "seed")
        RANGES["seed"].check("seed", seed)
        check_together(**sections)
        reads, holds = getattr(model_cls, "reads", "text"), DATASETS[sections["data"].name]
        if reads != holds:
            raise UserError(f"data.name = {sections['data'].name!r} is {holds}; model.name = {name!r} reads {reads}")
        model = self._model(tree["model"], model_cls, fields, sections["data"])
        cfg = RunConfig(seed=seed, model_name=name, model=model, **sections)
        _check_base(cfg)
        _check_rules(cfg)
        return cfg

    def _once(self, section, cls, where: str):
        key = _Itself(section), where
        if key not in self._typed:
            self._typed[key] = _typed_model(section) if cls is None else typed_section(cls, section, where)
        return self._typed[key]

    def _model(self, section, cls, fields: Mapping[str, Any], data: DataConfig):
        key = _Itself(section), data.vocab_size, data.seq_len
        if key not in self._typed:
            derived = {name: getattr(data, name) for name in DERIVED if name in _type_hints(cls)}
            self._typed[key] = cls(**fields, **derived)
        return self._typed[key]


def _typed_model(tree) -> tuple[str, dict[str, Any]]:
    """(name, fields) of the section `model`, without what follows from the data."""
    if not isinstance(tree, Mapping):
        raise UserError(f"model = {shown(tree)} is not a section of fields")
    fields = dict(tree)
    name = fields.pop("name", None)
    one_of("model.name", name, _models())
    _check_fields_of(name, fields)
    fields = _typed_fields(_models()[name][0], fields, "model", derived=DERIVED)
    check_numbers("model", fields)
    one_of("model.dtype", fields["dtype"], DTYPES)
    return name, fields


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Fields in which two nested configs differ, and how: {'optim.learning_rate': '0.1 -> 0.2'}."""
    a, b = dict(leaves(old)), dict(leaves(new))
    return {
        field: f"{_short(a.get(field, 'absent'))} -> {_short(b.get(field, 'absent'))}"
        for field in sorted(a.keys() | b.keys())
        if a.get(field) != b.get(field)
    }


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a nested config."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def typed_section(cls, tree: Mapping[str, Any], where: str):
    """A section of the config as the dataclass that names its fields.

    Raises:
      UserError: an unknown or missing field, a wrong type, or a number out of range.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} = {shown(tree)} is not a section of fields")
    fields = _typed_fields(cls, tree, where)
    check_numbers(where, fields)
    return cls(**fields)


def _typed_fields(cls, tree: Mapping[str, Any], where: str, derived: tuple[str, ...] = ()) -> dict[str, Any]:
    hints = {name: hint for name, hint in _type_hints(cls).items() if name not in derived}
    _check_names(tree, hints, f"{where}.")
    return {name: _cast(tree[name], hint, f"{where}.{name}") for name, hint in hints.items()}


_type_hints = functools.lru_cache(maxsize=64)(get_type_hints)  # a sweep asks thousands of times


def _check_names(tree: Mapping[str, Any], names, prefix: str) -> None:
    for key in tree:
        if key not in names:
            raise UserError(f"unknown field {prefix}{key}{suggest(str(key), names)}")
    for name in names:
        if name not in tree:
            raise UserError(f"field {prefix}{name} is missing; start from configs/base.py, which sets all")


def _check_fields_of(model_name: str, model_tree: Mapping[str, Any]) -> None:
    """Raises UserError where model.name alone was changed, and the fields are those of another model."""
    fields = {name: set(_type_hints(cls)) - set(DERIVED) for name, (cls, _) in _models().items()}
    others = [name for name, own in fields.items() if own == set(model_tree)]
    if others and model_name not in others:
        raise UserError(
            f"model.name = {model_name!r}, but the fields of model are those of {others[0]!r}; use "
            f"--config=configs/base.py:{model_name}, or its model in your config"
        )


def _cast(value, kind: type, field: str) -> Any:
    """Checks a value's type; an int serves as a float, a NumPy scalar as its Python number; no other conversion."""
    if isinstance(value, np.generic):
        value = value.item()
    if get_origin(kind) is tuple:  # of any length, all entries of one type
        if not isinstance(value, tuple | list):
            raise UserError(f"{field} = {shown(value)} is {type(value).__name__}, not a tuple")
        return tuple(_cast(entry, get_args(kind)[0], field) for entry in value)
    if kind is float and type(value) is int and abs(value) < 1e38:
        value = float(value)
    if kind is float and type(value) in (float, int):
        if type(value) is int or not (math.isfinite(value) and (value == 0 or 1e-37 < abs(value) < 1e38)):
            raise UserError(f"{field} = {shown(value)} is not a finite number that fits float32")
        return value + 0.0  # -0.0 is 0.0
    if type(value) is not kind:
        raise UserError(f"{field} = {shown(value)} is {type(value).__name__}, not {kind.__name__}")
    if kind is int and not -INT32 <= value <= INT32:
        raise UserError(f"{field} = {shown(value)} is not a whole number that fits int32")
    return value


def _check_base(cfg: RunConfig) -> None:
    for name in ("d_head", "num_layers"):
        if getattr(cfg.parameterization, f"base_{name}") and not hasattr(cfg.model, name):
            raise UserError(f"parameterization.base_{name}: model {cfg.model_name!r} has no {name}; set it to 0")
    _check_base_depth(cfg.parameterization)
    try:
        cfg.base_model  # noqa: B018 - the base model must be a valid model too
    except UserError as e:
        raise UserError(f"parameterization.base_width = {cfg.parameterization.base_width}: {e}") from e


def _check_base_depth(parameterization: ParameterizationConfig) -> None:
    """Raises UserError where a depth is given for tables that never look at it."""
    # An override takes rows from other tables: "hidden=completep", "residual=completep"
    values = [override.partition("=")[2].strip().partition(".")[0] for override in parameterization.override]
    tables = [PARAMETERIZATIONS[name] for name in (parameterization.name, *values) if name in PARAMETERIZATIONS]
    if parameterization.base_num_layers and not any(table.compares_depths for table in tables):
        have = ", ".join(name for name, table in PARAMETERIZATIONS.items() if table.compares_depths)
        raise UserError(
            f"parameterization.base_num_layers = {parameterization.base_num_layers}: {parameterization.name!r} has no "
            f"rule that compares depths, so it would have no effect; set it to 0, or choose a table that has: {have}"
        )


def _check_rules(cfg: RunConfig) -> None:
    # One list of rules serves every architecture, so those of base.py may name axes that this one lacks
    known = (*cfg.model.dims, *(axis for axis, _ in RULES if axis not in cfg.model.dims))
    seen = set()
    for rule, (axis, mesh_axis) in zip(cfg.mesh.rules, cfg.mesh.axis_rules, strict=True):
        where = f"mesh.rules: {rule!r}"
        if axis not in known:
            raise UserError(f"{where} names no axis of a weight{suggest(axis, known)}")
        if mesh_axis not in WEIGHT_AXES:
            raise UserError(f"{where} names no mesh axis that splits weights{suggest(mesh_axis, WEIGHT_AXES)}")
        if axis in seen:
            raise UserError(f"{where} is a second rule for {axis}")
        seen.add(axis)
