"""The architecture: imports run one way, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mujax"

# Room -> what it may import of mujax, in the order of what knows what: each names only rooms above
# it
ROOMS = {
    "errors": set(),
    "columns": set(),
    "hps": set(),
    "params": {"errors"},
    "fields": {"errors"},
    "hardware": {"errors"},
    "models": {"errors", "fields", "hps", "params"},
    "parameterization": {"errors", "params"},
    "optimizers": {"hps", "parameterization", "params"},
    "schedules": {"hps"},
    "config": {"errors", "fields", "models", "optimizers", "parameterization", "schedules"},
    "storage": {"config", "errors"},
    "data": {"config", "errors", "fields", "storage"},
    "training": {
        "config",
        "data",
        "errors",
        "hardware",
        "hps",
        "models",
        "optimizers",
        "parameterization",
        "params",
    }
    | {"schedules", "storage"},
    "sweep": {"columns", "config", "data", "errors", "fields", "hardware", "hps"}
    | {"storage", "training"},
    "explain": {
        "columns",
        "config",
        "errors",
        "optimizers",
        "parameterization",
        "params",
        "training",
    },
    "check": {
        "config",
        "data",
        "errors",
        "explain",
        "hps",
        "models",
        "optimizers",
        "parameterization",
        "params",
    }
    | {"storage", "sweep", "training"},
    "transfer": set(),
    "report": {"columns", "errors", "storage", "sweep", "transfer"},
    "plan": {"columns", "config", "errors", "hardware", "storage", "sweep", "training"},
    "launch": {"config", "errors", "hardware", "storage", "sweep"},
    "sample": {"config", "data", "errors", "fields", "models", "storage", "training"},
    "cli": {
        "check",
        "config",
        "data",
        "errors",
        "explain",
        "fields",
        "launch",
        "models",
        "parameterization",
        "plan",
    }
    | {"report", "sample", "storage", "sweep", "training"},
    "main": {"cli", "errors"},
    "__main__": {"main"},
}
# Library -> the only rooms and modules that may import it
CONFINED = {
    "flax": {"models"},
    "optax": {"optimizers", "training.steps"},
    "orbax": {"training.checkpoint"},
    "etils": {"storage.buckets"},
    "fsspec": {"storage.buckets"},
    "grain": {"data.loader"},
    "tensorflow": {"data.prepare.tasks"},
    "tensorflow_datasets": {"data.prepare.tasks"},
    "seqio": {"data.prepare.tasks"},
    "sentencepiece": {"data.tokenizers", "data.embedded"},
    "tokenizers": {"data.tokenizers"},
    "pyarrow": {"data.prepare.sources"},
    "matplotlib": {"check.render", "report.figures"},
    "plotly": {"report.page"},
    "tensorboardX": {"sweep.trackers"},
    "wandb": {"sweep.trackers"},
    "yaml": {"explain.export", "launch"},
    "absl": {"cli"},
    "ml_collections": {"cli"},
}


def module(file) -> str:
    """mujax/models/layers.py -> 'models.layers'."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(file) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from mujax.storage import files` imports a module, `from mujax.config import
            # RunConfig` a name of one
            of_mujax = {f"mujax.{alias.name}" for alias in node.names}
            names |= of_mujax if node.module == "mujax" else {node.module}
    return names


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=module)
def test_import_direction(file):
    own = module(file)
    room = own.partition(".")[0]
    for name in imports(file):
        top, _, rest = name.partition(".")
        if top == "mujax" and rest:
            assert rest.partition(".")[0] in {room, *ROOMS[room]}, f"{own} may not import {name}"
        elif top in CONFINED:
            assert {room, own} & CONFINED[top], f"{own} may not import {name}"


def test_the_map_has_no_arrow_back_up_and_no_stranger():
    seen = set()
    for room, allowed in ROOMS.items():
        assert allowed <= seen, (room, allowed - seen)
        seen.add(room)
    assert {module(file).partition(".")[0] for file in FILES} == seen
    assert len(seen) <= 25
    assert not set(CONFINED) & set(sys.stdlib_module_names)


# What reads, counts and renders, and must not wait for what trains
LIGHT = (
    "columns", "config", "fields", "hardware", "launch", "parameterization", "params", "report",
    "storage", "transfer",
)  # fmt: skip


def test_what_only_reads_imports_no_jax():
    """In a fresh interpreter, every module of these rooms, and those of a sweep that know no
    runs."""
    modules = [module(file) for file in FILES if module(file).partition(".")[0] in LIGHT]
    modules += ["sweep.merge", "sweep.pooling", "sweep.settings"]
    program = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module("mujax." + name)
    heavy = {{"jax", "flax", "optax", "tensorflow"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_command_line_starts_without_jax():
    """--help and a mistake in a flag are answered at once: a verb imports what it needs when it
    runs."""
    program = "import sys, mujax.main; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
