"""Unpacking resumes, checks the space, and writes over nothing."""

import fcntl
import io
from types import SimpleNamespace

import pytest
from helpers.prepare_archives import tree

from fma_tools.command import CommandError
from fma_tools.prepare import unpacking
from fma_tools.prepare.archives import Member
from fma_tools.prepare.unpacking import unpack

FILES = {"a.txt": b"aaa", "b/c.txt": b"", "b/d/e.txt": b"e" * 5000}


def members(files=FILES):
    for path, contents in files.items():
        yield Member("x.tar", path, len(contents), lambda contents=contents: io.BytesIO(contents))


def test_files_get_their_places(tmp_path):
    out = tmp_path / "new" / "folder"
    unpack(members, out, total=0)
    assert tree(out) == FILES


def test_what_is_there_is_left_alone(tmp_path):
    unpack(members, tmp_path, total=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (tmp_path / "mine.txt").write_text("mine")
    unpack(members, tmp_path, total=0)
    assert {path: path.stat().st_mtime_ns for path in before if path != tmp_path} == before
    assert tree(tmp_path) == {**FILES, "mine.txt": b"mine"}


@pytest.mark.parametrize("contents", [b"", b"eeee", b"f" * 5000, b"e" * 4999 + b"f"])
def test_another_file_in_the_way_stops_before_anything_is_written(tmp_path, contents):
    (tmp_path / "b" / "d").mkdir(parents=True)
    (tmp_path / "b" / "d" / "e.txt").write_bytes(contents)
    with pytest.raises(CommandError, match=r"e\.txt: differs from the file in x\.tar; move it away"):
        unpack(members, tmp_path, total=0)
    assert tree(tmp_path) == {"b/d/e.txt": contents}


@pytest.mark.parametrize("path", ["a.txt/something", "b"])
def test_a_folder_for_a_file_and_a_file_for_a_folder_stop_before_anything_is_written(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("in the way")
    with pytest.raises((CommandError, NotADirectoryError)):
        unpack(members, tmp_path, total=0)
    assert tree(tmp_path) == {path: b"in the way"}


def test_a_folder_does_not_pass_for_a_file_of_its_size(tmp_path):
    (tmp_path / "a").mkdir()
    files = {"a": bytes((tmp_path / "a").stat().st_size)}
    with pytest.raises(CommandError, match="differs from the file"):
        unpack(lambda: members(files), tmp_path, total=0, compare=False)


def test_contents_can_be_trusted(tmp_path):
    (tmp_path / "a.txt").write_text("bbb")
    unpack(members, tmp_path, total=0, compare=False)
    assert tree(tmp_path) == {**FILES, "a.txt": b"bbb"}


def test_space_is_checked_for_what_is_missing(tmp_path, monkeypatch):
    """Each file takes up whole blocks of 4096 bytes: 1, 0 and 2 here."""
    free = SimpleNamespace(free=3 * 4096 - 1)
    asked = []
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda folder: asked.append(folder) or free)
    out = tmp_path / "new" / "folder"
    with pytest.raises(CommandError, match=r"folder: 0\.0 GB are needed and 0\.0 GB are free"):
        unpack(members, out, total=0)
    assert asked == [tmp_path] and not list(tmp_path.iterdir())
    out.mkdir(parents=True)
    (out / "a.txt").write_bytes(FILES["a.txt"])
    unpack(members, out, total=0)
    assert tree(out) == FILES


def test_two_processes_do_not_unpack_into_one_folder(tmp_path):
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="another process is unpacking into it"):
            unpack(members, tmp_path, total=0)
        assert list(tree(tmp_path)) == [".lock"]
    unpack(members, tmp_path, total=0)  # the lock ends with the process, and its file does not matter
    assert tree(tmp_path) == FILES
