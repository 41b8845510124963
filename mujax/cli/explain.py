"""mujax explain - every number of a parameterization, tensor by tensor, and where it came from.

  mujax explain --config=configs/quickstart.py
  mujax explain --config=configs/quickstart.py --diff=sp
  mujax explain --config=configs/quickstart.py --widths=32,128,512
  mujax explain --config=configs/base.py --config.parameterization.name=mup_table8 \\
      --config.parameterization.override="('unembed.lr=0.5', 'input=sp')"

Flags
{config}
  --widths=W,W,...         the numbers at several widths side by side
  --diff=TABLE             only the differences from another table
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
Exit codes: 0 printed, 2 a mistake in the command or config."""

import textwrap
from typing import Any

from mujax.cli.flags import numbers
from mujax.cli.verb import FINISHED, Verb


def run(config: dict[str, Any], widths: str | None, diff: str | None, json: bool) -> int:
    from mujax.check.run import at_width
    from mujax.config import make_run_config
    from mujax.explain.explain import explain

    cfg = make_run_config(config)
    cfgs = [at_width(cfg, width) for width in numbers("widths", widths)] or [cfg]
    print(explain(cfgs, diff or "", json))
    return FINISHED


def tables() -> str:
    from mujax.parameterization import PARAMETERIZATIONS

    return "\n".join(
        textwrap.fill(
            f"{name}: {table.source}", 100, initial_indent="  ", subsequent_indent="      "
        )
        for name, table in PARAMETERIZATIONS.items()
    )


VERB = Verb(
    "explain",
    __doc__,
    run,
    required=("config",),
    optional=("widths", "diff", "json"),
    switches=("json",),
    tables=tables,
)
