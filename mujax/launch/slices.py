"""TPU slices by their common names: v4:2x2x1 (a shape, as in JAX) or v4-8 (as in gcloud)."""

import dataclasses
import math
import re

from mujax.errors import LONG, UserError, cut, suggest
from mujax.hardware import MOST_CHIPS, TPUS, Cloud


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice; `shape` is None if only a number of chips is known."""

    cloud: Cloud
    chips: int
    shape: str | None

    @property
    def hosts(self) -> int:
        """The number of hosts; slices of several hosts have four chips per host."""
        return 1 if self.chips <= self.cloud.most_chips_per_host else self.chips // 4

    @property
    def accelerator_type(self) -> str:
        return f"{self.cloud.accelerator}-{self.chips * self.cloud.cores}"

    @property
    def gcloud_flags(self) -> list[str]:
        """The flags of gcloud: a shape on v4, elsewhere the number of chips."""
        if self.shape and self.cloud.accelerator == "v4":
            return ["--type=v4", f"--topology={self.shape}"]
        return [f"--accelerator-type={self.accelerator_type}"]


def parse_topology(text: str) -> Slice:
    """Parses 'v4:2x2x1' or 'v4-8' into a slice.

    Raises:
      UserError: it names no slice.
    """
    if len(text) > LONG:
        raise UserError(f"--topology={cut(text)} is too long for one; e.g. v4:2x2x1 or v4-8")
    name, colon, shape = text.partition(":")
    if not colon:
        name, _, number = text.rpartition("-")
    generations = {name: tpu.cloud for name, tpu in TPUS.items() if tpu.cloud}
    by_name = {**generations, **{cloud.accelerator: cloud for cloud in generations.values()}}
    if name not in by_name:
        raise UserError(
            f"--topology={text}: no TPU generation {name!r}{suggest(name, by_name)}; e.g. "
            "v4:2x2x1 or v4-8"
        )
    cloud = by_name[name]
    if colon:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != cloud.dims:
            example = "x".join(["2", "2", "1"][: cloud.dims])
            raise UserError(
                f"--topology={text}: a shape of {name} is {cloud.dims} numbers, e.g. "
                f"{name}:{example}"
            )
        chips = math.prod(int(size) for size in shape.split("x"))
    else:
        chips, rest = divmod(int(number) if number.isdecimal() else 0, cloud.cores)
        if rest or not chips:
            raise UserError(
                f"--topology={text}: {name} has {cloud.cores} cores a chip; e.g. {name}-8"
            )
    if chips > MOST_CHIPS:
        raise UserError(f"--topology={text} has {chips} chips, more than any slice")
    if chips > cloud.most_chips_per_host and chips % 4:
        raise UserError(f"--topology={text} has {chips} chips, not a whole number of hosts of four")
    return Slice(cloud, chips, shape or None)
