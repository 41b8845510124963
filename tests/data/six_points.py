"""A sweep of six points, on two curves."""

from configs import base


def get_config():
    c = base.get_config()
    c.sweep.model = {"d_model": (32, 64)}
    c.sweep.optim = {"learning_rate": (0.01, 0.02, 0.04)}
    return c
