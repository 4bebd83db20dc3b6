"""Putting files in their places: resumable, and never over a file that is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from filelock import FileLock, Timeout

from ..command import CommandError
from .archives import CHUNK, Member
from .progress import progress

BLOCK = 4096  # bytes; the space that files take up comes in multiples of it


def unpack(members: Callable[[], Iterable[Member]], out: Path, total: int, compare: bool = True) -> None:
    """Write the files that are not there yet.

    A file appears under its name only when it is complete. So an unpacking that is stopped at any moment, and started
    again, ends with the files of one that was not stopped.

    Args:
        members: gives the files; called twice, to look and to write.
        out: the folder that their paths are relative to.
        total: bytes of all files, about, to show how far the look has come.
        compare: compare the contents of files that are there already, not their sizes alone.

    Raises:
        CommandError: a file in the way is another one, the space does not suffice, or another process is unpacking;
            then nothing was written. Or a file cannot be read from its archive.
    """
    files = missing = space = 0
    with progress(f"{out}: looking for files that are missing", total) as advance:
        for member in members():
            if not in_place(member, out, compare):
                files += 1
                missing += member.size
                space += -(-member.size // BLOCK) * BLOCK
            advance(member.size)
    if not files:
        return
    check_space(out, space)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), progress(f"{out}: unpacking {files:,} files", missing) as advance:
        for member in members():
            if not in_place(member, out, compare=False):
                write(member, out / member.path)
                advance(member.size)


def in_place(member: Member, out: Path, compare: bool) -> bool:
    """Whether the file is there.

    Args:
        member: the file.
        out: the folder that its path is relative to.
        compare: compare the contents, not the size alone.

    Raises:
        CommandError: something else is there.
    """
    target = out / member.path
    try:
        status = target.stat()
    except FileNotFoundError:
        return False
    same_size = S_ISREG(status.st_mode) and status.st_size == member.size
    if same_size and (not compare or same_contents(member, target)):
        return True
    raise CommandError(f"{target}: differs from the file in {member.archive}; move it away, or give another --out")


def same_contents(member: Member, target: Path) -> bool:
    """Whether a file of the member's size has its contents."""
    with member.open() as source, target.open("rb") as file:
        while chunk := source.read(CHUNK):
            if file.read(len(chunk)) != chunk:
                return False
    return True


def write(member: Member, target: Path) -> None:
    """Write a file under another name first, so that a part of it never passes for the whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")  # hidden, and with no suffix of an image
    try:
        with member.open() as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def check_space(out: Path, needed: int) -> None:
    """Raise a CommandError unless the file system that ``out`` is or will be on has ``needed`` bytes to spare."""
    folder = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CommandError(f"{out}: {needed / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} GB are free on that disk")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from unpacking into a folder; the system ends the lock with the process."""
    path = out / ".lock"
    try:
        with FileLock(path, timeout=0):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except Timeout as error:
        raise CommandError(f"{out}: another process is unpacking into it") from error
