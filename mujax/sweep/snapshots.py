"""Runs in flight, saved to one file: written whole or not at all, and read only by the code that
wrote it.

The file is NumPy's .npz followed by its SHA-256; nothing is parsed before that sum has been
compared.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax.storage.files import replacing
from mujax.storage.records import is_number, parse_object
from mujax.sweep.engine import Progress, Snapshot
from mujax.sweep.lanes import abstract_lane
from mujax.training.outcome import Outcome
from mujax.training.run import Run
from mujax.training.steps import METRICS

SUM_BYTES = hashlib.sha256().digest_size
BLOCK_BYTES = 2**20


class Unusable(Exception):
    """A file of runs in flight that cannot be resumed; the message says why."""


def save_snapshots(
    file: Path, snapshots: Sequence[Snapshot], ids: Sequence[str], code_version: str
) -> None:
    """Writes runs in flight; ids name the runs that their indices stand for."""
    header = {
        "code_version": code_version,
        "runs": [
            {
                "id": ids[p.index],
                "done": p.progress.done,
                "evals": p.progress.outcome.evals,
                "seconds": p.progress.seconds,
            }
            for p in snapshots
        ],
    }
    leaves = [
        _storable(np.stack(values))
        for values in zip(*(jax.tree.leaves(p.state) for p in snapshots), strict=True)
    ]
    arrays = {f"state_{i}": leaf for i, leaf in enumerate(leaves)}
    arrays["history"] = np.stack([p.progress.history for p in snapshots])
    arrays["header"] = np.array(json.dumps(header))
    with replacing(file) as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        stream.seek(0)
        sum_of_all = _sum(stream, -1)
        stream.seek(0, io.SEEK_END)
        stream.write(sum_of_all)


def _sum(stream: IO[bytes], size: int) -> bytes:
    """Computes the SHA-256 of the next `size` bytes, or of all that follow if it is negative."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES if size < 0 else min(size, BLOCK_BYTES)):
        digest.update(block)
        size -= len(block) if size > 0 else 0
    return digest.digest()


def _storable(x: np.ndarray) -> np.ndarray:
    """Returns an array that NumPy's files can hold: bfloat16 as integers of the same bits."""
    return x.view(np.uint16) if x.dtype == jnp.bfloat16 else x


def load_snapshots(
    file: Path, run: Run, indices: Mapping[str, int], code_version: str
) -> list[Snapshot]:
    """Reads runs in flight, of those that `indices` names by id.

    Args:
      run: one of them, whose program and lengths are those of all.

    Raises:
      Unusable: the file is damaged, of other code, or not of such runs.
      OSError: it cannot be read, which says nothing of what it holds.
    """
    if not file.is_file():
        raise Unusable("it is not a regular file")
    with open(file, "rb") as stream:
        size = stream.seek(0, io.SEEK_END) - SUM_BYTES
        stream.seek(0)
        if size < 0 or _sum(stream, size) != stream.read():
            raise Unusable(
                "it is damaged, or of another version of mujax: its SHA-256 is not that of its "
                "content"
            )
        stream.seek(0)
        try:
            with np.load(stream) as content:
                arrays = {name: content[name] for name in content.files}
            header = parse_object(str(arrays.pop("header")).encode(), "its header")
        except OSError:
            raise
        except Exception as e:  # whatever NumPy and zipfile make of what somebody has sealed
            raise Unusable(
                f"it cannot be read ({type(e).__name__}: {' '.join(str(e).split())[:200]})"
            ) from e
    if header.get("code_version") != code_version:
        raise Unusable(
            f"it was saved by other code ({header.get('code_version')}, this is {code_version})"
        )
    runs = header.get("runs")
    if not isinstance(runs, list) or not runs:
        raise Unusable("its header names no runs")
    expected, structure = jax.tree.flatten(abstract_lane(run.program))
    train = run.cfg.train
    shapes = {f"state_{i}": (x.shape, x.dtype) for i, x in enumerate(expected)}
    shapes["history"] = ((len(METRICS), train.steps), np.dtype(np.float32))
    arrays = {
        name: _restored(x, shapes[name][1]) if name in shapes else x for name, x in arrays.items()
    }
    if {name: (x.shape, x.dtype) for name, x in arrays.items()} != {
        name: ((len(runs), *shape), dtype) for name, (shape, dtype) in shapes.items()
    }:
        raise Unusable("its arrays have other names, shapes or types than those of its runs")
    snapshots, seen = [], set()
    for n, entry in enumerate(runs):
        state = jax.tree.unflatten(
            structure, [arrays[f"state_{i}"][n] for i in range(len(expected))]
        )
        steps = int(state.train.step), int(state.diverged_at)
        if not _is_in_flight(entry, steps, train.steps, train.eval_interval) or entry["id"] in seen:
            raise Unusable(f"its header does not tell of run {n} what can be")
        seen.add(entry["id"])
        if entry["id"] in indices:
            outcome = Outcome(train, [(step, loss) for step, loss in entry["evals"]])
            progress = Progress(entry["done"], outcome, arrays["history"][n], entry["seconds"])
            snapshots.append(Snapshot(indices[entry["id"]], progress, state))
    return snapshots


def _restored(x: np.ndarray, dtype) -> np.ndarray:
    return x.view(jnp.bfloat16) if dtype == jnp.bfloat16 and x.dtype == np.uint16 else x


def _is_in_flight(
    entry: Any, steps_of_state: tuple[int, int], num_steps: int, eval_interval: int
) -> bool:
    """Returns whether a header's entry fits a run between two calls.

    It is no further than its weights, and was evaluated at every interval.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        return False
    done, evals, seconds = entry.get("done"), entry.get("evals"), entry.get("seconds", -1)
    if type(done) is not int or not 0 <= done < num_steps or steps_of_state != (done, -1):
        return False
    if not (is_number(seconds) and seconds >= 0) or not isinstance(evals, list):
        return False
    if not all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is float for pair in evals
    ):
        return False
    return [step for step, _ in evals] == [*range(0, done + 1, eval_interval)]
