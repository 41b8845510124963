"""The cost of a step on one device, read from the compiler's scheduled HLO text.

Compute: the compiler's own estimate of cycles, once for each instruction that has one, loop bodies
times their trip counts.
Communication: bytes that a ring sends over the links of a device for each collective.

Gathers, scatters, sorts, random numbers and custom calls (Pallas kernels) have no estimate and
count nothing; they are listed.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
# Instructions that move or compute nothing, and those that run their computations as own code
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "optimization-barrier", "iota",
}  # fmt: skip
CALLS = {"while", "call", "conditional", "fusion", "async-start"}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction `%name = type opcode(arguments)attributes`."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str


@dataclasses.dataclass
class Cost:
    """The cost of one run of a computation on one device.

    cycles: compute.
    sent: (collective, "sync" or "async") -> bytes on the wire.
    count: number of collectives.
    unknown: instructions without an estimate, by opcode.
    by_source: cycles by the operation of the program.
    loops_of_unknown_length: number of such loops; their bodies count once.
    """

    cycles: float = 0.0
    sent: dict[tuple[str, str], float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    count: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unknown: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    by_source: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    loops_of_unknown_length: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        self.cycles += times * other.cycles
        for name in ("sent", "count", "unknown", "by_source"):
            for key, value in getattr(other, name).items():
                getattr(self, name)[key] += times * value
        self.loops_of_unknown_length += other.loops_of_unknown_length

    def bytes_sent(self, mode: str | None = None) -> float:
        return sum(value for (_, how), value in self.sent.items() if mode in (None, how))


def read_cost(text: str, num_devices: int) -> Cost:
    """Returns the cost of the entry computation of `compiled.as_text()`."""
    computations, entry = _parse(text)
    return _Reader(computations, num_devices).cost(entry, fused=False)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", None
    for line in re.sub(r"/\*index=\d+\*/", "", text).splitlines():
        if head := _COMPUTATION.match(line):
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif body is not None and (found := _INSTRUCTION.match(line)):
            body.append(_instruction(found[1], line[found.end() :]))
    if not entry:
        raise ValueError("no ENTRY computation: this is not optimized HLO text")
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
    cut = _end_of_group(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = re.match(r"\s*([\w\-]+)", rest[cut:])
    assert opcode, rest[:100]
    start = cut + opcode.end()
    end = _end_of_group(rest, start)
    return Instruction(name, rest[:cut], opcode[1], rest[start + 1 : end - 1], rest[end:])


def _end_of_group(text: str, start: int) -> int:
    """Returns the position behind the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced brackets: {text[:80]}")


class _Reader:
    def __init__(self, computations: Mapping[str, list[Instruction]], num_devices: int):
        self._computations, self._num_devices = computations, num_devices
        self._known: dict[tuple[str, bool], Cost] = {}

    def cost(self, name: str, fused: bool) -> Cost:
        """Returns the cost of the named computation.

        fused: whether it is inside an instruction that has an estimate, so that only collectives
          count.
        """
        if (name, fused) not in self._known:
            total, types = Cost(), {i.name: i.type for i in self._computations[name]}
            for instruction in self._computations[name]:
                self._add(total, instruction, types, name, fused)
            self._known[name, fused] = total
        return self._known[name, fused]

    def _add(
        self, total: Cost, i: Instruction, types: Mapping[str, str], computation: str, fused: bool
    ) -> None:
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._add_collective(total, i, kind, types, computation)
            return
        cycles = None if fused else _CYCLES.search(i.attributes)
        if cycles:
            total.cycles += int(cycles[1])
            source = re.search(r'op_name="([^"]*)"', i.attributes)
            total.by_source[source[1] if source else re.sub(r"\.\d+$", "", i.name)] += int(
                cycles[1]
            )
        elif not fused and i.opcode not in FREE | CALLS and not i.opcode.endswith("-done"):
            total.unknown[i.opcode] += 1
        times = 1
        if i.opcode == "while":
            found = self._trip_count(i)
            total.loops_of_unknown_length += found is None
            times = 1 if found is None else found
        if i.opcode in CALLS:
            for called in _called(i):
                total.add(self.cost(called, fused or bool(cycles)), times)

    def _add_collective(
        self, total: Cost, i: Instruction, kind: str, types: Mapping[str, str], computation: str
    ):
        size = sum(
            num_bytes(types.get(operand, "")) for operand in re.findall(r"%([\w.\-]+)", i.arguments)
        )
        group = self._group_size(i.attributes)
        # TPUs fuse an all-reduce and the slice of it into one operation, and asynchronous
        # collectives into computations.
        if kind == "all-reduce" and "all-reduce-scatter" in computation:
            kind = "reduce-scatter"
        is_async = i.opcode.endswith("-start") or "async" in computation
        whole = size * group if kind == "all-gather" else size
        share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(
            kind, (group - 1) / group
        )
        total.sent[kind, "async" if is_async else "sync"] += whole * share
        total.count[kind] += 1

    def _group_size(self, attributes: str) -> int:
        """Returns the number of devices that exchange with each other."""
        if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
            # ['x'=32,'y'=4] {'y'}
            sizes, size = dict(re.findall(r"'(\w+)'=(\d+)", named[1])), 1
            for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]):
                size *= int(part or sizes[axis])
            return size
        if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):  # [32,4]<=[128]
            return int(counted[1])
        if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):  # {{0,1},{2,3}}
            return len(listed[1].split(","))
        return self._num_devices

    def _trip_count(self, i: Instruction) -> int | None:
        if known := re.search(r'known_trip_count"?[:=]\s*\{"?n"?:\s*"?(\d+)', i.attributes):
            return int(known[1])
        condition = re.search(r"condition=%([\w.\-]+)", i.attributes)
        compares = self._computations[condition[1]] if condition else []
        bounds = {
            c.name: int(c.arguments)
            for c in compares
            if c.opcode == "constant" and c.arguments.isdigit()
        }
        for c in compares:
            if c.opcode in ("compare", "fusion"):
                for operand in re.findall(r"%([\w.\-]+)", c.arguments):
                    if operand in bounds:
                        return bounds[operand] + ("direction=LE" in c.attributes)
        return None


def _called(i: Instruction) -> Iterator[str]:
    for names in _CALLED.findall(i.attributes):
        yield from re.findall(r"%([\w.\-]+)", names)


def num_bytes(type_text: str) -> int:
    """Returns the bytes of a type such as 'bf16[8,128]{1,0}', or of all parts of a tuple type."""
    total = 0
    for dtype, dims in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]", type_text):
        bits = int((re.match(r"[a-z]+(\d+)", dtype) or (0, 8))[1])  # pred takes a byte
        for size in filter(None, dims.split(",")):
            bits *= int(size.strip("<="))
        total += bits // 8
    return total
