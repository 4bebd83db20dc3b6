"""Bits per token of a trained model, by the place of a token in its context and by what stood there before."""

from __future__ import annotations

import math

import torch
from fairseq import utils

from .loading import Trained
from .repetition import RANGES, distances, range_of

QUARTERS = 4


@torch.no_grad()
def evaluate(trained: Trained, split: str, context: int, samples: int) -> dict:
    """Mean negative log-likelihood of tokens, to base 2: bits per character of a corpus of bytes.

    The samples are spread evenly over the split. Of a masked model only masked tokens count, the same for every model.

    Args:
        trained: the model.
        split: name of the split, which its task has loaded.
        context: tokens per sample.
        samples: number of samples, or all there are if that is less.

    Returns:
        ``bits``, ``bits_by_quarter`` of the context, ``tokens``, ``updates`` and ``parameters``; and
        ``bits_by_repetition`` with the ``tokens_by_repetition``, by the ranges of :mod:`.repetition`: None and 0 for a
        masked model, whose targets are no text. None stands wherever there is no token.

    Raises:
        ValueError: there is no token to predict.
    """
    model, task = trained.model, trained.task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    dataset = task.dataset(split)
    full = [index for index in range(len(dataset)) if dataset.size(index) >= context - 1]  # without a shorter last one
    chosen = [full[i * len(full) // samples] for i in range(samples)] if samples < len(full) else full
    total, count = (torch.zeros(QUARTERS, dtype=torch.float64) for _ in range(2))
    repeated, repeats = (torch.zeros(len(RANGES), dtype=torch.float64) for _ in range(2))
    padding = task.target_dictionary.pad()
    for index in chosen:
        sample = dataset.collater([dataset[index]])
        if device.type == "cuda":
            sample = utils.move_to_cuda(sample)
        target = sample["target"]
        output = model(**sample["net_input"])
        logs = model.get_normalized_probs(output, log_probs=True, sample=sample)
        nll = -logs.gather(2, target[..., None])[0, :, 0].double()
        quarter = torch.arange(len(nll)) * QUARTERS // len(nll)
        real = target[0].ne(padding).cpu()
        total.index_add_(0, quarter[real], nll.cpu()[real])
        count.index_add_(0, quarter[real], real[real].double())
        if real.all():
            ranges = torch.tensor([range_of(distance) for distance in distances(target[0].tolist())])
            repeated.index_add_(0, ranges, nll.cpu())
            repeats.index_add_(0, ranges, real.double())
    if not count.sum():
        raise ValueError(f"{split}: no tokens to predict in samples of {context} tokens")
    return dict(
        bits=(total.sum() / count.sum() / math.log(2)).item(),
        bits_by_quarter=_bits(total, count),
        bits_by_repetition=_bits(repeated, repeats),
        tokens_by_repetition=repeats.long().tolist(),
        tokens=int(count.sum()),
        updates=trained.updates,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _bits(nll: torch.Tensor, count: torch.Tensor) -> list[float | None]:
    """Bits per token of each range, of its summed negative log-likelihoods and its number of tokens."""
    sums = zip(nll.tolist(), count.tolist(), strict=True)
    return [total / tokens / math.log(2) if tokens else None for total, tokens in sums]
