"""Converts the attention of a config's model."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from fma_kernels.checks import require

from ..conversion import convert_attention


@HOOKS.register_module()
class ConvertAttentionHook(Hook):
    """Train, test or resume a config of mmpretrain or mmseg with the attention of its vision transformer replaced.

    The model is converted by :func:`fma_mm.convert_attention` before its weights are initialised or loaded, so that
    ``init_cfg``, ``load_from`` and ``--resume`` act on the converted model; they take the weights of the original too.
    Before training, the optimizer, its schedulers and the distributed wrapper are built again from the config, for the
    new parameters. Weight decay would pull the summaries towards zero: keep it off them by
    ``optim_wrapper=dict(paramwise_cfg=dict(custom_keys={"_basis": dict(decay_mult=0.0)}))``.

    Args:
        cell_size: side of the finest cells, in patches.
        **options: the other arguments of :func:`fma_mm.convert_attention`.

    Raises:
        TypeError: an option is none of these arguments.
    """

    priority = "HIGHEST"  # other hooks, such as EMAHook, take what they need from the model in before_run

    def __init__(self, cell_size: int, **options: Any):
        self.options = dict(cell_size=cell_size, **options)
        inspect.signature(convert_attention).bind(None, **self.options)
        self.converted = False

    def before_run(self, runner: Runner) -> None:
        """Convert the model, unless an earlier run of this runner has.

        Args:
            runner: the runner.

        Raises:
            ValueError: the model cannot be converted, or the runner cannot take new parameters in at this point.
        """
        if self.converted:
            return
        # FlexibleRunner has loaded the checkpoint by now.
        require(isinstance(runner, Runner), "runner_type", type(runner).__name__, "Runner with ConvertAttentionHook")
        wrapper = runner.model if is_model_wrapper(runner.model) else None
        training = isinstance(runner.optim_wrapper, OptimWrapper)
        if wrapper is not None:
            expected = "MMDistributedDataParallel or a class like it"
            known = isinstance(wrapper, DistributedDataParallel)
            require(known, "model_wrapper_cfg.type", type(wrapper).__name__, expected)
        if training:
            cfg = runner.cfg.get("optim_wrapper")
            require(isinstance(cfg, dict), "runner.cfg.optim_wrapper", cfg, "the config of the optimizer")
        model = convert_attention(runner.model if wrapper is None else wrapper.module, **self.options)
        self.converted = True
        if wrapper is not None:
            runner.model = runner.wrap_model(runner.cfg.get("model_wrapper_cfg"), model)
        if training:
            self._renew_optimizer(runner)

    @staticmethod
    def _renew_optimizer(runner: Runner) -> None:
        """Build the optimizer and its schedulers as the runner did."""
        runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
        runner.param_schedulers = runner.cfg.get("param_scheduler")
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
