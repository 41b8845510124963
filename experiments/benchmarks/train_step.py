"""Speed of one training step of mujax and of a plain functional one, in turns in one process.

    python experiments/benchmarks/train_step.py --case=step-a,step-b

The plain step is what one would write by hand for this one model: dicts of arrays, Python numbers,
no flax, no optax, no parameterization. Both must map the same weights to the same weights, or
nothing is timed. README.md has the results.
"""

import argparse
import dataclasses
import datetime
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from sweep_engine import keep
from sweep_engine_child import describe

from configs.base import get_config
from mujax.config import make_run_config
from mujax.training.loss import _num_chunks
from mujax.training.run import Run, make_run
from mujax.training.steps import make_train_fns

# Sizes in the units of configs/base.py; the model is the baseline of Lingle 2024 (2404.05728).
CASES = {
    "step-a": {"d_model": 128, "vocab_size": 8192, "seq_len": 128, "batch_size": 8},
    "step-b": {"d_model": 256, "vocab_size": 32128, "seq_len": 256, "batch_size": 4},
}
LAYERS, D_HEAD = 4, 32
PEAK, WARMUP, STEPS, B1, B2, EPS, DECAY, CLIP = 2.0**-8, 20, 10_000, 0.9, 0.95, 1e-8, 0.1, 1.0


def mujax_run(vocab_size: int, batch_size: int, seq_len: int, d_model: int) -> Run:
    c = get_config()
    c.model.update(d_model=d_model, num_layers=LAYERS, d_head=D_HEAD)
    c.parameterization.name = "sp"
    c.optim.update(learning_rate=PEAK, weight_decay=DECAY, b1=B1, b2=B2, eps=EPS, grad_clip=CLIP)
    c.schedule.update(name="linear", warmup_steps=WARMUP)
    c.train.update(steps=STEPS, batch_size=batch_size)
    c.data.seq_len = seq_len
    cfg = make_run_config(c.to_dict())
    return make_run(
        dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=vocab_size))
    )


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def rope(x_BTHK):
    T, K = x_BTHK.shape[1], x_BTHK.shape[3]
    angles_TK = jnp.outer(jnp.arange(T), 10_000.0 ** (-jnp.arange(0, K, 2) / K))
    cos, sin = jnp.cos(angles_TK)[None, :, None], jnp.sin(angles_TK)[None, :, None]
    a, b = jnp.split(x_BTHK, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def block(x_BTD, w):
    T, attention = x_BTD.shape[1], w["attention"]
    h = norm(x_BTD)
    q, k, v = (jnp.einsum("BTD,DHK->BTHK", h, attention[name]) for name in ("wq", "wk", "wv"))
    logits = jnp.einsum("BTHK,BSHK->BHTS", rope(q), rope(k)) * D_HEAD**-0.5
    probs = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), logits, -jnp.inf), -1)
    x_BTD += jnp.einsum("BTHK,HKD->BTD", jnp.einsum("BHTS,BSHK->BTHK", probs, v), attention["wo"])
    return x_BTD + jax.nn.relu(norm(x_BTD) @ w["mlp"]["wi"]) @ w["mlp"]["wo"]


def make_plain_step(num_chunks: int, recompute: bool) -> Callable:
    """Makes the plain step.

    recompute: computes the logits of a part of the loss again for its gradient, in place of keeping
      them.
    """

    def loss(params, rows):
        x_BTD, _ = jax.lax.scan(
            lambda x, w: (block(x, w), None), params["embed"][rows[:, :-1]], params["blocks"]
        )

        def part(chunk):
            x, targets = chunk
            logits = x @ params["unembed"]
            own = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(logits, -1) - own)

        def cut(x):
            return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, -1, *x.shape[2:]), 1, 0)

        chunks = cut(norm(x_BTD)), cut(rows[:, 1:])
        return jnp.mean(jax.lax.map(jax.checkpoint(part) if recompute else part, chunks))

    def step(state, rows):
        t, params, m, v = state
        value, grads = jax.value_and_grad(loss)(params, rows)
        size = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
        warm, decayed = (t + 1) / WARMUP, 1 - (t - WARMUP) / (STEPS - WARMUP)
        rate = PEAK * jnp.where(t < WARMUP, warm, decayed)
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP / size), grads)
        m = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, m, grads)
        v = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g * g, v, grads)

        def update(w, m, v):
            return w - rate * (
                m / (1 - B1 ** (t + 1)) / (jnp.sqrt(v / (1 - B2 ** (t + 1))) + EPS) + DECAY * w
            )

        return (t + 1, jax.tree.map(update, params, m, v), m, v), (value, size)

    return jax.jit(step, donate_argnums=0)


def make_stepper(name: str, run: Run, rows) -> tuple[Callable, Callable]:
    """Returns two functions: one takes a step and returns its loss, one returns the weights.

    All steppers start from the same weights.
    """
    fns = make_train_fns(run.program)
    state = jax.jit(fns.init)(np.uint32(0), run.hps, run.scalings)
    if name == "mujax":
        take, numbers = jax.jit(fns.step, donate_argnums=0), (run.hps, run.scalings)
    else:
        zero = jax.tree.map(jnp.zeros_like, state.params)
        state = (jnp.int32(0), state.params, zero, jax.tree.map(jnp.copy, zero))
        program = run.program
        num_chunks = _num_chunks(program.batch_size * program.model.vocab_size, program.seq_len, 4)
        take, numbers = (
            make_plain_step(num_chunks, recompute=name == "plain, logits recomputed"),
            (),
        )

    def step():
        nonlocal state
        state, metrics = take(state, rows, *numbers)
        return jax.tree.leaves(metrics["loss"] if name == "mujax" else metrics[0])[0]

    return step, lambda: state[1]


def assert_same_update(start, *ends) -> None:
    """Asserts that one tensor ends where the others do, to 5e-3 of its update.

    Not closer: Adam's first update is the sign of each gradient, even of gradients that are
    rounding.
    """
    for end in ends[1:]:
        assert np.linalg.norm(end - ends[0]) <= 5e-3 * np.linalg.norm(ends[0] - start)


MODES = ("plain", "plain, logits recomputed", "mujax")


def measure(case: str, rounds: int, steps: int) -> list[dict]:
    """Measures a case in rounds.

    Raises:
      AssertionError: losses or weights differ.
    """
    sizes = CASES[case]
    run = mujax_run(**sizes)
    shape = sizes["batch_size"], sizes["seq_len"] + 1
    rows = jnp.asarray(np.random.default_rng(0).integers(0, sizes["vocab_size"], shape), jnp.int32)
    steppers = {mode: make_stepper(mode, run, rows) for mode in MODES}
    start = jax.tree.map(np.array, steppers["mujax"][1]())
    for k in range(3):
        losses = [float(step()) for step, _ in steppers.values()]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
        if k == 0:  # in later steps rounding grows wherever ReLU's gradient jumps
            jax.tree.map(assert_same_update, start, *(tell() for _, tell in steppers.values()))
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for k in range(rounds):
        for mode in MODES if k % 2 else MODES[::-1]:
            began = time.perf_counter()
            for _ in range(steps):
                loss = steppers[mode][0]()
            loss.block_until_ready()
            seconds[mode].append((time.perf_counter() - began) / steps)
    fastest = min(MODES[:2], key=lambda mode: statistics.median(seconds[mode]))
    for mode in MODES[:2]:
        ratio = statistics.median(
            p / m for p, m in zip(seconds[mode], seconds["mujax"], strict=True)
        )
        print(
            f"{case}: tokens/s of mujax / {mode}: {ratio:.3f}{' (the faster)' * (mode == fastest)}",
            file=sys.stderr,
        )
    results, tokens = [], sizes["batch_size"] * sizes["seq_len"]
    for mode in MODES:
        ratios = [p / m for p, m in zip(seconds[fastest], seconds[mode], strict=True)]
        times = {
            "milliseconds": round(1e3 * statistics.median(seconds[mode]), 2),
            "tokens_per_second": round(tokens / statistics.median(seconds[mode]), 1),
            "relative_to_fastest_plain": round(statistics.median(ratios), 3),
        }
        work = {"case": case, "mode": mode, "rounds": rounds, "steps": steps}
        results.append({**work, **times, **describe(), "date": datetime.date.today().isoformat()})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--case", default=",".join(CASES), help="several between commas; all by default"
    )
    parser.add_argument("--rounds", type=int, default=40, help="in turns; the median counts")
    parser.add_argument("--steps", type=int, default=3, help="a round")
    args = parser.parse_args()
    for case in args.case.split(","):
        results = measure(case, args.rounds, args.steps)
        keep(results)
        print("\n".join(map(str, results)))


if __name__ == "__main__":
    main()
