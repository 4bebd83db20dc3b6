"""Command-line tools and examples as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name: str) -> ModuleType:
    """Import tools/NAME.py under a name of its own (tools/test.py would hide another module)."""
    return load_script(TOOLS / f"{name}.py")


def load_script(path: Path) -> ModuleType:
    """Import a script under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"fma_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
