"""Token shards made from raw text by many processes; killed at any time, the same call resumes.

The bytes are the same as without interruption. A part of the source becomes one file of tokens per
split. Progress is on disk: the files of a part, then its record in preparing/; at the end
dataset.json is written and preparing/ removed.
"""

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mujax.data import tokenizers
from mujax.data.prepare.parts import (
    PREPARING,
    ROW_COUNTS,
    Recipe,
    Rule,
    Work,
    do_all,
    dtype_of,
    record_file,
    texts_of,
)
from mujax.data.prepare.sources import (
    JsonLines,
    Parquet,
    Part,
    Source,
    TextFiles,
    folder_and_glob,
    length_of,
)
from mujax.data.shards import (
    DESCRIPTION,
    FORMAT,
    LAYOUTS,
    SPLITS,
    check_files,
    fingerprint,
    read_description,
    sealed,
)
from mujax.data.tokenizers import Tokenizer
from mujax.errors import UserError, cut
from mujax.storage import files, locks
from mujax.storage.records import read_bytes, read_json, read_part, read_preparation

COUNTS = ("documents", "tokens", "text_bytes", "cut_documents", "bytes")
# most text that a SentencePiece model is trained on
TRAINING_CHARACTERS = 2**26


def prepare(
    recipe: Recipe, workdir: str | Path, num_processes: int = 1, is_quiet: bool = False
) -> dict[str, Any]:
    """Writes the dataset of a recipe to a folder and returns its dataset.json.

    A finished dataset of the same recipe stays as it is; an interrupted one is resumed.

    Raises:
      UserError: a recipe that cannot work, a source that cannot be read, or a folder that holds
        something else. Finished parts of the same recipe stay.
    """
    rule = Rule(recipe.validation)
    if recipe.layout not in LAYOUTS:
        raise UserError(f"--layout={recipe.layout} is not one of: {', '.join(LAYOUTS)}")
    if (recipe.layout == "document") != (recipe.seq_len > 0):
        raise UserError(
            f"--layout={recipe.layout} with --seq_len={recipe.seq_len}: `document` needs the "
            "tokens of a row, and rows of `packed` are cut when they are read"
        )
    root = files.make_writable(files.local_path(workdir))
    with locks.locked(root):
        if (root / DESCRIPTION).exists():
            description = read_description(root)
            _check_same(root, description["recipe"], dataclasses.asdict(recipe))
            check_files(root, description["shards"])
            _clean_up(root)
            if not is_quiet:
                _tell_changes(root, recipe, rule, description.get("source_files"))
            return description
        source = make_source(recipe.source, rule.own, recipe.field, recipe.data_dir)
        if rule.kind == "own" and not source.has_validation:
            raise UserError(
                "--validation=own: the source sets nothing aside; use own:WHERE, head:N or "
                "hash:SHARE"
            )
        parts = source.parts()
        _check_outside(root, parts)
        source_files = _begin(root, recipe, parts)
        tokenizer = _make_tokenizer(recipe, root, source, parts)
        _check_tokenizer(root, tokenizer)
        if tokenizer.file[0] and not (root / tokenizer.file[0]).exists():
            with files.replacing(root / tokenizer.file[0]) as stream:
                stream.write(tokenizer.file[1])
        described = (tokenizer.kind, tokenizer.file[1], tokenizer.options)
        work = Work(
            source,
            recipe,
            root,
            *described,
            tokenizer.vocab_size,
            tokenizer.eos_id,
            tokenizer.start_id,
        )
        heads = _heads(source, parts, rule.count)
        do_all(work, parts, heads, num_processes, is_quiet)
        description = _describe(root, recipe, tokenizer, len(parts), source_files)
        files.write_json(root / DESCRIPTION, description)
        _clean_up(root)
        return description


def make_source(text: str, validation: str, field: str, data_dir: str) -> Source:
    """Makes the source that --source names.

    It is 'embedded', 'text:PATTERN', 'jsonl:PATTERN', 'parquet:PATTERN', 'tfds:NAME' or
    'seqio:TASK'.

    Args:
      validation: the source's own validation documents, a pattern or a split; '' if it has none.
      field: field of a record that holds its text.
      data_dir: data folder of TFDS; '' for TFDS's own choice.

    Raises:
      UserError: there is no such source.
    """
    kind, _, where = text.partition(":")
    if kind in ("embedded", "text"):
        if bool(where) != (kind == "text"):
            raise UserError(
                f"--source={text}: write --source=embedded, or --source=text:FILE, FOLDER or "
                "PATTERN"
            )
        if validation:
            raise UserError(
                f"--validation=own:{validation}: a source of text files is split by itself"
            )
        return TextFiles(kind, *folder_and_glob(where))
    if kind in ("jsonl", "parquet"):
        return {"jsonl": JsonLines, "parquet": Parquet}[kind](where, validation, field)
    if kind in ("tfds", "seqio"):
        from mujax.data.prepare.tasks import TaskSource  # takes 10 s, for TensorFlow

        return TaskSource(kind, where, validation, field, data_dir)
    raise UserError(
        f"--source={text}: {kind!r} is not one of: embedded, text, jsonl, parquet, tfds, seqio"
    )


def _check_same(root: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if changes := files.differences(old, new):
        shown = ", ".join(f"{field}: {change}" for field, change in list(changes.items())[:3])
        raise UserError(f"--workdir={root} holds another dataset: {shown}; choose a new workdir")


def _files_of(parts: Sequence[Part]) -> dict[str, list[int]]:
    """Returns size and time of change of each file of the source."""
    names = {
        name
        for part in parts
        for name in part.where
        if isinstance(name, str) and os.path.isfile(name)
    }
    statuses = {name: os.stat(name) for name in sorted(names)}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}


def _tell_changes(
    root: Path, recipe: Recipe, rule: Rule, then: dict[str, list[int]] | None
) -> None:
    """Prints that a finished dataset was made from other files than the source has now.

    The source may be gone.
    """
    if not then:  # the dataset is from TFDS, or from an earlier version
        return
    try:
        now = _files_of(make_source(recipe.source, rule.own, recipe.field, recipe.data_dir).parts())
    except (UserError, OSError):
        return
    changes = [f"{file} has changed" for file in then if file in now and then[file] != now[file]]
    changes += [f"{file} is new" for file in now if file not in then]
    changes += [f"{file} is gone" for file in then if file not in now] if now else []
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        print(
            f"{root} was made before the source changed: {', '.join(changes[:3])}{more}; it stays "
            "as it was. Prepare the source as it is now in a new workdir",
            file=sys.stderr,
        )


def _begin(root: Path, recipe: Recipe, parts: Sequence[Part]) -> dict[str, list[int]]:
    """Checks that the folder is of this recipe and source, or begins it.

    Returns:
      The source's files as they were at the beginning.
    """
    begun = {
        "recipe": dataclasses.asdict(recipe),
        "parts": [[part.name, part.split, part.size] for part in parts],
    }
    source_files = _files_of(parts)
    file = root / PREPARING / "recipe.json"
    recorded = read_preparation(file) if file.exists() else None
    is_same = bool(recorded) and all(recorded.get(key) == begun[key] for key in begun)
    if recorded and not is_same and not any(file.parent.glob("part-*.json")):
        # Files of an attempt that did not get far enough to resume.
        for left in (*root.glob("*.bin"), *root.glob("tokenizer.*")):
            left.unlink()
        shutil.rmtree(file.parent)
        recorded = None
    if recorded:
        _check_same(root, recorded["recipe"], begun["recipe"])
        if recorded["parts"] != begun["parts"]:
            raise UserError(
                f"--workdir={root} was begun with other files of this source; choose a new workdir"
            )
        print(f"{root}: resuming", file=sys.stderr)
        source_files = recorded.get("source_files", source_files)
    else:
        own = ("lock", PREPARING)
        others = sorted(
            entry.name for entry in root.iterdir() if entry.name not in own and entry.name[0] != "."
        )
        if others:
            raise UserError(
                f"--workdir={root} holds something else ({', '.join(others[:3])}); choose a new "
                "folder"
            )
        files.write_json(file, {**begun, "source_files": source_files})
    for entry in root.iterdir():
        if re.fullmatch(r"\..+\.\d+", entry.name):  # left by a process killed while writing
            entry.unlink()
    return source_files


def _check_outside(root: Path, parts: Sequence[Part]) -> None:
    """Raises UserError if the output would be read as a part of the source."""
    own = os.path.join(os.path.realpath(root), "")
    for part in parts:
        for name in part.where:
            if isinstance(name, str) and os.path.realpath(name).startswith(own):
                raise UserError(
                    f"--workdir={root} is inside the source, which has {name}; choose a folder "
                    "elsewhere"
                )


def _check_tokenizer(root: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if finished parts, which stay as they are, have another tokenizer."""
    file, described = root / PREPARING / "tokenizer.json", tokenizer.as_dict()
    if not file.exists():
        files.write_json(file, described)
    elif read_json(file) != described:
        raise UserError(
            f"--workdir={root} was begun with another tokenizer of this name; choose a new workdir"
        )


def _make_tokenizer(recipe: Recipe, root: Path, source: Source, parts: Sequence[Part]) -> Tokenizer:
    if source.tokenizer is not None:
        if recipe.tokenizer:
            raise UserError(
                f"--tokenizer={recipe.tokenizer}: {recipe.source} has its own; leave it out"
            )
        return source.tokenizer
    if not recipe.tokenizer:
        raise UserError(
            "--tokenizer is missing: only a seqio Task has its own; e.g. --tokenizer=train:1024, "
            "or bytes"
        )
    kind, value, options = tokenizers.parse(recipe.tokenizer)
    if kind != "train":
        return tokenizers.read(kind, value, options)
    file = root / "tokenizer.model"
    if not file.exists():
        if not (value.isdecimal() and len(value) < 10):
            raise UserError(
                f"--tokenizer=train:{cut(value)} is not a whole number of ids that int32 could name"
            )
        model = tokenizers.train(_training_text(source, parts), int(value))
        with files.replacing(file) as stream:
            stream.write(model)
    return tokenizers.make("sentencepiece", read_bytes(file), {})


def _training_text(source: Source, parts: Sequence[Part]) -> Iterator[str]:
    """Yields training documents of all parts, only the first ones of each if they are too many."""
    train = [part for part in parts if part.split == "train"]
    for part in train:
        left = TRAINING_CHARACTERS // len(train)
        for document in source.documents(part):
            (text,) = texts_of([document], "sentencepiece")
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _heads(source: Source, parts: Sequence[Part], count: int) -> list[int]:
    """Returns how many first documents of each part are for validation, `count` in all."""
    heads = [0] * len(parts)
    for i, part in enumerate(parts):
        if not count:
            break
        if part.split == "train":
            for document in source.documents(part):
                heads[i] += length_of(document) > 0
                if heads[i] == count:
                    break
            count -= heads[i]
    if count:
        raise UserError(f"--validation=head: the source ends {count} documents before that many")
    return heads


def _describe(
    root: Path,
    recipe: Recipe,
    tokenizer: Tokenizer,
    num_parts: int,
    source_files: dict[str, list[int]],
) -> dict[str, Any]:
    """Returns the content of dataset.json."""
    records = [read_part(record_file(root, i)) for i in range(num_parts)]
    shards = [shard for record in records for shard in record["shards"] if shard["bytes"]]
    splits = {}
    for split in SPLITS:
        own = [shard for shard in shards if shard["split"] == split]
        keys = COUNTS if recipe.layout == "packed" else (*COUNTS, *ROW_COUNTS)
        counts = {key: sum(shard[key] for shard in own) for key in keys}
        num_bytes, whole = counts["text_bytes"], counts.get("whole_tokens", counts["tokens"])
        splits[split] = {**counts, "tokens_per_byte": whole / num_bytes if num_bytes else None}
        if not own:
            raise UserError(f"nothing is in the {split} split by --validation={recipe.validation}")
    description = {
        "format": FORMAT,
        "layout": recipe.layout,
        "seq_len": recipe.seq_len,
        "dtype": dtype_of(tokenizer.vocab_size).name,
        "tokenizer": tokenizer.as_dict(),
        "splits": splits,
        "empty_documents": sum(record["empty_documents"] for record in records),
        "recipe": dataclasses.asdict(recipe),
        "source_files": source_files,
        "shards": sorted(shards, key=lambda shard: shard["file"]),
    }
    return sealed({"fingerprint": fingerprint(description), **description})


def _clean_up(root: Path) -> None:
    shutil.rmtree(root / PREPARING, ignore_errors=True)
    (root / "lock").unlink(missing_ok=True)
