"""One line for a mistake of the command line, with status 2; ``FMA_DEBUG=1`` shows the traceback behind it."""

from __future__ import annotations

import os
import re
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

T = TypeVar("T")


class CommandError(Exception):
    """The command line, or a file that it names, is not as expected; the user gets the message in one line."""


def run(parser: ArgumentParser, args: Namespace, command: Callable[[Namespace], int | None]) -> int | None:
    """Carry a command out; a :class:`CommandError` ends the program with status 2.

    Args:
        parser: the parser, whose program's name begins the line.
        args: parsed arguments.
        command: the command.

    Returns:
        The status that the command returns.
    """
    try:
        return command(args)
    except CommandError as error:
        if os.environ.get("FMA_DEBUG") == "1":
            traceback.print_exception(error)
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def settings_of(kind: type[T], args: Namespace) -> T:
    """The part of the command line that a dataclass of settings takes.

    Args:
        kind: the dataclass; each of its fields has the name of an option.
        args: parsed arguments.
    """
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def require_positive(parser: ArgumentParser, args: Namespace, *names: str, least: int = 1) -> None:
    """Refuse numbers below 1, alone or in lists; what was not given is None.

    Args:
        parser: the parser.
        args: parsed arguments.
        *names: names of the arguments.
        least: the least number, if it is another.
    """
    for name in names:
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < least:
                parser.error(f"--{name.replace('_', '-')} {value}: expected at least {least}")


def require_device(parser: ArgumentParser, device: str) -> None:
    """Refuse a GPU that is not there.

    Args:
        parser: the parser.
        device: value of ``--device``.
    """
    import torch  # the tools that prepare data do without it

    if device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {device}: PyTorch sees no GPU on this machine")


def grid_argument(text: str) -> tuple[int, ...]:
    """Tokens per axis, for example 128x128."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise ArgumentTypeError(f"{text!r}: expected two or three numbers, for example 128x128")
    return tuple(map(int, text.split("x")))
