"""The engine on this machine: a pool of processes that honours exit codes."""

import concurrent.futures
import subprocess
import sys
import threading
from pathlib import Path

from mujax.launch.job import FINISHED, NEVER_AGAIN, SAVED, Job, Launch
from mujax.storage.files import make_writable


def run(launch: Launch, parallel: int) -> int:
    """Runs the jobs, `parallel` at a time, each with a log in the workdir.

    Interrupted, it has every running job save its state, waits for them, and raises
    KeyboardInterrupt.

    Returns:
      The exit code: 0 if all jobs have finished; else that of an unfinished job, preferably of one
        that must not be retried.

    Raises:
      UserError: the workdir cannot be written.
    """
    logs = make_writable(launch.workdir) / "logs"
    logs.mkdir(exist_ok=True)
    pool = _Pool(launch.retries, logs)
    with concurrent.futures.ThreadPoolExecutor(parallel) as executor:
        try:
            codes = list(executor.map(pool.run, launch.jobs))
        except BaseException:
            pool.stop()  # leaving the executor then waits for the running jobs
            raise
    bad = sorted(
        (code for code in codes if code not in FINISHED), key=lambda code: code not in NEVER_AGAIN
    )
    return bad[0] if bad else 0


class _Pool:
    def __init__(self, retries: int, logs: Path):
        self._retries, self._logs = retries, logs
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._is_stopping = False

    def run(self, job: Job) -> int:
        """Runs a job until it has finished, must not be run again, or has no retry left.

        Returns:
          Its last exit code.
        """
        log = self._logs / f"{job.name}.log"
        argv = [sys.executable, "-m", "mujax", *job.argv[1:]]
        retries = 0
        while True:
            with open(log, "ab") as stream, self._lock:
                if self._is_stopping:
                    return SAVED
                # In a session of its own, so that Ctrl-C reaches the job once: as the SIGTERM from
                # stop().
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
                self._running.add(process)
            print(f"{job.name}: started, its log is {log}", flush=True)
            code = process.wait()
            code = code if code >= 0 else 128 - code  # killed by a signal: a shell's exit code
            with self._lock:
                self._running.discard(process)
                if self._is_stopping:
                    return SAVED
            if code in FINISHED:
                print(f"{job.name}: finished", flush=True)
                return code
            retries += code != SAVED
            if code in NEVER_AGAIN or retries > self._retries:
                print(
                    f"{job.name}: given up at exit code {code}: {_last_line(log)}",
                    file=sys.stderr,
                    flush=True,
                )
                return code
            again = "saved" if code == SAVED else f"retry {retries} of {self._retries}"
            print(
                f"{job.name}: exit code {code}, runs again ({again})", file=sys.stderr, flush=True
            )

    def stop(self) -> None:
        """Makes running jobs save their state; no further job starts."""
        with self._lock:
            self._is_stopping = True
            for process in self._running:
                process.terminate()


def _last_line(log: Path) -> str:
    lines = log.read_bytes().decode(errors="replace").splitlines()
    return lines[-1] if lines else "no output"
