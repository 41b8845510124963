"""Slurm: a job array with one task per shard, which queues itself again as exit codes demand."""

import re
import shlex

from mujax.errors import UserError
from mujax.launch.job import FINISHED, NEVER_AGAIN, SAVED, Launch, as_child

_SECONDS_TO_SAVE = 120  # between the signal to save and the time limit


def render(
    launch: Launch, partition: str | None, time: str | None, parallel: int | None
) -> dict[str, str]:
    """Returns the batch script.

    Args:
      time: the limit of one job, as Slurm writes it; the script continues from where it was
        stopped.
      parallel: tasks that run at once; None leaves it to Slurm.

    Raises:
      UserError: a partition or time that would not be one word of an #SBATCH line.
    """
    if partition is not None and not re.fullmatch(r"[\w.,+-]+", partition, re.ASCII):
        raise UserError(f"--partition={partition} is no name of partitions")
    if time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time, re.ASCII):
        raise UserError(f"--time={time} is no time of Slurm's, e.g. 04:00:00 or 1-12")
    options = {
        "job-name": launch.name,
        "array": f"0-{len(launch.jobs) - 1}" + (f"%{parallel}" if parallel else ""),
        "output": "%x-%a.log",
        "open-mode": "append",
        "signal": f"B:USR1@{_SECONDS_TO_SAVE}",
        "partition": partition,
        "time": time,
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    commands = [f"  {i}) set -- {shlex.join(job.argv)} ;;" for i, job in enumerate(launch.jobs)]
    text = f"""\
#!/bin/bash
{chr(10).join(lines)}
#SBATCH --requeue

# Rendered by mujax launch. Submit it from its folder, where the logs go: sbatch {launch.name}.sbatch
cd -- {shlex.quote(launch.source)} || exit
case $SLURM_ARRAY_TASK_ID in
{chr(10).join(commands)}
  *) echo "no shard $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac

# SIGUSR1 comes {_SECONDS_TO_SAVE} s before the time limit, to this shell alone. SIGTERM comes to the command too, when
# the job is cancelled or preempted; Slurm then does what it was told to, and the job is not queued again here.
ended=0
trap 'stop=1 ended=1' TERM
{as_child("USR1")}
file=$SLURM_SUBMIT_DIR/$SLURM_JOB_NAME-$SLURM_ARRAY_TASK_ID.retries
case $code in
  {" | ".join(map(str, FINISHED))}) rm -f "$file"; exit 0 ;; # 3: finished, and a run diverged
  {" | ".join(map(str, NEVER_AGAIN))}) exit "$code" ;; # the same again would fail the same
esac
[ "$ended" = 0 ] || exit "$code"
case $code in
  {SAVED}) ;; # saved
  *)
    retries=$(cat "$file" 2>/dev/null || echo 0)
    if [ "$retries" -ge {launch.retries} ]; then
      echo "exit code $code, and no retry is left of {launch.retries}; sbatch again goes on from here" >&2
      rm -f "$file"
      exit "$code"
    fi
    echo $((retries + 1)) >"$file"
    ;;
esac
echo "exit code $code: queued again" >&2
scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
exit "$code"
"""
    return {f"{launch.name}.sbatch": text}
