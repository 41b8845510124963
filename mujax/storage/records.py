"""Readers of the JSON files that mujax writes, one per kind of file, which check what they read.

Files may be damaged, edited, or come from somebody else. Whatever is wrong, a reader raises
UserError, which names the file and the fault in one line, and changes nothing.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeGuard, TypeVar, cast, get_type_hints

from mujax.errors import UserError, shown
from mujax.storage import buckets

# of lists and objects inside each other; beyond it, what walks a document would exhaust Python's
# stack
MAX_DEPTH = 100
MAX_DIGITS = 300  # of a whole number; a longer one fits no float
MAX_NUMBER = 1e39  # float32, which all numbers come from, ends before


def is_name(x: Any) -> bool:
    """Returns whether text from a file (an id, or a file's name) can be one part of a path and no
    more."""
    return (
        isinstance(x, str)
        and 0 < len(x.encode(errors="replace")) <= 240
        and bool(_NAME.fullmatch(x))
    )


_NAME = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")


def is_number(x: Any) -> TypeGuard[int | float]:
    """Returns whether a value is a number that a run can have measured or be configured with."""
    return type(x) in (int, float) and abs(x) < MAX_NUMBER


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_object(x: Any) -> bool:
    return isinstance(x, dict)


def _is_number_or_null(x: Any) -> bool:
    return x is None or is_number(x)


def _is_texts(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(value, str) for value in x.values())


def _are_objects(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and all(isinstance(value, dict) for value in x)


def _are_pairs(x: Any) -> bool:
    return isinstance(x, list) and all(
        isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in x
    )


# What a field must be: a test, and in words
Field = tuple[Callable[[Any], bool], str]
_TEXT: Field = (_is_text, "text")
_OBJECT: Field = (_is_object, "an object")
_NUMBER_OR_NULL: Field = (_is_number_or_null, "a number")


# what is not may be absent from rows of earlier versions, and of tables from elsewhere
NEEDED = "in every row"


class Row(TypedDict):
    """A line of results.jsonl, or result.json: what a run measured, and what groups and repeats it.

    Losses are nats per token on the validation split, null unless the status is ok.
    """

    id: Annotated[str, (is_name, "an id, which names a file"), NEEDED]
    group: Annotated[str, _TEXT]  # Run.group
    # stopped: given up early by train.give_up_step
    status: Annotated[
        str, (lambda x: x in ("ok", "diverged", "stopped"), "ok, diverged or stopped"), NEEDED
    ]
    diverged_at_step: Annotated[int | None, _NUMBER_OR_NULL, NEEDED]
    stopped_at_step: Annotated[int | None, _NUMBER_OR_NULL]
    model: Annotated[str, _TEXT]
    width: Annotated[
        int, (lambda x: type(x) is int and 0 < x < 2**63, "a whole number above 0"), NEEDED
    ]
    depth: Annotated[int, _NUMBER_OR_NULL]
    parameterization: Annotated[str, _TEXT, NEEDED]
    optimizer: Annotated[str, _TEXT]
    learning_rate: Annotated[float, (lambda x: is_number(x) and x > 0, "a number above 0"), NEEDED]
    weight_decay: Annotated[float, _NUMBER_OR_NULL]
    seed: Annotated[int, (lambda x: type(x) is int and abs(x) < 2**63, "a whole number"), NEEDED]
    # like tokens as configured, also where the run ended before
    steps: Annotated[int, _NUMBER_OR_NULL]
    tokens: Annotated[int, _NUMBER_OR_NULL]
    final_loss: Annotated[float | None, _NUMBER_OR_NULL, NEEDED]
    best_loss: Annotated[float | None, _NUMBER_OR_NULL]
    best_step: Annotated[int | None, _NUMBER_OR_NULL]
    # The final loss by bytes of text, whatever the tokens are; null where they are no text
    bits_per_byte: Annotated[float | None, _NUMBER_OR_NULL]
    # step, loss
    eval_losses: Annotated[list[list[float]], (_are_pairs, "a list of pairs of numbers")]
    n_params: Annotated[int, _NUMBER_OR_NULL]
    overrides: Annotated[dict[str, Any], _OBJECT, NEEDED]  # the point's own fields of the sweep
    table_hash: Annotated[str, _TEXT]
    data_fingerprint: Annotated[str, _TEXT]
    code_version: Annotated[str, _TEXT]
    jax_version: Annotated[str, _TEXT]
    device: Annotated[str, _TEXT]
    # wall time; in a sweep, the run's share of that of its chunk
    seconds: Annotated[float, _NUMBER_OR_NULL]


_HINTS = get_type_hints(Row, include_extras=True)
_ROW: Mapping[str, Field] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
_NEEDED: Mapping[str, Field] = {
    name: _ROW[name] for name, hint in _HINTS.items() if NEEDED in hint.__metadata__
}
# Fields of a config that a row repeats under a name of its own
FACTS = {
    "parameterization.name": "parameterization", "model.name": "model", "model.num_layers": "depth",
    "optim.name": "optimizer", "optim.weight_decay": "weight_decay", "train.steps": "steps",
    "model.d_model": "width", "optim.learning_rate": "learning_rate", "seed": "seed",
}  # fmt: skip


def check_regular(file: Path) -> None:
    """Raises UserError if a path is that of a folder, or of a pipe or device, whose reading might
    never end."""
    if not buckets.is_bucket(file) and file.exists() and not file.is_file():
        raise UserError(f"{file} is not a regular file; move it away")


def read_bytes(file: Path) -> bytes:
    """Reads a whole file, see check_regular."""
    check_regular(file)
    return file.read_bytes()


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object."""
    return parse_object(read_bytes(file), str(file))


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """Reads the records of a JSONL file; a last line without its newline was torn by a crash and is
    left out."""
    for number, line in enumerate(read_bytes(file).split(b"\n")[:-1], start=1):
        yield parse_object(line, f"{file}, line {number}")


def read_manifest(file: Path) -> dict[str, Any]:
    """Reads manifest.json, the record of a sweep."""
    manifest = read_json(file)
    _check(manifest, str(file), _MANIFEST, _OF_MANIFEST)
    for id, point in manifest.get("points", {}).items():
        _check(point, f"{file}: point {_shown(id)}", {}, _OF_POINT)
    return manifest


def read_rows(file: Path) -> list[Row]:
    """Reads all rows of results.jsonl, those with a repeated id too."""
    return [
        _as_row(record, f"{file}: row {number}")
        for number, record in enumerate(read_jsonl(file), start=1)
    ]


def read_result(file: Path) -> Row:
    """Reads result.json, the one row of a run."""
    return _as_row(read_json(file), f"{file}: row 1")


def load_rows(workdir: Path) -> list[Row] | None:
    """Reads the rows of a sweep or of a run, those with a repeated id too; None if neither has left
    any."""
    if (workdir / "results.jsonl").exists():
        return read_rows(workdir / "results.jsonl")
    return [read_result(workdir / "result.json")] if (workdir / "result.json").exists() else None


_AnyRow = TypeVar("_AnyRow", bound=Row)


def first_by_id(rows: Iterable[_AnyRow]) -> dict[str, _AnyRow]:
    """Returns rows by run id; of duplicates the first counts, wherever rows are read."""
    found: dict[str, _AnyRow] = {}
    for row in rows:
        found.setdefault(row["id"], row)
    return found


def read_config(file: Path) -> dict[str, Any]:
    """Reads config.json, the fields of a run in their sections; make_run_config checks what they
    are."""
    return read_json(file)


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Reads the records of metrics.jsonl."""
    for number, record in enumerate(read_jsonl(file), start=1):
        if type(record.get("step")) is not int:
            raise UserError(f"{file}, line {number} has no step; mujax train has not written it")
        yield record


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Reads the record of a checkpoint."""
    record = read_json(file)
    _check(record, str(file), _CHECKPOINT, {})
    for name, array in record["arrays"].items():
        _check(array, f"{file}: array {_shown(name)}", _ARRAY, {})
    return record


def read_preparation(file: Path) -> dict[str, Any]:
    """Reads preparing/recipe.json: of what `mujax prepare` was making a dataset."""
    begun = read_json(file)
    _check(
        begun,
        str(file),
        {"recipe": _OBJECT, "parts": (lambda x: isinstance(x, list), "a list")},
        {},
    )
    return begun


def read_part(file: Path) -> dict[str, Any]:
    """Reads preparing/part-N.json: the files that `mujax prepare` has made of a part of its
    source."""
    part = read_json(file)
    _check(
        part,
        str(file),
        {"empty_documents": _COUNT, "shards": (_are_objects, "a list of objects")},
        {},
    )
    for shard in part["shards"]:
        _check(shard, f"{file}: a shard", _SHARD, {})
    return part


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object of sane depth and numbers, whose text can be written again.

    Raises:
      UserError: it is something else; the message begins with `where`.
    """
    try:
        document = _DECODER.decode(text.decode())
        if b"\\u" in text:
            json.dumps(document, ensure_ascii=False).encode()  # fails at half of a surrogate pair
        _check_depth(document, text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not JSON: {' '.join(str(e).split())}") from e
    if not isinstance(document, dict):
        raise UserError(f"{where} is not a JSON object")
    return document


def _check_depth(document, text: bytes) -> None:
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        nodes = [node for node in level if isinstance(node, dict | list)]
        level = [
            child for node in nodes for child in (node.values() if isinstance(node, dict) else node)
        ]


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is beyond the range of numbers")
    return value


def _refuse(text: str):
    raise ValueError(f"{text} is no number of JSON")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_float, parse_constant=_refuse)


# Of each kind of file, the fields that it must have, and those that it may have
_MANIFEST: Mapping[str, Field] = {"config": _OBJECT}
_OF_MANIFEST: Mapping[str, Field] = {
    "part": _TEXT,
    "data": (_is_texts, "an object of texts"),
    "points": (
        lambda x: _is_object(x) and all(map(is_name, x)),
        "an object of points by their ids",
    ),
    "refinement": (
        lambda x: isinstance(x, dict | list) and all(map(_is_text, x)),
        "a list of texts",
    ),
    "merged": (_are_objects, "a list of configs"),
}
_OF_POINT: Mapping[str, Field] = {"overrides": _OBJECT, "table_hash": _TEXT}
_COUNT: Field = (lambda x: type(x) is int and 0 <= x < 2**63, "a whole number")
_SHARD: Mapping[str, Field] = {
    "file": (is_name, "the name of a file"),
    **dict.fromkeys(("split", "sha256"), _TEXT),
    **dict.fromkeys(("bytes", "documents", "tokens", "text_bytes", "cut_documents"), _COUNT),
}
_CHECKPOINT: Mapping[str, Field] = {
    "config": _OBJECT,
    **dict.fromkeys(("table", "table_hash", "data_fingerprint"), _TEXT),
    "step": _COUNT,
    "evals": (_are_pairs, "a list of pairs of numbers"),
    "seconds": (is_number, "a number"),
    "arrays": (_is_object, "an object"),
}
_ARRAY: Mapping[str, Field] = {
    "shape": (
        lambda x: isinstance(x, list) and all(type(size) is int for size in x),
        "a list of sizes",
    ),
    "dtype": _TEXT,
    "checksum": _COUNT,
}


def _as_row(record: dict[str, Any], where: str) -> Row:
    """Returns a record of a file as a row; raises UserError if it is none."""
    _check(record, where, _NEEDED, _ROW)
    if record["status"] == "ok" and record["final_loss"] is None:
        raise UserError(f"{where}, field 'final_loss' is null, and the status is ok")
    return cast(Row, record)


def _check(
    record: Any, where: str, required: Mapping[str, Field], allowed: Mapping[str, Field]
) -> None:
    """Raises UserError unless a record has all of the required fields, and no field that is not as
    it must be."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_shown(record)}, not an object")
    for name, (is_right, words) in {**required, **allowed}.items():
        if name not in record:
            if name in required:
                raise UserError(f"{where}, field {name!r} is missing")
        elif not is_right(record[name]):
            raise UserError(f"{where}, field {name!r} is {_shown(record[name])}, not {words}")


def _shown(value: Any) -> str:
    """Returns a value of a file for a message: on one line, and short."""
    return "null" if value is None else shown(value, 60)
