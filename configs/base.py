"""Every field of a run at its default. Other configs start here.

mujax train --config=configs/base.py --workdir=runs/base
mujax train --config=configs/base.py:mlp --workdir=runs/mlp
mujax train --config=configs/base.py:cnn --workdir=runs/cnn
2 CPU cores: 13 s and 5 s; final loss 2.14 nats per byte with either (CPython 3.11's library).

What a field means, with its unit and range, is declared once: in mujax/config/sections.py, and of
an architecture in its file in mujax/models. `mujax train --helpfull` prints them all.
"""

from ml_collections import ConfigDict

from mujax.config import default_config


def get_config(model: str = "transformer") -> ConfigDict:
    """`--config=configs/base.py:mlp` picks the model's fields.

    A sweep is the product of the axes named in `sweep`, in the shape of the config itself, e.g.
      c.sweep.optim = {"learning_rate": (2.0**-8, 2.0**-7)}
    and of c.sweep.points, which mujax.sweep.grid builds for all that is not a plain product.
    """
    return ConfigDict(default_config(model))
