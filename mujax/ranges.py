"""What each number of a config may be: the range of every field, and what fields say together.

A range follows from what a number is used as: an int32 index, a float32 step, a size that some machine can hold.
"""

import math
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mujax.errors import UserError, cut, not_one_of, shown
from mujax.parameterization import PARAMETERIZATIONS

DATASETS = {"embedded": "text", "text": "text", "shards": "text", "images": "images", "synthetic_images": "images"}
DTYPES = ("float32", "bfloat16")
INT32 = 2**31 - 1
NUM_BYTES = 256  # the vocabulary of text that is read as bytes
# float32 holds every whole number up to here
EXACT = 2**24


class Range(NamedTuple):
    """What a field's value may be; `above` is excluded. `words` stand for the lower bound in the message, and `why`
    says where the upper one comes from."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    words: str = ""
    why: str = ""

    def check(self, field: str, value) -> None:
        """Raises UserError unless the value is in the range."""
        if value > self.above and self.least <= value <= self.most:
            return
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {self.least:g}"
        high = f"at most {self.most:.10g}" + (f": {self.why}" if self.why else "")
        words = self.words or (high if value > self.most else low)
        raise UserError(f"{field} = {shown(value)} must be {words}")


_POSITIVE, _NOT_NEGATIVE = Range(above=0), Range(least=0)
_BETA = Range(0, float(np.nextafter(np.float32(1), np.float32(0))), words="in [0, 1), as a float32 too")
_DEPTH = Range(above=0, most=2**14, why="no network has trained with more layers than 10,000 (1806.05393)")
_TAPS = Range(above=0, most=2**10, why="each is traced by itself")
# Of the model, each number that is not here is positive. All whole numbers fit int32, and all others float32.
RANGES: dict[str, Range] = {
    "seed": Range(0, INT32, words="in [0, 2^31)"),
    "model.num_layers": _DEPTH,
    "model.context": _TAPS,
    "model.kernel_size": _TAPS,
    "model.num_kv_heads": _NOT_NEGATIVE,
    "model.boundary_id": Range(-1),
    "model.balance_weight": _NOT_NEGATIVE,
    "parameterization.base_width": _POSITIVE,
    "parameterization.base_d_head": _NOT_NEGATIVE,
    "parameterization.base_num_layers": Range(0, _DEPTH.most, why=_DEPTH.why),
    "optim.learning_rate": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.b1": _BETA,
    "optim.b2": _BETA,
    "optim.eps": _POSITIVE,
    "optim.grad_clip": _NOT_NEGATIVE,
    "schedule.warmup_steps": _NOT_NEGATIVE,
    "schedule.decay_steps": _NOT_NEGATIVE,
    "schedule.final_ratio": Range(0, 1, words="in [0, 1]"),
    "train.steps": Range(above=0, most=EXACT, why="schedules count steps in float32, which is exact up to there"),
    "train.batch_size": _POSITIVE,
    "train.accumulation": _POSITIVE,
    "train.eval_interval": _POSITIVE,
    "train.eval_batches": _POSITIVE,
    "train.log_interval": _POSITIVE,
    "train.divergence_loss": _POSITIVE,
    "train.give_up_step": _NOT_NEGATIVE,
    "train.give_up_loss": _NOT_NEGATIVE,
    "data.seq_len": Range(above=0, most=EXACT, why="positions are float32, which is exact up to there"),
    "data.vocab_size": _POSITIVE,
    "data.eos_id": Range(-1),
    "mesh.data": _POSITIVE,
    "mesh.fsdp": _POSITIVE,
    "mesh.tensor": _POSITIVE,
    "mesh.slices": _POSITIVE,
    "checkpoint.interval": _POSITIVE,
    "checkpoint.keep": Range(2),  # one may turn out damaged
    "checkpoint.grace_seconds": Range(above=0, most=threading.TIMEOUT_MAX, why="no timer is longer"),
    "monitor.tensor_interval": _NOT_NEGATIVE,
    "monitor.profile_step": _NOT_NEGATIVE,
    "monitor.profile_steps": _NOT_NEGATIVE,
    "refine.log2_step": Range(0, 256, why="float32 spans less"),  # 0: no second pass
    "refine.max_extension": Range(0, 256, why="float32 spans less"),
    "refine.num_seeds": Range(0, 10_000, why="each is a run of every value around every optimum"),
}


def one_of(field: str, value, choices) -> None:
    """Raises UserError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(
            f"{field} = {shown(value)} {not_one_of(cut(str(value)) if isinstance(value, str) else '', choices)}"
        )


def check_numbers(section: str, fields: Mapping[str, Any]) -> None:
    """Raises UserError unless each number of a section is in its range."""
    for name, value in fields.items():
        if type(value) in (int, float):
            field = f"{section}.{name}"
            RANGES.get(field, _POSITIVE).check(field, value)


def check_together(parameterization, optim, schedule, train, data, mesh, checkpoint, monitor) -> None:
    """Checks the names in the sections of a config, and their fields against each other.

    Raises:
      UserError: the message names the field.
    """
    from mujax.optimizers import DECAY_FORMS, OPTIMIZERS  # here, as they bring JAX
    from mujax.schedules import SCHEDULES

    del checkpoint, monitor
    one_of("parameterization.name", parameterization.name, PARAMETERIZATIONS)

    one_of("optim.name", optim.name, OPTIMIZERS)
    one_of("optim.decay_form", optim.decay_form, DECAY_FORMS)
    one_of("optim.momentum_dtype", optim.momentum_dtype, DTYPES)
    if optim.momentum_dtype != "float32" and not OPTIMIZERS[optim.name].has_first_moment:
        raise UserError(
            f"optim.momentum_dtype = {optim.momentum_dtype!r} with optim.name = {optim.name!r}: it has none"
        )

    if bool(train.give_up_step) != bool(train.give_up_loss):
        raise UserError(
            f"train.give_up_step = {train.give_up_step} with train.give_up_loss = {train.give_up_loss:g}: "
            "the rule needs both, or neither"
        )

    one_of("schedule.name", schedule.name, SCHEDULES)
    if (schedule.name == "wsd") != (schedule.decay_steps > 0):
        raise UserError(
            f"schedule.name = {schedule.name!r} with schedule.decay_steps = {schedule.decay_steps}: "
            "wsd needs decay_steps above 0, and no other schedule has any"
        )
    used = "schedule.warmup_steps + schedule.decay_steps" if schedule.decay_steps else "schedule.warmup_steps"
    if schedule.warmup_steps + schedule.decay_steps > train.steps:
        total = schedule.warmup_steps + schedule.decay_steps
        raise UserError(f"{used} = {total} exceeds train.steps = {train.steps}")

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
    tokens = train.batch_size * (data.seq_len + 1)
    if tokens > INT32:
        raise UserError(
            f"train.batch_size * (data.seq_len + 1) = {tokens}: tokens of a batch are counted in int32, at most {INT32}"
        )

    one_of("data.name", data.name, DATASETS)
    has_none = data.name in ("embedded", "synthetic_images")
    if has_none == bool(data.path):
        rule = "it has no path" if has_none else "it needs a path"
        raise UserError(f"data.name = {data.name!r} with data.path = {data.path!r}: {rule}")
    for name in ("path", "glob"):
        if "\0" in getattr(data, name):
            raise UserError(f"data.{name} = {shown(getattr(data, name))} holds a null byte: it is no name of a file")
    if data.name in ("embedded", "text") and data.vocab_size < NUM_BYTES:
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
