"""Sizes of models under names of their own."""

from __future__ import annotations

from fairseq.models import ARCH_CONFIG_REGISTRY, BaseFairseqModel, register_model

from .compat import resolve_precision


def register_size(name: str, model: type[BaseFairseqModel], config: type) -> None:
    """Register a model with the sizes of a dataclass, for ``--arch NAME`` and for hydra's ``model._name=NAME``.

    fairseq's architecture functions reach neither hydra nor the checkpoints that come of it; a dataclass does.

    Args:
        name: what it is registered as.
        model: the class of the model.
        config: the dataclass with the sizes.
    """
    register_model(name, dataclass=config)(type(model.__name__, (model,), {"__doc__": model.__doc__}))
    # Called with the whole command line, at the end of its parsing.
    ARCH_CONFIG_REGISTRY[name] = resolve_precision
