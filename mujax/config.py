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

from mujax.data.corpus import VOCAB_SIZE
from mujax.errors import UserError, not_one_of, suggest
from mujax.models import MODELS
from mujax.optim import DECAY_FORMS, OPTIMIZERS
from mujax.parameterization import PARAMETERIZATIONS
from mujax.schedules import SCHEDULES
from mujax.sharding import RULES, WEIGHT_AXES


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
DATASETS = {"embedded": "text", "text": "text", "shards": "text", "images": "images", "synthetic_images": "images"}
DTYPES = ("float32", "bfloat16")
LEAST = {"num_kv_heads": 0, "boundary_id": -1, "balance_weight": 0}  # of a model's numbers, those that may say none
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
        return digest({key: value for key, value in self.as_dict().items() if key not in OPERATION_SECTIONS})


def digest(tree) -> str:
    """First 12 hex of the SHA-256 of a tree of JSON values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def make_run_config(tree: Mapping[str, Any]) -> RunConfig:
    """Nested mapping (ConfigDict.to_dict()) -> the RunConfig of the run it names; `sweep` and `refine` are ignored.

    Raises:
      UserError: an unknown or missing field, a wrong type, a value out of range, or a combination
        that cannot work; the message names the field.
    """
    tree = {key: value for key, value in tree.items() if key not in STUDY_SECTIONS}
    _check_names(tree, ("seed", "model", *SECTIONS), "")
    sections = {key: typed_section(cls, tree[key], key) for key, cls in SECTIONS.items()}
    if not isinstance(tree["model"], Mapping):
        raise UserError(f"model = {tree['model']!r} is not a section of fields")
    model_tree = dict(tree["model"])
    model_name = model_tree.pop("name", None)
    _one_of("model.name", model_name, MODELS)
    model_cls = MODELS[model_name][0]
    _check_fields_of(model_name, model_tree)
    model_kwargs = _typed_fields(model_cls, model_tree, "model", derived=DERIVED)
    _check_model_ranges(model_kwargs)
    seed = _cast(tree["seed"], int, "seed")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed = {seed} must be in [0, 2^31)")
    _check_ranges(**sections)
    reads, holds = getattr(model_cls, "reads", "text"), DATASETS[sections["data"].name]
    if reads != holds:
        raise UserError(f"data.name = {sections['data'].name!r} is {holds}; model.name = {model_name!r} reads {reads}")
    derived = {"vocab_size": sections["data"].vocab_size, "seq_len": sections["data"].seq_len}
    has = {field.name for field in dataclasses.fields(model_cls)}
    model = model_cls(**model_kwargs, **{name: value for name, value in derived.items() if name in has})
    cfg = RunConfig(seed=seed, model_name=model_name, model=model, **sections)
    _check_base(cfg)
    _check_rules(cfg)
    return cfg


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
      UserError: an unknown or missing field, or a wrong type.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} = {tree!r} is not a section of fields")
    return cls(**_typed_fields(cls, tree, where))


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
    fields = {name: set(_type_hints(cls)) - set(DERIVED) for name, (cls, _) in MODELS.items()}
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
    if kind is float and type(value) is int:
        value = float(value)
    if get_origin(kind) is tuple:  # of any length, all entries of one type
        if not isinstance(value, tuple | list):
            raise UserError(f"{field} = {value!r} is {type(value).__name__}, not a tuple")
        return tuple(_cast(entry, get_args(kind)[0], field) for entry in value)
    if type(value) is not kind:
        raise UserError(f"{field} = {value!r} is {type(value).__name__}, not {kind.__name__}")
    if kind is float and not (math.isfinite(value) and (value == 0 or 1e-37 < abs(value) < 1e38)):
        raise UserError(f"{field} = {value!r} is not a finite number that fits float32")
    return value


def _one_of(field: str, value, choices) -> None:
    if value not in list(choices):  # a list, for values that cannot be hashed
        raise UserError(f"{field} = {value!r} {not_one_of(value, choices)}")


def _at_least(field: str, value, bound) -> None:
    if value < bound:
        raise UserError(f"{field} = {value!r} must be at least {bound}")


def _positive(field: str, value) -> None:
    if value <= 0:
        raise UserError(f"{field} = {value!r} must be above 0")


def _check_model_ranges(kwargs: Mapping[str, Any]) -> None:
    """Every number of a model is a size or a scale: positive, or what means none."""
    for name, value in kwargs.items():
        if type(value) in (int, float):
            if name in LEAST:
                _at_least(f"model.{name}", value, LEAST[name])
            else:
                _positive(f"model.{name}", value)
    _one_of("model.dtype", kwargs["dtype"], DTYPES)


def _check_ranges(
    parameterization: ParameterizationConfig,
    optim: OptimConfig,
    schedule: ScheduleConfig,
    train: TrainConfig,
    data: DataConfig,
    mesh: MeshConfig,
    checkpoint: CheckpointConfig,
    monitor: MonitorConfig,
) -> None:
    _one_of("parameterization.name", parameterization.name, PARAMETERIZATIONS)
    _positive("parameterization.base_width", parameterization.base_width)
    for name in ("base_d_head", "base_num_layers"):
        _at_least(f"parameterization.{name}", getattr(parameterization, name), 0)

    _one_of("optim.name", optim.name, OPTIMIZERS)
    _one_of("optim.decay_form", optim.decay_form, DECAY_FORMS)
    _positive("optim.learning_rate", optim.learning_rate)
    _positive("optim.eps", optim.eps)
    _one_of("optim.momentum_dtype", optim.momentum_dtype, DTYPES)
    if optim.momentum_dtype != "float32" and optim.name == "adafactor":
        raise UserError(f"optim.momentum_dtype = {optim.momentum_dtype!r} with optim.name = 'adafactor': it has none")
    for name in ("weight_decay", "grad_clip"):
        _at_least(f"optim.{name}", getattr(optim, name), 0)
    for name in ("b1", "b2"):
        if not 0 <= getattr(optim, name) < 1:
            raise UserError(f"optim.{name} = {getattr(optim, name)!r} must be in [0, 1)")

    for name in (
        "steps",
        "batch_size",
        "accumulation",
        "eval_interval",
        "eval_batches",
        "log_interval",
        "divergence_loss",
    ):
        _positive(f"train.{name}", getattr(train, name))
    for name in ("give_up_step", "give_up_loss"):
        _at_least(f"train.{name}", getattr(train, name), 0)
    if bool(train.give_up_step) != bool(train.give_up_loss):
        raise UserError(
            f"train.give_up_step = {train.give_up_step} with train.give_up_loss = {train.give_up_loss:g}: "
            "the rule needs both, or neither"
        )

    _one_of("schedule.name", schedule.name, SCHEDULES)
    _at_least("schedule.warmup_steps", schedule.warmup_steps, 0)
    _at_least("schedule.decay_steps", schedule.decay_steps, 0)
    if not 0 <= schedule.final_ratio <= 1:
        raise UserError(f"schedule.final_ratio = {schedule.final_ratio!r} must be in [0, 1]")
    if (schedule.name == "wsd") != (schedule.decay_steps > 0):
        raise UserError(
            f"schedule.name = {schedule.name!r} with schedule.decay_steps = {schedule.decay_steps}: "
            "wsd needs decay_steps above 0, and no other schedule has any"
        )
    used = "schedule.warmup_steps + schedule.decay_steps" if schedule.decay_steps else "schedule.warmup_steps"
    if schedule.warmup_steps + schedule.decay_steps > train.steps:
        total = schedule.warmup_steps + schedule.decay_steps
        raise UserError(f"{used} = {total} exceeds train.steps = {train.steps}")

    for name in ("data", "fsdp", "tensor", "slices"):
        _positive(f"mesh.{name}", getattr(mesh, name))
    if mesh.data % mesh.slices:
        raise UserError(f"mesh.slices = {mesh.slices} does not divide mesh.data = {mesh.data}")
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation = {train.accumulation} does not divide train.batch_size = {train.batch_size}"
        )
    if train.batch_size // train.accumulation % (mesh.data * mesh.fsdp):
        raise UserError(
            f"mesh.data * mesh.fsdp = {mesh.data * mesh.fsdp} does not divide train.batch_size / train.accumulation = "
            f"{train.batch_size // train.accumulation}"
        )

    for name in ("interval", "grace_seconds"):
        _positive(f"checkpoint.{name}", getattr(checkpoint, name))
    _at_least("checkpoint.keep", checkpoint.keep, 2)  # one may turn out damaged
    for name in ("tensor_interval", "profile_step", "profile_steps"):
        _at_least(f"monitor.{name}", getattr(monitor, name), 0)

    _one_of("data.name", data.name, DATASETS)
    _positive("data.seq_len", data.seq_len)
    has_none = data.name in ("embedded", "synthetic_images")
    if has_none == bool(data.path):
        rule = "it has no path" if has_none else "it needs a path"
        raise UserError(f"data.name = {data.name!r} with data.path = {data.path!r}: {rule}")
    _positive("data.vocab_size", data.vocab_size)
    if data.name in ("embedded", "text") and data.vocab_size < VOCAB_SIZE:
        raise UserError(
            f"data.vocab_size = {data.vocab_size} with data.name = {data.name!r}: its tokens are 256 bytes, or more "
            "pieces of a vocabulary that is trained on it"
        )
    if DATASETS[data.name] == "images" and data.eos_id != -1:
        raise UserError(f"data.eos_id = {data.eos_id} with data.name = {data.name!r}: an image has one class; set -1")
    if DATASETS[data.name] == "images" and data.vocab_size > 256:
        raise UserError(f"data.vocab_size = {data.vocab_size} with data.name = {data.name!r}: at most 256 classes")
    if not -1 <= data.eos_id < data.vocab_size:
        raise UserError(f"data.eos_id = {data.eos_id} is no token of data.vocab_size = {data.vocab_size}, and not -1")


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
