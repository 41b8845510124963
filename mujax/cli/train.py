"""mujax train - trains one model.

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
70 crashed, 75 interrupted."""

from typing import Any

from mujax.cli.verb import DIVERGED, FINISHED, Verb


def run(config: dict[str, Any], workdir: str) -> int:
    from mujax.train import train

    row = train(config, workdir)
    if row["status"] == "diverged":
        print(f"diverged at step {row['diverged_at_step']}; {workdir}/metrics.jsonl has the curve")
        return DIVERGED
    if row["status"] == "stopped":
        print(f"given up at step {row['stopped_at_step']} by train.give_up_step; {workdir}/metrics.jsonl has the curve")
        return FINISHED
    print(f"final loss {row['final_loss']:.4f} nats/token, best {row['best_loss']:.4f} at step {row['best_step']}")
    return FINISHED


VERB = Verb("train", __doc__, run, required=("config", "workdir"))
