"""From enwik8's archive to text that fairseq reads."""

import hashlib
import random
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.prepare_archives import described, tree
from helpers.tool_loader import TOOLS

from fma_tools.prepare.byte_text import decode, split_sizes
from fma_tools.prepare.enwik8 import ENWIK8, Enwik8
from fma_tools.prepare.preparation import main


def write_archive(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)


@pytest.fixture
def small(tmp_path):
    """An archive of the same structure, of 5,000 bytes: all values, and newlines among them."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    path = folder / ENWIK8.archive.name
    text = bytes(random.Random(0).choices(range(256), [20 if value == 10 else 1 for value in range(256)], k=5000))
    write_archive(path, {"enwik8": text})
    dataset = Enwik8(described(path), len(text), hashlib.sha256(text).hexdigest())
    return SimpleNamespace(folder=folder, path=path, text=text, dataset=dataset)


def prepare(data, out, *arguments):
    main(data.dataset, [str(data.folder), "--out", str(out), *arguments])


def read(path):
    with path.open("rb") as file:
        return b"".join(decode(file))


def test_the_official_splits():
    assert split_sizes(ENWIK8.num_bytes) == {"train": 90_000_000, "valid": 5_000_000, "test": 5_000_000}


def test_splits(small, tmp_path):
    out = tmp_path / "data" / "enwik8"
    prepare(small, out)
    assert sorted(tree(out)) == ["test.txt", "train.txt", "valid.txt"]
    assert read(out / "train.txt") == small.text[:4500]
    assert read(out / "valid.txt") == small.text[4500:4750]
    assert read(out / "test.txt") == small.text[4750:]
    for name, size in {"train": 4500, "valid": 250, "test": 250}.items():
        lines = (out / f"{name}.txt").read_text().splitlines()
        assert sum(len(line.split()) + 1 for line in lines) == size + 1
        assert all(line == " ".join(line.split()) for line in lines)


def test_the_command_to_run_next(small, tmp_path, capsys):
    out = tmp_path / "my data"
    prepare(small, out)
    *_, complete, then, command = capsys.readouterr().out.splitlines()
    assert complete == f"{out}: enwik8, complete" and then == "next:"
    program, *options = shlex.split(command)
    assert program == "fairseq-preprocess" and options[0] == "--only-source"
    values = dict(zip(options[1::2], options[2::2], strict=True))
    for split in ("train", "valid", "test"):
        assert Path(values[f"--{split}pref"]) == out / f"{split}.txt" and (out / f"{split}.txt").is_file()
    assert values["--destdir"] == str(out / "bin")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_interruptions_lose_nothing(small, tmp_path, stop_at, monkeypatch, refused, n):
    prepare(small, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(n, patch)
        line = refused(small.dataset, small.folder, "--out", out, status=130)
    assert "interrupted; the same command continues" in line
    assert tree(out).keys() == set(["train.txt", "valid.txt", "test.txt"][: n - 1]), "whole files only"
    prepare(small, out)
    assert tree(out) == tree(tmp_path / "whole")


def test_nothing_is_overwritten(small, tmp_path, refused):
    out = tmp_path / "out"
    out.mkdir()
    (out / "valid.txt").write_text("mine\n")
    line = refused(small.dataset, small.folder, "--out", out)
    assert f"{out}/valid.txt: differs from the file in {small.path}; move it away" in line
    assert tree(out) == {"valid.txt": b"mine\n"}
    (out / "valid.txt").unlink()
    prepare(small, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    prepare(small, out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_damaged_archives(small, tmp_path, refused):
    out = tmp_path / "out"
    good = small.path.read_bytes()
    small.path.write_bytes(good[:-100])
    assert f"{small.path}: {len(good) - 100:,} bytes, expected {len(good):,};" in refused(
        small.dataset, small.folder, "--out", out
    )
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 255
    small.path.write_bytes(damaged)
    assert f"{small.path}: MD5 " in refused(small.dataset, small.folder, "--out", out)
    line = refused(small.dataset, small.folder, "--out", out, "--no-verify")
    assert line.endswith("damaged, or not such an archive") and not out.exists()
    small.path.write_bytes(good)
    prepare(small, out)


@pytest.mark.parametrize(
    "files, found",
    [({"enwik9": b"x"}, "none"), ({"dir/enwik8": b"x" * 5000}, "none"), ({"enwik8": b"x" * 4999}, "4,999 bytes")],
)
def test_archives_of_something_else(small, tmp_path, refused, files, found):
    write_archive(small.path, files)
    dataset = replace(small.dataset, archive=described(small.path))
    line = refused(dataset, small.path, "--out", tmp_path / "out")
    assert line.endswith(f"{small.path}: expected a file enwik8 of 5,000 bytes, got {found}")
    assert not (tmp_path / "out").exists()


def test_another_text_of_that_size(small, tmp_path, refused):
    write_archive(small.path, {"enwik8": b"x" * 5000})
    dataset = replace(small.dataset, archive=described(small.path))
    assert f"{tmp_path}/out: another text, with SHA-256 " in refused(dataset, small.path, "--out", tmp_path / "out")


def test_check(small, tmp_path, refused, capsys):
    prepare(small, tmp_path / "out")
    capsys.readouterr()
    main(small.dataset, ["--check", "--out", str(tmp_path / "out")])
    assert f"{tmp_path}/out: enwik8, complete\n" in capsys.readouterr().out
    (tmp_path / "out" / "train.txt").unlink()
    line = refused(small.dataset, "--check", "--out", tmp_path / "out")
    assert line.endswith(f"error: {tmp_path}/out/train.txt: no such file")


@pytest.mark.slow
def test_command_line(small, tmp_path):
    """The tool as users start it: the small archive has not the size of the official one."""
    command = [sys.executable, TOOLS / "prepare" / "enwik8.py", small.folder]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2 and not (tmp_path / "data").exists()
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"enwik8.py: error: {small.path}: ")
    assert line.endswith(" bytes, expected 36,445,475; an incomplete download or another file")
