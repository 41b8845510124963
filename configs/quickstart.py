"""Does the learning rate transfer? SP and muP, three widths, eight learning rates, on real text.

    mujax sweep --config=configs/quickstart.py --workdir=runs/quickstart
    mujax report --workdir=runs/quickstart

On 2 CPU cores it takes 2.5 to 3.5 min. The best learning rates at widths 32, 64, 128 are 2^-5,
2^-6, 2^-7 for sp, and 2^-5 at each width for mup (seeds 0-2; experiments/quickstart).
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
