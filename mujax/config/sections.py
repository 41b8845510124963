"""The sections of a config: every field that architectures share, with default, meaning, unit and
range.

Fields of an architecture are declared beside it, in mujax.models.
"""

import dataclasses
import threading

from mujax.fields import BETA, DEPTH, EXACT, INT32, NOT_NEGATIVE, Range, declare

WEIGHT_AXES = ("fsdp", "tensor")  # mesh axes that split weights
# Logical axis -> mesh axis that splits it, if it divides it: of weights, and, but for those on
# fsdp, of activations
RULES = (
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)
SEED = declare(
    0, "of the initialization and of the data order", Range(0, INT32, words="in [0, 2^31)")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterizationConfig:
    """Section `parameterization`: how big each tensor is, and how it learns."""

    name: str = declare("mup", "a table; mujax explain --help lists them")
    base_width: int = declare(32, "d_model at which every relative parameterization equals sp")
    base_d_head: int = declare(
        0, "d_head at that width; 0: the model's own, heads do not grow", NOT_NEGATIVE
    )
    base_num_layers: int = declare(
        0,
        "num_layers at that width; 0: the model's own, depth does not grow. Refused where no rule "
        "of the table reads it",
        Range(0, DEPTH.most, why=DEPTH.why),
    )
    override: tuple[str, ...] = declare(
        (),
        "rows, tensors, numbers or forward scales of their own, each from another table or a "
        "number, e.g. ('input=sp', 'unembed=mup_table8', 'blocks/*/wq.lr=0.5', 'attention=sp')",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Section `optim`."""

    name: str = declare("adamw", "adamw, sgd, lion, adafactor or muon")
    learning_rate: float = declare(2.0**-7, "peak, of a tensor whose table factor is 1")
    weight_decay: float = declare(0.0, "in the unit of decay_form", NOT_NEGATIVE)
    decay_form: str = declare(
        "decoupled",
        "l2: into the gradient; decoupled: times a tensor's own learning rate, so under muP its "
        "timescale grows with width; independent: times the schedule alone; constant: neither",
    )
    b1: float = declare(0.9, "momentum; of sgd and muon too, none of adafactor", BETA)
    b2: float = declare(0.95, "of adamw and lion", BETA)
    eps: float = declare(1e-8, "added to the root of the second moment")
    momentum_dtype: str = declare(
        "float32", "of the first moment: float32 or bfloat16; the second is always float32"
    )
    grad_clip: float = declare(
        1.0,
        "global norm of the gradients of the effective weights; 0: no clipping. A bound that bites "
        "makes runs of different widths differ: the norm is not constant in width",
        NOT_NEGATIVE,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Section `schedule`: of the learning rate."""

    name: str = declare("linear", "after warm-up: constant, linear, cosine or wsd")
    warmup_steps: int = declare(20, "steps of linear warm-up", NOT_NEGATIVE)
    decay_steps: int = declare(
        0, "of wsd, and there above 0: length of the final decay", NOT_NEGATIVE
    )
    final_ratio: float = declare(
        0.0,
        "learning rate / peak that a decay reaches at train.steps, after the last update",
        Range(0, 1, words="in [0, 1]"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Section `train`."""

    steps: int = declare(
        200,
        "updates",
        Range(
            above=0, most=EXACT, why="schedules count steps in float32, which is exact up to there"
        ),
    )
    batch_size: int = declare(16, "sequences")
    accumulation: int = declare(
        1, "parts of a batch whose gradients are taken one after the other, to save memory"
    )
    eval_interval: int = declare(50, "steps; also at steps 0 and the last")
    eval_batches: int = declare(16, "batches of batch_size, the same at every evaluation")
    log_interval: int = declare(10, "steps between lines of metrics.jsonl")
    divergence_loss: float = declare(
        20.0, "nats per token; a run above it, or at NaN, counts as diverged"
    )
    give_up_step: int = declare(
        0,
        "early stopping, which changes the science: a run whose validation loss, at an evaluation "
        "at or after this step, is above give_up_loss is stopped, and has no final loss. 0: never",
        NOT_NEGATIVE,
    )
    give_up_loss: float = declare(0.0, "nats per token; see give_up_step", NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Section `data`."""

    name: str = declare(
        "embedded",
        "embedded: Python's standard library; text, shards (of tokens, by mujax prepare), images: "
        "data.path; synthetic_images",
    )
    path: str = declare(
        "", "file or folder of UTF-8 text, folder of shards, or .npz file with images and labels"
    )
    glob: str = declare("**/*.txt", "which files of a folder")
    seq_len: int = declare(
        64,
        "tokens of context; of an image, its bytes, 3 side^2",
        Range(above=0, most=EXACT, why="positions are float32, which is exact up to there"),
    )
    vocab_size: int = declare(
        256,
        "tokens there are: of embedded and text 256, their bytes, or as many pieces as this, of a "
        "SentencePiece model that is trained on them; of images, classes",
    )
    eos_id: int = declare(
        -1, "the loss counts a row's tokens up to the first of this id; -1: all", Range(-1)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Section `mesh`: the devices that one run is split over, where a model is too large or too
    slow for one.

    The other devices hold more runs of a sweep. The mesh is no part of a run's id: numbers are the
    same but for rounding.
    """

    data: int = declare(1, "splits the batch")
    fsdp: int = declare(1, "splits the batch, and what is stored of weights and optimizer")
    tensor: int = declare(1, "splits heads, MLP and vocabulary, and what is computed with them")
    slices: int = declare(
        1,
        "TPU slices, joined by a data-center network; a divisor of data, which is split over them "
        "first",
    )
    rules: tuple[str, ...] = declare(
        tuple(f"{axis}={mesh_axis}" for axis, mesh_axis in RULES),
        "axis of the weights = mesh axis that splits it, fsdp or tensor. The first axis of a "
        "weight to name a mesh axis gets it; an axis that its mesh axis does not divide (2 "
        "kv_heads over tensor = 8) stays whole on every device",
    )

    @property
    def num_devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def axis_rules(self) -> tuple[tuple[str, str], ...]:
        """`rules` as pairs: logical axis, mesh axis."""
        return tuple(
            (axis, mesh_axis) for axis, _, mesh_axis in (rule.partition("=") for rule in self.rules)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Section `checkpoint`, of mujax train: the saved states that an interrupted run resumes from.

    This section and the next are no part of a run's id.
    """

    interval: int = declare(
        500, "steps between saves; also at the end, and when the run is asked to stop"
    )
    keep: int = declare(
        2, "the latest ones are kept; at least 2, as one may turn out damaged", Range(2)
    )
    best: bool = declare(True, "the weights of the lowest validation loss too")
    grace_seconds: float = declare(
        25.0,
        "after SIGTERM, a process that has not saved by then ends without",
        Range(above=0, most=threading.TIMEOUT_MAX, why="no timer is longer"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Section `monitor`."""

    tensor_interval: int = declare(
        0,
        "steps between RMS of every tensor and of its update in metrics.jsonl; 0: never",
        NOT_NEGATIVE,
    )
    profile_step: int = declare(0, "first step that the profiler traces", NOT_NEGATIVE)
    profile_steps: int = declare(0, "how many it traces; 0: none", NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Section `refine`: a second pass after the points of a sweep.

    It adds points around the best value of a field, until both neighbours are worse and no further
    than log2_step away.
    """

    field: str = declare("optim.learning_rate", "the field")
    log2_step: float = declare(0.0, "0: no second pass", Range(0, 256, why="float32 spans less"))
    max_extension: float = declare(
        4.0,
        "how far a grid whose best value is at its edge may grow, each way, in log2",
        Range(0, 256, why="float32 spans less"),
    )
    num_seeds: int = declare(
        0,
        "seeds that the best value and those within two steps of it end up with, from the sweep's "
        "lowest on; 0: the sweep's alone. The same seeds at all of them, as a part of a seed's "
        "luck is common to all its learning rates",
        Range(0, 10_000, why="each is a run of every value around every optimum"),
    )


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
# Sections that say where and how a run is done, and may change while it is under way: no part of
# what it is
OPERATION_SECTIONS = ("mesh", "checkpoint", "monitor")
