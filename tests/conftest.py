"""Eight virtual CPU devices, no silent rank promotion and quick compilation, in every test."""

import copy
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

from configs import base

# of child processes: jax would look for a TPU wherever libtpu is
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# XLA's newer code generator for CPUs takes half of all the time that tests compile. Child processes
# have the flag too, as some are compared to the bit; later versions of JAX may not know it.
QUICK = "--xla_cpu_use_fusion_emitters=false"
if jax.__version_info__ < (0, 11) and QUICK not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()
jax.devices()  # flags are read when the backend starts, and a test may drop them before

ROOT = Path(__file__).parent.parent


def pytest_configure(config):
    """Programs are compiled once: by this session, its workers, and all processes that tests start.

    Where JAX_COMPILATION_CACHE_DIR is set, what it holds is used, and what is compiled is left
    there.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers have that of the session
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(
            prefix="mujax-compiled-"
        )
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.update(
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # most of the time here goes to LLVM
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# A fast test should take no more of the processor than this, its own processes counted in. Longer
# ones are named in the summary and fail nothing, as seconds differ between machines; but for those
# that have a reason here.
LIMIT_SECONDS = 5.0
LONG = {
    "test_check.py::test_mutation_suite": "every table, right and wrong, at two widths",
    "test_small_scale.py::test_a_committed_point_again": "a process with all of XLA's "
    "optimizations",
    "test_processes.py::test_two_processes_are_one_run": "eight processes, which all load JAX and "
    "their programs",
    "test_sweep.py::test_interrupted_sweep_goes_on": "two processes, which load JAX, compile a "
    "sweep and train two",
    "test_sweep.py::test_points_equal_single_runs_and_compile_once_a_width": "two widths, compiled "
    "as lanes and as single runs",
    "test_tasks.py::test_processes_and_formats_make_the_same": "two processes, which load "
    "TensorFlow",
}


def processor_seconds() -> float:
    """Of this process, and of those that it has started and seen end."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = processor_seconds()
    try:
        return (yield)
    finally:
        if not item.get_closest_marker("slow"):
            item.user_properties.append(("processor_seconds", processor_seconds() - start))


def pytest_terminal_summary(terminalreporter):
    """Names the tests that are over the limit."""
    for report in (
        r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)
    ):
        seconds = dict(report.user_properties).get("processor_seconds", 0.0)
        name = report.nodeid.rpartition("/")[2]
        if report.when == "call" and seconds > LIMIT_SECONDS and name.partition("[")[0] not in LONG:
            told = (
                f"{name} took {seconds:.1f} s of the processor, more than {LIMIT_SECONDS:g}: see "
                "LONG in conftest.py"
            )
            terminalreporter.write_line(told, yellow=True)


def pytest_addoption(parser):
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="rewrite tests/golden from what the code says now",
    )


def tiny_tree(model: str = "transformer", **overrides) -> dict:
    """A config as nested dicts, small enough to train in a second; `section__field=value`
    overrides."""
    c = base.get_config(model)
    c.train.steps, c.train.batch_size, c.train.eval_interval, c.train.eval_batches = 12, 4, 5, 2
    c.train.log_interval, c.schedule.warmup_steps, c.data.seq_len, c.parameterization.base_width = (
        2,
        2,
        16,
        16,
    )
    c.model.d_model = 16
    if model == "transformer":
        c.model.d_head = 8
    tree = copy.deepcopy(c.to_dict())
    for key, value in overrides.items():
        section, _, field = key.partition("__")
        if field:
            tree[section][field] = value
        else:
            tree[section] = value
    return tree


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A small corpus of real text."""
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text(Path(os.__file__).read_text())
    return file


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> Path:
    """A SentencePiece model of 400 pieces, of a module of the standard library."""
    from mujax.data import tokenizers  # here, as few tests need it

    file = tmp_path_factory.mktemp("pieces") / "a model.model"
    file.write_bytes(tokenizers.train([Path(os.__file__).read_text()], 400))
    return file


@pytest.fixture
def tiny(text_file):
    """tiny_tree on the small corpus."""
    return lambda model="transformer", **overrides: tiny_tree(
        model, data__name="text", data__path=str(text_file), **overrides
    )


@pytest.fixture(autouse=True)
def same_xla_flags(monkeypatch) -> None:
    """Leaves child processes of later tests the flags that a test's own `mujax plan` drops."""
    if "XLA_FLAGS" in os.environ:
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])


@pytest.fixture
def as_in_use(monkeypatch) -> None:
    """Lets processes of this test compile with all of XLA's optimizations, as users' do."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "").replace(QUICK, ""))


def run_mujax(*args: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """The command line in a process of its own, in the repository root."""
    command = [sys.executable, "-m", "mujax", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout)


def count_compilations(of: str):
    """A list that grows by one at each XLA compilation of a jitted function whose name contains
    `of`."""
    events = []

    def listen(event, duration, **metadata):
        if event.endswith("backend_compile_duration") and of in str(metadata.get("fun_name", "")):
            events.append(metadata)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events
