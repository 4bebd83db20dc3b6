"""Command line of the tools that prepare data sets, and the steps from archives to a checked folder."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from ..command import CommandError, run
from .dataset import Dataset
from .unpacking import unpack


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
        run(parser, args, partial(_carry_out, dataset))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command continues where it stopped\n")


def _carry_out(dataset: Dataset, args: Namespace) -> None:
    try:
        if not args.check:
            prepare(dataset, args.archives, args.out, verify=not args.no_verify)
        check(dataset, args.out)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CommandError(f"{where}{error.strerror or error}") from error


def prepare(dataset: Dataset, source: Path | None, out: Path, verify: bool) -> None:
    """Unpack a data set.

    Args:
        dataset: the data set.
        source: the folder with its archives; of a single one, also its path. None if it has no archives.
        out: the folder to unpack into.
        verify: compare hashes and contents, not sizes alone.

    Raises:
        CommandError: an archive is missing or not what it should be, or see :func:`unpacking.unpack`.
    """
    archives = dataset.archives
    paths = [source] if len(archives) == 1 and source.is_file() else [source / archive.name for archive in archives]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise CommandError(f"{source}: expected a folder with {', '.join(missing)}, from {dataset.page}")
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
        CommandError: it is not; all that is wrong.
    """
    if problems := list(dataset.problems(root)):
        raise CommandError("; ".join(problems))
    print(f"{root}: {dataset.title}, complete")
    for line in dataset.remarks(root):
        print(line)
