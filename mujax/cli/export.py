"""mujax export - a table for a model of another framework: torch.optim parameter groups, as JSON.

  mujax export --shapes=shapes.json --base_shapes=base.bsh --parameterization=mup_table8 \\
      --learning_rate=0.01 --roles="embed.weight=input,head.weight=output"

Flags
  --shapes=FILE            sizes of every tensor as torch stores them, JSON or YAML:
                           {{name: list(p.shape) for name, p in model.named_parameters()}}
  --base_shapes=FILE       the same at the base width, null where a size does not grow with it: a
                           file of microsoft/mup's save_base_shapes, or JSON; where it is the
                           model itself, null may be missing
  --parameterization=NAME  a table (mujax explain --help lists them)
  --optimizer=NAME         adamw (the default), sgd, lion, adafactor or muon: which learning rates
                           (muon: of hidden matrices, without a factor of its own for their shape)
  --learning_rate=X        of a tensor whose factor is 1
  --eps=X                  Adam's, likewise (1e-8)
  --weight_decay=X         likewise (0)
  --roles=PATTERN=ROLE,... what the sizes cannot tell: an embedding [rows, width] and a readout
                           [classes, width] look alike, input or output

Prints JSON: `groups`, each with the names of its `params` and their lr, eps and weight_decay;
`roles`, what each tensor was taken for; `init`, the standard deviation that each matrix is drawn
with; `forward`, the factor that the model multiplies it by; `readout`, that on the logits of a tied
embedding. docs/pytorch.md gives them to an optimizer.

Exit codes: 0 printed, 2 something to fix in the command or a file."""

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
