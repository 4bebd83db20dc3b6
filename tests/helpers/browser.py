"""Pages in a real browser: headless Chromium of the machine, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: Names under which distributions install it.
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def start_browser() -> Iterator[Any]:
    """A browser without a window; the test is skipped, and says why, where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine; Debian and Ubuntu: apt-get install chromium, as .ci/run does")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, size: tuple[int, int] = (1200, 900), dark: bool = False) -> Iterator[Any]:
    """A page of a file, which may load nothing but files, and whose script may not fail.

    Args:
        browser: from :func:`start_browser`.
        path: the file.
        size: width and height of the window in pixels.
        dark: the reader prefers dark colours.
    """
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=scheme)
    page = context.new_page()
    failed, loaded = [], []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("request", lambda request: loaded.append(request.url))
    page.goto(path.resolve().as_uri())
    yield page
    context.close()
    assert not failed
    assert all(url.startswith(("file:", "data:")) for url in loaded), loaded
