"""The documentation site: it builds without a warning, its links lead somewhere, and it looks right in a browser."""

import io
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from helpers.browser import opened
from PIL import Image

ROOT = Path(__file__).parents[2]
GUIDES = ["index", "concepts", "pytorch", "troubleshooting", "results", "api/fma_kernels"]


class Page(HTMLParser):
    """Anchors of a page, and the addresses that it refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.targets = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.targets += [attrs[name] for name in ("href", "src") if attrs.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, as ``make docs`` builds it: a warning would fail it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs/build.py"), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING:" not in done.stderr, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_no_link_is_dead(site):
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 30
    outside, checked = set(), 0
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https"):
                outside.add(parts.netloc)
            elif parts.scheme == "":
                file = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
                assert file.exists(), (path.name, target)
                if parts.fragment and file.suffix == ".html":
                    assert unquote(parts.fragment) in pages[file].anchors, (path.name, target)
                checked += 1
            else:
                assert parts.scheme in ("data", "mailto"), target
    assert checked > 1000
    assert "arxiv.org" in outside


@pytest.mark.slow
def test_every_page_of_docs_is_in_the_navigation(site):
    sidebar = (site / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert name == "index.html" or f'href="{name}"' in sidebar, name


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(390, 844), (1280, 900)])
def test_looks_right(browser, site, size, dark):
    for name in GUIDES:
        with opened(browser, site / f"{name}.html", size=size, dark=dark) as page:
            # Nothing is wider than the window, pictures have come, and dark means dark.
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), name
            with Image.open(io.BytesIO(page.screenshot())) as picture:
                grey = np.asarray(picture.convert("L"))
            light = np.median(grey)
            assert light < 60 if dark else light > 200, (name, light)
            assert grey.std() > 10, f"{name} is empty"
            title = page.locator("article h1").first
            assert title.is_visible() and title.bounding_box()["width"] <= size[0]


@pytest.mark.slow
def test_the_explorer_of_the_site_answers_the_pointer(browser, site):
    with opened(browser, site / "explorer.html") as page:
        frame = page.frame_locator("iframe")
        frame.locator("#view canvas").scroll_into_view_if_needed()
        before = frame.locator("#levels").inner_text()
        frame.locator("#view canvas").hover(position=dict(x=3, y=3))
        assert frame.locator("#query").inner_text() == "Query: row 0, column 0"
        assert frame.locator("#levels").inner_text() != before
    with opened(browser, site / "explorer" / "text.html", size=(390, 844), dark=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.inner_text("#query").startswith("Query: token ")
