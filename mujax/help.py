"""What the command line says of itself: the text of mujax --help and of mujax VERB --help.

The first line of a verb's text is 'mujax NAME - summary.'
"""

import textwrap

OVERVIEW = """\
mujax - does a hyperparameter tuned on a small model stay right on a large one?

Usage: mujax VERB [flags]          (the same as: python -m mujax VERB [flags])

{verbs}

mujax VERB --help explains a verb, its flags and what it writes, with examples.
"""

_CONFIG = """\
  --config=FILE.py         a Python file with get_config(); configs/base.py names every field
  --config=FILE.py:ARG     the same, calling get_config(ARG)
  --config.FIELD=VALUE     sets one field, e.g. --config.optim.learning_rate=0.01"""

TRAIN = """\
mujax train - trains one model.

  mujax train --config=configs/base.py --workdir=runs/base
  mujax train --config=configs/base.py --workdir=runs/sp256 \\
      --config.model.d_model=256 --config.parameterization.name=sp
  mujax train --config=configs/base.py:mlp --workdir=runs/mlp

Flags
{config}
  --workdir=DIR            where the run is written; one run a folder

Leaves in DIR
  config.json              every field of the run
  metrics.jsonl            a line every train.log_interval steps, and one an evaluation
  checkpoints/STEP/        the weights, when the run has come through; mujax sample reads them
  result.json              the result row, when the run has finished

A workdir that holds the finished run is left alone; an interrupted run starts again.
Exit codes: 0 finished, 2 something to fix in the command or config, 3 the run diverged,
75 interrupted."""

SWEEP = """\
mujax sweep - trains every point of config.sweep, side by side on all cores or devices.

  mujax sweep --config=configs/quickstart.py --workdir=runs/quickstart
  mujax sweep --config=configs/quickstart.py --workdir=runs/wider \\
      --config.sweep.model.d_model="(64, 128, 256)"
  mujax sweep --config=configs/quickstart.py --dry_run
  mujax sweep --config=configs/quickstart.py --workdir=runs/part0 --shard=0/4
  mujax sweep --config=configs/quickstart.py --workdir=runs/fine \\
      --config.refine.log2_step=0.5

The points are the product of the axes in config.sweep, and of config.sweep.points, built with
mujax.grid. Points that differ in numbers alone (parameterization, learning rate, decay,
multipliers, warm-up, seed, ...) share one compiled program and train side by side; those that
differ in width, depth, batch, steps, model options or optimizer are other groups. With
config.refine.log2_step, points are added around the best value of each curve until it is bracketed.

Flags
{config}
  --workdir=DIR            where the sweep is written; one sweep a folder, one process at a time
  --dry_run                only says what would run: groups, programs, tokens, FLOPs, memory,
                           and for each point the command that trains it alone
  --shard=I/N              every N-th point, from the I-th on (0 is the first); each shard needs a
                           workdir of its own, and mujax merge joins them
  --tensorboard            also copies each finished point to DIR/tensorboard
  --wandb_mode=MODE        also copies each finished point to Weights & Biases: offline or online

Leaves in DIR
  manifest.json            the config, and the fields that each point overrides
  results.jsonl            one row a finished point; only one that came through has a loss
  points/ID/metrics.jsonl  the training curve of a point
  in_flight/               points that have not finished, while there are any

Stopped by Ctrl-C or SIGTERM, it saves what is in flight; the same command goes on from there.
Exit codes: 0 all points finished (diverged ones included), 2 something to fix in the command
or config, 75 interrupted."""

LAUNCH = """\
mujax launch - a sweep as jobs: here, on TPU VMs, on GKE, or through Slurm.

  mujax launch --config=configs/quickstart.py --workdir=runs/local --engine=local --shards=2
  mujax launch --config=configs/quickstart.py --workdir=runs/tpu --engine=tpu_vm --shards=4 \\
      --topology=v4:2x2x1 --zone=us-central2-b --spot --out=runs/tpu-launch
  mujax launch --config=configs/quickstart.py --workdir=/work/gke --engine=jobset --shards=4 \\
      --topology=v5e:2x4 --image=us-docker.pkg.dev/p/r/mujax:1 --mount=work:/work --queue=tpu \\
      --out=runs/gke-launch
  mujax launch --config=configs/quickstart.py --workdir=/work/me/slurm --engine=slurm --shards=8 \\
      --partition=gpu --time=04:00:00 --out=runs/slurm-launch

A job is one shard of the sweep with a workdir of its own, DIR/shard-I: narrow points are never
queued one by one, they share a job's devices. Engine local runs the jobs; the others write
scripts or manifests into a folder and say what to run. Each engine honours the exit codes: 0
and 3 have finished, 1 and 2 are never run again, 75 is run again, and anything else too, up to
--retries times.

Flags
{config}
  --workdir=DIR            where results end up, DIR/shard-I of each job; for slurm and jobset
                           a folder that all jobs share
  --engine=ENGINE          local, tpu_vm, jobset or slurm
  --shards=N               jobs to split the sweep into (1)
  --name=NAME              what jobs are called: lower-case letters, digits, hyphens, at most 28
                           with the job's number; the workdir's name if not given
  --retries=N              runs again of a job that was killed (5)
  --out=DIR                where scripts and manifests are written; a new folder
  --parallel=N             local, slurm, jobset: jobs that run at once (local: 1)
tpu_vm and jobset
  --topology=T             the slice of each job: v4:2x2x1, v5p:2x2x1, v5e:2x4, v6e:2x4; for
                           tpu_vm also v4-8 and the like
  --spot                   capacity that may be taken away
tpu_vm
  --zone=ZONE              and --project=PROJECT, if not gcloud's own
  --runtime_version=V      the VM image, if not that of the generation for JAX
jobset
  --image=IMAGE            a container with mujax and the config in its working directory
  --mount=CLAIM:/PATH      the PersistentVolumeClaim that holds --workdir
  --queue=QUEUE            Kueue's LocalQueue; without it, nothing waits
slurm
  --partition=P            and --time=T of each go; more options: sbatch's command line

docs/tpu.md goes from a grant of TPUs to a finished sweep.
Exit codes: 0 written (local: all finished), 2 something to fix in the command or config; nothing
was written. Of local also 75, interrupted, and the code of a job that was given up."""

PLAN = """\
mujax plan - does every point fit its pod, and how fast should it be? Needs libtpu, and no TPU.

  pip install libtpu
  mujax plan --config=configs/lingle2024/ablations.py:baseline --topology=v3:8x8
  mujax plan --config=configs/base.py --topology=v4:2x2x1 --workdir=runs/plan --search

Compiles the training program of each width, depth and mesh of config.sweep with the TPU compiler,
from shapes alone, as mujax sweep would run it: as many points at once as the topology has room
for. Says memory a device, time of a step, what of it communication adds, MFU, tokens a day, and
the chip-hours of the whole sweep; and what to change where something does not fit.

Flags
{config}
  --topology=NAME          generation:shape, e.g. v3:8x8, v4:4x8x8, v5e:16x16, v5p:4x4x8,
                           v6e:16x16 or tpu7x:2x2x2; config.mesh.slices of them
  --search                 also tries other meshes and remat policies, and takes the fastest that
                           leaves a quarter of the memory
  --workdir=DIR            where plan.json is written, with bytes of each kind of collective, the
                           costliest operations, and all that was tried

How far to trust it: compute is the compiler's own estimate of cycles, and within about 10% of
hardware on v3 and v4, 15% on v5e and v5p, 25% on v6e, 30% at width 128; on tpu7x nothing was
compared. Bytes over links are a lower bound. Gathers, scatters, sorts and Pallas kernels have no
estimate and count as nothing; so do latency, the host and evaluations.
Exit codes: 0 everything fits, 1 something does not, 2 something to fix in the command or config."""

MERGE = """\
mujax merge - joins the results of several workdirs into one, without duplicates.

  mujax merge --workdir=runs/all --sources=runs/part0,runs/part1
  mujax merge --workdir=runs/all --sources="runs/part*"

Flags
  --workdir=DIR            where the results are written; may hold earlier ones, which stay first
  --sources=DIR,DIR,...    workdirs of mujax sweep, or patterns of them

Leaves in DIR results.jsonl, manifest.json and points/, as mujax sweep does. If all workdirs are
parts of one sweep, mujax sweep goes on in DIR with what is still missing.
Exit codes: 0 written, 2 something to fix in the command or the folders, nothing written."""

REPORT = """\
mujax report - where the best learning rate lies at each width, and whether it transfers.

  mujax report --workdir=runs/quickstart
  mujax report --workdir=runs/both --sources=runs/quickstart,runs/mine
  mujax report --workdir=runs/other --input=losses.csv \\
      --columns="width=n,learning_rate=lr,loss=val_loss,study=group,seed=seed"

Flags
  --workdir=DIR            a folder that mujax sweep or mujax train has written; with --sources or
                           --input the folder to write the report into
  --sources=DIR,DIR,...    workdirs, or patterns of them, to compare with each other, and with DIR's
                           own rows if it has any
  --input=FILE             a .csv or .jsonl file with results from elsewhere instead
  --columns=NAME=COL,...   what its columns are. Needed are width, learning_rate or
                           log2_learning_rate, and loss (empty or nan: the run diverged); further
                           study, parameterization, weight_decay, seed, tokens, steps, n_params.
                           Or E, R_inf and kappa, for the phase diagrams alone. A column that bears
                           one of these names need not be named
  --noise=NATS             standard deviation of the loss of one run over seeds; without it, it is
                           estimated from the seeds, else from what the parabolas leave

Prints the table of optima, drifts and verdicts, and leaves in DIR
  report.html              loss against learning rate, laws of optimum, loss and curvature in width,
                           phase diagrams, training curves, tables; one file, needs no network
  figures/*.png, *.pdf     transfer, optimum, loss, curvature and phase, for papers
  transfer.json            all of it as numbers
Exit codes: 0 written, 2 something to fix in the command, the folder or the file."""


EXPLAIN = """\
mujax explain - every number of a parameterization, tensor by tensor, and where it came from.

  mujax explain --config=configs/quickstart.py
  mujax explain --config=configs/quickstart.py --diff=sp
  mujax explain --config=configs/quickstart.py --widths=32,128,512
  mujax explain --config=configs/base.py --config.parameterization.name=mup_table8 \\
      --config.parameterization.override="('unembed.lr=0.5', 'input=sp')"

Flags
{config}
  --widths=W,W,...         the numbers at several widths side by side
  --diff=TABLE             only what differs from another table
  --json                   JSON on stdout, with everything

Overrides (config.parameterization.override, a tuple of strings) are TARGET=VALUE or
TARGET.NUMBER=VALUE
  TARGET                   a role, a tensor, a pattern of tensors ('blocks/*/wq'), or a forward
                           scale (attention, residual, logits, embedding)
  NUMBER                   init, forward, lr, eps, weight_decay or readout
  VALUE                    a table, a row of one ('sp.hidden'), or, for a single number or a scale,
                           the number itself

Tables
{tables}
Exit codes: 0 printed, 2 something to fix in the command or config."""

CHECK = """\
mujax check - is the model right under its parameterization and optimizer, and which tensor is not?

  mujax check --config=configs/quickstart.py --workdir=runs/check --fast
  mujax check --config=configs/quickstart.py --workdir=runs/check-sp \\
      --config.parameterization.name=sp
  mujax check --config=configs/base.py --workdir=runs/check-sgd \\
      --config.optim.name=sgd --config.optim.learning_rate=0.5

Reads the exponents of the resolved table; rescales stored weights, which must change nothing
(float64); and trains small models of several widths, at the config's learning rate held constant
and without clipping, to compare how every weight, update and activation grows with width with what
the maximal-update limit wants.

Flags
{config}
  --workdir=DIR            where check.json and check.png are written
  --fast                   4 widths, 3 seeds, 10 steps; without it 5 widths, 5 seeds, 30 steps
  --widths=W,W,...         other widths than 1, 2, 4, 8 (and 16) times parameterization.base_width
  --seeds=N                another number of seeds, at least 3

With parameterization.base_d_head set, heads grow with width and their number stays.
A workdir that holds an earlier check keeps it, in earlier/N.
Exit codes: 0 pass (benign deviations included), 1 fail, 2 something to fix in the command or
config."""


SAMPLE = """\
mujax sample - text from a model that mujax train has trained.

  mujax sample --workdir=runs/base --prompt="def main(" --temperature=0.7
  mujax sample --workdir=runs/base --prompts=prompts.txt --top_p=0.8 --num_samples=3

Flags
  --workdir=DIR            a folder that mujax train has written
  --prompt=TEXT            what the text begins with; without it, a new document
  --prompts=FILE           prompts instead, one a line, continued side by side
  --num_samples=N          continuations of each prompt (1)
  --num_tokens=N           tokens to add at most (256); a document may end before
  --temperature=X          the logits are divided by it (1); 0 takes the most likely token
  --top_k=N                draws from the N most likely tokens only (0: all)
  --top_p=P                and of these from the fewest that make up probability P (1: all)
  --window=N               tokens that attention looks back on (data.seq_len of the run)
  --seed=N                 other draws (0)

Prints each prompt with its continuation.
Exit codes: 0 printed, 2 something to fix in the command or the folder."""


TEXTS = {
    "train": TRAIN,
    "sweep": SWEEP,
    "launch": LAUNCH,
    "plan": PLAN,
    "merge": MERGE,
    "report": REPORT,
    "explain": EXPLAIN,
    "check": CHECK,
    "sample": SAMPLE,
}


def overview() -> str:
    """What mujax --help prints."""
    summaries = {verb: text.splitlines()[0].partition(" - ")[2] for verb, text in TEXTS.items()}
    return OVERVIEW.format(verbs="\n".join(f"  {verb:<8} {summary}" for verb, summary in summaries.items()))


def help_text(verb: str) -> str:
    """What mujax VERB --help prints."""
    if verb != "explain":
        return TEXTS[verb].format(config=_CONFIG)
    from mujax.parameterization import PARAMETERIZATIONS

    tables = "\n".join(
        textwrap.fill(f"{name}: {table.source}", 100, initial_indent="  ", subsequent_indent="      ")
        for name, table in PARAMETERIZATIONS.items()
    )
    return EXPLAIN.format(config=_CONFIG, tables=tables)
