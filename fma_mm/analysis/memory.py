"""The memory of a training step, tensor by tensor: what it is for, and which module of the model made it.

Works on real tensors, and on those of :class:`torch._subclasses.FakeTensorMode`, which have sizes and no memory.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What memory is for. Temporary is what the backward pass and the optimizer make on their way.
CATEGORIES = ("parameters", "gradients", "optimizer", "inputs", "activations", "temporary")


@dataclass
class Block:
    """The memory of a tensor, or of several that share it.

    Attributes:
        size: bytes.
        category: one of :data:`CATEGORIES`.
        module: name of the innermost module that was running, as in ``named_modules()``; ``""``: none, or the model.
    """

    size: int
    category: str
    module: str


@dataclass(frozen=True)
class Peak:
    """Tensors at the moment of the largest memory.

    Attributes:
        blocks: the memory, piece by piece.
    """

    blocks: list[Block]

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return sum(block.size for block in self.blocks)

    def by_category(self) -> dict[str, int]:
        """Bytes of each of :data:`CATEGORIES`."""
        sizes = Counter()
        for block in self.blocks:
            sizes[block.category] += block.size
        return {category: sizes[category] for category in CATEGORIES}

    def activations(self, key: Callable[[str], str]) -> dict[str, int]:
        """Bytes of activations in groups, largest first.

        Args:
            key: the group that a module of this name belongs to.
        """
        groups = Counter()
        for block in self.blocks:
            if block.category == "activations":
                groups[key(block.module)] += block.size
        return dict(groups.most_common())


def _bytes(storage: torch.UntypedStorage) -> int:
    """Its size; 0 where it depends on the values of fake tensors, as that of what a mask selects."""
    size = storage.nbytes()
    return 0 if isinstance(size, torch.SymInt) and not size.node.has_hint() else int(size)


class MemoryLog(TorchDispatchMode):
    """Takes down every block of memory that operators make and free while it is entered.

    Set :attr:`phase` to what is going on: ``"forward"``, ``"backward"`` or ``"optimizer"``.

    Args:
        model: the model; its parameters and buffers are there from the beginning.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.phase = "forward"
        self._events: list[tuple[int, Block]] = []
        self._blocks: weakref.WeakKeyDictionary[torch.UntypedStorage, Block] = weakref.WeakKeyDictionary()
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[str] = []
        self._hooks = []
        self.add("parameters", *model.parameters(), *model.buffers())
        for parameter in model.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._take_gradient))

    def __enter__(self) -> MemoryLog:
        self._hooks.append(register_module_forward_pre_hook(self._enter_module))
        self._hooks.append(register_module_forward_hook(self._leave_module, always_call=True))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def add(self, category: str, *tensors: Tensor) -> None:
        """Count tensors from now until they are freed.

        Args:
            category: what they are for, also if they are counted already.
            *tensors: any tensors.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            block = self._blocks.get(storage)
            if block is None:
                block = Block(_bytes(storage), category, self._running[-1] if self._running else "")
                self._blocks[storage] = block
                self._events.append((1, block))
                weakref.finalize(storage, self._events.append, (-1, block))
            block.category = category

    def forget(self) -> None:
        """Leave out what has come and gone so far."""
        live = [block for _, block in self._live(len(self._events)).items()]
        self._events[:] = [(1, block) for block in live]

    def peak(self) -> Peak:
        """Tensors at the moment of the largest memory so far."""
        totals = list(accumulate((sign * block.size for sign, block in self._events), initial=0))
        return Peak([*self._live(totals.index(max(totals))).values()])

    def _live(self, events: int) -> dict[int, Block]:
        live = {}
        for sign, block in self._events[:events]:
            if sign > 0:
                live[id(block)] = block
            else:
                live.pop(id(block), None)
        return live

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        category = dict(forward="activations", backward="temporary", optimizer="optimizer")[self.phase]
        if self.phase == "backward" and self._running:  # activations that are made again
            category = "activations"
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._blocks:
                self.add(category, tensor)
        return result

    def _take_gradient(self, parameter: Tensor) -> None:
        self.add("gradients", parameter.grad)

    def _enter_module(self, module: nn.Module, inputs: tuple) -> None:
        self._running.append(self._names.get(module, self._running[-1] if self._running else ""))

    def _leave_module(self, module: nn.Module, inputs: tuple, output: object) -> None:
        self._running.pop()
