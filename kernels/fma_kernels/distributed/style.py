"""Context parallelism of modules, applied from outside of a model."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle

from ..checks import require
from ..modules import CoreAttention, FMAttention


class FMAContextParallel(ParallelStyle):
    """Splits the tokens of an attention over the ranks of a mesh of one axis, for ``parallelize_module``.

    The module then takes and gives the tokens of its rank, as :func:`fma_kernels.distributed.shard` cuts them, and the
    ``grid`` of all ranks together; without a grid, the tokens of all ranks are a sequence. All else in a transformer
    works on single tokens; positions are those of :func:`fma_kernels.distributed.own_tokens`.

    Every rank gets the gradients of its own tokens. Those of parameters are parts that have to be added, by
    DistributedDataParallel or FSDP over these ranks too, or by :func:`fma_kernels.distributed.sum_gradients`.

    Args:
        check: compare the arguments of all ranks at every call, so that an error is raised on all of them. On GPUs the
            host waits for that. Without it a sequence needs its ``grid`` as well.

    Raises:
        ValueError: when it is applied: the module is no :class:`FMAttention` or :class:`CoreAttention`, its attention
            is ``"full"``, or it has global tokens.

    Example::

        mesh = init_device_mesh("cuda", (8,), mesh_dim_names=("context",))
        parallelize_module(model, mesh["context"], {"blocks.*.attention": FMAContextParallel()})
    """

    def __init__(self, *, check: bool = True):
        super().__init__()
        self.check = check

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        require(isinstance(module, (FMAttention, CoreAttention)), "module", module, "an FMAttention or a CoreAttention")
        require(device_mesh.ndim == 1, "device_mesh", device_mesh, "a mesh of one axis")
        core = cast(CoreAttention, module.attention if isinstance(module, FMAttention) else module)
        expected = "another: torch.distributed.tensor.experimental.context_parallel splits full attention"
        require(core.attention != "full", "attention", core.attention, expected)
        count = core.num_global_tokens
        require(count == 0, "num_global_tokens", count, "0: every rank would have to read all tokens")
        core.context_parallel(device_mesh.get_group(), check=self.check)
        return module
