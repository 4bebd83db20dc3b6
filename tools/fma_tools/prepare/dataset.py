"""A data set: its archives, the files in them, and the check of the folder that they are unpacked into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from .archives import Archive, Member


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
            CommandError: the archives do not hold what they should.
        """

    @abstractmethod
    def problems(self, root: Path) -> Iterator[str]:
        """Problems of the data set in a folder; none if it can be trained on.

        Args:
            root: the folder.
        """

    def remarks(self, root: Path) -> Iterator[str]:
        """Remarks on a data set that has no problems, in lines.

        Args:
            root: the folder.
        """
        yield from ()
