"""Distance back to the last repetition of a text: attention can copy from there."""

from __future__ import annotations

#: Tokens of a text that counts as repeated, the predicted one included.
LENGTH = 6
#: Largest distances of the ranges that results are given for. What comes back beyond the last has a range of its own.
LIMITS = (16, 64, 256)
#: Names of the ranges, the last for tokens whose text did not stand before.
RANGES = ("1-16", "17-64", "65-256", "> 256", "new")


def distances(tokens: list[int], length: int = LENGTH) -> list[int]:
    """Distance from each token back to the last place where the ``length`` tokens up to it stood in the same order.

    So a token is repeated if a model that finds its context again can copy it (arXiv 2312.04927 counts pairs of
    words as such).

    Args:
        tokens: the tokens.
        length: how many of them make a text.

    Returns:
        For each token the distance, 1 or more, or 0 if they did not stand before.
    """
    last, found = {}, []
    for end in range(len(tokens)):
        text = tuple(tokens[max(0, end + 1 - length) : end + 1])
        found.append(end - last[text] if text in last and len(text) == length else 0)
        last[text] = end
    return found


def range_of(distance: int) -> int:
    """Index in :data:`RANGES` of a distance that :func:`distances` gave."""
    return sum(distance > limit for limit in LIMITS) if distance else len(RANGES) - 1
