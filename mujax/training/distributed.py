"""The processes of a run (one per host on a pod), their common decisions, and how they stop."""

import contextlib
import glob
import hashlib
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from mujax.errors import CRASHED, INTERRUPTED, UserError, is_foreseen, is_outage

# Seconds of silence after which a process counts as lost and JAX ends the others, and seconds that
# a process waits for the others when it ends
HEARTBEAT_TIMEOUT = SHUTDOWN_TIMEOUT = 30
# seconds that processes wait for each other at the start
START_TIMEOUT = 300

T = TypeVar("T")


def initialize(
    coordinator: str | None = None, num_processes: int = 0, process_id: int = -1
) -> None:
    """Joins the processes of this run, by the arguments or as Cloud TPU, GKE or Slurm say.

    It is called before any computation.

    Args:
      coordinator: HOST:PORT of process 0. None: by the environment, or one process if that says
        nothing.

    Raises:
      UserError: the processes cannot be joined.
    """
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT,
        "initialization_timeout": START_TIMEOUT,
    }
    if coordinator:
        _check_address(coordinator)
        options |= {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
        options |= {"cluster_detection_method": "deactivate"}
    elif not _is_one_of_many():
        return
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as e:
        if not coordinator and "coordinator_address should be defined" in str(e):
            # A TPU outside a cluster.
            return
        raise UserError(
            f"the processes of this run cannot be joined: {str(e).splitlines()[0]}"
        ) from e


def _check_address(coordinator: str) -> None:
    """Raises UserError for an address at which JAX would wait forever, or end in C++."""
    host, colon, port = coordinator.rpartition(":")
    try:
        if not colon or not 0 < int(port) < 2**16:
            raise ValueError
        socket.getaddrinfo(host, int(port))
    except ValueError:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT") from None
    except OSError as e:
        raise UserError(f"--coordinator={coordinator}: there is no such host ({e.strerror})") from e


def _is_one_of_many() -> bool:
    """Tells whether JAX might find other processes beside this one."""
    is_slurm_step = (
        int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in os.environ
    )
    has_tpu = bool(glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*"))
    return is_slurm_step or has_tpu or "JAX_COORDINATOR_ADDRESS" in os.environ


def is_primary() -> bool:
    """Tells whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def agreed(decide: Callable[[], T]) -> T:
    """Returns the primary process's result of `decide`, a JSON value, on all processes.

    Raises:
      UserError: on all processes, if `decide` raised one, or an OSError, on the primary.
      ConnectionError: on all processes, if `decide` raised an error that may pass.
    """
    if jax.process_count() == 1:
        return decide()
    error = result = None
    if is_primary():
        try:
            result = decide()
        except Exception as e:
            if not is_foreseen(e):
                raise
            error = is_outage(e), str(e) or type(e).__name__
    text = json.dumps([error, result]).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    if is_primary():
        padded[:] = np.frombuffer(text, np.uint8)
    error, result = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
    if error is not None:
        may_pass, message = error
        raise (ConnectionError if may_pass else UserError)(message)
    return result


def everywhere(work: Callable[[], T]) -> T:
    """Returns the result of `work` on each process.

    Raises:
      UserError: on all processes, if `work` raised one, or an OSError, on any.
      ConnectionError: on all processes, if all errors that `work` raised may pass.
    """
    if jax.process_count() == 1:
        return work()
    error = result = None
    try:
        result = work()
    except Exception as e:
        if not is_foreseen(e):
            raise
        error = e
    to_fix = where_false(error is None or is_outage(error))
    failed = where_false(error is None) if to_fix is None else to_fix
    if failed is not None:
        kind = ConnectionError if to_fix is None else UserError
        elsewhere = f"process {failed} of this run cannot go on; its own message says why"
        raise kind(elsewhere if error is None else str(error) or type(error).__name__) from error
    return cast(T, result)


def where_false(value: bool) -> int | None:
    """Returns the first process with a false value; None if all are true."""
    if jax.process_count() == 1:
        return None if value else 0
    values = multihost_utils.process_allgather(np.bool_(value))
    return None if np.all(values) else int(np.argmin(values))


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends this process right after a failure, if there are others.

    JAX would wait for the others, which may be lost, or wait for this one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if jax.process_count() == 1:
            raise
        if is_outage(e):
            print(f"mujax: {e}", file=sys.stderr)
        else:
            traceback.print_exc()
        which = f"process {jax.process_index()} of {jax.process_count()}"
        print(
            f"mujax: {which} has failed, or lost another, and ends; the same command goes on",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(CRASHED)


def all_same(text: str) -> bool:
    """Tells whether every process has the same text."""
    if jax.process_count() == 1:
        return True
    own = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint32)
    return bool(np.all(multihost_utils.process_allgather(own) == own))


@contextlib.contextmanager
def deferred_signals(grace_seconds: float = math.inf) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT or SIGTERM has come; a second signal interrupts.

    The process ends within the grace after SIGTERM whatever it is doing, even compiling, which
    Python cannot interrupt.
    """
    received = threading.Event()

    def note(signum, frame):
        if received.is_set():
            raise KeyboardInterrupt
        received.set()
        print("\nsaving what is in flight; once more to stop at once", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():  # signals cannot be caught here
        yield received.is_set
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    # Python writes here from the signal handler itself, so the watch does not need the main thread.
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader, grace_seconds), daemon=True)
    watch.start()
    try:
        yield received.is_set
    finally:
        signal.set_wakeup_fd(wakeup)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        os.close(writer)
        watch.join()


def _watch(reader: int, grace_seconds: float) -> None:
    """Ends the process if `reader` is still open `grace_seconds` after the first SIGTERM."""
    try:
        deadline = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([reader], [], [], left)[0]:
                _end_unsaved(grace_seconds)
            numbers = os.read(reader, 64)
            if not numbers:
                return
            if deadline is None and signal.SIGTERM in numbers and grace_seconds < math.inf:
                deadline = time.monotonic() + grace_seconds
    finally:
        os.close(reader)


def _end_unsaved(grace_seconds: float) -> None:
    text = "the same command goes on from what was saved before"
    print(
        f"mujax: not saved within checkpoint.grace_seconds = {grace_seconds:g}; {text}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def stop_requests(grace_seconds: float) -> Iterator[Callable[[int], bool]]:
    """Yields a function that tells, before each step, whether to save and stop.

    It tells the same at the same step on every process.

    Raises:
      KeyboardInterrupt: at a second signal, if the process is alone. With others, a second SIGINT
        ends the process at once.
    """
    if jax.process_count() == 1:
        with deferred_signals(grace_seconds) as is_interrupted:
            yield lambda step: is_interrupted()
        return

    timer = threading.Timer(grace_seconds, _end_unsaved, [grace_seconds])
    timer.daemon = True
    is_asked = threading.Event()

    def is_reached(step: int) -> bool:
        # JAX handles SIGTERM, and agrees with the other processes on a step.
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        timer.start()
        return True

    def ask(signum, frame):  # JAX does not handle SIGINT
        if is_asked.is_set():
            os._exit(INTERRUPTED)
        is_asked.set()
        print("\nsaving with the other processes; once more to stop at once", file=sys.stderr)
        signal.raise_signal(signal.SIGTERM)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, ask) if is_main else None
    try:
        yield is_reached
    finally:
        timer.cancel()
        if is_main:
            signal.signal(signal.SIGINT, before)
