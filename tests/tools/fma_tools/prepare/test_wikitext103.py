"""From WikiText-103's archive to text that fairseq reads."""

import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.prepare_archives import described, tree
from helpers.tool_loader import TOOLS

from fma_tools.prepare.preparation import main
from fma_tools.prepare.wikitext103 import ROOT, WIKITEXT103, WikiText103, count_tokens

ARTICLE = " \n = Robert <unk> = \n \n Robert <unk> is an English film , television and theatre actor . \n"
ARTICLE_TOKENS = (0 + 1) + (4 + 1) + (0 + 1) + (12 + 1)  # words and the end of each line


def write_archive(path, files, root=ROOT):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{root}/", b"")
        for name, contents in files.items():
            archive.writestr(f"{root}/{name}", contents)


@pytest.fixture
def small(tmp_path):
    """An archive of the same structure."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    path = folder / WIKITEXT103.archive.name
    copies = {"test": 2, "valid": 1, "train": 9}
    files = {f"wiki.{split}.tokens": (ARTICLE * number).encode() for split, number in copies.items()}
    write_archive(path, files)
    tokens = {split: number * ARTICLE_TOKENS for split, number in copies.items()}
    return SimpleNamespace(folder=folder, path=path, files=files, dataset=WikiText103(described(path), tokens))


def prepare(data, out, *arguments):
    main(data.dataset, [str(data.folder), "--out", str(out), *arguments])


def test_layout(small, tmp_path, capsys):
    out = tmp_path / "data" / ROOT
    prepare(small, out)
    assert tree(out) == small.files
    *_, complete, _, command = capsys.readouterr().out.splitlines()
    assert complete == f"{out}: WikiText-103, complete"
    assert command.strip() == (
        f"fairseq-preprocess --only-source --trainpref {out}/wiki.train.tokens --validpref {out}/wiki.valid.tokens "
        f"--testpref {out}/wiki.test.tokens --destdir {out}/bin --workers 4"
    )


def test_other_files_of_the_archive_stay_there(small, tmp_path):
    write_archive(small.path, {**small.files, "README.txt": b"Hello", "more/wiki.train.tokens": b"x"})
    prepare(
        SimpleNamespace(folder=small.folder, dataset=replace(small.dataset, archive=described(small.path))), tmp_path
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", *sorted(small.files)]


def test_tokens_are_the_words_and_the_ends_of_lines(tmp_path):
    path = tmp_path / "x"
    for text, tokens in {"": 0, "\n": 1, "a": 2, " a b \n\nc\n": 6, ARTICLE * 50_000: ARTICLE_TOKENS * 50_000}.items():
        path.write_text(text)
        assert count_tokens(path) == tokens


def test_interruptions_lose_nothing(small, tmp_path, stop_at, monkeypatch, refused):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        line = refused(small.dataset, small.folder, "--out", out, status=130)
    assert "interrupted; the same command continues" in line and list(tree(out)) == ["wiki.test.tokens"]
    prepare(small, out)
    assert tree(out) == small.files


def test_nothing_is_overwritten(small, tmp_path, refused):
    out = tmp_path / "out"
    out.mkdir()
    (out / "wiki.valid.tokens").write_text("mine")
    line = refused(small.dataset, small.folder, "--out", out)
    assert f"{out}/wiki.valid.tokens: differs from the file in {small.path}; move it away" in line
    assert tree(out) == {"wiki.valid.tokens": b"mine"}


def test_damaged_archives(small, tmp_path, refused):
    out = tmp_path / "out"
    good = small.path.read_bytes()
    small.path.write_text("<!DOCTYPE html><title>Moved</title>")
    assert f"{small.path}: a web page instead of {ROOT}-v1.zip" in refused(small.dataset, small.folder, "--out", out)
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 255
    small.path.write_bytes(damaged)
    assert f"{small.path}: MD5 " in refused(small.dataset, small.folder, "--out", out)
    assert not out.exists()
    small.path.unlink()
    line = refused(small.dataset, small.folder, "--out", out)
    assert f"{small.folder}: expected a folder with {ROOT}-v1.zip, from https://" in line


def test_an_archive_of_another_data_set(small, tmp_path, refused):
    """It has no folder of the expected name, so nothing of it is unpacked."""
    write_archive(small.path, small.files, root="wikitext-2")
    dataset = replace(small.dataset, archive=described(small.path))
    line = refused(dataset, small.path, "--out", tmp_path / "out")
    assert f"{tmp_path}/out/wiki.train.tokens: no such file; " in line and not (tmp_path / "out").exists()


def test_check(small, tmp_path, refused, capsys):
    out = tmp_path / "out"
    prepare(small, out)
    capsys.readouterr()
    main(small.dataset, ["--check", "--out", str(out)])
    assert f"{out}: WikiText-103, complete\n" in capsys.readouterr().out
    (out / "wiki.train.tokens").write_text(ARTICLE * 8)
    (out / "wiki.test.tokens").unlink()
    line = refused(small.dataset, "--check", "--out", out)
    assert line.partition("error: ")[2].split("; ") == [
        f"{out}/wiki.train.tokens: {8 * ARTICLE_TOKENS} tokens, expected {9 * ARTICLE_TOKENS}",
        f"{out}/wiki.test.tokens: no such file",
    ]


@pytest.mark.slow
def test_command_line(small, tmp_path):
    """The tool as users start it: the small archive has not the size of the official one."""
    command = [sys.executable, TOOLS / "prepare" / "wikitext103.py", small.folder]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2 and not (tmp_path / "data").exists()
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"wikitext103.py: error: {small.path}: ")
    assert line.endswith(" bytes, expected 190,229,076; an incomplete download or another file")
