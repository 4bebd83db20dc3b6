"""Progress is a bar on a terminal, and a line elsewhere."""

import io
import sys

import pytest

from fma_tools.prepare.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_bar_on_a_terminal_only(monkeypatch, capsys, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with progress("reading", 3000) as advance:
        advance(1000)
        advance(2000)
    assert capsys.readouterr().out == "reading\n"
    assert ("3.0/3.0 kB" in sys.stderr.getvalue()) == (stream is Terminal)
    if stream is io.StringIO:
        assert not sys.stderr.getvalue()
