r"""Every experiment of Kalra & Barkeshli 2026 (2605.21486): which part of muP makes rates transfer?

    mujax sweep --config=configs/kalra2026/studies.py:factorial --dry_run
    mujax sweep --config=configs/kalra2026/studies.py:embedding_rate,scale=small \
        --workdir=runs/embedding_rate

One slice of the factorial, here muP without decay:

    mujax sweep --config=configs/kalra2026/studies.py:factorial,scale=small --workdir=runs/slice \
        --config.sweep.parameterization.name="('factorial+embd+ln+attn+last',)" \
        --config.sweep.optim.weight_decay="(0.0,)"

The argument names a study of the table below, and optionally the scale:

    scale=full   as published (the default): FineWeb, 12 layers, widths 128 to 2048, 10,000 steps
                 of 256 x 1024 tokens
    scale=small   2 layers, widths 32 to 256, 200 steps of 16 x 32 bytes of the embedded text,
                 decays x 50, learning rates refined to a factor of 2

SP is the table `factorial`, SP+Attn+Embd `factorial+embd+attn`, muP `factorial+embd+ln+attn+last`.
In all of them a matrix of SP trains at eta / n and has decay lambda n: each step shrinks it by eta
lambda at any width. The paper's tables, decays, schedule and widths are known; (ours) marks what is
not known. The results, E, R(inf) and kappa of each slice of the factorial, are in
experiments/kalra2026. REASONS holds another study, at small scale only, on why a finding differs
there.
"""

from configs import base

SP, EMBD, SQRT_EMBD, MUP = (
    "factorial",
    "factorial+embd",
    "factorial+sqrt_embd",
    "factorial+embd+ln+attn+last",
)
FACTORIAL = tuple(
    "factorial" + embd + ln + attn + last
    for embd in ("", "+embd") for ln in ("", "+ln")
    for attn in ("", "+attn") for last in ("", "+last")
)  # fmt: skip
DECAYS = (0.0, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 6e-3, 1e-2)
STEPS = {"full": 10_000, "small": 200}  # unless a study names tokens per parameter
TOKENS = {"full": 20, "small": 0.6}  # tokens per parameter (ours)
# Token and position embeddings stay as drawn; without a learning rate there is no decay either.
FROZEN = ("input.lr=0",)

# Name -> axes beside width and learning rate; a comment gives the question.
#   decay      lambda at 10,000 steps; 0 if a study names none (ours)
#   warmup     share of the steps
#   tokens     per parameter, in place of a number of steps
#   timescale  lambda is the one decay x 10,000 / steps
STUDIES = {
    # Which of the four switches gives good fits (E), robust transfer (kappa) and low loss (R)?
    # Published answer: Embd
    "factorial": {"table": FACTORIAL, "decay": DECAYS},
    # From SP to muP one switch at a time, in the order of the paper's table and in reverse: where
    # is the jump? (ours)
    "path": {"table": (SP, EMBD, "factorial+embd+ln", "factorial+embd+ln+attn", MUP)},
    "path_embd_last": {
        "table": (SP, "factorial+last", "factorial+attn+last", "factorial+ln+attn+last", MUP)
    },
    # Learning rate of the embedding over that of the hidden matrices: 1, sqrt(n) (2506.15025), n;
    # in SP and in muP
    "embedding_rate": {
        "table": (SP, SQRT_EMBD, EMBD, *(f"{t}+ln+attn+last" for t in (SP, SQRT_EMBD, EMBD)))
    },
    # Must an embedding move, and must it move fast? Never, slowly, fast
    "frozen_embedding": {"table": (SP, MUP), "parameterization.override": ((), FROZEN)},
    # Does a longer warm-up repair SP? Shares are ours; the baseline has 0.2
    "warmup": {"table": (SP, EMBD, MUP), "warmup": (0.0, 0.05, 0.1, 0.2, 0.4)},
    # An embedding that is the readout, too; its scaling in the tables is ours, see
    # mujax/parameterization/kalra.py
    "tied": {"table": (SP, EMBD, "factorial+ln+attn+last", MUP), "model.tied": (True,)},
    # Compute-optimal: equal tokens per parameter at each width. Decay lambda n; for muP also lambda
    # sqrt(n) on hidden matrices alone (2510.15262). Published answer: decay makes the extrapolation
    # less robust here
    "fixed_tokens": {
        "table": (SP, EMBD, MUP, f"{MUP}+sqrt_decay"),
        "decay": (0.0, 1e-3, 3e-3),
        "tokens": TOKENS,
    },
    # The same with lambda / steps: weights are forgotten over the same share of training at each
    # width (2405.13698)
    "fixed_tokens_timescale": {
        "table": (SP, EMBD, MUP),
        "decay": (1e-3,),
        "tokens": TOKENS,
        "timescale": True,
    },
    # Is a first layer special for images, too? Its learning rate over that of the others: 1,
    # sqrt(n), n. A small convolutional network (ours) on CIFAR-10, or on synthetic images at small
    # scale; kernels count in the fan-in, so hidden layers train at eta / 9n
    "first_layer": {"model": "cnn", "table": (SP, SQRT_EMBD, EMBD)},
}
# Studies at small scale only: possible reasons why a finding there is not the paper's
REASONS = {
    # The paper's runs are longer: does SP need a repair in four times as many steps?
    "longer": {"table": (SP, EMBD, MUP), "steps": 800, "widths": (32, 64, 128), "seeds": 3},
}
# Study -> its own axes at small scale. seeds: around the optimum. widths: a small range, because a
# model with 40 times the parameters of the narrowest is too much at fixed tokens per parameter
SMALL = {
    "factorial": {"decay": (0.0, 1e-3, 3e-3)},
    "embedding_rate": {"seeds": 3},
    "frozen_embedding": {"seeds": 3},
    "warmup": {"warmup": (0.0, 0.2, 0.4), "seeds": 2},
    "fixed_tokens": {"widths": (32, 48, 64, 96, 128), "decay": (0.0, 1e-3), "seeds": 2},
    "fixed_tokens_timescale": {"widths": (32, 48, 64, 96, 128), "seeds": 2},
    "first_layer": {"seeds": 3},
}
SCALES = ("full", "small")


def get_config(which: str = "factorial"):
    name, scale = _parse(which)
    is_small = scale == "small"
    axes = (STUDIES | REASONS)[name] | (SMALL.get(name, {}) if is_small else {})
    c = base.get_config(axes.pop("model", "transformer"))
    c.optim.grad_clip = 0.0
    c.schedule.name = "wsd"
    widths, log2_rates = (128, 256, 512, 1024, 2048), range(-8, 4)  # learning rates: ours
    if is_small:
        widths, log2_rates = axes.pop("widths", (32, 64, 128, 256)), range(-4, 3, 2)
        c.refine.update(log2_step=1.0, max_extension=6.0, num_seeds=axes.pop("seeds", 0))
    if c.model.name == "cnn":
        _set_cnn(c, is_small)
        widths = tuple(width // 4 for width in widths)
    else:
        _set_gpt(c)
        if is_small:
            _set_small(c, axes.pop("steps", STEPS["small"]))
    # Only the decay of 2510.15262 depends on the base.
    c.parameterization.update(name=MUP, base_width=widths[0])
    decays = axes.pop("decay", (0.0,))
    points = None
    if tokens := axes.pop("tokens", None):
        points = tuple(_sized(c, width, tokens[scale]) for width in widths)
        if axes.pop("timescale", False):
            points = tuple(
                {**p, "optim.weight_decay": _decay(decays[0], p["train.steps"])} for p in points
            )
            decays = ()

    c.sweep.parameterization = {"name": axes.pop("table")}
    c.sweep.optim = {"learning_rate": tuple(2.0**k for k in log2_rates)}
    if decays:
        c.sweep.optim = {
            **c.sweep.optim,
            "weight_decay": tuple(_decay(value, c.train.steps) for value in decays),
        }
    if points:
        c.sweep.points = points
    else:
        c.sweep.model = {"d_model": widths}
    if warmup := axes.pop("warmup", None):
        c.sweep.schedule = {"warmup_steps": tuple(int(share * c.train.steps) for share in warmup)}
    for field, values in axes.items():
        section, _, last = field.partition(".")
        c.sweep[section] = {**c.sweep.get(section, {}), last: values}
    return c


def _parse(which: str) -> tuple[str, str]:
    """Splits 'tied,scale=small' into ('tied', 'small')."""
    name, *settings = which.split(",")
    if name not in STUDIES and name not in REASONS:
        raise ValueError(f"no study {name!r}; one of {', '.join(STUDIES)}")
    scale = "full"
    for setting in settings:
        key, _, scale = setting.partition("=")
        if key != "scale" or scale not in SCALES:
            raise ValueError(f"{setting!r} is neither scale=full nor scale=small")
    if name in REASONS and scale != "small":
        raise ValueError(f"{name} is at small scale alone: {name},scale=small")
    return name, scale


def _set_gpt(c) -> None:
    """Sets the paper's model; norm_eps, dtype, remat and the evaluation interval are ours."""
    c.model.update(num_layers=12, d_head=64, norm="layer", norm_gain="vector", norm_eps=1e-5)
    c.model.update(position="learned", activation="gelu", remat="dots", dtype="bfloat16")
    c.mesh.fsdp = 64  # for v4:4x4x4, 64 chips
    c.train.update(batch_size=256, eval_batches=16, log_interval=100)
    c.data.update(name="shards", path="data/fineweb", seq_len=1024, vocab_size=50_304)
    c.update_from_flattened_dict(_horizon(STEPS["full"]))


def _set_small(c, steps: int) -> None:
    c.model.update(num_layers=2, d_head=16, remat="none", dtype="float32")
    c.mesh.fsdp = 1
    c.train.update(batch_size=16, eval_batches=24, log_interval=10)
    c.data.update(name="embedded", path="", seq_len=32, vocab_size=256)
    c.update_from_flattened_dict(_horizon(steps))


def _set_cnn(c, is_small: bool) -> None:
    """Sets the convolutional network, all ours.

    data/cifar10.npz holds `images` uint8 [60000, 32, 32, 3] and `labels`.
    """
    c.model.num_layers = 3 if is_small else 4
    c.train.update(
        batch_size=32 if is_small else 128, eval_batches=32, log_interval=10 if is_small else 100
    )
    if not is_small:
        c.data.update(name="images", path="data/cifar10.npz", seq_len=3 * 32 * 32)
    c.update_from_flattened_dict(_horizon(STEPS["small" if is_small else "full"]))


def _horizon(steps: int) -> dict[str, int]:
    """Returns the schedule: warm-up, constant and decay take 0.2, 0.6 and 0.2 of the steps."""
    fifth = steps // 5
    return {
        "train.steps": steps, "train.eval_interval": max(fifth, 1), "schedule.warmup_steps": fifth,
        "schedule.decay_steps": max(fifth, 1),
    }  # fmt: skip


def _sized(c, width: int, tokens_per_parameter: float) -> dict[str, float]:
    """Returns fields of a point: the width, and the steps for so many tokens per parameter."""
    layers, vocab, context = c.model.num_layers, c.data.vocab_size, c.data.seq_len
    num_params = 12 * layers * width**2 + (2 * layers + 1) * width + (2 * vocab + context) * width
    return {
        "model.d_model": width,
        **_horizon(round(tokens_per_parameter * num_params / (c.train.batch_size * context))),
    }


def _decay(value: float, steps: float) -> float:
    """Returns the weight decay that over `steps` shrinks weights as `value` does over 10,000.

    A weight shrinks by eta lambda steps over the whole of training, so lambda goes as 1 / steps.
    """
    return round(value * STEPS["full"] / steps, 8)
