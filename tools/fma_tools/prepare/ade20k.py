"""ADE20K, as in the scene parsing challenge of 2016, for mmseg's ``ADE20KDataset``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .archives import Archive, Member, some, zip_members
from .dataset import Dataset

ROOT = "ADEChallengeData2016"


@dataclass(frozen=True)
class ADE20K(Dataset):
    """ADE20K.

    Args:
        archive: images and annotations.
        num_training_images: number of training images.
        num_validation_images: number of validation images.
    """

    title: ClassVar[str] = "ADE20K"
    page: ClassVar[str] = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    folder: ClassVar[str] = "data/ade"

    archive: Archive
    num_training_images: int
    num_validation_images: int

    @property
    def archives(self) -> tuple[Archive, ...]:
        return (self.archive,)

    def members(self, archive: Path) -> Iterator[Member]:
        for member in zip_members(str(archive)):
            if member.path.startswith(f"{ROOT}/"):
                yield member

    def problems(self, root: Path) -> Iterator[str]:
        splits = {"training": self.num_training_images, "validation": self.num_validation_images}
        for split, number in splits.items():
            images, maps = root / ROOT / "images" / split, root / ROOT / "annotations" / split
            if absent := [folder for folder in (images, maps) if not folder.is_dir()]:
                yield f"{absent[0]}: no such folder"
                continue
            image_names = {path.stem for path in images.glob("*.jpg")}
            map_names = {path.stem for path in maps.glob("*.png")}
            if len(image_names) != number:
                yield f"{images}: {len(image_names):,} images, expected {number:,}"
            if absent := image_names - map_names:
                yield f"{maps}: no annotation of {some(absent)}"
            if absent := map_names - image_names:
                yield f"{images}: no image of {some(absent)}"


# Size as in tensorflow-datasets' url_checksums/ade20k.txt.
ADE = ADE20K(
    archive=Archive(f"{ROOT}.zip", 967_382_037, "7328b3957e407ddae1d3cbf487f149ef"),
    num_training_images=20_210,
    num_validation_images=2_000,
)
