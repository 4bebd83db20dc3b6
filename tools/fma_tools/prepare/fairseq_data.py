"""Generated text in the form that fairseq trains on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..command import CommandError


def require_empty(out: Path) -> None:
    """Refuse to write into a folder that has something in it.

    Raises:
        CommandError: it has.
    """
    if out.exists() and any(out.iterdir()):
        raise CommandError(f"--out {out}: has files already; nothing was written")


def preprocess(texts: dict[str, Path], out: Path) -> None:
    """Run ``fairseq-preprocess``.

    Args:
        texts: files by the name of their split; ``train`` is one.
        out: folder of the result.

    Raises:
        CommandError: it fails.
    """
    prefixes = [word for split, path in texts.items() for word in (f"--{split}pref", str(path))]
    command = ["-m", "fairseq_cli.preprocess", "--only-source", *prefixes, "--destdir", str(out), "--workers", "1"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"fairseq-preprocess failed:\n{done.stderr[-500:]}")
