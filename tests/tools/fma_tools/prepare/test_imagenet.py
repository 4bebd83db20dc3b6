"""From ImageNet's archives to what mmpretrain reads."""

import os
import subprocess
import sys
from dataclasses import replace
from signal import SIGINT, SIGKILL

import pytest
from helpers.prepare_archives import described, make_imagenet, tar_bytes, tree, write_devkit
from helpers.tool_loader import TOOLS

from fma_tools.prepare.imagenet import IMAGENET, META
from fma_tools.prepare.preparation import main


def prepare(data, out, *arguments):
    main(data.dataset, [str(data.folder), "--out", str(out), *arguments])


def redescribe(data, **changes):
    """The archives in the folder, as the official page would describe them if they were the official ones."""
    names = {"train": IMAGENET.train, "val": IMAGENET.val, "devkit": IMAGENET.devkit}
    now = {field: described(data.folder / archive.name) for field, archive in names.items()}
    return replace(data.dataset, **now, **changes)


def test_layout(small_imagenet, tmp_path, capsys):
    prepare(small_imagenet, tmp_path / "data" / "imagenet")
    assert tree(tmp_path / "data" / "imagenet") == small_imagenet.files
    assert capsys.readouterr().out.endswith("imagenet: ImageNet-1K, complete\n")


def test_mmpretrain_reads_it(tmp_path):
    """All 1000 classes, as mmpretrain's ImageNet wants them; labels count the sorted WNIDs."""
    from mmpretrain.datasets import ImageNet

    data = make_imagenet(tmp_path / "downloads", num_classes=1000, per_class=1, num_val=40)
    out = tmp_path / "out"
    prepare(data, out)
    train = ImageNet(data_root=str(out), split="train")
    wnids = sorted({path.split("/")[1] for path in data.files if path.startswith("train/")})
    assert len(train) == 1000
    for i in range(1000):
        sample = train.get_data_info(i)
        wnid = wnids[sample["gt_label"]]
        assert sample["img_path"] == str(out / "train" / wnid / f"{wnid}_0.JPEG")
    val = ImageNet(data_root=str(out), split="val")
    read = {os.path.basename(val.get_data_info(i)["img_path"]): val.get_data_info(i)["gt_label"] for i in range(40)}
    assert read == data.labels and len(set(read.values())) > 20
    assert all(os.path.isfile(val.get_data_info(i)["img_path"]) for i in range(40))


def test_a_second_run_changes_nothing(small_imagenet, tmp_path):
    prepare(small_imagenet, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    prepare(small_imagenet, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("stops", [range(1, 15), [14, 7, 3, 2, 1], [1] * 3])
def test_interrupted_at_every_file_and_continued(small_imagenet, tmp_path, refused, stop_at, monkeypatch, stops):
    """Ctrl-C while the n-th file of a run is written, in run after run."""
    out = tmp_path / "out"
    total, written = len(small_imagenet.files), 0
    for n in stops:
        with monkeypatch.context() as patch:
            stop_at(n, patch)
            if written + n > total:
                prepare(small_imagenet, out)
                written = total
            else:
                line = refused(small_imagenet.dataset, small_imagenet.folder, "--out", out, status=130)
                assert "interrupted; the same command continues" in line
                written += n - 1
        assert len(tree(out)) == written, "whole files only, and no lock"
    prepare(small_imagenet, out)
    assert tree(out) == small_imagenet.files


@pytest.mark.slow
@pytest.mark.parametrize("signal", [SIGKILL, SIGINT])
def test_a_stopped_process_continues(small_imagenet, tmp_path, run_stopped, signal):
    out = tmp_path / "out"
    arguments = small_imagenet.dataset, small_imagenet.folder, "--out", out
    stopped = run_stopped(*arguments, after=9, signal=signal)
    whole = {path: contents for path, contents in tree(out).items() if path in small_imagenet.files}
    assert len(whole) == 8 and whole.items() <= small_imagenet.files.items()
    if signal == SIGKILL:
        assert stopped.returncode == -SIGKILL
        assert any(path.endswith(".part") for path in tree(out)), "killed in the middle of a file"
    else:
        assert stopped.returncode == 130
        assert stopped.stderr == "stopper.py: interrupted; the same command continues where it stopped\n"
    prepare(small_imagenet, out)
    assert tree(out) == small_imagenet.files


def test_a_file_in_the_way_is_kept(small_imagenet, tmp_path, refused):
    out = tmp_path / "out"
    (out / "meta").mkdir(parents=True)
    (out / "meta" / "val.txt").write_text("mine")
    line = refused(small_imagenet.dataset, small_imagenet.folder, "--out", out)
    assert f"{out}/meta/val.txt: differs from the file in {small_imagenet.folder}/ILSVRC2012_devkit" in line
    assert tree(out) == {"meta/val.txt": b"mine"}


def test_no_verify_trusts_sizes(small_imagenet, tmp_path, refused):
    out = tmp_path / "out"
    prepare(small_imagenet, out)
    (image,) = out.glob("val/*00001.JPEG")
    changed = bytes(image.stat().st_size)
    image.write_bytes(changed)
    assert f"{image}: differs from" in refused(small_imagenet.dataset, small_imagenet.folder, "--out", out)
    prepare(small_imagenet, out, "--no-verify")
    assert image.read_bytes() == changed

    path = small_imagenet.folder / IMAGENET.val.name
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # in the padding, so that the images are the same
    assert f"{path}: MD5 " in refused(small_imagenet.dataset, small_imagenet.folder, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    prepare(small_imagenet, tmp_path / "new", "--no-verify")
    assert tree(tmp_path / "new") == small_imagenet.files


def test_missing_archives(small_imagenet, tmp_path, refused):
    for archive in (IMAGENET.train, IMAGENET.devkit):
        (small_imagenet.folder / archive.name).unlink()
    line = refused(small_imagenet.dataset, small_imagenet.folder, "--out", tmp_path / "out")
    assert f"{small_imagenet.folder}: expected a folder with {IMAGENET.train.name}, {IMAGENET.devkit.name}, " in line
    assert "https://image-net.org/" in line
    file = small_imagenet.folder / IMAGENET.val.name
    assert f"{file}: expected a folder with" in refused(small_imagenet.dataset, file, "--out", tmp_path / "out")


def test_archives_that_hold_something_else(small_imagenet, tmp_path, refused):
    """Sizes and hashes stand for the official archives; these tests are about what is in them."""
    folder, out = small_imagenet.folder, tmp_path / "out"
    train, val, devkit = (folder / archive.name for archive in IMAGENET.archives)
    contents = {path: path.read_bytes() for path in (train, val, devkit)}
    wnids = sorted({path.split("/")[1] for path in small_imagenet.files if path.startswith("train/")})
    a_class = {f"{wnids[0]}.tar": tar_bytes({f"{wnids[0]}_0.JPEG": b"x"})}

    def refusal(path, changed, **changes):
        path.write_bytes(changed)
        line = refused(redescribe(small_imagenet, **changes), folder, "--out", out)
        path.write_bytes(contents[path])
        assert not out.exists()
        return line

    line = refusal(train, contents[val])
    assert f"{train}: ILSVRC2012_val_00000005.JPEG: expected an archive for each class, like {wnids[0]}.tar" in line
    assert f"{val}: {wnids[0]}.tar: expected the validation images, like ILSVRC" in refusal(val, tar_bytes(a_class))
    assert f"{train}: damaged: it has no archive of {wnids[1]}, " in refusal(train, tar_bytes(a_class))
    assert "damaged: it has no ILSVRC2012_val_00000001" in refusal(val, tar_bytes({}))
    assert f"{train}: damaged, or not such an archive" in refusal(train, b"<p>" + bytes(10_000))
    everything = {f"{wnid}.tar": tar_bytes({"x.JPEG": b"x"}) for wnid in wnids}
    assert f"{train}: 4 images, expected 8" in refusal(train, tar_bytes(everything))
    everything[f"{wnids[2]}.tar"] = b"x" * 99
    assert f"{train}: {wnids[2]}.tar: damaged" in refusal(train, tar_bytes(everything))
    line = refusal(train, contents[train][:1_000])
    assert f"{train}: n0144076" in line and line.endswith("damaged, or not such an archive")
    assert f"{devkit}: it has no ILSVRC2012_devkit_t12/data/" in refusal(devkit, tar_bytes({"x": b""}, "w:gz"))
    assert f"{devkit}: {META}: damaged" in refusal(devkit, contents[devkit][:200])
    assert f"{devkit}: 4 classes, expected 5" in refusal(devkit, contents[devkit], num_classes=5)
    write_devkit(devkit, wnids, [1, 2, 3])
    assert f"{devkit}: 3 labels of validation images, expected 5" in refusal(devkit, devkit.read_bytes())


def test_check(small_imagenet, tmp_path, refused, capsys):
    out = tmp_path / "out"
    train, val, listing = out / "train", out / "val", out / "meta" / "val.txt"

    def problems():
        return refused(small_imagenet.dataset, "--check", "--out", out).partition("error: ")[2].split("; ")

    assert problems() == [f"{train}: no such folder", f"{val}: no such folder"]
    prepare(small_imagenet, out)
    capsys.readouterr()
    main(small_imagenet.dataset, ["--check", "--out", str(out)])
    assert capsys.readouterr().out == f"{out}: ImageNet-1K, complete\n"

    wnid = min(path.name for path in train.iterdir())
    for path in (train / wnid).iterdir():
        path.rename(path.with_name(f"._{path.name}"))  # hidden, as those of macOS: mmpretrain skips them
    (val / "ILSVRC2012_val_00000003.JPEG").unlink()
    assert problems() == [
        f"{train}: no images in {wnid}",
        f"{train}: 6 images in class folders, expected 8",
        f"{val}: 1 images of {listing} are missing: ILSVRC2012_val_00000003.JPEG",
    ]
    (train / "stray").mkdir()
    listing.write_text(listing.read_text().replace("00004.JPEG ", "00004.JPEG 4").rpartition("ILSVRC")[0])
    train_problem, *_, count, labels = problems()
    assert train_problem == f"{train}: 5 folders, expected 4, one per class"
    assert count == f"{listing}: 4 lines, expected 5"
    assert labels.startswith(f"{listing}: expected an image and a label below 4 per line, got ILSVRC2012_val_00000004")


def test_check_takes_folders_per_class_for_validation(small_imagenet, tmp_path, refused, capsys):
    """The other layout that mmpretrain reads; here it is the training images under the name of validation images."""
    out = tmp_path / "out"
    prepare(small_imagenet, out)
    (out / "meta" / "val.txt").unlink()
    dataset = replace(small_imagenet.dataset, num_val_images=8)
    line = refused(dataset, "--check", "--out", out)
    assert f"{out}/val: 0 folders, expected 4, one per class; {out}/val: 0 images in class folders" in line
    for image in (out / "val").iterdir():
        image.unlink()
    for folder in (out / "train").iterdir():
        (out / "val" / folder.name).symlink_to(folder)
    capsys.readouterr()
    main(dataset, ["--check", "--out", str(out)])
    assert "complete" in capsys.readouterr().out


@pytest.mark.slow
def test_command_line(tmp_path):
    """The tool as users start it, with the sizes of the official archives."""

    def run(*arguments):
        command = [sys.executable, TOOLS / "prepare" / "imagenet.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    def refusal(*arguments):
        process = run(*arguments)
        (line,) = process.stderr.splitlines()
        assert process.returncode == 2 and line.startswith("imagenet.py: error: ")
        assert not (tmp_path / "data").exists()
        return line

    assert "absent: expected a folder with ILSVRC2012_img_train.tar, " in refusal("absent")
    for archive in IMAGENET.archives:
        with (tmp_path / archive.name).open("wb") as file:
            file.truncate(archive.size)  # takes up no space
    (tmp_path / IMAGENET.train.name).write_bytes(b"x" * 1000)
    assert "img_train.tar: 1,000 bytes, expected 147,897,477,120; an incomplete download or" in refusal(".")
    (tmp_path / IMAGENET.train.name).write_text("<!DOCTYPE html><html>Sign in</html>")
    assert "img_train.tar: a web page instead of ILSVRC2012_img_train.tar" in refusal(".")
    with (tmp_path / IMAGENET.train.name).open("wb") as file:
        file.truncate(IMAGENET.train.size)
    assert "devkit_t12.tar.gz: it has no ILSVRC2012_devkit_t12/data/" in refusal(".", "--no-verify")
    assert "data/imagenet/train: no such folder; data/imagenet/val: no such folder" in refusal("--check")
    neither = run()
    assert neither.returncode == 2 and neither.stderr.endswith("with the downloaded archives, or --check\n")
    assert "data/imagenet" in run("--help").stdout
