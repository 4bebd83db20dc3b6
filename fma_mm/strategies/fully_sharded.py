"""Training with parameters, gradients and optimizer sharded over processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fma_kernels.checks import require

#: The blocks of this project's, mmpretrain's and mmseg's transformers.
BLOCKS = ("FMA2DBlock", "TransformerEncoderLayer", "SwinBlock")


@STRATEGIES.register_module()
class FullyShardedStrategy(DDPStrategy):
    """FSDP2 (``torch.distributed.fsdp.fully_shard``) for mmengine's ``FlexibleRunner``, on GPUs and on CPUs.

    mmengine's own ``FSDPStrategy`` is FSDP1. With it no training can be resumed on today's PyTorch, and gradients are
    clipped by the norm of each process's shard.

    A checkpoint is whole: it loads like that of any other training, on any number of processes, sharded or not.

    Args:
        blocks: names of the classes of modules that are gathered one at a time; the rest of the model is one shard.
        param_dtype: dtype of parameters and activations in forward and backward passes, ``"bfloat16"`` for instance;
            parameters and optimizer stay as they are. None: as they are.
        **kwargs: other arguments of ``DDPStrategy``.

    Raises:
        ValueError: ``param_dtype`` is no dtype.

    Example of a config:
        >>> runner_type = "FlexibleRunner"
        >>> strategy = dict(type="FullyShardedStrategy")
    """

    def __init__(self, *, blocks: Sequence[str] = BLOCKS, param_dtype: str | None = None, **kwargs):
        dtype = None if param_dtype is None else getattr(torch, param_dtype, None)
        known = param_dtype is None or isinstance(dtype, torch.dtype)
        require(known, "param_dtype", param_dtype, "None or the name of a dtype, as 'bfloat16'")
        super().__init__(**kwargs)
        self.blocks, self.param_dtype = tuple(blocks), dtype
        self._states: tuple[dict, dict] = ({}, {})

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = self.convert_model(model.to(get_device()))
        for x in chain(model.parameters(), model.buffers()):
            dist.broadcast(x.detach(), 0)  # processes may have drawn other weights
        options = dict(
            mesh=init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),)),
            mp_policy=MixedPrecisionPolicy(param_dtype=self.param_dtype),
        )
        for module in [*model.modules()]:
            if type(module).__name__ in self.blocks:
                fully_shard(module, **options)
        return fully_shard(model, **options)

    def build_optim_wrapper(
        self, optim_wrapper: BaseOptimWrapper | dict, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        """Build the wrapper; the norm that clipping logs is that of all gradients."""
        built = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(built, "clip_grad_kwargs", None):
            clip = built.clip_func

            def clip_all(parameters: list[nn.Parameter], **limits: Any) -> torch.Tensor | None:
                norm = clip(parameters, **limits)
                return norm.full_tensor() if isinstance(norm, DTensor) else norm

            built.clip_func = clip_all
        return built

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """Gather the states of model and optimizer from all processes; the first one writes them.

        Args:
            filename: the file.
            **kwargs: arguments of ``DDPStrategy.save_checkpoint``.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer = {}
        if kwargs.get("save_optimizer", True) and hasattr(self, "optim_wrapper"):
            optimizer = get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=options)
        self._states = get_model_state_dict(self.model, options=options), optimizer
        super().save_checkpoint(filename, **kwargs)
        self._states = ({}, {})

    def model_state_dict(self) -> dict:
        """The whole state of the model while a checkpoint is written, in the first process."""
        return self._states[0]

    def optim_state_dict(self) -> dict:
        """The whole state of the optimizer while a checkpoint is written, in the first process."""
        return self._states[1]

    def load_model_state_dict(
        self, state_dict: dict, *, strict: bool = False, revise_keys: Sequence[tuple[str, str]] = ((r"^module.", ""),)
    ) -> None:
        """Load a whole state; every process takes its shards.

        Args:
            state_dict: the state.
            strict: refuse names that are missing or unknown.
            revise_keys: patterns in names, and what replaces them.
        """
        for pattern, replacement in revise_keys:
            state_dict = {re.sub(pattern, replacement, name): x for name, x in state_dict.items()}
        set_model_state_dict(self.model, state_dict, options=StateDictOptions(full_state_dict=True, strict=strict))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the whole state of the optimizer; every process takes its shards.

        Args:
            state_dict: the state.
        """
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, state_dict, options=options)
