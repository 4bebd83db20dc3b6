"""The project's models by name: where configs and metafiles are, and how OpenMMLab's libraries are told of them."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from mmengine.config.utils import MODULE2PACKAGE

#: The module of mmpretrain that holds the names of all models.
HUB = "mmpretrain.apis.model"


def files_root() -> Path:
    """The folder with ``configs``, ``tools`` and ``model-index.yml``.

    Returns:
        ``fma_mm/.mim`` of an installed package, where OpenMMLab's packages have these files; the root of a checkout.
    """
    package = Path(__file__).parent
    installed = package / ".mim"
    return installed if installed.is_dir() else package.parent


class _HubFinder:
    """Finds mmpretrain's hub as Python would, and adds this project's models to it once it has been imported."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == HUB else None
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                _add_models(module)

            spec.loader.exec_module = execute_and_add
        return spec


def _add_models(hub: ModuleType) -> None:
    metafile = files_root() / "configs" / "imagenet" / "metafile.yml"
    hub.ModelHub.register_model_index(metafile, config_prefix=files_root())


def announce() -> None:
    """Make the classifiers known to mmpretrain by name, and the configs to mmengine as ``fma_mm::FOLDER/NAME.py``.

    Importing mmpretrain takes seconds that a user of another library need not spend. So it is not imported here: if it
    has not been, the models are added when somebody imports it.
    """
    MODULE2PACKAGE["fma_mm"] = "fma_mm"
    if HUB in sys.modules:
        _add_models(sys.modules[HUB])
    else:
        sys.meta_path.insert(0, _HubFinder)
