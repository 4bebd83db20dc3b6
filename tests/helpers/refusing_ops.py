"""Lets mmdetection be imported without mmcv's compiled operators: in their place come functions that refuse to run.

Importing this module changes mmcv for the whole process. So only processes of their own import it.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class RefusingOps(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args, **kwargs):
            raise NotImplementedError(f"mmcv's operator {name} is not compiled here")

        return refuse


sys.modules["mmcv._ext"] = RefusingOps("mmcv._ext")
sys.modules["mmcv._ext"].__spec__ = ModuleSpec("mmcv._ext", loader=None)  # mmengine asks whether there is one
