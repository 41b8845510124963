"""Every field of a run, with its unit. Other configs start here; there are no defaults elsewhere.

mujax train --config=configs/base.py --workdir=runs/base
mujax train --config=configs/base.py:mlp --workdir=runs/mlp
mujax train --config=configs/base.py:cnn --workdir=runs/cnn
2 CPU cores: 13 s and 5 s; final loss 2.14 nats a byte with either (CPython 3.11's library).
"""

from ml_collections import ConfigDict


def _transformer() -> ConfigDict:
    c = ConfigDict()
    c.name = "transformer"
    c.d_model = 64  # width; a multiple of d_head
    c.num_layers = 2
    c.d_head = 16  # size of an attention head; even; the number of heads is d_model / d_head
    c.mlp_ratio = 4.0  # MLP width / d_model
    c.num_kv_heads = 0  # key and value heads, a divisor of the number of heads; 0: one for every query head
    c.tied = False  # the embedding is the readout too; a table needs a rule for that
    c.bias = False  # on every projection, on the readout, and on LayerNorms
    c.norm = "rms"  # rms (RMSNorm) or layer (LayerNorm)
    c.norm_gain = "none"  # trainable gains of every norm: none, vector (one a coordinate) or scalar
    c.norm_eps = 1e-6  # added to the mean square
    c.embedding_norm = False  # a norm on the embedded tokens
    c.qk_norm = False  # a norm on every head's queries and keys, before RoPE
    c.position = "rope"  # rope, learned (added to the embedding; the sum over sqrt 2) or none
    c.rope_base = 10_000.0  # RoPE wavelengths go from 2 pi to 2 pi * rope_base tokens
    c.activation = "relu"  # relu, sqrelu, gelu or silu; swiglu or geglu: gated, with a third matrix
    c.attention = "softmax"  # softmax, sqrelu, elu, normalized_sqrelu or normalized_elu
    c.attention_impl = "plain"  # plain, dot_product (jax.nn's; cuDNN on GPU in bfloat16) or splash (TPU)
    c.parallel = False  # attention and MLP of a block read the same, rather than one after the other
    c.remat = "none"  # recompute in the backward pass: none, full (all), or dots (all but the matmuls)
    c.scan_layers = True  # one copy of the layers' code, compiled once; False: one a layer, slower to compile
    c.dtype = "float32"  # of compute: float32 or bfloat16; master weights are always float32
    c.low_precision = False  # norms and softmax in dtype too, rather than in float32
    # Where documents are packed in a row: the token between two of them, which no attention looks beyond; -1: it does
    c.boundary_id = -1
    return c


def _mlp() -> ConfigDict:
    c = ConfigDict()
    c.name = "mlp"
    c.d_model = 64  # width of the embedding and of every hidden layer
    c.num_layers = 2  # hidden layers
    c.context = 8  # tokens seen
    c.dtype = "float32"
    return c


def _cnn() -> ConfigDict:
    c = ConfigDict()
    c.name = "cnn"
    c.d_model = 32  # channels of every layer
    c.num_layers = 3  # convolutions; each but the first sees images of half the side
    c.dtype = "float32"
    return c


def _moe() -> ConfigDict:
    c = _transformer()
    c.name = "moe"
    c.mlp_ratio = 2.0  # width of an expert / d_model
    c.num_experts = 8
    # Top-k; outputs are added by the router's probabilities, made to add up to 1, but for k = 1
    c.experts_per_token = 2
    # Places of an expert, over tokens x experts_per_token / num_experts; a token that finds none left goes without
    c.capacity_factor = 2.0
    # alpha of the load-balancing loss (2101.03961, equation 4) of each layer; the reported loss is without
    c.balance_weight = 0.01
    return c


def _recurrent() -> ConfigDict:
    c = ConfigDict()
    c.name = "recurrent"
    c.d_model = 64
    c.num_layers = 2
    c.mlp_ratio = 4.0  # MLP width / d_model
    c.recurrent_ratio = 1.0  # channels of the recurrence / d_model
    c.kernel_size = 4  # taps of the convolution before it
    # As of the transformer
    c.update(norm="rms", norm_gain="none", norm_eps=1e-6, activation="relu", remat="none", scan_layers=True)
    c.update(dtype="float32", low_precision=False)
    return c


MODELS = {"transformer": _transformer, "mlp": _mlp, "cnn": _cnn, "moe": _moe, "recurrent": _recurrent}


def get_config(model: str = "transformer") -> ConfigDict:
    """`--config=configs/base.py:mlp` picks the model's fields."""
    if model not in MODELS:
        raise ValueError(f"no fields for model {model!r}; known: {', '.join(MODELS)}")
    c = ConfigDict()
    c.seed = 0  # of the initialization and of the data order; 0 or above
    c.model = MODELS[model]()

    c.parameterization = ConfigDict()
    c.parameterization.name = "mup"  # a table; mujax explain --help lists them
    c.parameterization.base_width = 32  # d_model at which every relative parameterization equals sp
    c.parameterization.base_d_head = 0  # d_head at that width; 0: the model's own, heads do not grow
    # num_layers at that width; 0: the model's own, depth does not grow. Refused where no rule of the table reads it
    c.parameterization.base_num_layers = 0
    # Rows, tensors, numbers or forward scales of their own, each from another table or a number, e.g.
    #   ("input=sp", "unembed=mup_table8", "blocks/*/wq.lr=0.5", "attention=sp")
    c.parameterization.override = ()

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw, sgd, lion, adafactor or muon
    c.optim.learning_rate = 2.0**-7  # peak, of a tensor whose table factor is 1
    c.optim.weight_decay = 0.0  # in the unit of decay_form
    # l2: into the gradient; decoupled: times a tensor's own learning rate, so under muP its timescale grows
    # with width; independent: times the schedule alone; constant: neither
    c.optim.decay_form = "decoupled"
    c.optim.b1 = 0.9  # momentum; of sgd and muon too, none of adafactor
    c.optim.b2 = 0.95  # of adamw and lion
    c.optim.eps = 1e-8
    c.optim.momentum_dtype = "float32"  # of the first moment: float32 or bfloat16; the second is always float32
    # Global norm of the gradients of the effective weights; 0: no clipping. A bound that bites makes runs of
    # different widths differ: the norm is not constant in width.
    c.optim.grad_clip = 1.0

    c.schedule = ConfigDict()
    c.schedule.name = "linear"  # after warm-up: constant, linear, cosine or wsd
    c.schedule.warmup_steps = 20
    c.schedule.decay_steps = 0  # of wsd, and there above 0: length of the final decay
    c.schedule.final_ratio = 0.0  # learning rate / peak that a decay reaches at train.steps, after the last update

    c.train = ConfigDict()
    c.train.steps = 200  # updates
    c.train.batch_size = 16  # sequences
    c.train.accumulation = 1  # parts of a batch whose gradients are taken one after the other, to save memory
    c.train.eval_interval = 50  # steps; also at steps 0 and the last
    c.train.eval_batches = 16  # batches of batch_size, the same at every evaluation
    c.train.log_interval = 10  # steps between lines of metrics.jsonl
    c.train.divergence_loss = 20.0  # nats a token; a run above it, or at NaN, counts as diverged
    # Early stopping, which changes the science: a run whose validation loss, at an evaluation at or after
    # give_up_step, is above give_up_loss (nats a token) is stopped, and has no final loss. 0: never.
    c.train.give_up_step = 0
    c.train.give_up_loss = 0.0

    c.data = ConfigDict()
    # embedded: Python's standard library; text, shards (of tokens, by mujax prepare), images: data.path;
    # synthetic_images
    c.data.name = "embedded"
    c.data.path = ""  # file or folder of UTF-8 text, folder of shards, or .npz file with images and labels
    c.data.glob = "**/*.txt"  # which files of a folder
    c.data.seq_len = 64  # tokens of context; of an image, its bytes, 3 side^2
    # Tokens there are: of embedded and text 256, their bytes, or as many pieces as this, of a SentencePiece model
    # that is trained on them; of images, classes
    c.data.vocab_size = 256
    c.data.eos_id = -1  # the loss counts a row's tokens up to the first of this id; -1: all
    if model == "cnn":
        c.data.update(name="synthetic_images", seq_len=3 * 16 * 16, vocab_size=10)

    # Devices that one run of a sweep is split over, for models too large or too slow for one; the rest of the
    # devices hold more runs. No part of a run's id: the numbers are the same but for rounding.
    c.mesh = ConfigDict()
    c.mesh.data = 1  # splits the batch
    c.mesh.fsdp = 1  # splits the batch, and what is stored of weights and optimizer
    c.mesh.tensor = 1  # splits heads, MLP and vocabulary, and what is computed with them
    c.mesh.slices = 1  # TPU slices, joined by a data-center network; a divisor of data, which is split over them first
    # Axis of the weights = mesh axis that splits it, fsdp or tensor. The first axis of a weight to name a mesh axis
    # gets it; an axis that its mesh axis does not divide (2 kv_heads over tensor = 8) stays whole on every device.
    c.mesh.rules = ("embed=fsdp", "heads=tensor", "kv_heads=tensor", "mlp=tensor", "vocab=tensor")

    # Of mujax train: the state of the run, from which it goes on after whatever has ended it. This section and
    # the next are no part of a run's id.
    c.checkpoint = ConfigDict()
    c.checkpoint.interval = 500  # steps between saves; also at the end, and when the run is asked to stop
    c.checkpoint.keep = 2  # the latest ones are kept; at least 2, as one may turn out damaged
    c.checkpoint.best = True  # the weights of the lowest validation loss too
    c.checkpoint.grace_seconds = 25.0  # after SIGTERM, a process that has not saved by then ends without

    c.monitor = ConfigDict()
    c.monitor.tensor_interval = 0  # steps between RMS of every tensor and of its update in metrics.jsonl; 0: never
    c.monitor.profile_step = 0  # first step that the profiler traces
    c.monitor.profile_steps = 0  # how many it traces; 0: none

    # A sweep is the product of the axes named here, in the shape of the config itself, e.g.
    #   c.sweep.optim = {"learning_rate": (2.0**-8, 2.0**-7)}
    # and of c.sweep.points, which mujax.sweep.grid builds for all that is not a plain product.
    c.sweep = ConfigDict()

    # A second pass, after the points of the sweep: more points around the best value of a field, until both its
    # neighbours are worse and no further than log2_step from it.
    c.refine = ConfigDict()
    c.refine.field = "optim.learning_rate"
    c.refine.log2_step = 0.0  # 0: no second pass
    c.refine.max_extension = 4.0  # how far a grid whose best value is at its edge may grow, each way, in log2
    # Seeds that the best value and those within two steps of it end up with, from the sweep's lowest on; 0: the sweep's
    # alone. The same seeds at all of them, as a part of a seed's luck is common to all its learning rates.
    c.refine.num_seeds = 0
    return c
