"""mujax train - trains one model, on a device, a mesh, or the hosts of a pod.

  mujax train --config=configs/base.py --workdir=runs/base
  mujax train --config=configs/base.py --workdir=runs/sp256 \\
      --config.model.d_model=256 --config.parameterization.name=sp
  mujax train --config=configs/base.py:mlp --workdir=runs/mlp

Flags
{config}
  --workdir=DIR            where the run is written; one run per folder, which all hosts see. Or
                           gs://BUCKET/PATH, with pip install 'mujax[gcs]': metrics.jsonl is then
                           written at evaluations and checkpoints, and after a kill without a
                           warning the same command first waits half a minute
  --allow_config_change=F  fields or sections, separated by commas, in which the config may differ
                           from the one that the workdir was begun with; `table` and `data` allow
                           another resolved parameterization and other data
  --coordinator=HOST:PORT  address of process 0, with --num_processes=N and --process_id=I: for
                           several hosts without Cloud TPU, GKE or Slurm

Leaves in DIR
  config.json              every field of the run
  metrics.jsonl            a line every train.log_interval steps, one per evaluation, and one every
                           monitor.tensor_interval steps
  performance.jsonl        tokens/s, MFU, step times and memory, a line per evaluation
  heartbeat.json           time and step, while the run lives
  checkpoints/latest/STEP/ state to resume from, every checkpoint.interval steps
  checkpoints/best/STEP/   the weights with the lowest validation loss
  result.json              the result row, when the run has finished

The same command resumes from the latest checkpoint; the workdir of a finished run stays as it is.
Stopped by Ctrl-C or SIGTERM, the command saves first. A damaged checkpoint is detected, and the one
before it is used.
Exit codes: 0 finished, 2 a mistake in the command, config or workdir, 3 the run diverged,
70 crashed, lost another host, or a bucket did not answer, 75 interrupted, state saved."""

import logging
import sys
from typing import Any

from mujax.cli.devices import find_devices, make_cores_devices
from mujax.cli.flags import number
from mujax.cli.verb import DIVERGED, FINISHED, Verb
from mujax.errors import UserError


def run(
    config: dict[str, Any],
    workdir: str,
    allow_config_change: str | None,
    coordinator: str | None,
    num_processes: str | None,
    process_id: str | None,
) -> int:
    given = {"num_processes": num_processes, "process_id": process_id, "coordinator": coordinator}
    if any(given.values()) and not all(given.values()):
        missing = [name for name, value in given.items() if not value]
        raise UserError(
            f"--coordinator, --num_processes and --process_id go together; --{missing[0]} is "
            "missing"
        )
    total = number("num_processes", num_processes, 1, 1)
    own = number("process_id", process_id, 0, 0, total - 1)

    from mujax.config import make_run_config
    from mujax.training.distributed import initialize, is_primary, leaving_at_once
    from mujax.training.loop import train

    # Orbax also logs the errors that it raises, with tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if make_run_config(config).mesh.num_devices > 1:
        # A mesh of cores, if there are no accelerators.
        make_cores_devices()
    initialize(coordinator, total, own)
    find_devices()
    with leaving_at_once():
        row = train(
            config, workdir, [name for name in (allow_config_change or "").split(",") if name]
        )
    stream = sys.stdout if is_primary() else sys.stderr
    if row["status"] == "diverged":
        print(
            f"diverged at step {row['diverged_at_step']}; {workdir}/metrics.jsonl has the curve",
            file=stream,
        )
        return DIVERGED
    if row["status"] == "stopped":
        where = f"step {row['stopped_at_step']} by train.give_up_step"
        print(f"given up at {where}; {workdir}/metrics.jsonl has the curve", file=stream)
        return FINISHED
    best = f"best {row['best_loss']:.4f} at step {row['best_step']}"
    bits = "" if row["bits_per_byte"] is None else f" ({row['bits_per_byte']:.4f} bits/byte)"
    print(f"final loss {row['final_loss']:.4f} nats/token{bits}, {best}", file=stream)
    return FINISHED


VERB = Verb(
    "train",
    __doc__,
    run,
    required=("config", "workdir"),
    optional=("allow_config_change", "coordinator", "num_processes", "process_id"),
)
