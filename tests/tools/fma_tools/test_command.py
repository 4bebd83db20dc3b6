"""Mistakes of a command line in one line, and settings from its arguments."""

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

import pytest

from fma_tools.command import CommandError, require_positive, run, settings_of


def fail(args):
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise CommandError("the message") from error


@pytest.mark.parametrize("debug", [None, "0", "1"])
def test_a_mistake_is_a_line_and_a_traceback_on_demand(capsys, monkeypatch, debug):
    monkeypatch.delenv("FMA_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("FMA_DEBUG", debug)
    with pytest.raises(SystemExit) as ended:
        run(ArgumentParser(prog="tool"), Namespace(), fail)
    assert ended.value.code == 2
    *traceback, line = capsys.readouterr().err.splitlines()
    assert line == "tool: error: the message"
    if debug == "1":
        text = "\n".join(traceback)
        assert "KeyError: 'the cause'" in text and "CommandError: the message" in text and ", in fail" in text
    else:
        assert not traceback


def test_the_status_is_that_of_the_command():
    assert run(ArgumentParser(), Namespace(x=3), lambda args: args.x) == 3


def test_other_errors_are_not_mistakes():
    with pytest.raises(ZeroDivisionError):
        run(ArgumentParser(), Namespace(), lambda args: 1 / 0)


def test_settings_take_their_part_of_the_arguments():
    @dataclass(frozen=True)
    class Settings:
        rounds: int
        seed: int = 5

    assert settings_of(Settings, Namespace(rounds=2, seed=3, out="x")) == Settings(2, 3)


def test_numbers_below_one_are_refused(capsys):
    require_positive(ArgumentParser(), Namespace(head_dim=1), "head_dim")
    with pytest.raises(SystemExit):
        require_positive(ArgumentParser(), Namespace(head_dim=0), "head_dim")
    assert capsys.readouterr().err.endswith("error: --head-dim 0: expected at least 1\n")


@pytest.mark.slow
def test_preparation_and_recipes_need_no_library_of_models():
    code = """
import sys
import fma_tools.command, fma_tools.prepare.preparation, fma_tools.prepare.imagenet, fma_tools.language_models.recipes
assert not {"torch", "mmengine", "fairseq"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
