"""What stays the same while the house is laid out anew: ids of all configs' points, help texts,
committed rows.

`pytest tests/test_frozen.py --regenerate-golden` writes the ids and the help texts anew; the diff
is the review.
"""

import contextlib
import hashlib
import importlib
import io
import json

import pytest
from conftest import ROOT, run_mujax

from configs.kalra2026.studies import REASONS as KALRA_REASONS
from configs.kalra2026.studies import STUDIES
from configs.lingle2024.ablations import ABLATIONS, REASONS
from mujax import main
from mujax.sweep.grid import expand_sweep
from mujax.sweep.points import make_points

FROZEN = ROOT / "tests" / "golden" / "frozen.json"
CONFIGS = {
    **{f"{name}.py": (name, ()) for name in ("quickstart", "moe", "recurrent")},
    **{f"lingle2024/ablations.py:{name}": ("lingle2024.ablations", (name,)) for name in ABLATIONS},
    **{f"lingle2024/ablations.py:{name},scale=small": ("lingle2024.ablations",
    (f"{name},scale=small",))
       for name in (*ABLATIONS, *REASONS)},
    **{f"kalra2026/studies.py:{name}": ("kalra2026.studies",
    (name,)) for name in STUDIES if name != "factorial"},
    **{f"kalra2026/studies.py:{name},scale=small": ("kalra2026.studies", (f"{name},scale=small",))
       for name in (*STUDIES, *KALRA_REASONS)},
}  # fmt: skip


def ids_of(module, args):
    """The number of a config's points and a hash of their ids, in order."""
    config = importlib.import_module(f"configs.{module}").get_config(*args).to_dict()
    ids = [cfg.id for _, cfg in expand_sweep(config)]
    return [len(ids), hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]]


def help_of(verb):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main.run([verb, "--help"] if verb else ["--help"]) == 0
    return hashlib.sha256(out.getvalue().encode()).hexdigest()[:16]


def rows_of(file):
    """The number of a file's rows and a hash of them, in order, without what names them."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    measured = [{k: v for k, v in row.items() if k not in ("id", "group")} for row in rows]
    return [len(rows), hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]]


def test_ids_rows_and_help_texts(request):
    found = {
        "rows": {
            str(file.parent.relative_to(ROOT / "experiments")): rows_of(
                file.with_name("results.jsonl")
            )
            for file in sorted((ROOT / "experiments").glob("**/manifest.json"))
        },
        "ids": {name: ids_of(*how) for name, how in CONFIGS.items()},
        "help": {verb or "mujax": help_of(verb) for verb in ("", *main.VERBS)},
    }
    if request.config.getoption("--regenerate-golden"):
        FROZEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(FROZEN.read_text())


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ("quickstart", "quickstart"),
        ("moe", "architectures/moe"),
        ("recurrent", "architectures/recurrent"),
    ],
)
def test_groups_are_those_of_the_committed_rows(config, rows):
    """Run.group, which says what points may train side by side and names what is in flight."""
    lines = (ROOT / "experiments" / rows / "results.jsonl").read_text().splitlines()
    committed = [json.loads(line) for line in lines]
    points = make_points(importlib.import_module(f"configs.{config}").get_config().to_dict())
    wanted = {row["id"]: row["group"] for row in committed}
    assert points and {point.id: point.run.group for point in points}.items() <= wanted.items()


@pytest.mark.slow
def test_rows_of_the_quickstart_again(tmp_path, as_in_use):
    """The committed losses, but for rounding: on one machine two versions are compared to the bit,
    and processors differ."""

    def rows(folder):
        return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]

    wanted = {
        row["id"]: row
        for row in rows(ROOT / "experiments" / "quickstart")
        if row["width"] < 128 and 2.0**-7 <= row["learning_rate"] <= 2.0**-5
    }
    grid = [f"--config.sweep.optim.learning_rate={tuple(2.0**k for k in range(-7, -4))}"]
    width = ["--config.sweep.model.d_model=(32, 64)"]
    sweep = ["sweep", "--config=configs/quickstart.py", f"--workdir={tmp_path}", *grid, *width]
    done = run_mujax(*sweep)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    assert len(found) == len(wanted) == 12
    for row in found:
        # Rounding grows with the learning rate, to 0.07 nats at 2^-3
        assert row["final_loss"] == pytest.approx(wanted[row["id"]]["final_loss"], abs=0.02)
