"""A linear recurrence in place of attention (RG-LRU, 2402.19427): does the learning rate transfer?

mujax sweep --config=configs/recurrent.py --workdir=runs/recurrent
mujax check --config=configs/recurrent.py --workdir=runs/recurrent-check --fast
"""

from configs import base, quickstart


def get_config():
    c = quickstart.get_config()
    c.model = base.get_config("recurrent").model
    return c
