"""Checkpoints on disk: what is read is what was saved, or it is said what was not."""

import errno
import os
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mujax.errors import UserError
from mujax.training import checkpoint
from mujax.training.checkpoint import Checkpoints, _checksums

STEPS = (10, 20)
# TensorStore gives up what else it was about to read
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tree(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "params": {
            "w": jnp.asarray(rng.normal(size=(64, 33)), jnp.float32),
            "g": jnp.full(7, step, jnp.bfloat16),
        },
        "opt_state": (jnp.int32(step), {"m": jnp.asarray(rng.normal(size=(64, 33)), jnp.float32)}),
    }


def made(step: int) -> dict:
    """What a run says of itself beside its arrays; `of` tells records apart."""
    texts = dict.fromkeys(("table", "table_hash", "data_fingerprint"), "a")
    return {"config": {}, **texts, "evals": [], "seconds": 1.0, "of": step}


def abstract(device: int = 0) -> dict:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[device])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree(0))


def is_as_saved(found: tuple, step: int) -> bool:
    record, trees = found
    pairs = zip(jax.tree.leaves(trees), jax.tree.leaves(tree(step)), strict=True)
    return record["step"] == record["of"] == step and all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "latest"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (5, *STEPS):
        checkpoints.save(step, tree(step), made(step))
    checkpoints.wait()
    assert checkpoints.steps == [*STEPS]  # the two latest
    checkpoints.close()
    return folder


def damage(rng: random.Random, file) -> str:
    content = bytearray(file.read_bytes())
    kind = rng.choice(["truncated", "a bit flipped", "missing"])
    if kind == "missing":
        file.unlink()
    elif kind == "truncated" or not content:
        file.write_bytes(content[: rng.randrange(max(1, len(content)))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    return f"{file} {kind}"


def test_fifty_damages_are_never_read_as_sound(saved, tmp_path, capsys):
    """Whatever happens to a file of the newest: it is read as it was saved, or the one before is,
    with a message."""
    rng, fallen_back = random.Random(0), 0
    for i in range(50):
        folder = tmp_path / str(i) / "latest"
        shutil.copytree(saved, folder)
        files = sorted(file for file in (folder / "20").rglob("*") if file.is_file())
        what = damage(rng, rng.choice(files))
        checkpoints = Checkpoints(folder, keep=2)
        found = checkpoints.restore(abstract(), lambda record: None)
        message = capsys.readouterr().err
        if found[0]["step"] == 10:
            fallen_back += 1
            assert is_as_saved(found, 10), what
            assert f"{folder}/20 is damaged" in message and "going on from step 10" in message, what
            assert (folder.parent / "damaged" / "20").is_dir() and checkpoints.steps == [10], what
        else:
            assert is_as_saved(found, 20) and not message, what
        checkpoints.close()
        shutil.rmtree(folder.parent)
    assert 10 < fallen_back < 45  # there are files that nothing depends on


@pytest.mark.parametrize(
    "error, kind",
    [
        (
            ValueError("UNAVAILABLE: All 33 retry attempts failed: HTTP response code: 503"),
            ConnectionError,
        ),
        (ValueError("Error reading: RESOURCE_EXHAUSTED: out of memory"), ConnectionError),
        (OSError(errno.EIO, os.strerror(errno.EIO)), ConnectionError),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), ConnectionError),
        (TimeoutError(), ConnectionError),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), UserError),
        (
            ValueError(
                "PERMISSION_DENIED: Error opening params [OS error 13: EACCES Permission denied]"
            ),
            UserError,
        ),
        (OSError("Forbidden: b/o"), UserError),
    ],
)
@pytest.mark.parametrize("where", ["_digest", "_read_tree"])
def test_what_cannot_be_read_is_not_damaged(where, error, kind, saved, monkeypatch):
    """A disk or a service that does not answer, or refuses, says nothing of what is there."""

    def fail(*args):
        if where == "_digest":
            raise error
        raise ValueError("no such tree") from error  # as Orbax wraps what it calls

    before = sorted(saved.parent.rglob("*"))
    checkpoints = Checkpoints(saved, keep=2)
    monkeypatch.setattr(checkpoint, where, fail)
    with pytest.raises(kind, match="nothing was changed"):
        checkpoints.restore(abstract(), lambda record: None)
    assert sorted(saved.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "text, kind",
    [
        ("ABORTED: All 33 retry attempts failed: HTTP response code: 503", ConnectionError),
        ("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]", UserError),
        ("PERMISSION_DENIED: HTTP response code: 403", UserError),
    ],
)
def test_what_cannot_be_saved_may_be_later(text, kind, saved, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError(text)

    checkpoints = Checkpoints(saved, keep=2)
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(
        kind, match=re.escape(f"a checkpoint could not be saved ({text}); the last one stands")
    ):
        checkpoints.save(30, tree(30), made(30))


def test_what_zeros_would_pass_for(saved, tmp_path, monkeypatch):
    """A chunk that is gone reads as zeros, without an error: what the checksums are for."""
    folder = tmp_path / "latest"
    shutil.copytree(saved, folder)
    checkpoints = Checkpoints(folder, keep=2)
    zeros = jax.tree.map(jnp.zeros_like, tree(20))
    real = checkpoint._read_tree
    monkeypatch.setattr(
        checkpoint,
        "_read_tree",
        lambda folder, tree: zeros[folder.name] if "20" in folder.parts else real(folder, tree),
    )
    assert is_as_saved(checkpoints.restore(abstract(), lambda record: None), 10)


def test_a_record_that_was_changed(saved, tmp_path, capsys):
    """Well-formed, but not what was written."""
    folder = tmp_path / "latest"
    shutil.copytree(saved, folder)
    file = folder / "20" / "record" / "metadata"
    text = file.read_text()
    assert text.count('"of": 20') == 1
    file.write_text(text.replace('"of": 20', '"of": 21'))
    assert is_as_saved(Checkpoints(folder, keep=2).restore(abstract(), lambda record: None), 10)
    assert "its record does not match its digest" in capsys.readouterr().err
    shutil.move(folder / "10", folder / "15")
    with pytest.raises(UserError, match="damaged checkpoints only .step 15: its record"):
        Checkpoints(folder, keep=2).restore(abstract(), lambda record: None)


def test_checksums_see_every_kind_of_change():
    """One bit anywhere, two numbers exchanged, zeros; and they do not depend on how an array is
    split."""
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)

    def of(x, sharding=None):
        return int(_checksums([jax.device_put(x, sharding)])[0])

    for bit in range(32):
        changed = x.copy()
        changed.view(np.uint32)[3, bit % 24] ^= np.uint32(1 << bit)
        assert of(changed) != of(x), bit
    changed = x.copy()
    changed[[2, 9], 5] = changed[[9, 2], 5]
    assert of(changed) != of(x) and of(x.T.copy()) != of(x) and of(0 * x) != of(x)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (P(), P("a"), P(None, "b"), P("b", "a"), P(("a", "b"))):
        assert of(x, NamedSharding(mesh, spec)) == of(x), spec


def test_only_to_read(saved, tmp_path, capsys):
    """Another process' folder is read, also onto another device, and nothing in it is changed."""
    folder = tmp_path / "latest"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp")  # a save that is under way
    (folder / "30.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
    (folder / "20" / "record" / "metadata").write_text("")
    found = Checkpoints(folder, keep=None).restore(
        {"params": abstract(7)["params"]}, lambda record: None
    )
    assert found[0]["step"] == 10 and found[1]["params"]["w"].devices() == {jax.devices()[7]}
    assert "going on from step 10" in capsys.readouterr().err
    assert sorted(os.listdir(folder)) == ["10", "20", "30.orbax-checkpoint-tmp"]
    own = Checkpoints(folder, keep=2)  # of the process that goes on, which clears up
    own.save(40, tree(40), made(40))
    own.wait()
    assert sorted(os.listdir(folder)) == ["20", "40"]
    assert Checkpoints(tmp_path / "none", keep=2).restore(abstract(), lambda record: None) is None


def test_other_shapes_are_refused(saved):
    other = abstract()
    other["params"]["w"] = jax.ShapeDtypeStruct(
        (64, 34), jnp.float32, sharding=other["params"]["w"].sharding
    )
    with pytest.raises(
        UserError, match=r"20: params/w is float32 \(64, 33\), not float32 \(64, 34\) as here"
    ):
        Checkpoints(saved, keep=None).restore(other, lambda record: None)
