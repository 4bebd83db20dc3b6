"""enwik8, the first 10^8 bytes of a Wikipedia dump, as a corpus of bytes for fairseq."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..command import CommandError
from .archives import Archive, Member, zip_members
from .byte_text import split_members, text_problems
from .corpus import Corpus

NAME = "enwik8"


@dataclass(frozen=True)
class Enwik8(Corpus):
    """enwik8.

    Args:
        archive: the text, in a zip archive.
        num_bytes: number of bytes of the text.
        sha256: SHA-256 of the text.
    """

    title: ClassVar[str] = NAME
    page: ClassVar[str] = "https://mattmahoney.net/dc/enwik8.zip"
    folder: ClassVar[str] = f"data/{NAME}"

    archive: Archive
    num_bytes: int
    sha256: str

    @property
    def archives(self) -> tuple[Archive, ...]:
        return (self.archive,)

    @property
    def size(self) -> int:
        return 4 * self.num_bytes  # a byte takes up to three digits and a space

    def members(self, archive: Path) -> Iterator[Member]:
        texts = (member for member in zip_members(str(archive)) if member.path == NAME)
        text = next(texts, None)
        if text is None or text.size != self.num_bytes:
            found = "none" if text is None else f"{text.size:,} bytes"
            raise CommandError(f"{archive}: expected a file {NAME} of {self.num_bytes:,} bytes, got {found}")
        yield from split_members(text)

    def problems(self, root: Path) -> Iterator[str]:
        return text_problems(root, self.num_bytes, self.sha256)


# Size and hash of the archive as in dataset_infos.json of Hugging Face's enwik8. The text is the one whose author
# publishes its MD5 as a1fa5ffddb56f4953e226637dabbb36a.
ENWIK8 = Enwik8(
    archive=Archive(
        f"{NAME}.zip", 36_445_475, "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc", "sha256"
    ),
    num_bytes=100_000_000,
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
)
