"""Eight virtual CPU devices, no silent rank promotion and quick compilation, in every test."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import base

os.environ["JAX_PLATFORMS"] = "cpu"  # of child processes: jax would look for a TPU wherever libtpu is
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of the time here goes to LLVM; most of the command-line tests keep its optimizations.
jax.config.update("jax_disable_most_optimizations", True)

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption(
        "--regenerate-golden", action="store_true", help="rewrite tests/golden from what the code says now"
    )


def tiny_tree(model: str = "transformer", **overrides) -> dict:
    """A config as nested dicts, small enough to train in a second; `section__field=value` overrides."""
    c = base.get_config(model)
    c.train.steps, c.train.batch_size, c.train.eval_interval, c.train.eval_batches = 12, 4, 5, 2
    c.train.log_interval, c.schedule.warmup_steps, c.data.seq_len, c.parameterization.base_width = 2, 2, 16, 16
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


@pytest.fixture
def tiny(text_file):
    """tiny_tree on the small corpus."""
    return lambda model="transformer", **overrides: tiny_tree(
        model, data__name="text", data__path=str(text_file), **overrides
    )


@pytest.fixture(scope="session")
def quick_compilation(tmp_path_factory):
    """Environment of processes that spend less time on compilation, and share what they have compiled."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def compiled_once(quick_compilation):
    """Programs that are compiled again and again, here and in processes, are compiled once."""
    names = [name for name in quick_compilation if "CACHE" in name]
    before = {name: getattr(jax.config, name.lower()) for name in names}
    for name in names:
        kind = str if name.endswith("DIR") else type(before[name])
        jax.config.update(name.lower(), kind(quick_compilation[name]))
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name.lower(), value)
    compilation_cache.reset_cache()


@pytest.fixture
def quick_processes(quick_compilation, monkeypatch):
    """Processes that a test starts have this environment."""
    for name, value in quick_compilation.items():
        monkeypatch.setenv(name, value)


def run_mujax(*args: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """The command line in a process of its own, in the repository root."""
    command = [sys.executable, "-m", "mujax", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout)


def count_compilations(of: str):
    """A list that grows by one at each XLA compilation of a jitted function whose name contains `of`."""
    events = []

    def listen(event, duration, **metadata):
        if event.endswith("backend_compile_duration") and of in str(metadata.get("fun_name", "")):
            events.append(metadata)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events
