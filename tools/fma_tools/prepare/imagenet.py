"""ImageNet-1K (ILSVRC 2012), for mmpretrain's ``ImageNet``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from ..command import CommandError
from .archives import Archive, Member, some, tar_members
from .dataset import Dataset

META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")  # those of mmpretrain's ImageNet


@dataclass(frozen=True)
class ImageNet(Dataset):
    """ImageNet-1K.

    Args:
        train: the training images.
        val: the validation images.
        devkit: the development kit for tasks 1 and 2.
        num_classes: number of classes.
        num_train_images: number of training images.
        num_val_images: number of validation images.
    """

    title: ClassVar[str] = "ImageNet-1K"
    page: ClassVar[str] = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
    folder: ClassVar[str] = "data/imagenet"

    train: Archive
    val: Archive
    devkit: Archive
    num_classes: int
    num_train_images: int
    num_val_images: int

    @property
    def archives(self) -> tuple[Archive, ...]:
        return self.train, self.val, self.devkit

    def members(self, train: Path, val: Path, devkit: Path) -> Iterator[Member]:
        wnids, labels = read_devkit(devkit)
        expect(devkit, "classes", len(wnids), self.num_classes)
        expect(devkit, "labels of validation images", len(labels), self.num_val_images)
        names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, len(labels) + 1)]
        listing = "".join(f"{name} {label}\n" for name, label in zip(names, labels, strict=True)).encode()
        yield Member(str(devkit), "meta/val.txt", len(listing), lambda: BytesIO(listing))
        yield from val_members(val, set(names))
        yield from self._train_members(train, set(wnids))

    def _train_members(self, path: Path, wnids: set[str]) -> Iterator[Member]:
        missing, images = set(wnids), 0
        for archive in tar_members(str(path)):
            wnid = archive.path.removesuffix(".tar")
            if wnid not in missing:
                raise CommandError(f"{path}: {archive.path}: expected an archive for each class, like {min(wnids)}.tar")
            missing.remove(wnid)
            with archive.open() as stream:
                for image in tar_members(f"{path}: {archive.path}", stream):
                    images += 1
                    yield replace(image, path=f"train/{wnid}/{image.path}")
        if missing:
            raise CommandError(f"{path}: damaged: it has no archive of {some(missing)}")
        expect(path, "images", images, self.num_train_images)

    def problems(self, root: Path) -> Iterator[str]:
        for split, num_images in {"train": self.num_train_images, "val": self.num_val_images}.items():
            folder, listing = root / split, root / "meta" / f"{split}.txt"
            if not folder.is_dir():
                yield f"{folder}: no such folder"
                continue
            images = find_images(folder)
            if listing.is_file():
                yield from self._listing_problems(listing, folder, images, num_images)
            else:
                yield from self._folder_problems(folder, images, num_images)

    def _listing_problems(self, listing: Path, folder: Path, images: set[str], num_images: int) -> Iterator[str]:
        """Problems of images that are listed in a file, with their labels."""
        listed = [line.rpartition(" ") for line in listing.read_text(errors="replace").splitlines()]
        if len(listed) != num_images:
            yield f"{listing}: {len(listed):,} lines, expected {num_images:,}"
        labels = {str(label) for label in range(self.num_classes)}
        if wrong := {" ".join([name, label]) for name, _, label in listed if not name or label not in labels}:
            yield f"{listing}: expected an image and a label below {self.num_classes:,} per line, got {some(wrong)}"
        elif absent := {name for name, _, _ in listed} - images:
            yield f"{folder}: {len(absent):,} images of {listing} are missing: {some(absent)}"

    def _folder_problems(self, folder: Path, images: set[str], num_images: int) -> Iterator[str]:
        """Problems of images in a folder per class."""
        classes = {path.name for path in os.scandir(folder) if path.is_dir()}
        images = {image for image in images if "/" in image}
        if len(classes) != self.num_classes:
            yield f"{folder}: {len(classes):,} folders, expected {self.num_classes:,}, one per class"
        if empty := classes - {image.partition("/")[0] for image in images}:
            yield f"{folder}: no images in {some(empty)}"
        if len(images) != num_images:
            yield f"{folder}: {len(images):,} images in class folders, expected {num_images:,}"


def read_devkit(path: Path) -> tuple[list[str], list[int]]:
    """Read the development kit.

    Args:
        path: the archive.

    Returns:
        The WNIDs of the classes, sorted, and the label of each validation image: the position of its WNID in there.

    Raises:
        CommandError: the archive lacks these files.
    """
    from scipy.io import loadmat

    files = {}
    for member in tar_members(str(path)):
        if member.path in {META, TRUTH}:
            with member.open() as stream:
                files[member.path] = stream.read()
    if missing := {META, TRUTH} - files.keys():
        raise CommandError(f"{path}: it has no {some(missing)}")
    synsets = loadmat(BytesIO(files[META]), squeeze_me=True)["synsets"]
    # Synsets with children are the groups that classes belong to.
    wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets if synset["num_children"] == 0}
    classes = sorted(wnids.values())
    labels = {wnid: label for label, wnid in enumerate(classes)}
    return classes, [labels[wnids[int(number)]] for number in files[TRUTH].split()]


def val_members(path: Path, names: set[str]) -> Iterator[Member]:
    """The validation images.

    Args:
        path: the archive.
        names: those that it should hold.
    """
    missing = set(names)
    for image in tar_members(str(path)):
        if image.path not in missing:
            raise CommandError(f"{path}: {image.path}: expected the validation images, like {min(names)}")
        missing.remove(image.path)
        yield replace(image, path=f"val/{image.path}")
    if missing:
        raise CommandError(f"{path}: damaged: it has no {some(missing)}")


def expect(path: Path, what: str, number: int, expected: int) -> None:
    """Raise a CommandError unless the numbers are the same."""
    if number != expected:
        raise CommandError(f"{path}: {number:,} {what}, expected {expected:,}")


def find_images(folder: Path) -> set[str]:
    """Paths of all images below a folder, relative to it and with ``/``; as mmpretrain, without hidden files."""
    images = set()
    for parent, _, names in os.walk(folder, followlinks=True):
        prefix = "" if Path(parent) == folder else f"{Path(parent).relative_to(folder).as_posix()}/"
        images |= {prefix + name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")}
    return images


# Hashes as in torchvision.datasets.ImageNet.
IMAGENET = ImageNet(
    train=Archive("ILSVRC2012_img_train.tar", 147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
    val=Archive("ILSVRC2012_img_val.tar", 6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
    devkit=Archive("ILSVRC2012_devkit_t12.tar.gz", 2_568_145, "fa75699e90414af021442c21a62c3abf"),
    num_classes=1000,
    num_train_images=1_281_167,
    num_val_images=50_000,
)
