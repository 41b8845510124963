"""mujax merge - joins the results of several workdirs into one, without duplicates.

  mujax merge --workdir=runs/all --sources=runs/part0,runs/part1
  mujax merge --workdir=runs/all --sources="runs/part*"

Flags
  --workdir=DIR            where the results are written; may hold earlier results, which stay first
  --sources=DIR,DIR,...    workdirs of mujax sweep or train, or patterns of them

Leaves in DIR results.jsonl, manifest.json and points/, as mujax sweep does. If all workdirs are
parts of one sweep, or points of it that mujax train has trained alone (see --dry_run), mujax sweep
continues in DIR with the missing points. Results of different configs stay apart: each point of
manifest.json names its config, and a report makes separate studies of them.
Exit codes: 0 written, 2 a mistake in the command or the folders, nothing written."""

from mujax.cli.verb import FINISHED, Verb


def run(workdir: str, sources: str) -> int:
    from mujax.sweep.merge import merge

    print(merge(workdir, sources.split(",")))
    return FINISHED


VERB = Verb("merge", __doc__, run, required=("workdir", "sources"))
