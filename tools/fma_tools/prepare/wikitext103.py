"""WikiText-103, in words, for fairseq."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from .archives import Archive, Member, zip_members
from .corpus import Corpus
from .progress import progress

ROOT = "wikitext-103"


@dataclass(frozen=True)
class WikiText103(Corpus):
    """WikiText-103.

    Args:
        archive: the text, in a zip archive.
        num_tokens: number of tokens of each split, ends of lines included.
    """

    title: ClassVar[str] = "WikiText-103"
    page: ClassVar[str] = "https://wikitext.smerity.com/wikitext-103-v1.zip"
    folder: ClassVar[str] = f"data/{ROOT}"
    files: ClassVar[dict[str, str]] = {split: f"wiki.{split}.tokens" for split in ("train", "valid", "test")}

    archive: Archive
    num_tokens: dict[str, int]

    @property
    def archives(self) -> tuple[Archive, ...]:
        return (self.archive,)

    @property
    def size(self) -> int:
        return 3 * self.archive.size  # about how far the archive is compressed

    def members(self, archive: Path) -> Iterator[Member]:
        for member in zip_members(str(archive)):
            folder, _, name = member.path.rpartition("/")
            if folder == ROOT and name in self.files.values():
                yield replace(member, path=name)

    def problems(self, root: Path) -> Iterator[str]:
        for split, name in self.files.items():
            path, expected = root / name, self.num_tokens[split]
            if not path.is_file():
                yield f"{path}: no such file"
            elif (tokens := count_tokens(path)) != expected:
                yield f"{path}: {tokens:,} tokens, expected {expected:,}"


def count_tokens(path: Path) -> int:
    """Count the words of a file and its lines: the tokens that fairseq makes of it.

    Args:
        path: the file.
    """
    tokens = 0
    with progress(f"{path}: counting the tokens", path.stat().st_size) as advance, path.open("rb") as file:
        while lines := file.readlines(1 << 20):
            tokens += len(lines) + sum(len(line.split()) for line in lines)
            advance(sum(map(len, lines)))
    return tokens


# Size and hash as in dataset_infos.json of Hugging Face's wikitext; numbers of tokens as in arXiv 1609.07843, table 1.
WIKITEXT103 = WikiText103(
    archive=Archive(
        f"{ROOT}-v1.zip", 190_229_076, "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590", "sha256"
    ),
    num_tokens={"train": 103_227_021, "valid": 217_646, "test": 245_569},
)
