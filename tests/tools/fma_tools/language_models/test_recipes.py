"""Attentions as they are written on the command line."""

import argparse

import pytest

from fma_tools.language_models.recipes import Variant


@pytest.mark.parametrize(
    "text, expected",
    [
        ("full", ["model.fma_attention=full"]),
        ("fma:cell=16,rank=2", ["model.fma_attention=fma", "model.fma_cell_size=16", "model.fma_rank=2"]),
        ("local:window=64", ["model.fma_attention=local", "model.fma_window=64"]),
    ],
)
def test_variants(text, expected):
    variant = Variant.parse(text)
    assert variant.overrides == expected
    assert variant.text == text
    assert "/" not in variant.folder and ":" not in variant.folder


@pytest.mark.parametrize("text", ["", ":rank=2", "fma:", "fma:rank", "fma:rank=", "fma:depth=3", "fma:rank=2,"])
def test_other_words_are_no_variants(text):
    if text == "fma:":  # an attention without options
        assert Variant.parse(text).options == {}
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="expected ATTENTION"):
            Variant.parse(text)


def test_every_variant_has_a_folder_of_its_own():
    texts = ["fma", "fma:rank=1", "fma:rank=2", "fma:cell=16,rank=1", "fma-linear", "local:window=1"]
    assert len({Variant.parse(text).folder for text in texts}) == len(texts)
