"""Peak memory of a training step of a recipe of ``configs/lm``, without the memory."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import build_model
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from fma_mm.analysis.memory import Peak
from fma_mm.analysis.simulation import simulate

from .recipes import Variant, plugin


def simulate_recipe(
    config: Path, variant: Variant | None, tokens: int, samples: int, words: int, precision: str
) -> tuple[nn.Module, Peak]:
    """The peak of a training step: cross entropy of all tokens, and an update by Adam.

    Args:
        config: the recipe.
        variant: the attention; None for that of the recipe.
        tokens: tokens per sample.
        samples: samples of the batch.
        words: words of the dictionary, with the four special ones of fairseq.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` by autocast with weights in float32.

    Returns:
        The model whose modules the peak names, and the peak.
    """
    model, loss = training(config, variant, tokens, samples, words)
    # Whether tokens are padding is nothing that fake ones tell; here none is.
    with patch("lm.models.fma_lm.to_right", _as_it_is), patch("lm.models.fma_mlm.to_right", _as_it_is):
        return model, simulate(model, loss, lambda: torch.optim.Adam(model.parameters(), foreach=False), precision)


def training(
    config: Path, variant: Variant | None, tokens: int, samples: int, words: int
) -> tuple[nn.Module, Callable[[], tuple[Tensor, list[Tensor]]]]:
    """The model of a recipe, and what makes a batch and its loss; arguments as those of :func:`simulate_recipe`."""
    utils.import_user_module(Namespace(user_dir=str(plugin())))
    recipe = OmegaConf.load(config)
    flags = OmegaConf.merge(recipe.model, {} if variant is None else OmegaConf.from_dotlist(_flags(variant)))
    task = dict(tokens_per_sample=tokens, max_target_positions=None, add_bos_token=False)
    whole = OmegaConf.create(dict(model=flags, task=task, common=dict(tpu=False)))
    dictionary = Dictionary()
    for word in range(words - len(dictionary)):
        dictionary.add_symbol(str(word))
    model = build_model(whole.model, SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary))

    def loss() -> tuple[Tensor, list[Tensor]]:
        numbers, target = (torch.full((samples, tokens), dictionary.unk(), dtype=torch.int64) for _ in range(2))
        logits = model(numbers, src_lengths=None)[0]
        return F.cross_entropy(logits.float().flatten(0, 1), target.flatten()), [numbers, target]

    return model, loss


def _flags(variant: Variant) -> list[str]:
    return [override.removeprefix("model.") for override in variant.overrides]


def _as_it_is(tokens: Tensor, padding_idx: int) -> tuple[Tensor, None]:
    return tokens, None
