"""Archives that users download: which they are, whether they arrived whole, and the files in them."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import IO

from ..command import CommandError
from .progress import progress

CHUNK = 1 << 20  # bytes that are read at a time


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Args:
        name: file name.
        size: bytes.
        digest: its hash, in lower-case hexadecimal digits.
        algorithm: name of the hash in ``hashlib``.
    """

    name: str
    size: int
    digest: str
    algorithm: str = "md5"

    def check_size(self, path: Path) -> None:
        """Compare the size of the file at ``path``, which takes no time.

        Raises:
            CommandError: it has another size.
        """
        size = path.stat().st_size
        if size == self.size:
            return
        with path.open("rb") as file:
            start = file.read(256).lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html")):
            raise CommandError(f"{path}: a web page instead of {self.name}; the download was refused")
        raise CommandError(f"{path}: {size:,} bytes, expected {self.size:,}; an incomplete download or another file")

    def check_digest(self, path: Path) -> None:
        """Compare the hash of the file at ``path``, which takes the time to read it.

        Raises:
            CommandError: it has another hash.
        """
        digest = hashlib.new(self.algorithm, usedforsecurity=False)
        with progress(f"{path}: checking the {self.algorithm.upper()}", self.size) as advance, path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                advance(len(chunk))
        if digest.hexdigest() != self.digest:
            raise CommandError(
                f"{path}: {self.algorithm.upper()} {digest.hexdigest()}, expected {self.digest}; download it again"
            )


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn the many errors of a damaged archive into one.

    Args:
        source: name of the archive, for the message.

    Raises:
        CommandError: reading failed because of what was read.
    """
    try:
        yield
    # RuntimeError: zipfile finds a file encrypted, or compressed in a way that it does not know.
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError) as error:
        raise CommandError(f"{source}: damaged, or not such an archive") from error


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Args:
        archive: where it is from, for messages.
        path: its place below the folder it is unpacked into: relative, with ``/``, without ``..``.
        size: bytes.
        opener: opens the contents; only until the next member is asked for.
    """

    archive: str
    path: str
    size: int
    opener: Callable[[], IO[bytes]]

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The contents, to be read in a ``with`` block.

        Raises:
            CommandError: the archive is damaged there.
        """
        with reading(f"{self.archive}: {self.path}"), self.opener() as stream:
            yield stream


def tar_members(archive: str, stream: IO[bytes] | None = None) -> Iterator[Member]:
    """The files in a tar archive, compressed or not, in their order.

    Args:
        archive: its path.
        stream: its contents, if it lies in another archive; ``archive`` is its name in messages then.

    Raises:
        CommandError: it cannot be read, or holds something that is no file in a folder of its own.
    """
    with reading(archive), tarfile.open(None if stream else archive, fileobj=stream) as tar:
        for info in tar:
            if not info.isdir():
                path = checked_path(archive, info.name, info.isreg())
                yield Member(archive, path, info.size, partial(tar.extractfile, info))


def zip_members(archive: str) -> Iterator[Member]:
    """The files in a zip archive, in their order.

    Args:
        archive: its path.

    Raises:
        CommandError: it cannot be read, or holds something that is no file in a folder of its own.
    """
    with reading(archive), zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16  # of Unix; zero in archives made elsewhere
            if not info.is_dir() and not S_ISDIR(mode):
                path = checked_path(archive, info.filename, S_ISREG(mode) or not S_IFMT(mode))
                yield Member(archive, path, info.file_size, partial(file.open, info))


def checked_path(archive: str, name: str, regular: bool) -> str:
    """The name of a member as a relative path with ``/``.

    Args:
        archive: where it is from, for the message.
        name: its name in the archive.
        regular: whether it is a regular file, not a link or device.

    Raises:
        CommandError: it would leave the folder that it is unpacked into.
    """
    path = PureWindowsPath(name)  # knows what is absolute on any system
    if not regular or path.anchor or ".." in path.parts or not path.parts:
        raise CommandError(
            f"{archive}: {name!r}: expected files with relative paths, not links, '..' or absolute paths"
        )
    return path.as_posix()


def some(names: set[str]) -> str:
    """A few names, for messages."""
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3:,} more"
