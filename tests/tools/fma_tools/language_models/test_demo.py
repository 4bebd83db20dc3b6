"""The corpus of the demo, and the frequencies of its bytes."""

import math
from collections import Counter

import pytest

from fma_tools.language_models.demo import sample_library, unigram_bits


def test_the_corpus_is_of_the_size_asked_for_and_the_same_again():
    text = sample_library(50_000)
    assert len(text) == 50_000
    assert text == sample_library(50_000)
    assert text != sample_library(50_000, seed=1)
    assert text.count(b"\n") > 500, "source code has lines"


@pytest.mark.parametrize("text", [b"ab" * 200, bytes(range(256)) * 4])
def test_unigram_is_the_cross_entropy_of_smoothed_frequencies(text):
    size = len(text) // 20
    train, valid = text[: -2 * size], text[-2 * size : -size]
    counts = Counter(train)
    expected = sum(-math.log2((counts[b] + 1) / (len(train) + 256)) for b in valid) / len(valid)
    assert unigram_bits(text) == pytest.approx(expected, rel=1e-12)
