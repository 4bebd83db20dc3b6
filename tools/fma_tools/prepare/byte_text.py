"""Any bytes as text that ``fairseq-preprocess --only-source`` makes a token of each of.

A byte is its value in decimal digits, values are joined by spaces, and the newline byte is the end of a line, which
fairseq makes its end-of-sentence token of. The text ends with one more end of a line: n bytes become n + 1 tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO

from ..command import CommandError
from .archives import CHUNK, Member
from .progress import progress

PIECE = 1 << 16  # bytes that are encoded at a time: they take up many times as much while they are
NEWLINE = ord("\n")
NAMES = [str(value).encode() for value in range(256)]
VALUES = {name: value for value, name in enumerate(NAMES) if value != NEWLINE}


def encode(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Bytes as text.

    Args:
        chunks: the bytes, in pieces of any length but 0.

    Yields:
        The text, in pieces: one per chunk, and its last end of a line.
    """
    line_begins = True
    for chunk in chunks:
        joint = b"" if line_begins or chunk.startswith(b"\n") else b" "
        yield joint + b"\n".join(b" ".join(map(NAMES.__getitem__, line)) for line in chunk.split(b"\n"))
        line_begins = chunk.endswith(b"\n")
    yield b"\n"


def decode(text: IO[bytes]) -> Iterator[bytes]:
    """The bytes that a text stands for; spaces do not count, as for fairseq.

    Args:
        text: the text.

    Yields:
        The bytes, in pieces.

    Raises:
        CommandError: a word is not the value of a byte.
    """
    joint = b""
    while lines := text.readlines(CHUNK):
        try:
            yield joint + b"\n".join(bytes(map(VALUES.__getitem__, line.split())) for line in lines)
        except KeyError as error:
            raise CommandError("expected the decimal values of bytes, joined by spaces") from error
        joint = b"\n"


def read(source: IO[bytes], size: int) -> Iterator[bytes]:
    """The next ``size`` bytes of a file, or those that it has, in pieces."""
    while size and (chunk := source.read(min(PIECE, size))):
        yield chunk
        size -= len(chunk)


class EncodedBytes(RawIOBase):
    """A part of a file as text, to be read as a file is.

    Args:
        source: the file; closed with this one.
        start: where the part begins.
        size: its number of bytes.
    """

    def __init__(self, source: IO[bytes], start: int, size: int):
        super().__init__()
        self._source = source
        for _ in read(source, start):  # seeking in a zip archive reads too, in pieces of 16 MB
            pass
        self._pieces = encode(read(source, size))
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        self._rest = self._rest or memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        self._source.close()
        super().close()


def split_sizes(size: int) -> dict[str, int]:
    """The numbers of bytes of the splits, in their order: the last 5 % for tests, the 5 % before them for validation.

    Args:
        size: the number of bytes of the text.
    """
    return {"train": size - 2 * (size // 20), "valid": size // 20, "test": size // 20}


def split_members(text: Member) -> Iterator[Member]:
    """The splits of a text of bytes as the files ``train.txt``, ``valid.txt`` and ``test.txt``.

    Args:
        text: the bytes.

    Raises:
        CommandError: they cannot be read from their archive.
    """

    def opener(start: int, size: int) -> IO[bytes]:
        return BufferedReader(EncodedBytes(text.opener(), start, size), CHUNK)

    start = 0
    for split, size in split_sizes(text.size).items():
        member = Member(text.archive, f"{split}.txt", 0, partial(opener, start, size))
        with member.open() as stream:
            encoded_size = sum(map(len, iter(partial(stream.read, CHUNK), b"")))
        yield Member(member.archive, member.path, encoded_size, member.opener)
        start += size


def text_problems(root: Path, size: int, sha256: str) -> Iterator[str]:
    """Problems of the files of :func:`split_members` in a folder; none if they stand for the text.

    Args:
        root: the folder.
        size: the number of bytes of the text.
        sha256: its SHA-256, in lower-case hexadecimal digits.
    """
    problems, digest = [], hashlib.sha256()
    with progress(f"{root}: checking the text", size) as advance:
        for split, expected in split_sizes(size).items():
            path = root / f"{split}.txt"
            try:
                found = _decode_file(path, digest.update, advance)
            except FileNotFoundError:
                problems.append(f"{path}: no such file")
            except CommandError as error:
                problems.append(f"{path}: {error}")
            else:
                if found != expected:
                    problems.append(f"{path}: {found:,} bytes as text, expected {expected:,}")
    if not problems and digest.hexdigest() != sha256:
        problems.append(f"{root}: another text, with SHA-256 {digest.hexdigest()}, expected {sha256}")
    yield from problems


def _decode_file(path: Path, take: Callable[[bytes], object], advance: Callable[[int], None]) -> int:
    """Hand over the bytes that a file stands for, in pieces, with their numbers; the number of all."""
    count = 0
    with path.open("rb") as file:
        for chunk in decode(file):
            take(chunk)
            count += len(chunk)
            advance(len(chunk))
    return count
