"""mujax export - a table for a model of another framework: torch.optim parameter groups, as JSON.

  mujax export --shapes=shapes.json --base_shapes=base.bsh --parameterization=mup_table8 \\
      --learning_rate=0.01 --roles="embed.weight=input,head.weight=output"

Flags
  --shapes=FILE            sizes of every tensor as torch stores them, JSON or YAML:
                           {{name: list(p.shape) for name, p in model.named_parameters()}}
  --base_shapes=FILE       the same at the base width, null where a size does not grow with it: a
                           file of microsoft/mup's save_base_shapes, or JSON; if they are the
                           model's own shapes, null may be missing
  --parameterization=NAME  a table (mujax explain --help lists them)
  --optimizer=NAME         adamw (the default), sgd, lion, adafactor or muon
                           (muon: for hidden matrices, without its own factor for their shape)
  --learning_rate=X        learning rate of a tensor whose factor is 1
  --eps=X                  eps of Adam for such a tensor (1e-8)
  --weight_decay=X         weight decay of such a tensor (0)
  --roles=PATTERN=ROLE,... roles that sizes do not show, input or output: an embedding [rows, width]
                           and a readout [classes, width] look alike

Prints JSON: `groups`, each with the names of its `params` and their lr, eps and weight_decay;
`roles`, the role of each tensor; `init`, the standard deviation of each matrix's draw; `forward`,
the factor by which the model multiplies the matrix; `readout`, the factor on the logits of a tied
embedding. docs/pytorch.md passes them to an optimizer.

Exit codes: 0 printed, 2 a mistake in the command or a file."""

import json

from mujax.cli.flags import number
from mujax.cli.verb import FINISHED, Verb


def run(
    shapes: str,
    base_shapes: str,
    parameterization: str,
    optimizer: str | None,
    learning_rate: str,
    eps: str | None,
    weight_decay: str | None,
    roles: str | None,
) -> int:
    from mujax.explain.export import export, parse_roles, read_shapes

    hyperparameters = {
        "lr": number("learning_rate", learning_rate, 0.0, 0.0),
        "eps": number("eps", eps, 1e-8, 0.0),
        "weight_decay": number("weight_decay", weight_decay, 0.0, 0.0),
    }
    files = read_shapes(shapes, "shapes"), read_shapes(base_shapes, "base_shapes")
    exported = export(
        *files, parameterization, optimizer or "adamw", hyperparameters, parse_roles(roles)
    )
    print(json.dumps(exported, indent=1))
    return FINISHED


VERB = Verb(
    "export",
    __doc__,
    run,
    required=("shapes", "base_shapes", "parameterization", "learning_rate"),
    optional=("optimizer", "eps", "weight_decay", "roles"),
)
