"""TPU slices by the names that people give them: v4:2x2x1 (a shape, as JAX has it) or v4-8 (as gcloud has it)."""

import dataclasses
import math
import re

from mujax.errors import LONG, UserError, cut, suggest

MOST_CHIPS = 2**16  # no slice has a sixth of it


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation. From cloud.google.com/tpu/docs/runtimes and /kubernetes-engine/docs/concepts/plan-tpus."""

    accelerator: str  # gcloud's accelerator type, before the number
    cores: int  # that the number counts, a chip
    dims: int  # of a shape
    runtime: str  # the TPU VM image for JAX
    gke: str  # the node label cloud.google.com/gke-tpu-accelerator
    most_chips_a_host: int


GENERATIONS = {
    "v4": Generation("v4", 2, 3, "tpu-ubuntu2204-base", "tpu-v4-podslice", 4),
    "v5p": Generation("v5p", 2, 3, "v2-alpha-tpuv5", "tpu-v5p-slice", 4),
    "v5e": Generation("v5litepod", 1, 2, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 8),
    "v6e": Generation("v6e", 1, 2, "v2-alpha-tpuv6e", "tpu-v6e-slice", 8),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice; `shape` is None where only a number of chips was asked for."""

    generation: Generation
    chips: int
    shape: str | None

    @property
    def hosts(self) -> int:
        """Larger slices than a host's have four chips a host, on every generation."""
        return 1 if self.chips <= self.generation.most_chips_a_host else self.chips // 4

    @property
    def accelerator_type(self) -> str:
        return f"{self.generation.accelerator}-{self.chips * self.generation.cores}"

    @property
    def gcloud_flags(self) -> list[str]:
        """gcloud takes a shape on v4 alone; elsewhere the number of chips has one shape."""
        if self.shape and self.generation.accelerator == "v4":
            return ["--type=v4", f"--topology={self.shape}"]
        return [f"--accelerator-type={self.accelerator_type}"]


def parse_topology(text: str) -> Slice:
    """'v4:2x2x1' or 'v4-8' -> the slice.

    Raises:
      UserError: it names no slice.
    """
    if len(text) > LONG:
        raise UserError(f"--topology={cut(text)} is too long for one; e.g. v4:2x2x1 or v4-8")
    name, colon, shape = text.partition(":")
    if not colon:
        name, _, number = text.rpartition("-")
    by_name = {**GENERATIONS, **{generation.accelerator: generation for generation in GENERATIONS.values()}}
    if name not in by_name:
        raise UserError(f"--topology={text}: no TPU generation {name!r}{suggest(name, by_name)}; e.g. v4:2x2x1 or v4-8")
    generation = by_name[name]
    if colon:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != generation.dims:
            example = "x".join(["2", "2", "1"][: generation.dims])
            raise UserError(f"--topology={text}: a shape of {name} is {generation.dims} numbers, e.g. {name}:{example}")
        chips = math.prod(int(size) for size in shape.split("x"))
    else:
        chips, rest = divmod(int(number) if number.isdecimal() else 0, generation.cores)
        if rest or not chips:
            raise UserError(f"--topology={text}: {name} has {generation.cores} cores a chip; e.g. {name}-8")
    if chips > MOST_CHIPS:
        raise UserError(f"--topology={text} has {chips} chips, more than any slice")
    if chips > generation.most_chips_a_host and chips % 4:
        raise UserError(f"--topology={text} has {chips} chips, not a whole number of hosts of four")
    return Slice(generation, chips, shape or None)
