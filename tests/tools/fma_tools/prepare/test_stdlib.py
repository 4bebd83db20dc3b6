"""From Python's standard library to text that fairseq reads."""

import hashlib
import json
import subprocess
import sys

import pytest
from helpers.prepare_archives import tree
from helpers.tool_loader import TOOLS

from fma_tools.prepare.byte_text import decode
from fma_tools.prepare.preparation import main
from fma_tools.prepare.stdlib import STDLIB, StandardLibrary, find_sources

SOURCES = {  # in the order of their paths
    "a-b.py": b"# \xe9 in Latin-1\n",
    "a.py": b"import os\n" * 50,
    "a/b.py": b"no end of the line",
    "a/test/c.py": b"",
    "z/a.py": b"\r\n\f\0" * 9,
}
OTHER_FILES = (
    "a.txt",
    "a.pyc",
    "site-packages/x.py",
    "dist-packages/x.py",
    "config-3.11-x86_64-linux-gnu/python-config.py",
    "_sysconfigdata__linux_x86_64-linux-gnu.py",
)
TEXT = b"".join(SOURCES.values())


@pytest.fixture
def small(tmp_path):
    """A library of a few files."""
    library = tmp_path / "python3"
    for name in [*reversed(SOURCES), *OTHER_FILES]:
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(SOURCES.get(name, b"of no interest"))
    return StandardLibrary(library, "3.99.0")


def test_sources_of_this_python():
    sources = find_sources(STDLIB.library)
    assert {STDLIB.library / "ast.py", STDLIB.library / "json" / "decoder.py"} <= set(sources)
    assert not any("site-packages" in path.parts for path in sources)


def test_text_and_its_description(small, tmp_path, capsys):
    out = tmp_path / "data" / "stdlib"
    main(small, ["--out", str(out)])
    splits = {}
    for name in ("train", "valid", "test"):
        with (out / f"{name}.txt").open("rb") as file:
            splits[name] = b"".join(decode(file))
    assert b"".join(splits.values()) == TEXT
    assert len(splits["valid"]) == len(splits["test"]) == len(TEXT) // 20
    digest = hashlib.sha256(TEXT).hexdigest()
    about = {"python": "3.99.0", "files": len(SOURCES), "bytes": len(TEXT), "sha256": digest}
    assert json.loads((out / "stdlib.json").read_text()) == about
    *_, complete, description, _, command = capsys.readouterr().out.splitlines()
    assert complete == f"{out}: Python's standard library, complete"
    assert description == f"Python 3.99.0: {len(SOURCES)} files, {len(TEXT)} bytes, SHA-256 {digest}"
    assert f"fairseq-preprocess --only-source --trainpref {out}/train.txt " in command


def test_interruptions_lose_nothing(small, tmp_path, stop_at, monkeypatch, refused):
    main(small, ["--out", str(tmp_path / "whole")])
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        line = refused(small, "--out", out, status=130)
    assert "interrupted; the same command continues" in line
    assert sorted(tree(out)) == ["train.txt", "valid.txt"]
    main(small, ["--out", str(out)])
    assert tree(out) == tree(tmp_path / "whole")


def test_the_text_of_another_python_is_kept(small, tmp_path, refused):
    out = tmp_path / "out"
    main(small, ["--out", str(out)])
    before = tree(out)
    (small.library / "new.py").write_text("pass\n")
    assert f"{out}/train.txt: differs from the file in {small.library}; move it away" in refused(small, "--out", out)
    assert tree(out) == before
    main(small, ["--check", "--out", str(out)])  # it is the text that its description tells of


def test_no_library(tmp_path, refused):
    (tmp_path / "python3.zip").touch()
    for library in (tmp_path, tmp_path / "python3.zip", tmp_path / "absent"):
        line = refused(StandardLibrary(library, "3.99.0"), "--out", tmp_path / "out")
        assert line.endswith(f"{library}: expected the standard library of Python, found no *.py files")
    assert not (tmp_path / "out").exists()


def test_check(small, tmp_path, refused):
    out = tmp_path / "out"
    description = out / "stdlib.json"
    assert refused(small, "--check", "--out", out).endswith(f"error: {description}: no such file")
    main(small, ["--out", str(out)])
    about = json.loads(description.read_text())
    for wrong in ["", "[]", "{}", '"x"', "\xff", json.dumps({**about, "bytes": "1"}), json.dumps({**about, "x": 1})]:
        description.write_text(wrong, encoding="latin-1")
        assert f"{description}: expected the description of the text" in refused(small, "--check", "--out", out)
    description.write_text(json.dumps({**about, "sha256": "0"}))
    assert f"{out}: another text, with SHA-256 {about['sha256']}, expected 0" in refused(small, "--check", "--out", out)
    description.write_text(json.dumps(about))
    (out / "test.txt").unlink()
    assert refused(small, "--check", "--out", out).endswith(f"error: {out}/test.txt: no such file")


@pytest.mark.slow
def test_command_line(tmp_path):
    """The tool as users start it; there is nothing to download, so it takes no archives."""

    def refusal(*arguments):
        command = [sys.executable, TOOLS / "prepare" / "stdlib.py", *arguments]
        process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert process.returncode == 2 and not list(tmp_path.iterdir())
        return process.stderr.splitlines()[-1]

    assert refusal("--check") == "stdlib.py: error: data/stdlib/stdlib.json: no such file"
    assert refusal("downloads") == "stdlib.py: error: unrecognized arguments: downloads"
