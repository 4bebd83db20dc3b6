"""Files of results: figures with the command, the machine, the versions and the settings that they belong to."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import torch

from fma_kernels import __version__


def write_results(path: Path, command: list[str], args: Namespace, device: dict, **figures: object) -> None:
    """Write the results of a benchmark as JSON; what a run has so far is there even if the run is interrupted.

    Args:
        path: the file; its folder is made.
        command: words of the command.
        args: all settings of the command line.
        device: its name, and what else is known about it.
        **figures: the results.
    """
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    about = dict(command=" ".join(command), **device, torch=torch.__version__, version=__version__)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"settings": settings} | figures, indent=1) + "\n")
