"""A user's own parameterization: muP with a readout that learns as fast as an embedding.

    mujax explain --config=docs/examples/my_table.py --diff=mup
    mujax check --config=docs/examples/my_table.py --workdir=runs/my-table --fast

See docs/add-a-parameterization.md.
"""

from configs import base
from mujax.parameterization import PARAMETERIZATIONS, Power
from mujax.parameterization.mup import MUP

readout = MUP.rows["output"].replace(
    source="ours: a readout at the rate of the embedding", lr={"adam": Power()}
)
PARAMETERIZATIONS["fast_readout"] = MUP.replace(
    name="fast_readout", source="mup, but for the readout", rows={**MUP.rows, "output": readout}
)


def get_config():
    c = base.get_config()
    c.parameterization.name = "fast_readout"
    return c
