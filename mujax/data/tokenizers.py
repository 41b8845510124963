"""Tokenizers: the ids of seqio's vocabularies without TensorFlow, and Hugging Face's tokenizers."""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from mujax.errors import UserError, shown
from mujax.storage.records import is_name, read_bytes

Options = Mapping[str, str]
Ids = Sequence[int] | np.ndarray

# names of the end of a text in Hugging Face's tokenizers
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
TRAINING_SEED = 0
MAX_LINE_BYTES = 16_384


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer: text to token ids and back.

    encode: documents -> their ids, without an end.
    decode: ids -> text, special tokens removed.
    eos_id: ends a document, and pads its row.
    start_id: the first id of a row that begins with a document.
    file: (name, content) that the tokenizer was made from; ("", b"") if none.
    """

    kind: str
    vocab_size: int
    eos_id: int
    start_id: int
    encode: Callable[[Sequence[Any]], Sequence[Ids]]
    decode: Callable[[Sequence[int]], str]
    options: Options = dataclasses.field(default_factory=dict)
    file: tuple[str, bytes] = ("", b"")

    def as_dict(self) -> dict[str, Any]:
        """Returns the tokenizer's entry in dataset.json."""
        return {
            "kind": self.kind,
            "options": dict(self.options),
            "vocab_size": self.vocab_size,
            "eos_id": self.eos_id,
            "start_id": self.start_id,
            "file": self.file[0],
            "sha256": hashlib.sha256(self.file[1]).hexdigest() if self.file[0] else "",
        }


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Parses a description into (kind, value, options).

    'sentencepiece:t5.model,extra_ids=100' -> ('sentencepiece', 't5.model', {'extra_ids': '100'}).

    Raises:
      UserError: no such kind or option.
    """
    head, *rest = text.split(",")
    kind, _, value = head.partition(":")
    if kind not in KINDS and kind != "train":
        raise UserError(
            f"--tokenizer={text}: {kind!r} is not one of: {', '.join([*KINDS, 'train'])}"
        )
    known = OPTIONS.get(kind, ())
    options = {}
    for entry in rest:
        name, _, setting = entry.partition("=")
        if name not in known or not setting:
            what = (
                f"options of {kind} are {', '.join(known)}, as NAME=VALUE"
                if known
                else f"{kind} has no options"
            )
            raise UserError(f"--tokenizer={text}: {entry!r}: {what}")
        options[name] = setting
    wanted = {
        "bytes": "",
        "byte_vocabulary": "",
        "ids": "the number of ids",
        "train": "the number of ids",
    }
    needs = wanted.get(kind, "a file")
    if bool(value) != bool(needs):
        raise UserError(f"--tokenizer={text}: {kind} takes {needs or 'nothing'} after the colon")
    return kind, value, options


def read(kind: str, value: str, options: Options) -> Tokenizer:
    """Makes the tokenizer of a parsed description from its file.

    Raises:
      UserError: the file is missing or not a tokenizer, or a number is wrong.
    """
    if kind not in FILES:
        return make(kind, b"", {**options, **({"vocab_size": value} if value else {})})
    file = Path(value).expanduser()
    try:
        model = file.read_bytes()
    except OSError as e:
        raise UserError(f"--tokenizer={kind}:{value} cannot be read: {e.strerror}") from e
    return make(kind, model, options)


def of_dataset(folder: Path, recorded: Mapping[str, Any]) -> Tokenizer:
    """Makes the tokenizer that a dataset.json names.

    Raises:
      UserError: it cannot be made here, or its file is missing or not the one that the text was
        encoded with.
    """
    kind, name = recorded["kind"], recorded["file"]
    if kind not in KINDS:
        raise UserError(f"{folder}: text was encoded by {kind}, which only its own code can decode")
    model = b""
    if name:
        if not is_name(name):
            raise UserError(f"{folder}: its tokenizer {shown(name)} is no name of a file in it")
        file = folder / name
        try:
            model = read_bytes(file)
        except OSError as e:
            raise UserError(f"{file} cannot be read: {e.strerror}") from e
        if hashlib.sha256(model).hexdigest() != recorded["sha256"]:
            raise UserError(
                f"{file} is not the one that {folder} was prepared with; restore it from a copy"
            )
    return make(kind, model, recorded["options"])


def make(kind: str, model: bytes, options: Options) -> Tokenizer:
    """Makes a tokenizer from its kind, the content of its file, and options.

    Raises:
      UserError: the file is not of that kind, or an option is wrong.
    """
    return KINDS[kind](model, options)


def _whole(options: Options, name: str, default: int, least: int, most: int) -> int:
    text = options.get(name, str(default))
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(
            f"--tokenizer: {name} = {text} is not a whole number from {least} to {most}"
        )
    return int(text)


def _bytes(model: bytes, options: Options) -> Tokenizer:
    """Makes the tokenizer of UTF-8 bytes, for data.vocab_size = 256; 0 ends a document."""
    return Tokenizer(
        "bytes", 256, 0, 0, _encode_bytes, lambda ids: bytes(ids).decode(errors="replace")
    )


def _encode_bytes(texts: Sequence[str]) -> Sequence[Ids]:
    return [np.frombuffer(text.encode(), np.uint8) for text in texts]


def _byte_vocabulary(model: bytes, options: Options) -> Tokenizer:
    """Makes seqio.ByteVocabulary (ByT5, 2105.13626): pad 0, end 1, unknown 2; byte b is b + 3."""
    extra = _whole(options, "extra_ids", 0, 0, 2**20)

    def decode(ids: Sequence[int]) -> str:
        return bytes(i - 3 for i in ids if 3 <= i < 259).decode(errors="ignore")

    def encode(texts: Sequence[str]) -> Sequence[Ids]:
        return [ids.astype(np.uint16) + 3 for ids in map(np.asarray, _encode_bytes(texts))]

    return Tokenizer("byte_vocabulary", 259 + extra, 1, 0, encode, decode, options)


def _sentencepiece(model: bytes, options: Options) -> Tokenizer:
    """Makes seqio.SentencePieceVocabulary: a model's ids, then extra_ids that no text uses."""
    extra = _whole(options, "extra_ids", 0, 0, 2**20)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as e:
        raise UserError(
            f"--tokenizer: this file is no SentencePiece model ({len(model)} bytes)"
        ) from e
    size = processor.GetPieceSize()
    eos, pad, bos = processor.eos_id(), processor.pad_id(), processor.bos_id()
    if eos < 0:
        raise UserError(
            "--tokenizer: this SentencePiece model has no end of text (eos), which must end "
            "documents"
        )

    def encode(texts: Sequence[str]) -> Sequence[Ids]:
        return processor.Encode(list(texts), num_threads=1)

    def decode(ids: Sequence[int]) -> str:
        return processor.Decode([int(i) for i in ids if i < size])

    start = next((i for i in (bos, pad) if i >= 0), eos)
    file = ("tokenizer.model", model)
    return Tokenizer("sentencepiece", size + extra, eos, start, encode, decode, options, file)


def _huggingface(model: bytes, options: Options) -> Tokenizer:
    """Makes a tokenizer from a tokenizer.json; eos=NAME gives an unusual end of a text."""
    try:
        import tokenizers
    except ImportError as e:
        raise UserError(
            "--tokenizer=huggingface:FILE needs the library: pip install 'mujax[tokenizers]'"
        ) from e
    try:
        tokenizer = tokenizers.Tokenizer.from_str(model.decode())
    except Exception as e:  # the library raises Exception itself
        raise UserError(
            f"--tokenizer: this file is no tokenizer.json: {' '.join(str(e).split())[:120]}"
        ) from e
    names = [options["eos"]] if "eos" in options else END_NAMES
    eos = next((i for i in map(tokenizer.token_to_id, names) if i is not None), None)
    if eos is None:
        raise UserError(
            f"--tokenizer: this tokenizer.json has no {' or '.join(names)}; name its end of text: "
            ",eos=NAME"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # the name of a special id in a text is text

    def encode(texts: Sequence[str]) -> Sequence[Ids]:
        return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(i) for i in ids])

    size, file = (
        max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        ("tokenizer.json", model),
    )
    return Tokenizer("huggingface", size, eos, eos, encode, decode, options, file)


def _ids(model: bytes, options: Options) -> Tokenizer:
    """Makes seqio.PassThroughVocabulary: documents are lists of ids already."""
    size = _whole(options, "vocab_size", 0, 1, 2**31)
    eos = _whole(options, "eos_id", 0, 0, size - 1)

    return Tokenizer("ids", size, eos, eos, list, lambda ids: " ".join(map(str, ids)), options)


KINDS: dict[str, Callable[[bytes, Options], Tokenizer]] = {
    "bytes": _bytes,
    "byte_vocabulary": _byte_vocabulary,
    "sentencepiece": _sentencepiece,
    "huggingface": _huggingface,
    "ids": _ids,
}
FILES = ("sentencepiece", "huggingface")
OPTIONS = {
    "byte_vocabulary": ("extra_ids",),
    "sentencepiece": ("extra_ids",),
    "huggingface": ("eos",),
    "ids": ("eos_id",),
}


def train(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a SentencePiece model (unigram, 1804.10959); equal text gives equal bytes.

    Only U+2581 is lost, which SentencePiece reads as a space: characters without a piece become
    bytes, and nothing is normalized. Ids are T5's: 0 pads, 1 ends a text, 2 is unknown.

    Raises:
      UserError: the text does not give so many pieces.
    """
    sentencepiece.set_random_generator_seed(TRAINING_SEED)
    model = io.BytesIO()
    lines = (
        line
        for text in texts
        for line in text.split("\n")
        if line and len(line) < MAX_LINE_BYTES // 4
    )
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9999,
            user_defined_symbols=["\n"],
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            max_sentence_length=MAX_LINE_BYTES,
            input_sentence_size=200_000,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except RuntimeError as e:
        reason = " ".join(str(e).split())[-160:]
        raise UserError(
            f"no SentencePiece model of {vocab_size} pieces could be trained on this text: {reason}"
        ) from e
    return model.getvalue()
