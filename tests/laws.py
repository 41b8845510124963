"""Losses drawn from known laws, for the tests of what measures them."""

import math

import numpy as np

WIDTHS = {5: [128, 256, 512, 1024, 2048], 7: [64, 128, 256, 512, 1024, 2048, 4096]}
GRIDS = {num: np.linspace(-10, -2, num).tolist() for num in (9, 17)}
TRUTH = {
    "l_inf": 2.0, "a": 10.0, "alpha": 0.4, "x_inf": -7.5, "b": 35.0, "beta": 0.6, "h_0": 0.12,
    "gamma": 0.05,
}  # fmt: skip


def clean(widths, grid, **changes):
    """Losses of the joint law, a list a width; x in log2 LR, curvature per (ln LR)^2."""
    t = TRUTH | changes
    return [
        [
            t["l_inf"] + t["a"] * n ** -t["alpha"]
            + t["h_0"] / 2 * n ** t["gamma"]
            * (math.log(2) * (x - t["x_inf"] - t["b"] * n ** -t["beta"])) ** 2
            for x in grid
        ]
        for n in widths
    ]  # fmt: skip


def draws(num, widths, grid, sigma, seed=0, seeds=3, **changes):
    """`num` noisy copies of clean losses with `seeds` runs per point; sigma is the error of their
    mean."""
    rng, truth = np.random.default_rng(seed), np.array(clean(widths, grid, **changes))[..., None]
    for _ in range(num):
        losses = truth + math.sqrt(seeds) * sigma * rng.standard_normal((*truth.shape[:2], seeds))
        yield [[tuple(cell) for cell in curve] for curve in losses.tolist()]
