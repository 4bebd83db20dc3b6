"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def table(rows: Iterable[Iterable[object]]) -> str:
    """A table, as its source is written without padding.

    Args:
        rows: the cells, row by row; the first row holds the titles, and the second ``"---"`` or ``"---:"``.
    """
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
