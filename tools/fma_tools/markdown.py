"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def table(rows: Iterable[Iterable[object]]) -> str:
    """A table, as its source is written without padding.

    Args:
        rows: the cells, row by row; the first row holds the titles, and the second ``"---"`` or ``"---:"``.
    """
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def number(value: float | None, digits: int) -> str:
    """A number for a cell, with so many digits behind the point; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
