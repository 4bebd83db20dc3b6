"""FLOPs of any model, by module; one FLOP is one multiply-add, as in the OpenMMLab model zoos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fma_kernels  # noqa: F401  tells PyTorch what its operators cost

#: PyTorch's fused attentions, which its counter does not know, or takes for full attention where they are causal.
FUSED_ATTENTIONS = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
]


def count_flops(model: nn.Module, inputs: Tensor, **kwargs) -> dict[str, int]:
    """Count the multiply-adds of a forward pass, by running it once in eval mode.

    Counted are convolutions, matrix products, attention (the pairs that are read: causal attention reads half), and the
    making of summaries; neither normalisation, activation functions, resampling nor additions. FMA's operators, fused
    attention and modules with a fused fast path count as what they compute.

    Args:
        model: the model; anything that FLOPs by module make sense for.
        inputs: its input, on its device.
        **kwargs: further arguments of its forward method, such as ``mode="tensor"``.

    Returns:
        FLOPs by name of the module as in ``model.named_modules()``, ``""`` for all; modules without any are left out.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    counter = FlopCounterMode(display=False, custom_mapping={op: _attention(op) for op in FUSED_ATTENTIONS})
    try:
        with torch.no_grad(), _without_fast_path(), counter:
            model(inputs, **kwargs)
    finally:
        for module, mode in training.items():
            module.training = mode
    # PyTorch counts the multiplication and the addition, and calls the model by its class.
    counted = {name.partition(".")[2]: sum(n.values()) // 2 for name, n in counter.get_flop_counts().items()}
    flops = {}
    for name, module in reversed(list(model.named_modules())):
        inside = (flops.get(f"{name}.{child}", 0) for child, _ in module.named_children())
        # mmseg calls the method of a decode head, not the head: then what its modules cost is what it costs.
        flops[name] = counted.get(name) or sum(inside)
    flops[""] = counter.get_total_flops() // 2
    return {name: n for name, n in flops.items() if n or not name}


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def by_module(
    model: nn.Module, flops: dict[str, int], depth: int, name: str = "", level: int = 0
) -> Iterator[tuple[int, str, nn.Module, int]]:
    """Walk through the modules that cost something, in the order of the model.

    Args:
        model: the model.
        flops: what :func:`count_flops` returned for it.
        depth: how far to go into modules inside modules; 0 for the model alone. Lists of modules are no level of their
            own.
        name: name of the module to start from, and
        level: its own depth.

    Yields:
        Depth, name, module and FLOPs of each module that has parameters or FLOPs.
    """
    module = model.get_submodule(name)
    if not flops.get(name) and not count_parameters(module):
        return
    if not isinstance(module, nn.ModuleList):
        yield level, name, module, flops.get(name, 0)
        level += 1
    if level <= depth:
        for child, _ in module.named_children():
            yield from by_module(model, flops, depth, f"{name}.{child}" if name else child, level)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let PyTorch's transformer modules run operator by operator, not as one that no counter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention(operator: torch._ops.OpOverloadPacket) -> Callable[..., int]:
    """Formula of a fused attention, in PyTorch's unit: half a multiply-add."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def formula(*args, out_shape=None, **kwargs) -> int:
        given = dict(zip(names, args, strict=False)) | kwargs
        batch, heads, queries, dim = given["query"]
        keys, value_dim = given["value"][2:]
        pairs = queries * keys
        if given.get("is_causal"):
            pairs = sum(min(i + 1, keys) for i in range(queries))
        return 2 * batch * heads * pairs * (dim + value_dim)

    return formula
