"""mujax sweep - trains every point of config.sweep, side by side on all cores or devices.

  mujax sweep --config=configs/quickstart.py --workdir=runs/quickstart
  mujax sweep --config=configs/quickstart.py --workdir=runs/wider \\
      --config.sweep.model.d_model="(64, 128, 256)"
  mujax sweep --config=configs/quickstart.py --dry_run
  mujax sweep --config=configs/quickstart.py --workdir=runs/part0 --shard=0/4
  mujax sweep --config=configs/quickstart.py --workdir=runs/fine \\
      --config.refine.log2_step=0.5 --config.refine.num_seeds=3

The points are the product of the axes in config.sweep, and of config.sweep.points, built with
mujax.sweep.grid. Points that differ only in numbers (parameterization, learning rate, decay,
multipliers, warm-up, seed, ...) share one compiled program and train side by side; those that
differ in width, depth, batch, steps, model options or optimizer form other groups. With
config.refine.log2_step, points are added around the best value of each curve until it is bracketed,
and with config.refine.num_seeds more seeds around the optimum.

Flags
{config}
  --workdir=DIR            where the sweep is written; one sweep per folder, one process at a time
  --dry_run                only prints what would run: groups, programs, tokens, FLOPs, memory,
                           and for each point the command that trains it alone
  --shard=I/N              every N-th point, from the I-th on (0 is the first); each shard needs a
                           workdir of its own, and mujax merge joins them
  --tensorboard            also copies each finished point to DIR/tensorboard
  --wandb_mode=MODE        also copies each finished point to Weights & Biases: offline or online

Leaves in DIR
  manifest.json            the config, and the fields that each point overrides
  results.jsonl            one row per finished point; only points that succeeded have a loss
  points/ID/metrics.jsonl  the training curve of a point
  in_flight/               points that have not finished, if any
  earlier/N/in_flight/     such points that were damaged, or saved by other code

Stopped by Ctrl-C or SIGTERM, the sweep saves its unfinished points; the same command resumes them.
Exit codes: 0 all points finished (diverged ones included), 2 a mistake in the command or
config, 70 crashed, 75 interrupted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mujax.cli.devices import find_devices, make_cores_devices
from mujax.cli.verb import FINISHED, Verb
from mujax.errors import UserError


def run(
    config: dict[str, Any],
    workdir: str | None,
    dry_run: bool,
    shard: str | None,
    tensorboard: bool,
    wandb_mode: str | None,
    argv: Sequence[str],
) -> int:
    from mujax.sweep.points import Shard

    part = Shard() if shard is None else Shard.parse(shard)
    if dry_run:
        from mujax.sweep import dry_run as dry

        config_flags = [
            arg for arg in argv if arg.startswith(("--config", "--noconfig", "--flagfile"))
        ]
        print(dry.dry_run(config, part, config_flags))
        return FINISHED
    if not workdir:
        raise UserError("sweep needs --workdir=DIR")
    make_cores_devices()
    find_devices()
    from mujax.sweep.study import sweep
    from mujax.sweep.trackers import open_trackers

    study = Path(workdir).name
    rows = sweep(
        config,
        workdir,
        part,
        lambda root: open_trackers(root, study, tensorboard, wandb_mode or ""),
    )
    counts = {
        status: sum(row["status"] == status for row in rows) for status in ("diverged", "stopped")
    }
    stopped = f" and {counts['stopped']} given up" if counts["stopped"] else ""
    print(
        f"{len(rows)} points finished, {counts['diverged']} of them diverged{stopped}; see them "
        f"with: mujax report --workdir={workdir}"
    )
    return FINISHED


VERB = Verb(
    "sweep",
    __doc__,
    run,
    required=("config",),
    optional=("workdir", "dry_run", "shard", "tensorboard", "wandb_mode"),
    switches=("dry_run", "tensorboard"),
    takes_argv=True,
)
