"""A user's own optimizer: the sign of the momentum, as in Signum (1802.04434).

    mujax check --config=docs/examples/my_optimizer.py --workdir=runs/signum --fast
    mujax train --config=docs/examples/my_optimizer.py --workdir=runs/signum-run

See docs/add-an-optimizer.md.
"""

import jax
import jax.numpy as jnp
import optax

from configs import base
from mujax.optimizers import OPTIMIZERS, Optimizer


def signum(metas, hps, momentum_dtype):
    """Makes the transformation of gradients to updates at learning rate 1; hps.b1 may be traced."""
    del metas
    momentum = optax.ema(hps.b1, debias=False, accumulator_dtype=momentum_dtype)
    sign = optax.stateless(lambda updates, _: jax.tree.map(jnp.sign, updates))
    return optax.chain(momentum, sign)


# Its updates do not depend on the size of the gradient: Adam's learning rates, gauge 1.
OPTIMIZERS["signum"] = Optimizer(signum, column="adam", gauge=1, hps=("b1",))


def get_config():
    c = base.get_config()
    c.optim.name = "signum"
    c.optim.learning_rate = 2.0**-9
    return c
