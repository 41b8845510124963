"""A mixture of experts: does the learning rate transfer when the width grows?

The number of experts, and of active experts, stays.

    mujax sweep --config=configs/moe.py --workdir=runs/moe
    mujax check --config=configs/moe.py --workdir=runs/moe-check --fast
"""

from configs import base, quickstart


def get_config():
    c = quickstart.get_config()
    c.model = base.get_config("moe").model
    return c
