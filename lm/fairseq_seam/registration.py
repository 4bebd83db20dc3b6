"""Registration of models, each size under a name of its own."""

from __future__ import annotations

from argparse import Namespace

from fairseq.models import ARCH_CONFIG_REGISTRY, BaseFairseqModel, register_model

from .precision import resolve_precision


def register_size(name: str, model: type[BaseFairseqModel], flags: type) -> None:
    """Register a model with the sizes of a dataclass, for ``--arch NAME`` and for hydra's ``model._name=NAME``.

    fairseq applies its architecture functions neither under hydra nor to checkpoints that hydra made. It applies the
    defaults of a dataclass everywhere.

    Args:
        name: name of the size.
        model: class of the model.
        flags: dataclass with the sizes.
    """
    register_model(name, dataclass=flags)(type(model.__name__, (model,), {"__doc__": model.__doc__}))
    ARCH_CONFIG_REGISTRY[name] = _after_parsing


def _after_parsing(args: Namespace) -> None:
    """Correct the parsed command line.

    fairseq calls the architecture function of ``--arch`` with all flags, as the last step of parsing. No other function
    of a plugin sees the flags that belong to no model, such as ``--bf16``.
    """
    resolve_precision(args)
