"""Means over trainings that differ in their seed alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of a figure over the seeds; None, which JSON has a word for, where a seed has nothing to measure."""
    return None if None in values else statistics.fmean(values)


def over_seeds(found: list[dict]) -> dict:
    """The means of what was found with several seeds, and with ``bits_by_seed`` the bits of each."""
    means = {}
    for key, value in found[0].items():
        values = [one[key] for one in found]
        if isinstance(value, list):
            means[key] = [mean(place) for place in zip(*values, strict=True)]
        else:
            means[key] = mean(values) if isinstance(value, float) else value
    return means | dict(bits_by_seed=[one["bits"] for one in found])
