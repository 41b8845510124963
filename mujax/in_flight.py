"""Runs in flight, saved to one file: written whole or not at all, and trusted only by the code that wrote it."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mujax.engine import Parked, Progress
from mujax.lanes import LaneState
from mujax.workdir import replacing


def save_parked(file: Path, parked: Sequence[Parked], ids: Sequence[str], code_version: str) -> None:
    """Writes runs in flight; ids name the runs that their indices stand for."""
    header = {
        "code_version": code_version,
        "runs": [
            {"id": ids[p.index], "done": p.progress.done, "evals": p.progress.evals, "seconds": p.progress.seconds}
            for p in parked
        ],
    }
    leaves = [_storable(np.stack(values)) for values in zip(*(jax.tree.leaves(p.state) for p in parked), strict=True)]
    arrays = {f"state_{i}": leaf for i, leaf in enumerate(leaves)}
    arrays["history"] = np.stack([p.progress.history for p in parked])
    arrays["header"] = np.array(json.dumps(header))
    with replacing(file) as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]


def _storable(x: np.ndarray) -> np.ndarray:
    """NumPy's files know no bfloat16: its bits as integers."""
    return x.view(np.uint16) if x.dtype == jnp.bfloat16 else x


def _restored(x: np.ndarray, dtype) -> np.ndarray:
    return x.view(jnp.bfloat16) if dtype == jnp.bfloat16 and x.dtype == np.uint16 else x


def load_parked(file: Path, abstract: LaneState, indices: Mapping[str, int], code_version: str) -> list[Parked]:
    """Runs in flight that `file` holds, of those that `indices` names by id.

    Args:
      abstract: shapes and types of the state of one run.

    Raises:
      ValueError: it was written by other code, or is no such file; the message says which.
    """
    try:
        with np.load(file) as content:
            header: dict[str, Any] = json.loads(str(content["header"]))
            if header["code_version"] != code_version:
                raise ValueError(f"it was saved by other code ({header['code_version']}, this is {code_version})")
            expected, structure = jax.tree.flatten(abstract)
            leaves = [_restored(content[f"state_{i}"], x.dtype) for i, x in enumerate(expected)]
            history = content["history"]
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"it cannot be read ({e})") from e
    for leaf, x in zip(leaves, expected, strict=True):
        if leaf.shape[1:] != x.shape or leaf.dtype != x.dtype:
            raise ValueError("its arrays have other shapes")
    parked = []
    for n, run in enumerate(header["runs"]):
        if run["id"] in indices:
            progress = Progress(run["done"], [(s, loss) for s, loss in run["evals"]], history[n], run["seconds"])
            state = jax.tree.unflatten(structure, [leaf[n] for leaf in leaves])
            parked.append(Parked(indices[run["id"]], progress, state))
    return parked
