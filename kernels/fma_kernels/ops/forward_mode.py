"""Refusal of forward-mode differentiation."""

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


def refuse_forward_mode(*tensors: Tensor) -> None:
    """The operators have no forward-mode derivative, and PyTorch would take it for zero.

    Raises:
        NotImplementedError: a tensor carries a tangent.
    """
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError("fma_kernels has no forward-mode derivatives: use reverse mode")
