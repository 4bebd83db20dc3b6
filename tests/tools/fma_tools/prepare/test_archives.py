"""Contents of archives, and archives that did not arrive whole."""

import io
import shutil
import tarfile
import zipfile
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fma_tools.command import CommandError
from fma_tools.prepare.archives import Archive, some, tar_members, zip_members
from fma_tools.prepare.unpacking import unpack

FILES = {"b/x.txt": b"x" * 3000, "a.txt": b"", "b/c/y.txt": b"yy"}


def write_archive(path, files):
    """A tar or zip archive, by its suffix; with folders, and names from the here and now."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("b/", b"")
            for name, contents in files.items():
                archive.writestr(name, contents)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            folder = tarfile.TarInfo("b")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, contents in files.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(contents)
                archive.addfile(info, io.BytesIO(contents))
    return zip_members if path.suffix == ".zip" else tar_members


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
def test_members_are_the_files(tmp_path, name):
    members = write_archive(tmp_path / name, FILES)
    found = {}
    for member in members(str(tmp_path / name)):
        with member.open() as stream:
            found[member.path] = stream.read()
        assert member.size == len(found[member.path])
    assert found == FILES and list(found) == list(FILES)


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "\\x", "a\\..\\..\\x", "C:\\x", "C:x"])
@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_paths_out_of_the_folder_are_refused(tmp_path, name, path):
    file = tmp_path / name
    if name == "x.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(path, b"evil")
        members = zip_members
    else:
        with tarfile.open(file, "w") as archive:
            archive.addfile(tarfile.TarInfo(path))
        members = tar_members
    with pytest.raises(CommandError, match="relative paths"):
        unpack(partial(members, str(file)), tmp_path / "out", total=0)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("innocent.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(CommandError, match=r"x\.tar: 'innocent\.txt': expected files"):
        list(tar_members(str(tmp_path / "x.tar")))


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("innocent.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(CommandError, match=r"x\.zip: 'innocent\.txt': expected files"):
        list(zip_members(str(tmp_path / "x.zip")))


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
@given(data=st.data())
def test_a_damaged_archive_gives_a_data_error_or_other_files(tmp_path_factory, name, data):
    """Whatever bytes change or are lost, reading ends in our error if it ends in an error."""
    path = tmp_path_factory.mktemp("damaged") / name
    members = write_archive(path, FILES)
    contents = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(contents) - 1))
    if data.draw(st.booleans()):
        del contents[at:]
    else:
        contents[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(contents)
    try:
        unpack(partial(members, str(path)), path.parent / "out", total=0)
    except (CommandError, OSError) as error:
        assert "\n" not in str(error)
        left = [p.name for p in path.parent.rglob("*") if p.name.startswith(".")]
        assert not left, "no lock and no part of a file stay"
    finally:
        shutil.rmtree(path.parent)


def test_size_and_digest(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    good = Archive("x", 3, "a9993e364706816aba3e25717850c26c9cd0d89d", "sha1")
    good.check_size(path)
    good.check_digest(path)
    with pytest.raises(CommandError, match=r"x: 3 bytes, expected 1,000; an incomplete download"):
        Archive("x", 1000, "0").check_size(path)
    with pytest.raises(CommandError, match="x: MD5 900150983cd24fb0d6963f7d28e17f72, expected 0; download it again"):
        Archive("x", 3, "0").check_digest(path)
    path.write_text("\n<!DOCTYPE html><title>Please log in</title>")
    with pytest.raises(CommandError, match="x: a web page instead of x"):
        Archive("x", 3, "0").check_size(path)


def test_some_names():
    assert some({"b", "a"}) == "a, b"
    assert some(set("abcdefg")) == "a, b, c and 4 more"
