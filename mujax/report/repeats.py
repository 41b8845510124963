"""Runs of a table sorted into studies, repetitions of one run, and contradictions."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from mujax.errors import UserError
from mujax.report.external import Records, is_diverged, is_missing, number, text
from mujax.report.rows import Row

FACTS = ("tokens", "steps", "n_params")  # budget and size of a run
SAME = 1e-6  # relative difference of equal numbers: float32 keeps 7 digits
SHOWN = 6  # columns that a message names at most
WHOLE = 2**53  # a float holds every whole number up to this one


@dataclasses.dataclass(frozen=True)
class Run:
    """A row of a table.

    study, parameterization, weight_decay, seed: None if no column holds it.
    loss: None if the run diverged.
    facts: those of FACTS that have a column.
    """

    line: int
    record: Mapping[str, Any]
    study: str | None
    parameterization: str | None
    width: int
    rate: float
    weight_decay: float | None
    seed: str | None
    facts: Mapping[str, float]
    loss: float | None


@dataclasses.dataclass(frozen=True)
class Joined:
    """Runs in the form of results.jsonl; for warnings and averaged see tables.Table."""

    rows: list[Row]
    warnings: list[str]
    averaged: str


Cells = dict[tuple, dict[str | None, list[Run]]]  # point of a curve -> seed -> its runs


def join_runs(table: Records, named: Mapping[str, Sequence[str]], runs: Sequence[Run]) -> Joined:
    """Makes rows from runs; repetitions of a run are dropped.

    Facts that differ at one width become part of the study.

    Raises:
      UserError: runs that differ in none of the columns in `named` have several losses.
    """
    rates = join_near(run.rate for run in runs)
    decays = join_near(run.weight_decay for run in runs if run.weight_decay is not None)
    runs = [
        dataclasses.replace(
            run,
            rate=rates[run.rate],
            weight_decay=None if run.weight_decay is None else decays[run.weight_decay],
        )
        for run in runs
    ]
    study = named.get("study", ())
    splitting = _splitting_facts(
        runs, [fact for fact in FACTS if fact in named and named[fact][0] not in study]
    )
    cells: Cells = {}
    for run in runs:
        cells.setdefault((*_curve(run, splitting), run.rate), {}).setdefault(run.seed, []).append(
            run
        )
    told = {column for name, columns in named.items() if name not in FACTS for column in columns}
    others = [column for column in table.columns if column not in told]
    _refuse_contradictions(table.file, named, cells, others)
    kept = {same[0].line for by_seed in cells.values() for same in by_seed.values()}
    alike, warnings = _averages(named, cells, runs, others)
    if len(kept) < len(runs):
        warnings.append(
            f"{len(runs) - len(kept)} rows of {table.file} say what another says and count once"
        )
    seeds, unnamed = _number_seeds([run.seed for run in runs])
    if unnamed:
        warnings.append(f"{unnamed} of {len(runs)} rows have no seed; they count as one seed more")
    budgets = {_curve(run, splitting): run.facts for run in runs if run.loss is not None}
    rows = [
        _row(run, budgets.get(_curve(run, splitting), run.facts), seeds[run.seed], splitting)
        for run in runs
        if run.line in kept
    ]
    return Joined(rows, warnings, alike)


def join_near(values: Iterable[float]) -> dict[float, float]:
    """Maps values that differ only by rounding to float32 to the value with the fewest digits."""
    joined: dict[float, float] = {}
    cluster: list[float] = []
    for value in [*sorted(set(values)), None]:
        if cluster and (value is None or abs(value - cluster[0]) > SAME * abs(cluster[0])):
            joined |= dict.fromkeys(cluster, min(cluster, key=lambda v: len(repr(v))))
            cluster = []
        if value is not None:
            cluster.append(value)
    return joined


def _curve(run: Run, splitting: Sequence[str]) -> tuple:
    facts = (run.facts[fact] for fact in splitting)
    return (run.study, run.parameterization, run.weight_decay, run.width, *facts)


def _splitting_facts(runs: Sequence[Run], facts: Sequence[str]) -> list[str]:
    """Returns the facts that differ among the runs of one curve.

    A fact that goes along with an earlier one, such as steps with tokens, is left out. A diverged
    run's budget is unknown: it ended early.
    """
    splitting: list[str] = []
    for fact in facts:
        seen: dict[tuple, set[float]] = {}
        for run in runs:
            if run.loss is not None:
                seen.setdefault(_curve(run, splitting), set()).add(run.facts[fact])
        if any(len(values) > 1 for values in seen.values()):
            splitting.append(fact)
    return splitting


def _varying(groups: Sequence[Sequence[Run]], columns: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yields the columns that have several values within a group.

    With each goes whether the column tells apart all runs of all groups.
    """
    for column in columns:
        counts = [
            (len({text(run.record.get(column)) for run in group}), len(group)) for group in groups
        ]
        if any(count > 1 for count, _ in counts):
            yield column, all(count == size for count, size in counts)


def _list(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return ", ".join(map(repr, columns[:SHOWN])) + more


def _flag(named: Mapping[str, Sequence[str]], name: str, column: str) -> str:
    """Returns 'study=a+COLUMN': the flag that tells runs apart by one more column."""
    quoted = [f'"{c}"' if set('+,"') & set(c) else c for c in (*named.get(name, ()), column)]
    return f"{name}={'+'.join(quoted)}"


def _refuse_contradictions(
    file: str, named: Mapping[str, Sequence[str]], cells: Cells, others: Sequence[str]
) -> None:
    groups = [
        same
        for by_seed in cells.values()
        for same in by_seed.values()
        if len({run.loss for run in same}) > 1
    ]
    if not groups:
        return
    first = groups[0][0]
    second = next(run for run in groups[0] if run.loss != first.loss)
    losses = " and ".join(
        "diverged" if run.loss is None else f"{run.loss:g}" for run in (first, second)
    )
    where = [
        f"{name} {value}"
        for name, value in (("seed", first.seed), ("width", first.width))
        if value is not None
    ]
    names = [name for name in (first.parameterization, first.study) if name]
    places = ", ".join([*names, *where]) + f" and learning rate {first.rate:g}"
    many = f" (and so at {len(groups) - 1} more points)" if len(groups) > 1 else ""
    said = (
        f"--input={file}: lines {first.line} and {second.line} give two losses ({losses}) for "
        f"{places}{many}"
    )
    varying = dict(_varying(groups, others))
    telling = [column for column, is_telling in varying.items() if is_telling] or list(varying)
    telling.sort(key=lambda c: len({text(run.record.get(c)) for group in groups for run in group}))
    if not telling:
        raise UserError(
            f"{said}, and no other column tells them apart; add one, and name it "
            "--columns=seed=COLUMN"
        )
    raise UserError(
        f"{said}. They differ in {_list(telling)}: --columns={_flag(named, 'seed', 'COLUMN')} "
        f"averages them, --columns={_flag(named, 'study', 'COLUMN')} tells studies apart by it (by "
        "several: A+B)"
    )


def _averages(
    named: Mapping[str, Sequence[str]], cells: Cells, runs: Sequence[Run], others: Sequence[str]
) -> tuple[str, list[str]]:
    """Returns how many runs a point averages, and a warning if they differ not only in the seed."""
    groups = [
        [same[0] for same in by_seed.values()] for by_seed in cells.values() if len(by_seed) > 1
    ]
    if not groups:
        return "", []
    sizes = sorted({len(group) for group in groups})
    count = f"{sizes[0]} to {sizes[-1]} runs each" if len(sizes) > 1 else f"{sizes[0]} runs each"
    said = f"{len(groups)} points are means of {count}, which differ in {_list(named['seed'])}"
    differing = [column for column, _ in _varying(groups, others) if not _is_seed(runs, column)]
    differing.sort(key=lambda column: len({text(run.record.get(column)) for run in runs}))
    if not differing:
        return said, []
    warning = (
        f"{said}, but also in {_list(differing)}, which --columns does not name; where that makes "
        f"them other runs, tell studies apart by it: --columns={_flag(named, 'study', 'COLUMN')}"
    )
    return "", [warning]


def _is_seed(runs: Sequence[Run], column: str) -> bool:
    """Tells whether a column has one value per seed, different from that of every other seed.

    Such is the name of a run beside its id.
    """
    pairs = {(run.seed, text(run.record.get(column))) for run in runs}
    return len(pairs) == len({seed for seed, _ in pairs}) == len({value for _, value in pairs})


def _number_seeds(seeds: Sequence[str | None]) -> tuple[dict[str | None, int], int]:
    """Returns a whole number for each seed, and how many seeds are empty among others.

    Seeds that are words are numbered in the order in which they appear.
    """
    names = list(dict.fromkeys(seeds))
    # pandas writes nan for an empty cell
    nameless = {name for name in names if is_missing(name) or is_diverged(name)}
    values = {name: number(name) for name in names if name not in nameless}
    if any(
        value != value or abs(value) > WHOLE or value != int(value) for value in values.values()
    ):
        values = {name: i for i, name in enumerate(values)}
    free = next(i for i in itertools.count() if i not in values.values())
    numbers = {name: int(value) for name, value in values.items()} | dict.fromkeys(nameless, free)
    return numbers, sum(seed in nameless for seed in seeds) if values else 0


def _row(run: Run, facts: Mapping[str, float], seed: int, splitting: Sequence[str]) -> Row:
    """Makes a row of a run.

    facts: the facts of its curve, which a run that diverged early has, too.
    """
    overrides: dict[str, Any] = (
        {} if run.weight_decay is None else {"optim.weight_decay": run.weight_decay}
    )
    if run.study is not None and run.parameterization is not None:
        overrides["study"] = run.study
    overrides |= {fact: facts[fact] for fact in splitting}
    decay = {} if run.weight_decay is None else {"weight_decay": run.weight_decay}
    row = {
        "id": f"line {run.line}", "status": "diverged" if run.loss is None else "ok",
        "diverged_at_step": None, "width": run.width,
        "parameterization": run.parameterization or run.study or "all",
        "learning_rate": run.rate, "seed": seed, "final_loss": run.loss, "overrides": overrides,
        **facts, **decay,
    }  # fmt: skip
    return cast(Row, row)
