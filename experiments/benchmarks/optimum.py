r"""Quality of fitted optima: bias, coverage and verdicts on curves with a known optimum.

    python experiments/benchmarks/optimum.py [--draws=200] [--only=NAME] \
        > experiments/benchmarks/optimum.txt

The loss above the minimum, nats, at a distance d (log2 learning rate) from the true optimum is
0.022 d^2 times a shape. Unless said otherwise: widths 32 to 256, a grid of factor 2, three seeds,
noise of 0.005 nats, and the optimum anywhere between two points of the grid.
"""

import argparse
import collections
import dataclasses
import math
import time

import numpy as np

from mujax.transfer.optimum import fit_optima
from mujax.transfer.verdict import judge

UNEVEN = np.log2(np.array([1, 3, 5, 7, 9, 10, 15, 20, 30]) * 1e-3)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One kind of curves.

    shape: name of the loss above the minimum.
    asymmetry: how much steeper one side is.
    turning: whether the asymmetry runs from -asymmetry at the narrowest to +asymmetry at the widest
      width, in place of being the same at every width.
    drift: log2 LR per doubling.
    growth: doublings of the noise per log2 LR above the optimum.
    luck: standard deviation of a seed's luck, nats.
    spread: standard deviation of a seed's own optimum, log2 LR.
    """

    shape: str = "tanh"
    asymmetry: float = 0.0
    drift: float = 0.0
    turning: bool = True
    num_widths: int = 4
    step: float = 1.0
    seeds: int = 3
    noise: float = 0.005
    growth: float = 0.0
    luck: float = 0.0
    spread: float = 0.0
    uneven: bool = False

    def loss(self, x: np.ndarray, width: int, optimum: np.ndarray) -> np.ndarray:
        """Returns the loss without noise, nats, at log2 LR x of the width with that index."""
        d, a = x - optimum, self.asymmetry
        if self.turning:
            a = a * (2 * width / (self.num_widths - 1) - 1)
        rise = {
            "tanh": lambda: 0.022 * d**2 * (1 + a * np.tanh(d / 1.5)),
            "high side": lambda: 0.022 * d**2 * np.exp(a * np.maximum(d, 0) / 2),
            "quartic": lambda: 0.006 * d**4,
            "v": lambda: 0.03 * np.abs(d) + 0.8 * (d > 1.7),
        }[self.shape]()
        return 3 - 0.1 * width + rise


def _settings() -> dict[str, Setting]:
    kinds = {
        "parabola": Setting(),
        **{f"asymmetry {a:+}": Setting(asymmetry=a) for a in (0.3, -0.3, 0.6, -0.6)},
        **{f"high side {a:+}": Setting(shape="high side", asymmetry=a) for a in (0.6, -0.6)},
        "quartic": Setting(shape="quartic"),
        "v with a cliff": Setting(shape="v"),
        "noise grows": Setting(growth=1.0),
        "noise grows, asymmetry +0.6": Setting(growth=1.0, asymmetry=0.6),
        "seeds with common luck": Setting(luck=0.02),
        "seeds with optima of their own": Setting(luck=0.01, spread=0.2),
        **{f"3 widths, asymmetry {a:+}": Setting(num_widths=3, asymmetry=a) for a in (0.6, -0.6)},
        **{f"5 widths, asymmetry {a:+}": Setting(num_widths=5, asymmetry=a) for a in (0.6, -0.6)},
        "factor 1.4, asymmetry +0.6": Setting(step=0.5, asymmetry=0.6),
        "uneven grid": Setting(uneven=True),
        "uneven grid, asymmetry 0.3 at each width": Setting(
            uneven=True, asymmetry=0.3, turning=False
        ),
        **{f"factor 4, asymmetry {a:+}": Setting(step=2.0, asymmetry=a) for a in (0.0, 0.6, -0.6)},
        "one seed": Setting(seeds=1),
        "one seed with an optimum of its own": Setting(seeds=1, spread=0.2),
        "one seed, asymmetry +0.6": Setting(seeds=1, asymmetry=0.6),
    }
    drifts = (0.0, -0.1, -0.35)
    return {
        f"{name}, drift {d:g}": dataclasses.replace(kind, drift=d)
        for name, kind in kinds.items()
        for d in drifts
    }


SETTINGS = _settings()


def draw(setting: Setting, num: int, seed: int = 0, noiseless: bool = False):
    """Returns the grid (X,), losses (num, widths, X, seeds) and true optima (num, widths)."""
    rng, span = np.random.default_rng(seed), setting.num_widths - 1
    reach = math.ceil(4 / setting.step) if setting.step < 2 else 3
    x = UNEVEN if setting.uneven else -6 + setting.step * np.arange(-reach, reach + 1)
    middle, jitter = (math.log2(8e-3), 0.15) if setting.uneven else (-6.0, setting.step / 2)
    first = middle - setting.drift * span / 2 + rng.uniform(-jitter, jitter, num)
    optima = first[:, None] + setting.drift * np.arange(span + 1)
    own = setting.spread * rng.standard_normal((num, span + 1, 1, setting.seeds))
    at = optima[:, :, None, None] + own
    losses = np.stack([setting.loss(x[None, :, None], w, at[:, w]) for w in range(span + 1)], 1)
    if noiseless:
        return x, losses, optima
    above = np.maximum(x[None, None, :, None] - at, 0)
    losses = losses + setting.noise * 2.0 ** (setting.growth * above) * rng.standard_normal(
        losses.shape
    )
    return x, losses + setting.luck * rng.standard_normal(own.shape), optima


@dataclasses.dataclass(frozen=True)
class Found:
    """The results of one setting.

    bias, parabolas: mean error of the drift, and of the drift of parabolas' vertices, log2 LR per
      doubling.
    scatter: standard deviation of the drift over draws.
    half: mean half of the drift's 68% interval.
    coverage: coverage of that interval.
    unflagged: number of draws behind these numbers.
    words: verdicts.
    """

    bias: float
    parabolas: float
    scatter: float
    half: float
    coverage: float
    unflagged: int
    words: collections.Counter


def measure(setting: Setting, num: int) -> Found:
    """Measures `num` draws of a setting."""
    x, losses, _ = draw(setting, num)
    widths = [32 * 2**w for w in range(setting.num_widths)]
    words, off, half, parabolas = collections.Counter(), [], [], []
    for own in losses:
        optima = fit_optima(
            [x.tolist()] * len(widths), [[tuple(cell) for cell in curve] for curve in own.tolist()]
        )
        verdict = judge(widths, optima)
        words[verdict.word] += 1
        if verdict.drift and verdict.drift.interval and not verdict.drift.flags:
            off.append(verdict.drift.value - setting.drift)
            half.append((verdict.drift.interval[1] - verdict.drift.interval[0]) / 2)
            vertices = [o.parabola.vertex for o in optima if o and o.parabola]
            parabolas.append(np.polyfit(np.log2(widths), vertices, 1)[0] - setting.drift)
    if not off:
        return Found(math.nan, math.nan, math.nan, math.nan, math.nan, 0, words)
    covered = float(np.mean(np.abs(off) <= half))
    return Found(
        float(np.mean(off)),
        float(np.mean(parabolas)),
        float(np.std(off)),
        float(np.mean(half)),
        covered,
        len(off),
        words,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", default="")
    flags = parser.parse_args()
    words = ("transfers", "moves at no cost", "drifts", "undecided")
    print(f"{flags.draws} draws per setting; drift in log2 LR per doubling\n")
    header = ("bias", "parabolas", "scatter", "68% half", "covers", "unflagged", *words)
    print(
        f"{'setting':58}"
        + "".join(f"{name:>18}" if name in words else f"{name:>11}" for name in header)
    )
    start = time.monotonic()
    for name, setting in SETTINGS.items():
        if flags.only in name:
            f = measure(setting, flags.draws)
            sizes = (f.bias, f.parabolas, f.scatter, f.half)
            numbers = "".join(f"{x:11.3f}" for x in sizes) + f"{f.coverage:11.2f}"
            counts = "".join(f"{f.words[word] / flags.draws:18.2f}" for word in words)
            print(f"{name:58}{numbers}{f.unflagged / flags.draws:11.2f}{counts}", flush=True)
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
