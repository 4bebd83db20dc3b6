"""What the tools that prepare data sets share: the command line, and the steps from archives to a checked folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from archives import Archive, DataError, Member
from unpacking import unpack


class Dataset(ABC):
    """A data set that its users download as archives, or that is made of what every machine has."""

    title: ClassVar[str]
    page: ClassVar[str]  # where the archives are downloaded, if there are any
    folder: ClassVar[str]  # where the configs expect the data set

    @property
    @abstractmethod
    def archives(self) -> tuple[Archive, ...]:
        """The archives."""

    @property
    def size(self) -> int:
        """Bytes of all files to unpack, about; to show how far the work has come."""
        return sum(archive.size for archive in self.archives)

    @abstractmethod
    def members(self, *paths: Path) -> Iterator[Member]:
        """The files to unpack, with their paths below the data set's folder.

        Args:
            paths: where the archives are, in the order of :attr:`archives`.

        Raises:
            DataError: the archives do not hold what they should.
        """

    @abstractmethod
    def problems(self, root: Path) -> Iterator[str]:
        """What is wrong with the data set in a folder; nothing if it can be trained on.

        Args:
            root: the folder.
        """

    def remarks(self, root: Path) -> Iterator[str]:
        """What to say of the data set in a folder when nothing is wrong with it, in lines.

        Args:
            root: the folder.
        """
        yield from ()


def main(dataset: Dataset, argv: list[str] | None = None) -> None:
    """Prepare or check a data set as the command line asks for; mistakes end the program with status 2.

    Args:
        dataset: the data set.
        argv: the arguments; those of the process when None.
    """
    names = ", ".join(archive.name for archive in dataset.archives)
    parser = ArgumentParser(
        description=f"Put {dataset.title} into the folder that training expects. A run that was interrupted "
        "continues where it stopped when it is started again; files that are there are never overwritten.",
    )
    if dataset.archives:
        parser.add_argument(
            "archives", nargs="?", type=Path, metavar="ARCHIVES", help=f"folder with {names}, from {dataset.page}"
        )
    parser.add_argument("--out", type=Path, default=Path(dataset.folder), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="check the data set in DIR instead, without the archives")
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="trust sizes: do not compare the archives' hashes, nor the contents of files that are there already",
    )
    args = parser.parse_args(argv, Namespace(archives=None))
    if dataset.archives and args.check == (args.archives is not None):
        parser.error("expected either ARCHIVES, the folder with the downloaded archives, or --check")
    try:
        if not args.check:
            prepare(dataset, args.archives, args.out, verify=not args.no_verify)
        check(dataset, args.out)
    except DataError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        parser.exit(2, f"{parser.prog}: error: {where}{error.strerror or error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command continues where it stopped\n")


def prepare(dataset: Dataset, source: Path | None, out: Path, verify: bool) -> None:
    """Unpack a data set.

    Args:
        dataset: the data set.
        source: the folder with its archives; of a single one, also its path. None if it has no archives.
        out: the folder to unpack into.
        verify: compare hashes and contents, not sizes alone.

    Raises:
        DataError: an archive is missing or not what it should be, or see :func:`unpacking.unpack`.
    """
    archives = dataset.archives
    paths = [source] if len(archives) == 1 and source.is_file() else [source / archive.name for archive in archives]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(f"{source}: expected a folder with {', '.join(missing)}, from {dataset.page}")
    for archive, path in zip(archives, paths, strict=True):
        archive.check_size(path)
    if verify:
        for archive, path in zip(archives, paths, strict=True):
            archive.check_digest(path)
    unpack(lambda: dataset.members(*paths), out, dataset.size, compare=verify)


def check(dataset: Dataset, root: Path) -> None:
    """Say that a data set is complete.

    Args:
        dataset: the data set.
        root: its folder.

    Raises:
        DataError: it is not; all that is wrong.
    """
    if problems := list(dataset.problems(root)):
        raise DataError("; ".join(problems))
    print(f"{root}: {dataset.title}, complete")
    for line in dataset.remarks(root):
        print(line)
