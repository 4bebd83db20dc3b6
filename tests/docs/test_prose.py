"""Rules of the prose that a machine can check (CONTRIBUTING.md): they hold for docstrings and pages."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ["kernels", "fma_mm", "lm", "tools", "examples", "configs", "docs", "tests"]
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def docstrings(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def test_docstrings_begin_with_a_noun_or_a_verb():
    assert len(SOURCES) > 300
    begin = [f"{path.relative_to(ROOT)}: {text[:60]}" for path in SOURCES for text in docstrings(path)]
    assert not [line for line in begin if re.search(r": (What|How|Where|That|Those) ", line)]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_lines_of_pages_are_short(path):
    """140 characters, but for tables, links and code: a change of a sentence is a change of few lines."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 140 and not line.startswith(("|", "    "))]
    assert not [line for line in long if not re.search(r"\]\(.{30,}\)|`.{60,}`", line)]
