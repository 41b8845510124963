"""Images: rows of bytes that end with a class, a network that reads them, and how both say no."""

import json

import jax
import numpy as np
import pytest
from conftest import ROOT, tiny_tree

from mujax import main
from mujax.config import make_run_config
from mujax.data.images import load_images, synthetic_images
from mujax.data.loader import load_batches
from mujax.errors import UserError
from mujax.models import MODELS
from mujax.training.loop import train
from mujax.training.run import make_run
from mujax.training.steps import make_train_fns


def image_tree(side=8, **overrides):
    data = {"data__name": "synthetic_images", "data__seq_len": 3 * side**2, "data__vocab_size": 10}
    return tiny_tree("cnn", **{"model__d_model": 16, "model__num_layers": 2, **data, **overrides})


def convolve(x_YXC, w_YXCD):
    """Same-size convolution of one image, from its definition; outside an image is zero."""
    height, width, _ = x_YXC.shape
    padded = np.pad(x_YXC, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, w_YXCD.shape[-1]))
    for y in range(height):
        for x in range(width):
            out[y, x] = np.tensordot(padded[y : y + 3, x : x + 3], w_YXCD, axes=3)
    return out


def test_network_equals_its_definition_in_numpy():
    run = make_run(make_run_config(image_tree(model__num_layers=3)))
    params = jax.jit(make_train_fns(run.program).init)(0, run.hps, run.scalings).params
    assert {name: run.metas[name].fan_in for name in params} == {
        "first": 27,
        "w1": 144,
        "w2": 144,
        "unembed": 16,
    }
    tokens = np.random.default_rng(0).integers(0, 256, (2, 192))
    ours = jax.jit(MODELS["cnn"][1](run.cfg.model).apply)({"params": params}, tokens, run.hps)

    def read(image):
        def activate(x):
            x = np.maximum(x, 0)
            return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

        x = convolve(
            image.reshape(8, 8, 3) / 127.5 - 1, np.asarray(params["first"], float)
        ) / np.sqrt(27)
        for name in ("w1", "w2"):
            x = activate(x)
            x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
            x = convolve(x, np.asarray(params[name], float))
        return activate(x).mean((0, 1)) @ np.asarray(params["unembed"], float)

    assert ours.shape == (2, 1, 10)
    np.testing.assert_allclose(ours[:, 0], [read(image) for image in tokens], rtol=1e-5, atol=1e-5)


def test_a_row_is_an_image_and_its_class(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8), rng.integers(0, 10, 40)
    np.savez(tmp_path / "it.npz", images=images, labels=labels)
    corpus = load_images("images", str(tmp_path / "it.npz"), 48, 10, batch_size=4)
    np.testing.assert_array_equal(corpus.validation[1, :-1].reshape(4, 4, 3), images[10])
    np.testing.assert_array_equal(corpus.validation[:, -1], labels[::10])
    np.testing.assert_array_equal(corpus.train[:, -1], np.delete(labels, np.s_[::10]))
    np.savez(tmp_path / "other.npz", images=images, labels=(labels + 1) % 10)
    other = load_images("images", str(tmp_path / "other.npz"), 48, 10, batch_size=4)
    assert other.fingerprint != corpus.fingerprint


def test_synthetic_images_are_the_same_everywhere():
    images, labels = synthetic_images(300, 8, 10)
    again, _ = synthetic_images(300, 8, 10)
    np.testing.assert_array_equal(images, again)
    assert set(labels) == set(range(10)) and images.std() > 30
    # A class is what its images share up to a shift: their spectra are closer to their own class's
    # than to others'
    spectra = np.abs(np.fft.fft2(images.astype(float), axes=(1, 2))).reshape(300, -1)
    means = np.stack([spectra[:150][labels[:150] == k].mean(0) for k in range(10)])
    nearest = np.argmin(((spectra[150:, None] - means) ** 2).sum(-1), axis=1)
    assert np.mean(nearest == labels[150:]) > 0.3


def test_it_learns_to_tell_classes(tmp_path):
    tree = image_tree(
        train__steps=200, train__batch_size=32, train__eval_interval=200, train__eval_batches=8,
        optim__learning_rate=2.0**-5,
    )  # fmt: skip
    row = train(tree, tmp_path)
    (_, initial), (_, final) = row["eval_losses"]
    assert abs(initial - np.log(10)) < 0.5
    assert final < 1.7
    # The loss is that of the class alone: by hand, on one batch
    run = make_run(make_run_config(tree))
    params = jax.jit(make_train_fns(run.program).init)(0, run.hps, run.scalings).params
    rows = load_batches(run.cfg, [0])[1][0]
    weights = jax.tree.map(lambda w, s: w * s.forward, params, run.scalings)
    logits = np.asarray(
        MODELS["cnn"][1](run.cfg.model).apply(
            {"params": weights}, rows[:, :-1].astype(int), run.hps
        )
    )
    by_hand = np.mean(np.log(np.exp(logits[:, 0]).sum(-1)) - logits[np.arange(32), 0, rows[:, -1]])
    loss = make_train_fns(run.program).evaluate(params, rows, run.hps, run.scalings)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["mup", "sp"])
def test_check_passes_mup_and_fails_sp(table, tmp_path):
    """Convolutions, whose kernels count in the fan-in: the table and its metadata need no word of
    them."""
    flags = [
        f"--config.parameterization.name={table}",
        "--config.parameterization.base_width=16",
        "--fast",
    ]
    argv = ["check", f"--config={ROOT}/configs/base.py:cnn", f"--workdir={tmp_path}", *flags]
    assert main.run(argv) == (table == "sp")
    culprits = set(json.loads((tmp_path / "check.json").read_text())["culprits"])
    assert culprits == ({"w1", "w2", "unembed"} if table == "sp" else set())


def test_what_is_no_image_is_told_in_one_line(tmp_path):
    good = {"images": np.zeros((40, 8, 8, 3), np.uint8), "labels": np.zeros(40, int)}
    for name, change, message in [
        (
            "float",
            {"images": good["images"] / 2},
            r"images are float64 \(40, 8, 8, 3\); data.seq_len wants uint8",
        ),
        ("side", {"images": good["images"][:, :4]}, r"images are uint8 \(40, 4, 8, 3\)"),
        ("labels", {"labels": good["labels"] + 10}, "from 0 to data.vocab_size - 1 = 9"),
        ("few", {"labels": good["labels"][:7], "images": good["images"][:7]}, "make no batch of 4"),
    ]:
        np.savez(tmp_path / f"{name}.npz", **{**good, **change})
        with pytest.raises(UserError, match=message):
            load_images("images", str(tmp_path / f"{name}.npz"), 192, 10, batch_size=4)
    (tmp_path / "no.npz").write_text("no")
    for file in ("no.npz", "nowhere.npz"):
        with pytest.raises(UserError, match="is no .npz file with arrays `images` and `labels`"):
            load_images("images", str(tmp_path / file), 192, 10, batch_size=4)
    for change, message in {
        (
            "data__name",
            "embedded",
        ): "data.name = 'embedded' is text; model.name = 'cnn' reads images",
        (
            "data__path",
            "x.npz",
        ): "data.name = 'synthetic_images' with data.path = 'x.npz': it has no path",
        ("data__eos_id", 1): "data.eos_id = 1 with data.name = 'synthetic_images'",
        ("data__vocab_size", 257): "at most 256 classes",
        ("data__seq_len", 100): "data.seq_len = 100 with model.num_layers = 2: it must be 3 side",
        ("model__num_layers", 5): "whose side can be halved 4 times",
    }.items():
        changes = dict([change])
        if change[1] == "embedded":
            changes |= {"data__vocab_size": 256}
        with pytest.raises(UserError, match=message):
            make_run_config(image_tree(**changes))
    with pytest.raises(UserError, match="is images; model.name = 'transformer' reads text"):
        make_run_config(
            tiny_tree(data__name="synthetic_images", data__seq_len=192, data__vocab_size=10)
        )
