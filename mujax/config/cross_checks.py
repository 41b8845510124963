"""Checks across sections: combinations of fields that cannot work together."""

from mujax.errors import UserError, shown
from mujax.fields import DTYPES, INT32, NUM_BYTES, one_of
from mujax.parameterization import PARAMETERIZATIONS

# Dataset -> what its rows hold
DATASETS = {
    "embedded": "text",
    "text": "text",
    "shards": "text",
    "images": "images",
    "synthetic_images": "images",
}


def check_together(
    parameterization, optim, schedule, train, data, mesh, checkpoint, monitor
) -> None:
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
            f"optim.momentum_dtype = {optim.momentum_dtype!r} with optim.name = {optim.name!r}: "
            "it has none"
        )

    if bool(train.give_up_step) != bool(train.give_up_loss):
        raise UserError(
            f"train.give_up_step = {train.give_up_step} with train.give_up_loss = "
            f"{train.give_up_loss:g}: the rule needs both, or neither"
        )

    one_of("schedule.name", schedule.name, SCHEDULES)
    if (schedule.name == "wsd") != (schedule.decay_steps > 0):
        raise UserError(
            f"schedule.name = {schedule.name!r} with schedule.decay_steps = "
            f"{schedule.decay_steps}: wsd needs decay_steps above 0, and no other schedule has any"
        )
    used = (
        "schedule.warmup_steps + schedule.decay_steps"
        if schedule.decay_steps
        else "schedule.warmup_steps"
    )
    if schedule.warmup_steps + schedule.decay_steps > train.steps:
        total = schedule.warmup_steps + schedule.decay_steps
        raise UserError(f"{used} = {total} exceeds train.steps = {train.steps}")

    if mesh.data % mesh.slices:
        raise UserError(f"mesh.slices = {mesh.slices} does not divide mesh.data = {mesh.data}")
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation = {train.accumulation} does not divide train.batch_size = "
            f"{train.batch_size}"
        )
    if train.batch_size // train.accumulation % (mesh.data * mesh.fsdp):
        raise UserError(
            f"mesh.data * mesh.fsdp = {mesh.data * mesh.fsdp} does not divide train.batch_size / "
            f"train.accumulation = {train.batch_size // train.accumulation}"
        )
    tokens = train.batch_size * (data.seq_len + 1)
    if tokens > INT32:
        raise UserError(
            f"train.batch_size * (data.seq_len + 1) = {tokens}: tokens of a batch are counted in "
            f"int32, at most {INT32}"
        )

    one_of("data.name", data.name, DATASETS)
    has_none = data.name in ("embedded", "synthetic_images")
    if has_none == bool(data.path):
        rule = "it has no path" if has_none else "it needs a path"
        raise UserError(f"data.name = {data.name!r} with data.path = {data.path!r}: {rule}")
    for name in ("path", "glob"):
        if "\0" in getattr(data, name):
            raise UserError(
                f"data.{name} = {shown(getattr(data, name))} holds a null byte: it is no name of "
                "a file"
            )
    if data.name in ("embedded", "text") and data.vocab_size < NUM_BYTES:
        raise UserError(
            f"data.vocab_size = {data.vocab_size} with data.name = {data.name!r}: its tokens are "
            "256 bytes, or more pieces of a vocabulary that is trained on it"
        )
    if DATASETS[data.name] == "images" and data.eos_id != -1:
        raise UserError(
            f"data.eos_id = {data.eos_id} with data.name = {data.name!r}: an image has one class; "
            "set -1"
        )
    if DATASETS[data.name] == "images" and data.vocab_size > 256:
        raise UserError(
            f"data.vocab_size = {data.vocab_size} with data.name = {data.name!r}: at most 256 "
            "classes"
        )
    if not -1 <= data.eos_id < data.vocab_size:
        raise UserError(
            f"data.eos_id = {data.eos_id} is no token of data.vocab_size = {data.vocab_size}, and "
            "not -1"
        )
