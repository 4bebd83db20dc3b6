"""Effective receptive fields: how much each input pixel moves the features at the centre."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fma_kernels.checks import require


class Square(NamedTuple):
    """A square of pixels, clipped to the image: rows ``top`` to ``top + side``, columns ``left`` to ``left + side``."""

    top: int
    left: int
    side: int


def receptive_field(
    features: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Effective receptive field of the features at the centre (Luo et al., arXiv 1701.04128).

    The energy of a pixel is the squared norm of the Jacobian of all channels at the centre with respect to the pixel,
    estimated from the gradient of a sum of the channels with random signs (Hutchinson's estimator: its mean is exact).
    The plain sum would not do: behind a normalisation over channels it is constant, and has no gradient.

    Args:
        features: maps images (B, C, H, W) to features (B, C', H', W'); each image for itself, without randomness.
        images: (B, C, H, W), floating point.
        generator: CPU generator of the random signs; PyTorch's default one when None.

    Returns:
        (H, W) float64 on the CPU: the energy of each pixel, mean over the images.

    Raises:
        ValueError: the features are no map, or do not depend on the images.
    """
    require(images.ndim == 4, "images.shape", tuple(images.shape), "four dimensions (B, C, H, W)")
    images = images.detach().requires_grad_()
    maps = features(images)
    require(maps.ndim == 4, "features", tuple(maps.shape), "maps of four dimensions (B, C, H, W)")
    centre = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]
    signs = torch.randint(0, 2, centre.shape, generator=generator) * 2 - 1
    (gradient,) = torch.autograd.grad((centre * signs.to(centre)).sum(), images)
    energy = gradient.double().cpu().square().sum(1).mean(0)
    total = energy.sum().item()
    require(0 < total < math.inf, "features", total, "the energy of a finite gradient that is not 0 everywhere")
    return energy


def smallest_square(energy: Tensor, share: float) -> Square:
    """Smallest square of pixels that holds a share of the energy, wherever it lies; the best of its size.

    Where it lies is left open because the centre of a feature in the image is a matter of the network: a patch
    embedding with overlap has it in the corner of the patch.

    Args:
        energy: (H, W), not negative.
        share: the share of the sum to hold, 0 < share <= 1.

    Raises:
        ValueError: an argument is outside of the values stated above.
    """
    require(energy.ndim == 2 and bool((energy >= 0).all()), "energy", tuple(energy.shape), "numbers >= 0, (H, W)")
    require(0 < share <= 1, "share", share, "a number in (0, 1]")
    sums = F.pad(energy.double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # of everything above and to the left
    wanted = share * sums[-1, -1] * (1 - 1e-12)  # the sums are rounded

    def best(side: int) -> tuple[float, Square]:
        height, width = (min(side, n) for n in energy.shape)
        held = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        top, left = divmod(int(held.argmax()), held.shape[1])
        return held.max().item(), Square(top, left, side)

    low, high = 1, max(energy.shape)
    while low < high:  # what the best square holds grows with its side
        middle = (low + high) // 2
        low, high = (low, middle) if best(middle)[0] >= wanted else (middle + 1, high)
    return best(low)[1]
