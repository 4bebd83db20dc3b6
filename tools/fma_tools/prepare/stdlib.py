"""The source code of Python's standard library, as a corpus of bytes for fairseq."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from ..command import CommandError
from .archives import Archive, Member
from .byte_text import split_members, text_problems
from .corpus import Corpus

DESCRIPTION = "stdlib.json"
OTHERS = ("site-packages", "dist-packages", "config-", "_sysconfigdata")  # packages, and what differs between builds


@dataclass(frozen=True)
class StandardLibrary(Corpus):
    """The source code of Python's standard library.

    Args:
        library: its folder.
        version: version of that Python.
    """

    title: ClassVar[str] = "Python's standard library"
    folder: ClassVar[str] = "data/stdlib"

    library: Path
    version: str

    @property
    def archives(self) -> tuple[Archive, ...]:
        return ()

    @property
    def size(self) -> int:
        return 4 * sum(path.stat().st_size for path in find_sources(self.library))  # as for enwik8

    def members(self) -> Iterator[Member]:
        sources = find_sources(self.library)
        if not sources:
            raise CommandError(f"{self.library}: expected the standard library of Python, found no *.py files")
        text = b"".join(path.read_bytes() for path in sources)
        yield from split_members(Member(str(self.library), "text", len(text), partial(BytesIO, text)))
        about = dict(python=self.version, files=len(sources), bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
        description = (json.dumps(about, indent=4) + "\n").encode()
        yield Member(str(self.library), DESCRIPTION, len(description), partial(BytesIO, description))

    def problems(self, root: Path) -> Iterator[str]:
        try:
            about = read_description(root)
        except CommandError as error:
            yield str(error)
        else:
            yield from text_problems(root, about["bytes"], about["sha256"])

    def remarks(self, root: Path) -> Iterator[str]:
        about = read_description(root)
        yield f"Python {about['python']}: {about['files']:,} files, {about['bytes']:,} bytes, SHA-256 {about['sha256']}"
        yield from super().remarks(root)


def find_sources(library: Path) -> list[Path]:
    """The library's own source files, sorted by their paths with ``/``.

    Args:
        library: its folder.
    """
    sources = []
    for parent, folders, names in os.walk(library):
        folders[:] = [name for name in folders if not name.startswith(OTHERS)]
        sources += [Path(parent, name) for name in names if name.endswith(".py") and not name.startswith(OTHERS)]
    return sorted(sources, key=lambda path: path.relative_to(library).as_posix())


def read_description(root: Path) -> dict[str, str | int]:
    """The description of the text in a folder, ``stdlib.json``: ``python``, ``files``, ``bytes`` and ``sha256``.

    Args:
        root: the folder.

    Raises:
        CommandError: it is missing, or another file.
    """
    path = root / DESCRIPTION
    try:
        about = json.loads(path.read_bytes())
        types = {key: type(value) for key, value in about.items()}
    except FileNotFoundError as error:
        raise CommandError(f"{path}: no such file") from error
    except (ValueError, AttributeError):
        types = {}
    if types != {"python": str, "files": int, "bytes": int, "sha256": str}:
        raise CommandError(f"{path}: expected the description of the text that was prepared with it")
    return about


STDLIB = StandardLibrary(Path(sysconfig.get_paths()["stdlib"]), platform.python_version())
