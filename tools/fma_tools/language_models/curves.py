"""Training losses by the number of tokens: which attention learns sooner, and from where on one is ahead of another."""

from __future__ import annotations

import re
from pathlib import Path

#: A line of fairseq's log; the loss is the mean since the line before, to base 2.
LINE = re.compile(r"\[train_inner\].* loss=([\d.]+),.* wpb=([\d.]+),.* num_updates=(\d+),")

Curve = list[tuple[int, float]]


def read_curve(log: Path) -> Curve:
    """Tokens seen, and bits per token since the entry before, of one training.

    As long as a training has not seen its data twice, these are bits of tokens that it had not seen.

    Args:
        log: what fairseq printed.
    """
    found: dict[int, tuple[int, float]] = {}
    for loss, tokens, updates in LINE.findall(log.read_text()):
        found[int(updates)] = (round(float(tokens) * int(updates)), float(loss))
    return [found[updates] for updates in sorted(found)]


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean over trainings, as far as all of them went."""
    length = min(map(len, curves))
    return [(curves[0][i][0], sum(curve[i][1] for curve in curves) / len(curves)) for i in range(length)]


def ahead_from(curve: Curve, other: Curve) -> int | None:
    """Tokens from which on a curve stays below another up to the end of both; None if it does not.

    Args:
        curve, other: with entries at the same numbers of tokens.
    """
    start = None
    for (tokens, bits), (_, others) in zip(curve, other, strict=False):
        if bits >= others:
            start = None
        elif start is None:
            start = tokens
    return start
