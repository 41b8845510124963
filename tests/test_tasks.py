"""TFDS by way of seqio: a dataset built here with TFRecord files goes through a Task to shards, and
trains."""

import functools

import numpy as np
import pytest
from helpers import documents, end_at_training, expected_ids, stream_of, train_args, write_jsonl

from mujax import main
from mujax.data import tokenizers
from mujax.data.prepare.dataset import Recipe, prepare
from mujax.data.shards import load_shards
from mujax.errors import UserError

# What a user of seqio has: a vocabulary, and a module with Tasks
MODULE = """
import functools, seqio
from mujax.data.prepare.tasks import text_task
VOCABULARY = seqio.SentencePieceVocabulary({pieces!r}, extra_ids=100)
source = dict(tfds_data_dir={data_dir!r})
add = seqio.TaskRegistry.add_provider
add("tiny_pieces", text_task("tiny_pieces", "tiny_text:1.0.0", "text", VOCABULARY, **source))
add("tiny_bytes", text_task("tiny_bytes", "tiny_text:1.0.0", "text", seqio.ByteVocabulary()))
seqio.MixtureRegistry.add("tiny_mixture", ["tiny_pieces"], default_rate=1.0)
"""


@functools.cache
def tiny_text():
    """A class that TFDS registers, which it takes once a process."""
    import tensorflow_datasets as tfds

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "url": tfds.features.Text()}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 50),
                "validation": self._generate_examples(50, 60),
            }

        def _generate_examples(self, start, stop):
            for i, text in enumerate(documents()[start:stop]):
                yield i, {"text": text, "url": str(i)}

    return TinyText


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS dataset of three TFRecord files and a validation split."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    builder = tiny_text()(data_dir=str(folder))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


def stored_texts(data_dir, split: str) -> list[str]:
    """In the order of the files, read with TFDS alone."""
    import tensorflow_datasets as tfds

    config = tfds.ReadConfig(interleave_cycle_length=1)
    data = tfds.load(
        "tiny_text:1.0.0",
        split=split,
        data_dir=str(data_dir),
        read_config=config,
        shuffle_files=False,
    )
    return [example["text"].decode() for example in tfds.as_numpy(data)]


@pytest.fixture
def my_tasks(data_dir, pieces, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "modules"
    folder.mkdir(exist_ok=True)
    (folder / "my_tasks.py").write_text(MODULE.format(pieces=str(pieces), data_dir=str(data_dir)))
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("source", ["tfds:tiny_text:1.0.0", "seqio:my_tasks:tiny_pieces"])
def test_a_dataset_of_tensorflow_to_shards(
    source, data_dir, my_tasks, pieces, tmp_path, monkeypatch
):
    """Its text by our tokenizer, or a Task's own ids: the same; and a model may train on it."""
    is_task = source.startswith("seqio")
    which = "" if is_task else f"sentencepiece:{pieces},extra_ids=100"
    made = prepare(
        Recipe(source, which, "packed", validation="own:validation", data_dir=str(data_dir)),
        tmp_path / "out",
    )
    for split in ("train", "validation"):
        texts = [text for text in stored_texts(data_dir, split) if text]
        expected = [i for document in expected_ids(pieces, texts) for i in [*document, 1]]
        assert stream_of(tmp_path / "out", split).tolist() == expected
        assert made["splits"][split]["text_bytes"] == sum(len(text.encode()) for text in texts)
    if is_task:  # its data is where the flag says
        recipe = Recipe(
            "seqio:my_tasks:tiny_bytes", "", "packed", validation="head:3", data_dir=str(data_dir)
        )
        prepare(recipe, tmp_path / "bytes")
        texts = [text for text in stored_texts(data_dir, "train") if text]
        expected = [i for text in texts[:3] for i in [*(b + 3 for b in text.encode()), 1]]
        assert stream_of(tmp_path / "bytes", "validation").tolist() == expected
    assert made["empty_documents"] == 1
    assert made["tokenizer"]["vocab_size"] == 500 and made["tokenizer"]["file"] == "tokenizer.model"
    end_at_training(monkeypatch)
    assert main.run(train_args(tmp_path / "out", tmp_path / "run", vocab_size=500)) == 75


def test_processes_and_formats_make_the_same(data_dir, my_tasks, pieces, tmp_path):
    """A Task by two further processes, a row a document; the same documents as JSON lines."""
    fields = {"layout": "document", "seq_len": 32, "validation": "head:12"}
    task = Recipe("seqio:my_tasks:tiny_pieces", "", **fields)
    prepare(task, tmp_path / "task", num_processes=2)
    write_jsonl(tmp_path / "a.jsonl", stored_texts(data_dir, "train"))
    which = f"sentencepiece:{pieces},extra_ids=100"
    prepare(Recipe(f"jsonl:{tmp_path}/a.jsonl", which, **fields), tmp_path / "lines")
    a, b = (load_shards(tmp_path / name, 32, 500, 1, -1, 4) for name in ("task", "lines"))
    for split in ("train", "validation"):
        x, y = getattr(a, split), getattr(b, split)
        assert len(x) == len(y) == (12 if split == "validation" else len(y))
        assert np.array_equal(x[np.arange(len(x))], y[np.arange(len(y))])


def test_ids_are_those_of_seqio(pieces):
    import seqio

    model = pieces.read_bytes()
    texts = [text for text in documents() if text]
    for ours, theirs in [
        (
            tokenizers.make("sentencepiece", model, {}),
            seqio.SentencePieceVocabulary(str(pieces), extra_ids=0),
        ),
        (
            tokenizers.make("sentencepiece", model, {"extra_ids": "100"}),
            seqio.SentencePieceVocabulary(str(pieces), 100),
        ),
        (tokenizers.make("byte_vocabulary", b"", {}), seqio.ByteVocabulary()),
        (tokenizers.make("byte_vocabulary", b"", {"extra_ids": "5"}), seqio.ByteVocabulary(5)),
    ]:
        assert (ours.vocab_size, ours.eos_id, ours.start_id) == (
            theirs.vocab_size,
            theirs.eos_id,
            theirs.pad_id,
        )
        for ids, text in zip(ours.encode(texts), texts, strict=True):
            assert list(ids) == theirs.encode(text)
            assert ours.decode(list(ids)) == text == theirs.decode(list(ids))


def test_c4_is_a_task_of_seqio():
    """Others can import and mix it; it needs the network only when it is used."""
    import seqio

    from mujax.data.prepare import tasks

    task = seqio.get_mixture_or_task(tasks.C4_T5)
    assert task.source.tfds_dataset.name == "c4/en:3.1.0"
    feature = task.output_features["targets"]
    assert feature.add_eos and feature.vocabulary.extra_ids == 100
    mixture = seqio.get_mixture_or_task(f"{tasks.C4_T5}_mixture")
    assert [sub.name for sub in mixture.tasks] == [tasks.C4_T5]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("tfds:tiny_text", "must contain a version"),
        ("tfds:nothing_here:1.0.0", "nothing_here:1.0.0 cannot be read"),
        ("seqio:my_tasks:tiny_peaces", "is no Task; did you mean tiny_pieces"),
        ("seqio:my_tasks:tiny_mixture", "is a Mixture: prepare its Tasks one by one"),
        ("seqio:no_such_module:x", "No module named 'no_such_module'"),
    ],
)
def test_sources_that_are_not_there(source, complaint, my_tasks, data_dir, tmp_path):
    with pytest.raises(UserError, match=complaint):
        prepare(Recipe(source, "", "packed", validation="head:3", data_dir=str(data_dir)), tmp_path)


def test_a_field_that_is_not_there(data_dir, tmp_path):
    recipe = Recipe(
        "tfds:tiny_text:1.0.0", "bytes", "packed", 0, "head:3", field="body", data_dir=str(data_dir)
    )
    with pytest.raises(UserError, match="has no field 'body' but: text, url"):
        prepare(recipe, tmp_path)
