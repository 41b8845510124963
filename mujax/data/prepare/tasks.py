"""TFDS through seqio: C4 with T5's vocabulary as a Task and a Mixture, and Tasks as sources.

Any user of seqio may use them. The import takes 10 s, for TensorFlow.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import cast

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # text needs no GPU

import seqio
import tensorflow as tf

from mujax.data import tokenizers
from mujax.data.prepare.sources import Document, Encoded, Part
from mujax.data.tokenizers import Tokenizer
from mujax.errors import UserError, suggest

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
C4_T5 = "mujax_c4_en_t5"


def text_task(
    name: str, tfds_name: str, field: str, vocabulary: seqio.Vocabulary | None, **source
) -> seqio.Task:
    """Makes a Task whose `targets` are a TFDS dataset's ids, or its text if there is no vocabulary.

    Args:
      source: further arguments of seqio.TfdsDataSource.
    """
    preprocessors = [functools.partial(seqio.preprocessors.rekey, key_map={"targets": field})]
    feature = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)
    if vocabulary is not None:
        preprocessors += [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
        feature = seqio.Feature(vocabulary, add_eos=True)
    tfds_source = seqio.TfdsDataSource(tfds_name, **source)
    return seqio.Task(name, tfds_source, {"targets": feature}, preprocessors)


if C4_T5 not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add_provider(
        C4_T5,
        text_task(
            C4_T5,
            "c4/en:3.1.0",
            "text",
            seqio.SentencePieceVocabulary(T5_VOCABULARY, extra_ids=100),
        ),
    )
    seqio.MixtureRegistry.add(f"{C4_T5}_mixture", [(C4_T5, 1.0)])


@dataclasses.dataclass(frozen=True)
class TaskSource:
    """Examples of a TFDS dataset, or of a registered Task with encoded `targets`, as documents.

    A part is one file of the dataset.

    name: for kind `tfds`, NAME[/CONFIG]:VERSION; for kind `seqio`, MODULE:TASK, or one of the Tasks
      of this module.
    """

    kind: str
    name: str
    validation_split: str
    field: str
    data_dir: str

    @property
    def has_validation(self) -> bool:
        return bool(self.validation_split)

    @functools.cached_property
    def _task(self) -> seqio.Task:
        if self.data_dir:
            seqio.set_tfds_data_dir_override(self.data_dir)
        if self.kind == "tfds":
            try:
                return text_task("documents", self.name, self.field, None)
            except ValueError as e:
                raise UserError(f"--source=tfds:{self.name}: {_first_line(e)}") from e
        module, _, name = self.name.rpartition(":")
        if module:
            try:
                __import__(module)
            except ImportError as e:
                raise UserError(f"--source=seqio:{self.name}: {e}") from e
        names = seqio.TaskRegistry.names()
        if name not in names:
            what = (
                "is a Mixture: prepare its Tasks one by one"
                if name in seqio.MixtureRegistry.names()
                else "is no Task"
            )
            raise UserError(f"--source=seqio:{self.name}: {name} {what}{suggest(name, names)}")
        task = seqio.TaskRegistry.get(name)
        if "targets" not in task.output_features:
            raise UserError(
                f"--source=seqio:{self.name}: its features are {', '.join(task.output_features)}, "
                "not targets"
            )
        return task

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the Task: mujax's if possible, else one that cannot encode or decode."""
        return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self.kind == "tfds":
            return None
        vocabulary = self._task.output_features["targets"].vocabulary
        try:
            if isinstance(vocabulary, seqio.SentencePieceVocabulary):
                # This model has the extra ids in it.
                return tokenizers.make("sentencepiece", vocabulary.sp_model or b"", {})
            if isinstance(vocabulary, seqio.ByteVocabulary):
                return tokenizers.make(
                    "byte_vocabulary", b"", {"extra_ids": str(vocabulary.extra_ids)}
                )
            size, eos, pad = vocabulary.vocab_size, vocabulary.eos_id, vocabulary.pad_id
        except (OSError, tf.errors.OpError) as e:
            raise UserError(
                f"--source=seqio:{self.name}: its vocabulary cannot be read: {_first_line(e)}"
            ) from e
        if eos is None:
            raise UserError(
                f"--source=seqio:{self.name}: its vocabulary has no id that ends a document"
            )
        return Tokenizer(type(vocabulary).__name__, size, eos, pad, _not_here, _not_here)

    def parts(self) -> list[Part]:
        found, source = [], self._task.source
        if self.kind == "tfds":
            fields = list(self._features())
            if self.field not in fields:
                where = (
                    f"--source=tfds:{self.name} has no field {self.field!r} but: "
                    f"{', '.join(sorted(fields))}"
                )
                raise UserError(f"{where}; name the one with the text: --field")
        for split, wanted in (("train", "train"), ("validation", self.validation_split)):
            if not wanted:
                continue
            try:
                shards = source.list_shards(wanted)
            except Exception as e:  # TFDS, seqio and TensorFlow each raise their own types
                where = f"--source={self.kind}:{self.name}: its split {wanted!r} cannot be read"
                raise UserError(f"{where}: {type(e).__name__}: {_first_line(e)}") from e
            sizes = [os.path.getsize(file) if os.path.isfile(file) else 0 for file in shards]
            found += [
                Part(f"{os.path.basename(file)}", split, size, (wanted, i, len(shards)))
                for i, (file, size) in enumerate(zip(shards, sizes, strict=True))
            ]
        return found

    def _features(self):
        try:
            return cast(seqio.TfdsDataSource, self._task.source).tfds_dataset.info.features
        except Exception as e:
            raise UserError(
                f"--source=tfds:{self.name} cannot be read: {type(e).__name__}: {_first_line(e)}"
            ) from e

    def documents(self, part: Part) -> Iterator[Document]:
        split, index, num_shards = part.where
        dataset = self._task.get_dataset(
            sequence_length=None,
            split=split,
            shuffle=False,
            num_epochs=1,
            use_cached=False,
            seed=0,  # for random operations of a Task
            shard_info=seqio.ShardInfo(index, num_shards),
        )
        for example in dataset.as_numpy_iterator():
            yield self._document(example, part.name)

    def _document(self, example, where: str) -> Document:
        targets = example["targets"]
        if self.kind == "tfds":
            try:
                return targets.decode()
            except (UnicodeDecodeError, AttributeError) as e:
                raise UserError(f"{where}: {self.field} is not UTF-8 text ({e})") from e
        ids = np.asarray(targets)
        if len(ids) and self.tokenizer and ids[-1] == self.tokenizer.eos_id:
            ids = ids[:-1]
        return Encoded(ids, len(example.get("targets_pretokenized", b"")))

    def __getstate__(self):
        return dataclasses.asdict(self)  # without caches, which cannot be pickled

    def __setstate__(self, state) -> None:
        self.__dict__.update(state)


def _not_here(*_):
    raise UserError("this vocabulary is known to its own code alone")


def _first_line(e: BaseException) -> str:
    return next(iter(str(e).strip().splitlines()), type(e).__name__)[:200]
