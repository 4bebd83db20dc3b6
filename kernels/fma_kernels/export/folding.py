"""Constant folding: what depends on weights alone is computed once, before the graph is translated."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, fx

#: A constant is folded if it is not larger than this many numbers more than what it is made from: folding must not
#: write out what a broadcast makes.
MOST_NEW_NUMBERS = 2**16


def fold_constants(module: fx.GraphModule) -> None:
    """Replace every node that depends on parameters, buffers and constants alone by its value.

    Args:
        module: a program without side effects, changed in place; parameters that nothing reads any more are removed.
    """
    values: dict[fx.Node, Tensor | Sequence[Tensor]] = {}
    folded: list[fx.Node] = []
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(module)
                if isinstance(value, Tensor):
                    values[node] = value.detach()
            elif _is_function(node) and all(x in values for x in node.all_input_nodes):
                target = cast(Callable, node.target)
                value = target(*fx.map_arg(node.args, values.get), **fx.map_arg(node.kwargs, values.get))
                inputs = sum(_numbers(values[x]) for x in node.all_input_nodes)
                if _is_constant(value) and _numbers(value) <= inputs + MOST_NEW_NUMBERS:
                    values[node] = value
                    folded.append(node)
    made = set(folded)
    for number, node in enumerate([node for node in folded if not made.issuperset(node.users)]):
        name = f"folded_{number}"
        module.register_buffer(name, cast(Tensor, values[node]).clone(memory_format=torch.contiguous_format))
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in made)
    module.graph.eliminate_dead_code()
    module.recompile()
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in read]:
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)


def _is_function(node: fx.Node) -> bool:
    """Whether a node calls an operator whose result depends on its arguments alone."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op == "call_function"
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in target.tags


def _is_constant(value: object) -> bool:
    """Whether a result is a tensor, or the several tensors of an operator such as split."""
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(x, Tensor) for x in value)
    return isinstance(value, Tensor)


def _numbers(value: Tensor | Sequence[Tensor]) -> int:
    return value.numel() if isinstance(value, Tensor) else sum(x.numel() for x in value)
