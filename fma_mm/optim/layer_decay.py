"""Learning rates that fall from the last layer of a backbone to its first."""

from __future__ import annotations

from numbers import Real

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from fma_kernels.checks import require

BACKBONE = "backbone."


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning-rate decay for fine-tuning (BEiT, arXiv 2106.08254), for every mm library.

    A parameter of ``model.backbone`` at depth i of n learns at the rate that mmengine's default constructor gives it,
    times ``layer_decay_rate ** (n - 1 - i)``. Parameters outside of the backbone keep their rate. All other settings
    of ``paramwise_cfg`` work as usual and combine with the decay: ``custom_keys`` with ``lr_mult`` and ``decay_mult``,
    ``norm_decay_mult``, ``bias_decay_mult`` and so on. A ``layer_decay_rate`` of 1 changes nothing.

    The backbone tells depths by its method ``get_layer_depth(param_name, prefix) -> (depth, num_layers)``. ``FMA2D``
    has it, and so do most backbones of mmpretrain, which mmsegmentation and mmdetection reach as
    ``type="mmpretrain.VisionTransformer"``.

    Args:
        optim_wrapper_cfg: config of the optimizer wrapper; its ``optimizer`` states ``lr``.
        paramwise_cfg: settings per parameter, with ``layer_decay_rate`` in (0, 1].

    Raises:
        ValueError: ``layer_decay_rate`` is missing or not in (0, 1], or the optimizer has no ``lr``.
        TypeError: the model has no ``backbone`` with ``get_layer_depth``.

    Example of a config:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type="AdamW", lr=6e-5, weight_decay=0.01),
        ...     constructor="LayerDecayOptimWrapperConstructor",
        ...     paramwise_cfg=dict(layer_decay_rate=0.9, norm_decay_mult=0.0, custom_keys={"head": dict(lr_mult=10.0)}),
        ... )
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get("layer_decay_rate")
        valid = isinstance(rate, Real) and 0 < rate <= 1
        require(valid, "paramwise_cfg['layer_decay_rate']", rate, "a number in (0, 1]")
        require(self.base_lr is not None, "optimizer['lr']", self.base_lr, "a learning rate to decay")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs) -> None:
        """Add the parameters of a module, each as a group of its own, with their settings.

        Args:
            params: the groups, extended in place.
            module: the model, or in the recursion a part of it.
            prefix: name of the module in the model; empty for the model.
            **kwargs: arguments that mmengine's constructor passes on in its recursion.
        """
        if prefix:
            super().add_params(params, module, prefix, **kwargs)
            return
        backbone = getattr(module, "backbone", None)
        if not hasattr(backbone, "get_layer_depth"):
            raise TypeError(
                f"model={type(module).__name__} with backbone={type(backbone).__name__}: layer-wise decay expected a "
                "backbone with the method get_layer_depth(param_name, prefix)"
            )
        super().add_params(params, module, prefix, **kwargs)
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            name = names[group["params"][0]]
            if name.startswith(BACKBONE):
                depth, num_layers = backbone.get_layer_depth(name, BACKBONE)
                decay = self.paramwise_cfg["layer_decay_rate"] ** (num_layers - 1 - depth)
                group["lr"] = group.get("lr", self.base_lr) * decay
