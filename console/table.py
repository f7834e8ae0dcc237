"""Rows of text in aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

from console.printable import printable


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the rows under their heads; numbers are aligned to the right.

    Cells are one line each, and cannot steer the terminal.
    """
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(heads), *cells]) for i in range(len(heads))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(heads))]

    def line(values: Sequence[str]) -> str:
        parts = [
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(list(heads)), *(line(row) for row in cells)])


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))
