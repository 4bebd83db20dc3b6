"""The examples run as they stand: those of the docstrings, and the code of the guides."""

import doctest
import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import mmpretrain.models  # noqa: F401
import pytest
import torch

import fma_kernels
import fma_mm

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module", autouse=True)
def libraries_have_said_what_they_print_once() -> None:
    fma_mm.get_model("fma2d-nano_b64-33k_cifar10")


def modules() -> list[str]:
    """Modules whose docstrings have examples."""
    found = []
    for package in (fma_kernels, fma_mm):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            path = Path(importlib.util.find_spec(info.name).origin)
            if ">>>" in path.read_text():
                found.append(info.name)
    return found


@pytest.mark.parametrize("name", modules())
def test_docstrings(name, one_thread):
    # A reader has these names: those of PyTorch, and those that the package gives.
    known = {"torch": torch} | {each: getattr(fma_kernels, each) for each in fma_kernels.__all__}
    failed, tried = doctest.testmod(importlib.import_module(name), extraglobs=known)
    assert tried and not failed


def test_what_the_package_offers_has_examples():
    offered = [getattr(fma_kernels, name) for name in fma_kernels.__all__ if name[0] not in "_A"]
    without = [each.__name__ for each in offered if ">>>" not in each.__doc__]
    assert without == ["clear_caches"]  # which has no arguments and no result


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of code of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["concepts", "pytorch", "inference"])
def test_code_of_a_page_runs_from_top_to_bottom(page, one_thread, capsys):
    names, printed = {}, []
    code = [text for language, text in blocks(page) if language == "python" and "work_dirs/" not in text]
    assert code
    for text in code:
        exec(compile(text, f"docs/{page}.md", "exec"), names)
        # Where a line that prints ends with a comment, this is what it prints.
        expected = re.findall(r"^print\(.*\) +# ([\d\[(].*)$", text, re.MULTILINE)
        lines = capsys.readouterr().out.splitlines()
        assert set(expected) <= set(lines)
        printed += expected
    assert printed or page == "pytorch"


def messages() -> list[tuple[str, str]]:
    """Code of the page on troubleshooting, and the message that stands below it."""
    found = blocks("troubleshooting")
    pairs = [(code, text) for (kind, code), (_, text) in itertools.pairwise(found) if kind == "python"]
    assert len(pairs) == sum(kind == "python" for kind, _ in found) >= 10
    return pairs


@pytest.mark.parametrize(("code", "message"), messages())
def test_troubleshooting_has_the_exact_messages(code, message):
    with pytest.raises(Exception) as raised:
        exec(code, {})
    assert f"{raised.type.__name__}: {raised.value}\n" == message


def test_lines_of_the_log_are_those_that_are_written(caplog):
    from fma_kernels.backends import selection

    selection._said.clear()
    with caplog.at_level("INFO", "fma_kernels"):
        fma_kernels.fma(*torch.randn(3, 1, 1, 64, 8).double(), cell_size=8)
    page = (DOCS / "troubleshooting.md").read_text()
    assert f"`{caplog.messages[0]}`" in page
    compiler = (ROOT / "kernels/fma_kernels/backends/cpp/library.py").parent
    source = "".join(path.read_text() for path in compiler.glob("*.py"))
    assert "no GNU C++ compiler is found" in source and "no GNU C++ compiler is found" in page
