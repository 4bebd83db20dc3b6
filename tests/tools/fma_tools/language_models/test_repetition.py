"""Distances back to a text, against a search through all places."""

from hypothesis import given
from hypothesis import strategies as st

from fma_tools.language_models.repetition import RANGES, distances, range_of


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 4))
def test_distances(tokens, length):
    expected = []
    for end in range(1, len(tokens) + 1):
        text = tokens[end - length : end] if end >= length else None
        places = [p for p in range(length, end) if tokens[p - length : p] == text]
        expected.append(end - places[-1] if places else 0)
    assert distances(tokens, length) == expected


def test_ranges():
    names = [RANGES[range_of(distance)] for distance in (1, 16, 17, 64, 65, 256, 257, 5000, 0)]
    assert names == ["1-16", "1-16", "17-64", "17-64", "65-256", "65-256", "> 256", "> 256", "new"]
