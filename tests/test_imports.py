"""The architecture: imports run one way, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mujax"

# Module -> what it may import of mujax. Each names only modules above it, so there is no cycle.
ALLOWED = {
    "errors": set(),
    "hps": set(),
    "params": {"errors"},
    "sharding": {"errors", "params"},
    "schedules": {"hps"},
    "data.corpus": {"errors"},
    "models": {"errors", "hps", "params"},
    "parameterization": {"errors", "params"},
    "optim": {"hps", "parameterization", "params"},
    "export": {"errors", "optim", "parameterization", "params"},
    "loss": {"models"},
    "steps": {"hps", "loss", "models", "optim", "parameterization", "params", "schedules"},
    "ranges": {"data.corpus", "errors", "optim", "parameterization", "schedules"},
    "config": {"errors", "models", "parameterization", "ranges", "sharding"},
    "buckets": {"errors"},
    "records": {"buckets", "errors"},
    "workdir": {"buckets", "config", "errors", "records"},
    "pooling": set(),
    "settings": {"config", "records"},
    "data.images": {"data.corpus", "errors", "records"},
    "data.tokenizers": {"errors", "records"},
    "data.shards": {"data.corpus", "errors", "records"},
    "data.sources": {"data.corpus", "data.tokenizers", "errors"},
    "data.tasks": {"data.sources", "data.tokenizers", "errors"},
    "data.parts": {"data.shards", "data.sources", "data.tokenizers", "errors", "workdir"},
    "data.prepare": {"data.parts", "data.shards", "data.sources", "data.tasks", "data.tokenizers", "errors"}
    | {"records", "workdir"},
    "data.embedded": {"data.corpus", "data.prepare", "data.shards", "errors"},
    "data.loader": {"config", "data.corpus", "data.embedded", "data.images", "data.shards", "errors"},
    "peaks": set(),
    "processes": {"errors"},
    "logs": {"buckets", "peaks", "records", "workdir"},
    "metrics": set(),
    "run": {"config", "errors", "hps", "models", "optim", "parameterization", "params", "steps"},
    "claim": {"config", "errors", "records", "run", "workdir"},
    "results": {"data.corpus", "run"},
    "lanes": {"sharding", "steps"},
    "mirrors": {"errors"},
    "grid": {"config", "errors"},
    "points": {"config", "errors", "grid", "pooling", "run", "settings"},
    "refine": {"config", "errors", "grid", "points", "pooling", "run", "settings"},
    "dry_run": {"lanes", "points", "refine", "run", "steps"},
    "executables": {"config", "errors", "lanes", "models", "run", "sharding", "steps"},
    "engine": {"config", "data.loader", "executables", "hps", "lanes", "metrics", "run", "steps"},
    "in_flight": {"engine", "lanes", "records", "run", "steps", "workdir"},
    "checkpoint": {"errors", "processes", "records", "workdir"},
    "launch": {"config", "errors", "points", "refine", "workdir"},
    "plan": {"config", "errors", "executables", "lanes", "peaks", "points", "run", "sharding", "steps", "workdir"},
    "merge": {"config", "errors", "records", "settings", "workdir"},
    "transfer": {"errors", "pooling", "records", "settings", "workdir"},
    "sample": {"checkpoint", "config", "data.corpus", "data.loader", "data.shards", "data.tokenizers", "errors"}
    | {"models", "records", "run", "steps", "workdir"},
    "train": {
        "checkpoint",
        "claim",
        "config",
        "data.corpus",
        "data.loader",
        "errors",
        "logs",
        "metrics",
        "peaks",
        "processes",
        "results",
    }
    | {"run", "sharding", "steps", "workdir"},
    "sweep": {
        "in_flight",
        "config",
        "data.loader",
        "engine",
        "errors",
        "metrics",
        "mirrors",
        "points",
        "processes",
        "records",
        "refine",
    }
    | {"results", "steps", "workdir"},
    "check": {"config", "data.loader", "errors", "hps", "lanes", "models", "optim", "parameterization", "params"}
    | {"run", "sharding", "steps", "workdir"},
    "cli": {
        "check",
        "config",
        "data.prepare",
        "dry_run",
        "errors",
        "export",
        "launch",
        "merge",
        "mirrors",
        "parameterization",
        "plan",
        "points",
    }
    | {"processes", "results", "sample", "sweep", "train", "transfer", "workdir"},
    "main": {"cli", "errors"},
}
# Library -> the only modules that may import it
CONFINED = {
    "flax": {"params", "models"},
    "optax": {"optim", "steps"},
    "orbax": {"checkpoint"},
    "etils": {"buckets"},
    "fsspec": {"buckets"},
    "grain": {"data.loader"},
    "tensorflow": {"data.tasks"},
    "tensorflow_datasets": {"data.tasks"},
    "seqio": {"data.tasks"},
    "sentencepiece": {"data.tokenizers", "data.embedded"},
    "tokenizers": {"data.tokenizers"},
    "pyarrow": {"data.sources"},
    "matplotlib": {"check", "transfer"},
    "plotly": {"transfer"},
    "tensorboardX": {"mirrors"},
    "wandb": {"mirrors"},
    "yaml": {"export", "launch"},
    "absl": {"cli"},
    "ml_collections": {"cli"},
}


def unit(name: str) -> str:
    """'mujax.models.layers' -> 'models'; the modules of data are units of their own."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["data"] else parts[:1])


def imports(file) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from mujax import workdir` imports a module, `from mujax.run import Run` a name of one
            is_package = node.module in ("mujax", "mujax.data")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_import_direction(file):
    own = unit(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if own in ("", "__main__", "data"):
        return
    for name in imports(file):
        top = name.partition(".")[0]
        if top == "mujax":
            assert unit(name) in {own, "", *ALLOWED[own]}, f"{own} may not import {name}"
        else:
            assert top not in CONFINED or own in CONFINED[top], f"{own} may not import {name}"


def test_the_table_has_no_cycle_and_no_stranger():
    seen = set()
    for module, allowed in ALLOWED.items():
        assert allowed <= seen, (module, allowed - seen)
        seen.add(module)
    units = {unit(".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")) for f in FILES}
    assert units - {"", "__main__", "data"} == seen
    assert not set(CONFINED) & set(sys.stdlib_module_names)


def test_the_command_line_starts_without_jax():
    """--help and a mistake in a flag are answered at once: a verb imports what it needs when it runs."""
    program = "import sys, mujax.main; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
