"""A corpus for language models: a file of text per split, for ``fairseq-preprocess`` to read."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from .dataset import Dataset


class Corpus(Dataset):
    """A corpus of text in three splits."""

    files: ClassVar[dict[str, str]] = {split: f"{split}.txt" for split in ("train", "valid", "test")}

    def remarks(self, root: Path) -> Iterator[str]:
        """The command that turns the text into what fairseq trains on, in ``root/bin``."""
        paths = [text for split, name in self.files.items() for text in (f"--{split}pref", str(root / name))]
        command = ["fairseq-preprocess", "--only-source", *paths, "--destdir", str(root / "bin"), "--workers", "4"]
        yield "next:"
        yield f"    {shlex.join(command)}"
