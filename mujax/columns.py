"""Text tables with aligned columns."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], sides: str = "<") -> list[str]:
    """Returns one line per row, with the cells of each column padded to its widest cell.

    Args:
      sides: "<" (left) or ">" (right) per column; the last one holds for all further columns.
    """
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = sides.ljust(len(wide), sides[-1])
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, wide, strict=True)
        ).rstrip()
        for row in rows
    ]
