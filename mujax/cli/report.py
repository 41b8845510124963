"""mujax report - where the best learning rate lies at each width, and whether it transfers.

  mujax report --workdir=runs/quickstart
  mujax report --workdir=runs/both --sources=runs/quickstart,runs/mine
  mujax report --workdir=runs/other --input=losses.csv \\
      --columns="width=n,learning_rate=lr,loss=val_loss,study=group,seed=seed"

Flags
  --workdir=DIR            a folder that mujax sweep or mujax train has written; with --sources or
                           --input the folder that the report is written to
  --sources=DIR,DIR,...    workdirs, or patterns of them, to compare with each other, and with DIR's
                           own rows if it has any; a run of mujax train joins the sweep whose point
                           it is or could be
  --input=FILE             results from elsewhere instead: a .csv or .tsv file, separated by commas,
                           semicolons or tabs (which allow decimal commas), or .jsonl
  --columns=NAME=COL,...   what its columns are. Required: width, learning_rate or
                           log2_learning_rate, and loss. Optional: study, parameterization,
                           weight_decay, seed (numbers or words), tokens, steps, n_params, status.
                           Or E, R_inf and kappa, for the phase diagrams alone. A column with one
                           of these names need not be given; NAME= leaves it out. study=A+B is one
                           study per pair; a name with a comma is quoted:
                           --columns='loss="loss, val",study=optimizer+depth,tokens='
  --noise=NATS             standard deviation of one run's loss over seeds; if not given, it is
                           estimated from the seeds, else from the residuals of the fitted curves
  --target_width=N         a width beyond the widest trained one: the verdict then also asks what
                           the narrowest width's optimum costs there, if the trend continues

In a table from elsewhere, a loss of nan or inf, or a status of diverged, means a diverged run. A
row with an empty loss, NA or the like is left out, with a warning. Runs of one width that differ in
weight decay, tokens, steps or n_params are separate studies; those that differ in the seed are
averaged.

Runs whose configs differ only in the seed are averaged. Any other difference, except in width and
learning rate, makes a separate study and is in its name.

Prints the table of optima, drifts and verdicts, and leaves in DIR
  report.html              loss against learning rate, laws of optimum, loss and curvature in width,
                           phase diagrams, training curves, tables; one file, needs no network
  figures/*.png, *.pdf     transfer, optimum, loss, curvature and phase, for papers
  transfer.json            all of these as numbers
Exit codes: 0 written, 2 a mistake in the command, the folder or the file."""

from mujax.cli.flags import number
from mujax.cli.verb import FINISHED, Verb


def run(
    workdir: str,
    sources: str | None,
    input: str | None,
    columns: str | None,
    noise: str | None,
    target_width: str | None,
) -> int:
    from mujax.explain.tensors import tensor_tables
    from mujax.report.report import report

    level = None if noise is None else number("noise", noise, 0.0, 0)
    target = None if target_width is None else number("target_width", target_width, 1, 1)
    print(
        report(
            workdir,
            sources.split(",") if sources else (),
            input,
            columns,
            level,
            tensor_tables,
            target,
        )
    )
    print(f"\n{workdir}/report.html")
    return FINISHED


VERB = Verb(
    "report",
    __doc__,
    run,
    required=("workdir",),
    optional=("sources", "input", "columns", "noise", "target_width"),
)
