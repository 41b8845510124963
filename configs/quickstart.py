"""Does the learning rate transfer? SP against muP, three widths, eight learning rates, on real
text.

mujax sweep --config=configs/quickstart.py --workdir=runs/quickstart
mujax report --workdir=runs/quickstart
2 CPU cores: 2.5 to 3.5 min. Best learning rate at widths 32, 64, 128: sp 2^-5, 2^-6, 2^-7; mup 2^-5
at each (seeds 0-2; experiments/quickstart).
"""

from configs import base


def get_config():
    c = base.get_config()
    c.train.steps = 150
    c.schedule.warmup_steps = 30
    c.train.batch_size = 16
    c.data.seq_len = 64
    c.parameterization.base_width = 32

    c.sweep.model = {"d_model": (32, 64, 128)}
    c.sweep.parameterization = {"name": ("sp", "mup")}
    c.sweep.optim = {"learning_rate": tuple(2.0**k for k in range(-10, -2))}
    c.sweep.seed = (0,)
    return c
