"""Shards hold what an independent tokenization of the same documents gives, however often their
making was killed."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import ROOT
from helpers import (
    VOCAB,
    documents,
    end_at_training,
    expected_ids,
    stream_of,
    train_args,
    write_jsonl,
)

from mujax import main
from mujax.data import tokenizers
from mujax.data.embedded import load_pieces
from mujax.data.prepare.dataset import Recipe, prepare
from mujax.data.shards import load_shards, read_description
from mujax.errors import UserError


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    """The same documents in files of both formats, three of each."""
    texts, folder = documents(), tmp_path / "the 'source'"
    folder.mkdir()
    for i, part in enumerate((texts[:25], texts[25:26], texts[26:])):
        write_jsonl(folder / f"{i}.jsonl.gz", part)
        table = pa.table({"id": list(range(len(part))), "text": part})
        pa.parquet.write_table(table, folder / f"{i}.parquet", row_group_size=10)
    return {"jsonl": f"jsonl:{folder}/*.jsonl.gz", "parquet": f"parquet:{folder}/*.parquet"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_packed_rows_are_the_documents_and_their_ends(kind, sources, pieces, tmp_path):
    """Every token once; the first 20 documents for validation, though they are of several parts;
    rows of any length."""
    made = prepare(
        Recipe(sources[kind], f"sentencepiece:{pieces}", "packed", validation="head:30"),
        tmp_path / "out",
    )
    ids = expected_ids(pieces, documents())
    for split, own in (("validation", ids[:30]), ("train", ids[30:])):
        expected = [i for document in own for i in [*document, 1]]
        assert stream_of(tmp_path / "out", split).tolist() == expected
        counts = made["splits"][split]
        assert (counts["documents"], counts["tokens"]) == (len(own), len(expected))
    texts = [text for text in documents() if text]
    assert made["splits"]["train"]["text_bytes"] == sum(len(text.encode()) for text in texts[30:])
    assert made["empty_documents"] == 1
    for seq_len in (7, 64, 1000):
        corpus = load_shards(tmp_path / "out", seq_len, VOCAB, -1, 1, batch_size=1)
        rows = corpus.train[np.arange(len(corpus.train))]
        stream = stream_of(tmp_path / "out", "train")
        assert 0 <= len(stream) - (len(rows) * seq_len + 1) < seq_len
        assert np.array_equal(rows[:, 1:].reshape(-1), stream[1 : 1 + len(rows) * seq_len])
        assert np.array_equal(rows[1:, 0], rows[:-1, -1])
    assert corpus.bits_per_byte(1.0) == pytest.approx(
        made["splits"]["validation"]["tokens"]
        / sum(len(t.encode()) for t in texts[:30])
        / np.log(2)
    )


def test_a_document_a_row(sources, pieces, tmp_path):
    """As in 2404.05728: an id 0 first, since there is no BOS; cut to 31 tokens and an end, padded
    with ends; and the loss of what comes after the first end is not counted."""
    from mujax.training.loss import until_first

    recipe = Recipe(
        sources["jsonl"], f"sentencepiece:{pieces}", "document", seq_len=32, validation="head:30"
    )
    made = prepare(recipe, tmp_path / "out", num_processes=2)
    ids = expected_ids(pieces, documents())
    corpus = load_shards(tmp_path / "out", 32, VOCAB, 1, -1, batch_size=4)
    rows = [*corpus.validation[np.arange(30)], *corpus.train[np.arange(len(ids) - 30)]]
    for row, document in zip(rows, ids, strict=True):
        kept = document[:31]
        assert row.tolist() == [0, *kept, *[1] * (32 - len(kept))]
        assert until_first(1, row[None, 1:]).sum() == len(kept) + 1
    counts = made["splits"]["train"]
    assert counts["cut_documents"] == sum(len(document) > 31 for document in ids[30:]) > 0
    # What the loss counts, and what it does not; a start begins each row. Cutting leaves the
    # tokenizer as dense.
    stream = stream_of(tmp_path / "out", "train").reshape(-1, 33)
    assert counts["tokens"] == until_first(1, stream[:, 1:]).sum()
    assert counts["tokens"] + counts["padding"] + len(stream) == stream.size
    assert (
        counts["tokens_per_byte"]
        == sum(len(document) + 1 for document in ids[30:]) / counts["text_bytes"]
    )


def test_by_hash_whatever_the_order(sources, pieces, tmp_path):
    """The split of a document depends on its text alone."""
    texts = documents()
    write_jsonl(tmp_path / "other.jsonl", texts[::-1])
    held_out = []
    for i, source in enumerate((sources["parquet"], f"jsonl:{tmp_path}/other.jsonl")):
        prepare(Recipe(source, "bytes", "packed", validation="hash:0.3"), tmp_path / str(i))
        ends = stream_of(tmp_path / str(i), "validation").astype(np.uint8).tobytes().split(b"\0")
        held_out.append(sorted(end.decode() for end in ends if end))
    assert held_out[0] == held_out[1]
    lowest = [
        t for t in texts if t and hashlib.sha256(t.encode()).digest() < bytes([int(0.3 * 256) + 1])
    ]
    assert 8 < len(held_out[0]) < 30 and set(held_out[0]) <= set(lowest)


def test_the_embedded_text_as_bytes_is_what_the_corpus_trains_on(tmp_path):
    """Through shards or directly: the same rows, but for the end of the last document."""
    from mujax.data.text import load_corpus

    prepare(Recipe("embedded", "bytes", "packed"), tmp_path, num_processes=2)
    ours, theirs = load_shards(tmp_path, 64, 256, -1, 0, 8), load_corpus("embedded", "", "", 64, 8)
    for split in ("train", "validation"):
        a, b = getattr(ours, split), getattr(theirs, split)
        assert 0 <= len(a) - len(b) <= 1
        assert np.array_equal(a[np.arange(len(b))], b)


def test_tokenizers_lose_nothing_and_are_what_they_say(pieces):
    model = pieces.read_bytes()
    # the same text, the same bytes
    assert tokenizers.train([Path(os.__file__).read_text()], VOCAB) == model
    made = [
        tokenizers.make("sentencepiece", model, {"extra_ids": "100"}), tokenizers.make("bytes", b"",
        {}),
        tokenizers.make("byte_vocabulary", b"", {}),
    ]  # fmt: skip
    assert made[0].vocab_size == VOCAB + 100
    rng = random.Random(1)
    odd = "".join(
        chr(rng.choice([9, 10, 32, 32, 97, 233, 0x2603, 0x1F600, 0x10FFFF])) for _ in range(500)
    )
    texts = ["", " a  b ", "\n\nx\t\r\n", odd, *documents(10)]
    for tokenizer in made:
        for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
            assert tokenizer.decode(list(ids)) == text
            assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for i in ids)


def test_hugging_face_tokenizers(tmp_path):
    """A BPE trained here: the ids of the library, one document at a time, and the end by its
    name."""
    import tokenizers as library

    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(), trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "a.jsonl", documents(), field="content")
    which = f"huggingface:{tmp_path}/tokenizer.json"
    recipe = Recipe(
        f"jsonl:{tmp_path}/a.jsonl", which, "packed", validation="head:3", field="content"
    )
    prepare(recipe, tmp_path / "out")
    expected = [i for text in documents() if text for i in [*tokenizer.encode(text).ids, 0]]
    made = [*stream_of(tmp_path / "out", "validation"), *stream_of(tmp_path / "out", "train")]
    assert made == expected
    loaded = tokenizers.of_dataset(
        tmp_path / "out", read_description(tmp_path / "out")["tokenizer"]
    )
    assert loaded.decode(made[: expected.index(0)]) == documents()[0]
    spelled = "web text spells <|endoftext|> too"
    (ids,) = loaded.encode([spelled])
    assert 0 not in ids and loaded.decode(list(ids)) == spelled
    with pytest.raises(UserError, match="has no <end>"):
        prepare(
            Recipe(recipe.source, f"{which},eos=<end>", "packed", 0, "head:3", field="content"),
            tmp_path / "b",
        )


def test_ids_pass_through(tmp_path):
    """Documents that are ids already; more than 2^16 of them take four bytes each."""
    lists = [[i, 70_000 - i, 2] for i in range(3, 50)]
    write_jsonl(tmp_path / "a.jsonl", lists)
    made = prepare(
        Recipe(f"jsonl:{tmp_path}/a.jsonl", "ids:70000,eos_id=1", "packed", validation="head:5"),
        tmp_path / "o",
    )
    assert made["dtype"] == "uint32" and made["splits"]["train"]["tokens_per_byte"] is None
    assert stream_of(tmp_path / "o", "train").tolist() == [
        i for ids in lists[5:] for i in [*ids, 1]
    ]


def test_pieces_of_any_text_are_made_once(tmp_path, monkeypatch, capsys):
    """data.name = 'text' with a larger vocabulary: trained on the spot, cached by what the text is,
    and trained on."""
    monkeypatch.setenv("MUJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(" ".join(documents()[i : i + 20]))
    first = load_pieces("text", str(tmp_path / "text"), "*.txt", 400)
    assert "training 400 SentencePiece pieces" in capsys.readouterr().err
    before = (first / "dataset.json").stat().st_mtime_ns
    assert load_pieces("text", str(tmp_path / "text"), "*.txt", 400) == first
    assert (first / "dataset.json").stat().st_mtime_ns == before and not capsys.readouterr().err
    (tmp_path / "text" / "3.txt").write_text("other")
    assert load_pieces("text", str(tmp_path / "text"), "*.txt", 400) != first
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_train_and_sample_on_shards(sources, pieces, tmp_path, capsys):
    """The commands that a user types, paths with spaces and quotes among them; bits a byte beside
    nats."""
    data, run = tmp_path / "the 'data'", tmp_path / "run"
    args = [
        f"--source={sources['parquet']}",
        f"--tokenizer=sentencepiece:{pieces}",
        f"--workdir={data}",
    ]
    assert (
        main.run(["prepare", *args, "--layout=packed", "--validation=head:20", "--processes=1"])
        == 0
    )
    said = capsys.readouterr().out
    assert "train: 39 documents" in said and f"--config.data.path={data}" in said
    assert main.run([*train_args(data, run), "--config.model.separator_id=1"]) == 0
    row, made = json.loads((run / "result.json").read_text()), read_description(data)
    counts = made["splits"]["validation"]
    assert row["data_fingerprint"] == made["fingerprint"]
    per_byte = counts["tokens"] / counts["text_bytes"]
    assert row["bits_per_byte"] == pytest.approx(row["final_loss"] * per_byte / np.log(2))
    assert f"({row['bits_per_byte']:.4f} bits/byte)" in capsys.readouterr().out
    assert main.run(["sample", f"--workdir={run}", "--prompt=import os", "--num_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("import os")
    # left alone
    assert main.run(["prepare", *args, "--layout=packed", "--validation=head:20"]) == 0
    assert main.run(["prepare", *args, "--layout=packed", "--validation=head:21"]) == 2
    assert "holds another dataset: validation: head:20 -> head:21" in capsys.readouterr().err
    # What the data has become is no longer what the checkpoint was trained on
    (
        (data / "dataset.json").unlink(),
        [f.unlink() for f in data.glob("*.bin")],
        (data / "tokenizer.model").unlink(),
    )
    assert main.run(["prepare", *args, "--layout=packed", "--validation=head:21"]) == 0
    capsys.readouterr()
    assert main.run([*train_args(data, run), "--config.model.separator_id=1"]) == 2
    assert f"fingerprint {made['fingerprint']} -> " in capsys.readouterr().err
    assert main.run(["sample", f"--workdir={run}", "--prompt=import os", "--num_tokens=5"]) == 2
    assert f"it was trained on data of fingerprint {made['fingerprint']}" in capsys.readouterr().err


def finished(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_many(folder: Path) -> list[str]:
    """Writes 30 files of documents; returns the command that prepares them by two processes."""
    texts = documents(600)
    for i in range(30):
        write_jsonl(folder / f"{i}.jsonl", texts[20 * i : 20 * i + 20] * 40)
    source = f"--source=jsonl:{folder}/*.jsonl"
    flags = ["--tokenizer=train:400", "--layout=packed", "--validation=hash:0.1"]
    return [sys.executable, "-m", "mujax", "prepare", source, *flags, "--processes=2"]


def no_process_is_left(mark: str) -> None:
    """Asserts that all processes end soon that have a mark in their environment."""
    deadline = time.monotonic() + 20
    while any(mark in environment_of(pid) for pid in os.listdir("/proc") if pid.isdigit()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_killed_with_processes_of_its_own(tmp_path):
    """By SIGKILL, once a part is done: its processes end too, and the same command leaves the same
    bytes and nothing else."""
    command, killed = write_many(tmp_path), tmp_path / "killed"
    marked = {**os.environ, "KILLED_IN": str(tmp_path)}
    with subprocess.Popen(
        [*command, f"--workdir={killed}"], cwd=ROOT, stderr=subprocess.DEVNULL, env=marked
    ) as process:
        deadline = time.monotonic() + 100
        while not list(killed.glob("preparing/part-*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    no_process_is_left(f"KILLED_IN={tmp_path}")
    assert 0 < len(list(killed.glob("preparing/part-*.json"))) < 30
    for workdir in (killed, tmp_path / "whole"):
        assert main.run([*command[3:-1], f"--workdir={workdir}"]) == 0
    assert finished(killed) == finished(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_times(tmp_path):
    """Ten times, from the start of the command on."""
    command, num_kills = write_many(tmp_path), 10
    start = time.monotonic()
    subprocess.run(
        [*command, f"--workdir={tmp_path}/whole"], cwd=ROOT, check=True, capture_output=True
    )
    marked = {**os.environ, "KILLED_IN": str(tmp_path)}
    seconds, rng, killed = time.monotonic() - start, random.Random(num_kills), 0
    while killed < num_kills:
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path}/killed"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            env=marked,
        )
        try:
            process.wait(rng.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        if process.wait() == 0:  # once more from the beginning
            subprocess.run(["rm", "-r", f"{tmp_path}/killed"], check=True)
    subprocess.run(
        [*command, f"--workdir={tmp_path}/killed"], cwd=ROOT, check=True, capture_output=True
    )
    left = finished(tmp_path / "killed")
    # killed after its last file: the same command again has only checked them
    left.pop(".verified.json", None)
    assert left == finished(tmp_path / "whole")
    no_process_is_left(f"KILLED_IN={tmp_path}")


def environment_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_full_disk(tmp_path):
    """Writes fail in the middle of a file: one line, exit code 2, and with room the same command
    ends as if nothing had been."""
    for i in range(4):
        write_jsonl(tmp_path / f"{i}.jsonl", documents(10 * (i + 1)))
    args = [
        f"--source=jsonl:{tmp_path}/*.jsonl",
        "--tokenizer=bytes",
        "--layout=packed",
        "--validation=hash:0.2",
    ]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    program = f"{limit}; import sys; from mujax import main; sys.exit(main.run(sys.argv[1:]))"
    for processes in (1, 2):
        flags = ["prepare", *args, f"--workdir={tmp_path}/full", f"--processes={processes}"]
        done = subprocess.run(
            [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True
        )
        assert (
            done.returncode == 2
            and "File too large" in done.stderr
            and "Traceback" not in done.stderr
        ), done.stderr
    assert not (tmp_path / "full" / "dataset.json").exists()
    assert main.run(["prepare", *args, f"--workdir={tmp_path}/full", "--processes=1"]) == 0
    assert main.run(["prepare", *args, f"--workdir={tmp_path}/whole", "--processes=1"]) == 0
    assert finished(tmp_path / "full") == finished(tmp_path / "whole")


def bad_sources(folder: Path) -> dict[str, tuple[str, str]]:
    """Complaint -> (source, tokenizer)."""
    texts = documents(4)
    write_jsonl(folder / "good.jsonl", texts)
    (folder / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n' * 1000)[:40])
    pa.parquet.write_table(pa.table({"body": ["x"]}), folder / "a.parquet")
    (folder / "no.parquet").write_bytes(b"PAR1 no")
    (folder / "folder").mkdir()
    (folder / "folder" / "a.txt").write_bytes(b"caf\xe9")
    (folder / "lists.jsonl").write_text('{"text": [1, 9]}\n')
    (folder / "negative.jsonl").write_text('{"text": [3, -4]}\n')
    (folder / "half.jsonl").write_text('{"text": "bad \\ud800"}\n')
    (folder / "nul.jsonl").write_text('{"text": "a\\u0000b"}\n')
    (folder / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (folder / "gzip.jsonl").write_bytes(gzip.compress(b'{"text": "abc"}\n'))
    (folder / "z.jsonl.zst").write_bytes(bytes.fromhex("28b52ffd 2004 21000061 62630a"))
    (folder / "b.jsonl").write_bytes(bz2.compress(b'{"text": "abc"}\n'))
    (folder / "z.parquet").write_bytes(gzip.compress((folder / "a.parquet").read_bytes()))
    (folder / "packed").mkdir()
    (folder / "packed" / "a.txt").write_bytes(lzma.compress(b"text"))
    (folder / "words.jsonl").write_text(json.dumps({"text": ["a whole document " * 99]}) + "\n")
    (folder / "key.jsonl").write_text(json.dumps({"a whole document " * 99: 1}) + "\n")
    return {
        "has no field 'words' but: url, text": ("jsonl:good.jsonl", "bytes"),
        "latin.jsonl, line 2 is not UTF-8 text (byte 13)": ("jsonl:latin.jsonl", "bytes"),
        "broken.jsonl, line 2 is not JSON": ("jsonl:broken.jsonl", "bytes"),
        "number.jsonl, line 1: text is int, not text": ("jsonl:number.jsonl", "bytes"),
        "cut.jsonl.gz is damaged": ("jsonl:cut.jsonl.gz", "bytes"),
        "a.parquet has no column 'text' but: body": ("parquet:a.parquet", "bytes"),
        "no.parquet is no parquet file": ("parquet:no.parquet", "bytes"),
        "no file matches": ("jsonl:nowhere*", "bytes"),
        "a.txt is not UTF-8 text (byte 3)": ("text:folder", "bytes"),
        "lists.jsonl: id 9 is none of the 9": ("jsonl:lists.jsonl", "ids:9,eos_id=0"),
        "has in it the id that ends documents, 1": ("jsonl:lists.jsonl", "ids:10,eos_id=1"),
        "negative.jsonl, line 1: text has -4, which is no id": ("jsonl:negative.jsonl", "ids:9"),
        "half.jsonl, line 1: text is no text that UTF-8 can hold": ("jsonl:half.jsonl", "bytes"),
        "nul.jsonl: a document has in it the id that ends documents, 0": (
            "jsonl:nul.jsonl",
            "bytes",
        ),
        "deep.jsonl, line 1 is not JSON": ("jsonl:deep.jsonl", "bytes"),
        "gzip.jsonl is compressed (gzip) without the suffix by which mujax knows it": (
            "jsonl:gzip.jsonl",
            "bytes",
        ),
        "z.jsonl.zst is compressed (zstd), which mujax does not read": (
            "jsonl:z.jsonl.zst",
            "bytes",
        ),
        "b.jsonl is compressed (bzip2), which mujax does not read": ("jsonl:b.jsonl", "bytes"),
        "z.parquet is compressed as a whole (gzip)": ("parquet:z.parquet", "bytes"),
        "a.txt is compressed (xz): decompress it": ("text:packed", "bytes"),
        "words.jsonl, line 1: text has 'a whole document": ("jsonl:words.jsonl", "ids:9"),
        "key.jsonl, line 1 has no field 'text' but: a whole document": ("jsonl:key.jsonl", "bytes"),
        "it holds lists of ids, not text": ("jsonl:lists.jsonl", "bytes"),
        "it is text where --tokenizer=ids expects": ("jsonl:good.jsonl", "ids:9"),
        "'words' is not one of: bytes, byte_vocabulary, sentencepiece": (
            "jsonl:good.jsonl",
            "words:3",
        ),
        "no such": ("text:nowhere", "bytes"),
        "cannot be read: No such file": ("jsonl:good.jsonl", "sentencepiece:nowhere.model"),
        "is no SentencePiece model": ("jsonl:good.jsonl", "sentencepiece:good.jsonl"),
        "is no tokenizer.json": ("jsonl:good.jsonl", "huggingface:good.jsonl"),
        "no SentencePiece model of 5000 pieces": ("jsonl:good.jsonl", "train:5000"),
        "--tokenizer is missing": ("jsonl:good.jsonl", ""),
        "'web' is not one of": ("web:x", "bytes"),
    }


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    """Each ends with 2 and names what is wrong and where; nothing that looks finished is left."""
    monkeypatch.chdir(tmp_path)
    for complaint, (source, tokenizer) in bad_sources(tmp_path).items():
        field = "words" if "'words' but" in complaint else "text"
        own = "own" if source.startswith("text") else "head:1"
        args = [
            f"--source={source}",
            f"--tokenizer={tokenizer}",
            f"--field={field}",
            f"--validation={own}",
        ]
        args = [arg for arg in args if not arg.endswith("=")]
        assert (
            main.run(
                [
                    "prepare",
                    *args,
                    "--layout=packed",
                    f"--workdir=out-{tokenizer[:5]}-{source[-9:]}",
                ]
            )
            == 2
        )
        said = capsys.readouterr().err
        assert complaint in said and "Traceback" not in said and len(said) < 600, said
    assert not list(tmp_path.glob("out*/dataset.json"))
    good = ["prepare", "--source=jsonl:good.jsonl", "--tokenizer=bytes"]
    for flags, complaint in {
        "--layout=packed --workdir=a": "sets nothing aside; use own:WHERE, head:N or hash:SHARE",
        "--layout=packed --workdir=b --validation=head:9": "the source ends 5 documents before",
        "--layout=packed --workdir=c --validation=hash:2": "--validation=hash:2 is none of",
        "--layout=rows --workdir=d --validation=head:1": "--layout=rows is not one of: document, "
        "packed",
        (
            "--layout=packed --seq_len=8 --workdir=e --validation=head:1"
        ): "rows of `packed` are cut when",
        "--layout=document --workdir=f --validation=head:1": "`document` needs the tokens of a row",
        "--layout=packed --workdir=folder --validation=head:1": "holds something else (a.txt); "
        "choose a new folder",
        "--layout=packed --workdir=gs://b/c --validation=head:1": "is not a local folder",
    }.items():
        assert main.run([*good, *flags.split()]) == 2
        assert complaint in capsys.readouterr().err, flags


def test_a_source_that_has_changed_is_not_gone_on_with(tmp_path, monkeypatch):
    """What is half done of other files is refused."""
    from mujax.data.prepare import dataset as module

    for i in range(3):
        write_jsonl(tmp_path / f"{i}.jsonl", documents(5))
    recipe = Recipe(f"jsonl:{tmp_path}/*.jsonl", "bytes", "packed", validation="hash:0.5")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(recipe, tmp_path / "out")
    with pytest.raises(UserError, match="holds another dataset: layout: packed -> document"):
        prepare(Recipe(**{**vars(recipe), "layout": "document", "seq_len": 8}), tmp_path / "out")
    write_jsonl(tmp_path / "1.jsonl", documents(6))
    with pytest.raises(UserError, match="was begun with other files"):
        prepare(recipe, tmp_path / "out")


def test_a_finished_dataset_says_that_its_source_has_changed(tmp_path, capsys):
    """Also where the size is the same; it stays as it is, and nothing is said of a source that was
    taken away."""
    for i in range(2):
        write_jsonl(tmp_path / f"{i}.jsonl", ["abc", "def"])
    args = ["prepare", f"--source=jsonl:{tmp_path}/*.jsonl", "--tokenizer=bytes", "--layout=packed"]
    args += ["--validation=head:1", "--processes=1", f"--workdir={tmp_path / 'out'}"]

    def said() -> str:
        assert main.run(args) == 0
        return capsys.readouterr().err

    said()
    assert "source" not in said()
    before = finished(tmp_path / "out")
    write_jsonl(tmp_path / "1.jsonl", ["abc", "xyz"])
    os.utime(tmp_path / "1.jsonl", (2e9, 2e9))
    write_jsonl(tmp_path / "2.jsonl", ["new"])
    assert re.search(
        r"the source changed: \S*1.jsonl has changed, \S*2.jsonl is new; it stays as it was", said()
    )
    for i in range(3):
        (tmp_path / f"{i}.jsonl").unlink()
    assert "source" not in said()
    assert finished(tmp_path / "out") == before


def test_damaged_shards_are_named_before_training(sources, tmp_path, monkeypatch, capsys):
    """Cut, edited, missing, or a dataset.json that was edited; read again only if they have
    changed."""
    data = tmp_path / "data"
    prepare(Recipe(sources["jsonl"], "bytes", "packed", validation="head:20"), data)
    read = {"name": "shards", "path": data, "vocab_size": 256}
    end_at_training(monkeypatch)
    assert main.run(train_args(data, tmp_path / "run", **read)) == 75
    shard = data / "train-00002.bin"
    content = shard.read_bytes()
    capsys.readouterr()

    def complaint() -> str:
        assert main.run(train_args(data, tmp_path / "other", **read)) == 2
        assert not (tmp_path / "other" / "checkpoints").exists()
        return capsys.readouterr().err

    shard.write_bytes(content[:-2])
    assert f"{shard} has {len(content) - 2} bytes, not the {len(content)}" in complaint()
    shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert f"{shard} was changed since it was prepared" in complaint()
    shard.unlink()
    assert f"{shard} is missing" in complaint()
    shard.write_bytes(content)
    described = (data / "dataset.json").read_text()
    for old, new in (
        ('"eos_id": 0', '"eos_id": 7'),
        ('"tokens_per_byte": 1', '"tokens_per_byte": 9'),
    ):
        assert old in described
        (data / "dataset.json").write_text(described.replace(old, new))
        assert "dataset.json was edited" in complaint()
    (data / "dataset.json").unlink()
    assert "has no dataset.json" in complaint()


def test_configs_that_do_not_fit_the_data(sources, tmp_path, monkeypatch, capsys):
    prepare(
        Recipe(sources["jsonl"], "byte_vocabulary", "packed", validation="head:20"),
        tmp_path / "packed",
    )
    recipe = Recipe(
        sources["jsonl"], "byte_vocabulary", "document", seq_len=16, validation="head:20"
    )
    prepare(recipe, tmp_path / "rows")
    for layout, fields, complaint in [
        (
            "packed",
            {"vocab_size": 256},
            "data.vocab_size = 256: .* has 259 ids; set that, or up to",
        ),
        ("packed", {"vocab_size": 385}, "data.vocab_size = 385"),
        (
            "packed",
            {"vocab_size": 259, "eos_id": 1},
            "is packed, and the loss counts all of a row: set -1",
        ),
        (
            "packed",
            {"vocab_size": 259, "seq_len": 100_000},
            "its train split has 0 rows of 100000 tokens",
        ),
        ("rows", {"vocab_size": 259, "eos_id": 1, "seq_len": 32}, "a document a row, cut to 16"),
        ("rows", {"vocab_size": 259, "eos_id": -1}, "padded with 1, which the loss must not count"),
        (
            "rows",
            {"vocab_size": 259, "path": "gs://b/c"},
            "are read from a local disk; copy them first",
        ),
    ]:
        assert (
            main.run(
                train_args(
                    tmp_path / layout, tmp_path / "run", **{"path": tmp_path / layout, **fields}
                )
            )
            == 2
        )
        said = capsys.readouterr().err
        assert re.search(complaint, said), said
    # rounded up to a multiple of 128
    args = train_args(tmp_path / "packed", tmp_path / "run", vocab_size=384)
    assert main.run([*args, "--config.model.separator_id=3"]) == 2
    assert "documents of" in capsys.readouterr().err
    end_at_training(monkeypatch)
    assert main.run([*args, "--config.model.separator_id=1"]) == 75


def test_training_imports_no_tensorflow():
    """Nor does mujax prepare, unless its source is one of TensorFlow's."""
    program = (
        "import sys, mujax.training.loop, mujax.sweep.study, mujax.sample, mujax.plan.plan, "
        "mujax.check.run\n"
        "import mujax.data.prepare.dataset\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets', 'pyarrow', 'tokenizers'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_pieces_of_one_file_are_of_it_alone(tmp_path, monkeypatch):
    """Also where a name looks like a pattern, and has another file beside it."""
    monkeypatch.setenv("MUJAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "a [1] folder"
    folder.mkdir()
    (folder / "a.txt").write_text(" ".join(documents()))
    (folder / "other.txt").write_text("SECRET " * 5000)
    for path, glob in ((folder / "a.txt", "**/*"), (folder, "a*.txt")):
        made = read_description(load_pieces("text", str(path), glob, VOCAB))
        counts = made["splits"]
        size = counts["train"]["text_bytes"] + counts["validation"]["text_bytes"]
        assert size == len((folder / "a.txt").read_bytes())
        assert counts["train"]["documents"] == 1


def stopped_after_a_part(recipe: Recipe, folder: Path, monkeypatch) -> None:
    """As if killed."""
    from mujax.data.prepare import parts

    def die(*args):
        raise ZeroDivisionError

    real = parts._do
    with monkeypatch.context() as patch:
        patch.setattr(parts, "_do", lambda *args: real(*args) if args[2] == 0 else die())
        with pytest.raises(ZeroDivisionError):
            prepare(recipe, folder)


def test_what_has_changed_in_between(tmp_path, pieces, monkeypatch):
    """A tokenizer file that is another one now; a folder that was just begun; what a killed process
    has left."""
    for i in range(2):
        write_jsonl(tmp_path / f"{i}.jsonl", documents(9))
    model = tmp_path / "m.model"
    model.write_bytes(pieces.read_bytes())
    recipe = Recipe(
        f"jsonl:{tmp_path}/*.jsonl", f"sentencepiece:{model}", "packed", validation="head:3"
    )
    stopped_after_a_part(recipe, tmp_path / "out", monkeypatch)
    model.write_bytes(tokenizers.train([" ".join(documents())], VOCAB))
    with pytest.raises(UserError, match="was begun with another tokenizer"):
        prepare(recipe, tmp_path / "out")
    model.write_bytes(pieces.read_bytes())
    (tmp_path / "out" / ".tokenizer.model.123").write_text("torn")
    prepare(recipe, tmp_path / "out")
    (tmp_path / "whole" / "preparing").mkdir(parents=True)  # killed before anything was in it
    prepare(recipe, tmp_path / "whole")
    assert finished(tmp_path / "out") == finished(tmp_path / "whole")
    (tmp_path / "out" / "train-00001.bin").unlink()
    with pytest.raises(UserError, match="train-00001.bin is missing"):
        prepare(recipe, tmp_path / "out")


def test_no_document_is_read_twice(tmp_path, monkeypatch):
    """Patterns that spell the same files in two ways; a folder for shards inside that of the
    text."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "val"):
        write_jsonl(tmp_path / f"{name}.jsonl", documents(9))
    made = prepare(
        Recipe("jsonl:*.jsonl", "bytes", "packed", validation=f"own:{tmp_path}/val.jsonl"),
        tmp_path / "out",
    )
    assert [made["splits"][split]["documents"] for split in ("train", "validation")] == [16, 8]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a" * 100)
    with pytest.raises(
        UserError, match="is inside the source, which has .*lock; choose a folder elsewhere"
    ):
        prepare(Recipe("text:text", "bytes", "packed"), tmp_path / "text" / "out")


def test_ids_with_holes(tmp_path):
    """The vocabulary is as large as its largest id needs, not as it has entries."""
    import tokenizers as library

    tokenizer = library.Tokenizer(
        library.models.WordLevel({"[UNK]": 0, "a": 3, "<|endoftext|>": 1, "b": 9}, "[UNK]")
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = tokenizers.read("huggingface", str(tmp_path / "tokenizer.json"), {})
    assert made.vocab_size == 10 and made.eos_id == 1
    assert list(made.encode(["a c b"])[0]) == [3, 0, 9]
