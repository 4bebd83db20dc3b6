"""From ADE20K's archive to what mmseg reads."""

import subprocess
import sys
from dataclasses import replace
from signal import SIGKILL

import numpy as np
import pytest
from helpers.prepare_archives import described, tree
from helpers.tool_loader import TOOLS
from PIL import Image

from fma_tools.prepare.ade20k import ADE, ROOT
from fma_tools.prepare.preparation import main


def prepare(data, source, out, *arguments):
    main(data.dataset, [str(source), "--out", str(out), *arguments])


@pytest.mark.parametrize("name", ["", ADE.archive.name, "ade.zip"])
def test_layout(small_ade20k, tmp_path, capsys, name):
    """From the folder with the archive, or from the archive under any name."""
    source = small_ade20k.folder / name
    if name == "ade.zip":
        (small_ade20k.folder / ADE.archive.name).rename(source)
    prepare(small_ade20k, source, tmp_path / "ade")
    assert tree(tmp_path / "ade") == small_ade20k.files
    assert capsys.readouterr().out.endswith("ade: ADE20K, complete\n")


def test_mmseg_reads_it(small_ade20k, tmp_path):
    from mmseg.datasets import ADE20KDataset
    from mmseg.datasets.transforms import LoadAnnotations

    prepare(small_ade20k, small_ade20k.folder, tmp_path)
    for split, count in {"training": 4, "validation": 2}.items():
        folders = dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}")
        dataset = ADE20KDataset(data_root=str(tmp_path / ROOT), data_prefix=folders, pipeline=[])
        assert len(dataset) == count
        for i in range(count):
            sample = dataset.get_data_info(i)
            Image.open(sample["img_path"]).verify()
            labels = LoadAnnotations(reduce_zero_label=True)(sample)["gt_seg_map"]
            classes = np.asarray(Image.open(sample["seg_map_path"])).astype(int) - 1  # 0 is no class
            assert np.array_equal(labels, np.where(classes < 0, 255, classes))


@pytest.mark.slow
def test_a_killed_process_continues(small_ade20k, tmp_path, run_stopped):
    out = tmp_path / "ade"
    stopped = run_stopped(small_ade20k.dataset, small_ade20k.folder, "--out", out, after=6, signal=SIGKILL)
    assert stopped.returncode == -SIGKILL
    whole = {path: contents for path, contents in tree(out).items() if path in small_ade20k.files}
    assert len(whole) == 5 and whole.items() <= small_ade20k.files.items()
    assert any(path.endswith(".part") for path in tree(out))
    prepare(small_ade20k, small_ade20k.folder, out)
    assert tree(out) == small_ade20k.files


def test_a_damaged_image_stops_the_run_and_a_good_archive_continues_it(small_ade20k, tmp_path, refused):
    path, out = small_ade20k.folder / ADE.archive.name, tmp_path / "ade"
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 255
    path.write_bytes(damaged)
    assert f"{path}: MD5 " in refused(small_ade20k.dataset, path, "--out", out)
    assert not out.exists()
    line = refused(small_ade20k.dataset, path, "--out", out, "--no-verify")
    assert f"{path}: {ROOT}/" in line and line.endswith("damaged, or not such an archive")
    assert 0 < len(tree(out)) < len(small_ade20k.files)
    path.write_bytes(good)
    prepare(small_ade20k, path, out)
    assert tree(out) == small_ade20k.files


def test_check(small_ade20k, tmp_path, refused, capsys):
    prepare(small_ade20k, small_ade20k.folder, tmp_path)
    capsys.readouterr()
    main(small_ade20k.dataset, ["--check", "--out", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path}: ADE20K, complete\n"
    images, maps = tmp_path / ROOT / "images", tmp_path / ROOT / "annotations"
    (images / "training" / "ADE_train_00000002.jpg").unlink()
    (maps / "validation" / "ADE_val_00000001.png").unlink()
    line = refused(small_ade20k.dataset, "--check", "--out", tmp_path)
    assert line.partition("error: ")[2].split("; ") == [
        f"{images}/training: 3 images, expected 4",
        f"{images}/training: no image of ADE_train_00000002",
        f"{maps}/validation: no annotation of ADE_val_00000001",
    ]


def test_an_archive_of_another_data_set(small_ade20k, tmp_path, refused):
    """It has no folder of the expected name, so nothing of it is unpacked."""
    path = small_ade20k.folder / ADE.archive.name
    path.write_bytes(path.read_bytes().replace(ROOT.encode(), ROOT[::-1].encode()))
    dataset = replace(small_ade20k.dataset, archive=described(path))
    line = refused(dataset, path, "--out", tmp_path / "ade")
    assert f"{tmp_path}/ade/{ROOT}/images/training: no such folder" in line
    assert not (tmp_path / "ade").exists()


@pytest.mark.slow
def test_command_line(small_ade20k, tmp_path):
    """The tool as users start it: the small archive has not the size of the official one."""
    command = [sys.executable, TOOLS / "prepare" / "ade20k.py", small_ade20k.folder]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2 and not (tmp_path / "data").exists()
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"ade20k.py: error: {small_ade20k.folder / ADE.archive.name}: ")
    assert line.endswith(" bytes, expected 967,382,037; an incomplete download or another file")
