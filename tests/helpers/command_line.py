"""Mistakes on a command line."""

from collections.abc import Callable

import pytest


def error_of(main: Callable[[list[str]], object], capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The last line of a tool that ends with status 2, behind ``error:``.

    Args:
        main: the tool.
        capsys: the fixture.
        *arguments: the command line.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().split("\n")[-1].split("error: ", 1)[1]
