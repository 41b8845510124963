"""The train verb on real text: it learns, leaves its files, resumes nothing wrongly, and reports
divergence."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import flags_of

from mujax import main
from mujax.errors import UserError
from mujax.storage.files import read_jsonl
from mujax.sweep.study import sweep
from mujax.training.loop import train


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("transformer", "bfloat16"),
        ("mlp", "float32"),
        pytest.param("transformer", "float32", marks=pytest.mark.slow),
        pytest.param("mlp", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_learns_real_text(tiny, tmp_path, model, dtype):
    """After 60 steps the loss is well below that of the best model without context, the byte
    frequencies."""
    tree = tiny(
        model, train__steps=60, train__batch_size=16, train__eval_batches=8,
        optim__learning_rate=2.0**-5,
        model__d_model=32, model__dtype=dtype, data__seq_len=32,
    )  # fmt: skip
    row = train(tree, tmp_path)
    text = np.frombuffer(Path(tree["data"]["path"]).read_bytes(), np.uint8)
    frequencies = np.bincount(text) / len(text)
    entropy = -np.sum(frequencies[frequencies > 0] * np.log(frequencies[frequencies > 0]))
    assert row["status"] == "ok"
    assert row["final_loss"] < entropy - 0.2
    assert row["tokens"] == 60 * 16 * 32


def test_files_of_a_run(tiny, tmp_path):
    tree = tiny()
    row = train(tree, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == row
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads(
        json.dumps({k: v for k, v in tree.items() if k not in ("sweep", "refine")})
    )
    records = list(read_jsonl(tmp_path / "metrics.jsonl"))
    training = [r for r in records if "loss" in r]
    assert [r["step"] for r in training] == list(range(0, 12, 2))
    assert [[r["step"], r["eval_loss"]] for r in records if "eval_loss" in r] == row["eval_losses"]
    # warm-up 2 of 12 steps, then linear to zero
    peak = tree["optim"]["learning_rate"]
    np.testing.assert_allclose(
        [r["learning_rate"] for r in training[:3]], [peak / 2, peak, peak * 0.8], rtol=1e-6
    )
    # Finished: the same command changes nothing
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert train(tree, tmp_path) == row
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == times


def test_diverged_run_exits_with_3(text_file, tmp_path, capsys):
    argv = flags_of(text_file, tmp_path, optim__learning_rate=1e4, optim__grad_clip=0)
    assert main.run(argv) == 3
    row = json.loads((tmp_path / "result.json").read_text())
    assert (row["status"], row["final_loss"], row["best_loss"]) == ("diverged", None, None)
    assert f"diverged at step {row['diverged_at_step']}" in capsys.readouterr().out
    assert main.run(argv) == 3  # finished, and still diverged


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_a_hopeless_run_is_given_up(verb, tiny, tmp_path):
    """At the first evaluation at or after the step, not before; it has no loss, and its curve ends
    there."""
    tree = tiny(train__give_up_step=6, train__give_up_loss=0.5, sweep={"seed": (0,)})
    row = train(tree, tmp_path) if verb == "train" else sweep(tree, tmp_path)[0]
    assert (row["status"], row["stopped_at_step"], row["diverged_at_step"]) == ("stopped", 10, None)
    assert (row["final_loss"], row["best_loss"], row["steps"]) == (None, None, 12)
    assert [step for step, _ in row["eval_losses"]] == [0, 5, 10]
    curve = (
        tmp_path / "metrics.jsonl"
        if verb == "train"
        else tmp_path / "points" / row["id"] / "metrics.jsonl"
    )
    records = list(read_jsonl(curve))
    assert [(r["step"], "eval_loss" in r) for r in records][-2:] == [(8, False), (10, True)]
    with pytest.raises(UserError, match="give_up_loss = 0: the rule needs both"):
        train(tiny(train__give_up_step=6), tmp_path / "x")
