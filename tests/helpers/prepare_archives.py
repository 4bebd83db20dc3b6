"""Small archives in the structure of the official ones, to try the tools of tools/prepare on."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from scipy.io import savemat

from fma_tools.prepare import ade20k, imagenet
from fma_tools.prepare.archives import Archive


def image(rng: np.random.Generator, kind: str, shape: tuple[int, ...] = (5, 6, 3), values: int = 256) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, values, shape, dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return buffer.getvalue()


def described(path: Path) -> Archive:
    """Size and checksum of a file, as an official download page states them."""
    contents = path.read_bytes()
    return Archive(path.name, len(contents), hashlib.md5(contents).hexdigest())


def write_devkit(path: Path, wnids: list[str], numbers: list[int]) -> None:
    """The development kit: classes have the numbers 1, 2, ..; groups of classes come after them, as in the real one."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.empty(len(wnids) + 1, dtype=[(field, object) for field in fields])
    for i, wnid in enumerate(wnids):
        synsets[i] = (i + 1, wnid, "a, b", "thing", 0, [], 0)
    synsets[-1] = (len(wnids) + 1, "n99999999", "all", "everything", 2, [1, 2], 1)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    files = {imagenet.META: meta.getvalue(), imagenet.TRUTH: "".join(f"{n}\n" for n in numbers).encode()}
    path.write_bytes(tar_bytes({"ILSVRC2012_devkit_t12/readme.txt": b"Hello", **files}, "w:gz"))


def make_imagenet(folder: Path, num_classes: int = 4, per_class: int = 2, num_val: int = 5) -> SimpleNamespace:
    """ImageNet's three archives.

    Returns:
        ``folder``; ``dataset``, their description; ``files``, what they hold by the path that it should get; and
        ``labels``, those of the validation images by name.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    wnids = [f"n{int(i):08d}" for i in rng.permutation(num_classes) + 1440764]  # numbered in another order than sorted
    files, classes = {}, {}
    for wnid in wnids:
        images = {f"{wnid}_{i}.JPEG": image(rng, "JPEG") for i in range(per_class)}
        files |= {f"train/{wnid}/{name}": contents for name, contents in images.items()}
        classes[f"{wnid}.tar"] = tar_bytes(images)
    numbers = rng.integers(1, num_classes + 1, num_val).tolist()
    val = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": image(rng, "JPEG") for i in range(num_val)}
    labels = {name: sorted(wnids).index(wnids[number - 1]) for name, number in zip(val, numbers, strict=True)}
    files |= {f"val/{name}": contents for name, contents in val.items()}
    files["meta/val.txt"] = "".join(f"{name} {label}\n" for name, label in labels.items()).encode()

    paths = [folder / archive.name for archive in imagenet.IMAGENET.archives]
    paths[0].write_bytes(tar_bytes(classes))
    paths[1].write_bytes(tar_bytes(dict(reversed(val.items()))))
    write_devkit(paths[2], wnids, numbers)
    dataset = imagenet.ImageNet(*map(described, paths), num_classes, num_classes * per_class, num_val)
    return SimpleNamespace(folder=folder, dataset=dataset, files=files, labels=labels)


def make_ade20k(folder: Path, training: int = 4, validation: int = 2) -> SimpleNamespace:
    """ADE20K's archive; see make_imagenet."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = {"objectInfo150.txt": b"Idx Ratio Train Val Stuff Name\n"}
    for split, short, count in [("training", "train", training), ("validation", "val", validation)]:
        for i in range(1, count + 1):
            name = f"ADE_{short}_{i:08d}"
            files[f"images/{split}/{name}.jpg"] = image(rng, "JPEG")
            files[f"annotations/{split}/{name}.png"] = image(rng, "PNG", (5, 6), 151)
    files = {f"{ade20k.ROOT}/{name}": contents for name, contents in files.items()}
    path = folder / ade20k.ADE.archive.name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{ade20k.ROOT}/images/", b"")
        for name, contents in files.items():
            archive.writestr(name, contents)
    return SimpleNamespace(folder=folder, dataset=ade20k.ADE20K(described(path), training, validation), files=files)


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
