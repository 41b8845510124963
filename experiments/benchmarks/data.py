"""Speed of data on one core: text into shards, beside its tokenizer alone, and shards into batches.

PYTHONPATH=. python experiments/benchmarks/data.py
"""

import itertools
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from configs.lingle2024 import ablations
from mujax.config import make_run_config
from mujax.data import tokenizers
from mujax.data.embedded import load_pieces
from mujax.data.loader import TrainBatches, ahead, load_batches
from mujax.data.prepare.dataset import Recipe, prepare
from mujax.data.shards import load_shards
from mujax.data.text import embedded_files
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns

# (rows per batch, tokens per row) at small scale, in 2404.05728, and in 2605.21486
SHAPES = ((16, 64), (1024, 256), (256, 1024))
SECONDS = 5.0
# steps on the same batch, and on other batches, in turn
SEGMENT, SEGMENTS = 50, 30


def main() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    texts = [file.read_text() for file in embedded_files()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    for vocab_size in (1024, 4096, 16_384):
        folder = load_pieces("embedded", "", "", vocab_size)
        model = folder / "tokenizer.model"
        encode = tokenizers.read("sentencepiece", str(model), {}).encode
        alone = min(_seconds(lambda encode=encode: encode(texts)) for _ in range(3))
        with tempfile.TemporaryDirectory() as out:
            recipe = Recipe("embedded", f"sentencepiece:{model}", "packed")
            whole = min(
                _seconds(
                    lambda i=i, out=out, recipe=recipe: prepare(
                        recipe, Path(out) / str(i), is_quiet=True
                    )
                )
                for i in range(3)
            )
        rates = f"{megabytes / whole:.1f} MB/s, the tokenizer alone {megabytes / alone:.1f}"
        print(f"prepare, {vocab_size} SentencePiece pieces: {rates}")
    data = load_pieces("embedded", "", "", 4096)
    shards = [file for file in data.glob("*.bin")]
    verified = data / ".verified.json"
    verified.unlink(missing_ok=True)
    size = sum(file.stat().st_size for file in shards) / 1e6
    print(
        "checking shards before training: "
        f"{size / _seconds(lambda: load_shards(data, 64, 4096, -1, -1, 1)):.0f} MB/s"
    )
    for batch_size, seq_len in SHAPES:
        corpus = load_shards(data, seq_len, 4096, -1, -1, 1)
        batches = TrainBatches(corpus.train, batch_size, 0)
        next(iter(ahead(batches.__getitem__, 0, 1)))
        start, count = time.perf_counter(), 0
        for _ in ahead(batches.__getitem__, 0, 10**6):
            count += 1
            if time.perf_counter() - start > SECONDS:
                break
        rate = count * batch_size * seq_len / (time.perf_counter() - start)
        print(f"batches of {batch_size} x {seq_len}: {rate / 1e6:.1f} M tokens/s")

    os.sched_setaffinity(0, cores)
    tree = ablations.get_config("baseline,scale=small").to_dict()
    tree["model"]["d_model"] = 32
    run = make_run(
        make_run_config(
            {key: value for key, value in tree.items() if key not in ("sweep", "refine")}
        )
    )
    batches = load_batches(run.cfg, [0])[0][0]
    fns = make_train_fns(run.program)
    state = jax.jit(fns.init)(0, run.hps, run.scalings)
    step = jax.jit(fns.step, donate_argnums=0)
    given, read = [batches[0]] * SEGMENT, ahead(batches.__getitem__, 0, 10**6)
    seconds = {"given": [], "read": []}
    for _ in range(SEGMENTS):
        for name, rows in (("given", given), ("read", itertools.islice(read, SEGMENT))):
            start = time.perf_counter()
            for x in rows:
                state, _ = step(state, x, run.hps, run.scalings)
            jax.block_until_ready(state)
            seconds[name].append((time.perf_counter() - start) / SEGMENT)
    given_ms, read_ms = (1000 * float(np.median(seconds[name])) for name in ("given", "read"))
    print(
        f"the narrowest run of 2404.05728 at small scale: a step {given_ms:.2f} ms on a batch that "
        f"is there, {read_ms:.2f} ms on batches that are read ahead: {read_ms / given_ms - 1:+.1%}"
    )


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
