from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fairseq import models
from helpers.language_models import build, parse, parse_flags

from lm.fairseq_seam.registration import register_size
from lm.models.fma_lm import FMALanguageModel, TinyFlags

NAME = "fma_lm_three"


@dataclass
class ThreeLayers(TinyFlags):
    decoder_layers: int = 3


@pytest.fixture(scope="module", autouse=True)
def three_layers() -> Iterator[None]:
    """A size of these tests, which no other test sees."""
    register_size(NAME, FMALanguageModel, ThreeLayers)
    yield
    for registry in ("MODEL", "MODEL_DATACLASS", "ARCH_MODEL", "ARCH_MODEL_NAME", "ARCH_MODEL_INV", "ARCH_CONFIG"):
        del getattr(models, f"{registry}_REGISTRY")[NAME]


def test_a_size_has_a_name_on_the_command_line_and_under_hydra():
    flags = parse(NAME, "--fma-rank", "2").model
    assert (flags.decoder_layers, flags.decoder_embed_dim, flags.fma_rank) == (3, 128, 2)
    model = build(NAME, fma_rank=2)
    assert isinstance(model, FMALanguageModel) and len(model.decoder.layers) == 3


def test_every_size_has_a_class_of_its_own():
    """fairseq keeps the dataclass of a model on its class."""
    assert models.MODEL_REGISTRY[NAME] is not models.MODEL_REGISTRY["fma_lm_tiny"]
    assert parse("fma_lm_tiny").model.decoder_layers == 4


def test_precision_is_resolved_for_every_size():
    assert not parse_flags(NAME, "--bf16", "--cpu").tpu
    with pytest.raises(ValueError, match="--fp16: True, expected a GPU"):
        parse_flags(NAME, "--fp16", "--cpu")
