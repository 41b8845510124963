"""Checkpoints on disk: one folder per step, written in the background, whole or not at all.

Whatever Orbax reads is compared with checksums of the arrays on the devices before they were saved,
so a changed bit or a missing file is found. The checksums are sums modulo 2^32, which do not depend
on how an array is split, so they hold on any mesh.
"""

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mujax.errors import UserError, is_outage, is_refusal
from mujax.storage.files import absolute, move
from mujax.storage.records import read_checkpoint
from mujax.training.distributed import agreed, everywhere, is_primary, where_false

Record = dict[str, Any]
# TensorStore's errors, which Orbax passes on, tell the kind of failure by words alone.
OUTAGES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Input/output error", "Stale file handle")
REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "Permission denied", "Forbidden")


class Checkpoints:
    """The checkpoints of one folder; all processes of a run make the same calls."""

    def __init__(self, folder: Path, keep: int | None):
        """Opens or makes the folder.

        keep: number of latest checkpoints to keep; older ones are deleted once a newer one is
          whole. None: only to read.
        """
        self._folder, self._is_read_only = folder, keep is None
        if not self._is_read_only:
            # If Orbax made the folder on one process and failed, the others would wait.
            agreed(lambda: absolute(folder).mkdir(parents=True, exist_ok=True))
        options = ocp.CheckpointManagerOptions(
            create=not self._is_read_only,
            read_only=self._is_read_only,
            # left by a process that was killed while saving
            cleanup_tmp_directories=not self._is_read_only,
            preservation_policy=preservation_policy.LatestN(keep),
            enable_async_checkpointing=True,
            # Two folders may be written at once: processes must not confuse their barriers.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=folder.name
            ),
            # If a folder could not be made in the background, Orbax would wait for it.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(absolute(folder), options=options)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, in order, including one that is being written."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, trees: Mapping[str, Any], record: Record) -> None:
        """Begins to write named trees of arrays and a JSON record; returns when they are copied.

        The arrays may change after that. An earlier save that is still in progress is waited for.

        Raises:
          UserError: this checkpoint or the one before could not be written.
          ConnectionError: the same, for a reason that may pass.
        """
        document = {**record, "step": step, "arrays": _describe(trees)}
        document["digest"] = _digest(document)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        with self._reported():
            self._manager.save(
                step,
                args=ocp.args.Composite(record=ocp.args.JsonSave(document), **items),
                force=True,
            )

    def check(self) -> None:
        """Raises UserError if a save in progress has failed."""
        with self._reported():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Blocks until pending writes are done; raises UserError if one failed."""
        with self._reported():
            self._manager.wait_until_finished()

    def restore(
        self, trees: Mapping[str, Any], check: Callable[[Record], None]
    ) -> tuple[Record, dict[str, Any]] | None:
        """Returns (record, trees) of the latest sound checkpoint; None if there is no checkpoint.

        Damaged checkpoints are moved to damaged/ beside the folder once an earlier one has been
        read, unless the folder is only read.

        Args:
          trees: shapes, types and shardings of the trees.
          check: raises UserError if a sound record is not of this run.

        Raises:
          UserError: all checkpoints are damaged, and left as they are; or one must not be read; or
            `check` raised one.
          ConnectionError: a checkpoint cannot be read now, so its content is unknown.
        """
        damaged: dict[int, str] = {}
        for step in reversed(agreed(lambda: self.steps)):
            try:
                record = self._read_record(step)
                check(record)
                found = self._read(step, record, trees)
            except _Damaged as e:
                damaged[step] = str(e)
                continue
            if is_primary():
                for bad, reason in damaged.items():
                    print(
                        f"{self._folder / str(bad)} is damaged ({reason}); going on from step "
                        f"{step}",
                        file=sys.stderr,
                    )
            if not self._is_read_only:
                agreed(lambda: [self._set_aside(bad) for bad in damaged])
                self._manager.reload()
            return record, found
        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"{self._folder} holds damaged checkpoints only ({reasons}); nothing was changed. "
                "Restore it from a copy, or choose a new workdir"
            )
        return None

    def keep_only(self, steps: Sequence[int]) -> None:
        """Deletes the checkpoints of all other steps."""
        for step in agreed(lambda: self.steps):
            if step not in steps:
                self._manager.delete(step)

    def close(self) -> None:
        """Ends writes in progress; `wait` tells whether they failed."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def _read_record(self, step: int) -> Record:
        folder = self._folder / str(step)

        def read() -> dict[str, Any]:
            try:
                record = read_checkpoint(folder / "record" / "metadata")
                digest = record.pop("digest")
                if digest == _digest(record) and record["step"] == step:
                    return record
            except Exception as e:
                _check_answered(folder, e)
                return {
                    "damage": "its record cannot be read: "
                    f"{e if isinstance(e, UserError) else type(e).__name__}"
                }
            return {"damage": "its record does not match its digest"}

        record = agreed(read)
        if "damage" in record:
            raise _Damaged(record["damage"])
        return record

    def _read(self, step: int, record: Record, trees: Mapping[str, Any]) -> dict[str, Any]:
        folder = self._folder / str(step)
        for name, (shape, dtype) in _shapes(trees).items():
            saved = record["arrays"].get(name)
            if saved is None or (tuple(saved["shape"]), saved["dtype"]) != (shape, dtype):
                there = "absent" if saved is None else f"{saved['dtype']} {tuple(saved['shape'])}"
                raise UserError(f"{folder}: {name} is {there}, not {dtype} {shape} as here")

        def read() -> tuple[dict[str, Any], str]:
            try:
                return {name: _read_tree(folder / name, tree) for name, tree in trees.items()}, ""
            except Exception as e:  # Orbax and TensorStore raise many types for damaged files
                _check_answered(folder, e)
                return {}, _reason(e)

        found, reason = everywhere(read)
        bad = where_false(not reason)
        if bad is not None:
            raise _Damaged(reason or f"process {bad} could not read it")
        for name, array in _describe(found).items():
            if array != record["arrays"][name]:
                raise _Damaged(f"{name} is not what was saved")
        return found

    def _set_aside(self, step: int) -> None:
        for n in itertools.count():
            target = self._folder.parent / "damaged" / (f"{step}" if n == 0 else f"{step}-{n}")
            if not target.exists():
                return move(self._folder / str(step), target)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # Orbax, TensorStore and the file system each raise their own
            reason = " ".join(str(e).split())
            # The end of the text tells the cause.
            short = reason if len(reason) < 200 else f"{reason[:60]} ... {reason[-140:]}"
            kind = ConnectionError if _has_said(e, OUTAGES, is_outage) else UserError
            raise kind(
                f"{self._folder}: a checkpoint could not be saved ({short}); the last one stands"
            ) from e


class _Damaged(Exception):
    pass


def _check_answered(folder: Path, e: Exception) -> None:
    """Raises if a checkpoint could not be read for a reason other than its content.

    Raises:
      UserError: it must not be read.
      ConnectionError: it cannot be read now.
    """
    if _has_said(e, REFUSALS, is_refusal):
        raise UserError(f"{folder} may not be read ({_reason(e)}); nothing was changed") from e
    is_gone = isinstance(e, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if (
        _has_said(e, (*OUTAGES, "RESOURCE_EXHAUSTED"), is_outage)
        or isinstance(e, OSError | MemoryError)
        and not is_gone
    ):
        raise ConnectionError(
            f"{folder} cannot be read now ({_reason(e)}); nothing was changed"
        ) from e


def _has_said(
    e: BaseException | None, words: Sequence[str], by_type: Callable[[BaseException], bool]
) -> bool:
    """Tells whether an error, or one that caused it, is of a type or has one of the words."""
    while e is not None:
        if by_type(e) or any(word in str(e) for word in words):
            return True
        e = e.__cause__ or e.__context__
    return False


def _reason(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"


def _read_tree(folder: Path, tree):
    """Reads the arrays of one tree, without Orbax's own barriers.

    Another process may fail and never reach the barrier.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=alone)) as reader:
        return reader.restore(absolute(folder), args=ocp.args.StandardRestore(tree))


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _shapes(trees: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves = jax.tree.leaves_with_path(dict(trees))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (x.shape, str(x.dtype))
        for path, x in leaves
    }


def _describe(trees: Mapping[str, Any]) -> dict[str, Any]:
    """Returns shape, type and checksum of every array, by its path."""
    shapes = _shapes(trees)
    sums = np.asarray(_checksums(jax.tree.leaves(dict(trees)))).tolist()
    return {
        name: {"shape": list(shape), "dtype": dtype, "checksum": value}
        for (name, (shape, dtype)), value in zip(shapes.items(), sums, strict=True)
    }


@jax.jit
def _checksums(arrays):
    return jnp.stack([_checksum(x) for x in arrays])


def _checksum(x: jax.Array) -> jax.Array:
    """Returns a sum modulo 2^32: each number's bits times an odd number that depends on its place.

    It detects every change of a single number. Other changes, swaps too, are missed once in about
    2^32.
    """
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = place * jnp.uint32(2654435761)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
    return jnp.sum(bits * ((mixed ^ (mixed >> 13)) | 1), dtype=jnp.uint32)
