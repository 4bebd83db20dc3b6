#!/usr/bin/env python3
"""A newcomer's walk: clone the last commit, and run what the pages say, by copy and paste, with the time of each step.

    python3 .ci/walk.py                 # about 45 minutes on two cores; the release check of CONTRIBUTING.md
    python3 .ci/walk.py --skip test     # without the suite

Commands and code are cut out of the pages, so that they are tested as they stand. The first failure ends the walk.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Step(NamedTuple):
    """A part of the walk.

    Attributes:
        name: of the step.
        page: where its code stands.
        heading: of the section.
        language: of the blocks of code that are run, ``bash`` or ``python``.
        lines: the first words of the commands to run, for a part of a block; else all.
    """

    name: str
    page: str
    heading: str
    language: str = "bash"
    lines: tuple[str, ...] = ()


STEPS = [
    Step("set-up", "CONTRIBUTING.md", "Contributing", lines=("make setup",)),
    Step("demo", "README.md", "Two commands", lines=("make demo ",)),
    Step("test", "README.md", "Two commands", lines=("make test ",)),
    Step("first call", "README.md", "Install, and one call", "python"),
    Step("weights that ship", "README.md", "Weights that ship", lines=("python tools/continue_text.py",)),
    Step("own config", "docs/downstream.md", "A config of your own"),
    Step("conversion", "README.md", "In an existing ViT", "python"),
    Step("export", "README.md", "Export"),
    Step("fairseq", "README.md", "In a language model", lines=("python tools/prepare", "fairseq-")),
    Step("site", "CONTRIBUTING.md", "Contributing", lines=("make docs",)),
]


def code_of(step: Step) -> str:
    """The code of a step, as it stands on its page.

    Raises:
        ValueError: the page has no such section or no such command.
    """
    page = (ROOT / step.page).read_text()
    section = re.search(rf"^#+ {re.escape(step.heading)}$\n(.*?)(?=^#{{1,2}} [A-Z]|\Z)", page, re.DOTALL | re.MULTILINE)
    blocks = re.findall(rf"^```{step.language}\n(.*?)^```", section[1] if section else "", re.DOTALL | re.MULTILINE)
    if step.lines:
        commands = re.findall(r"(?:.*\\\n)*.+\n", "".join(blocks))
        blocks = [command for start in step.lines for command in commands if command.startswith(start)]
    if not blocks:
        raise ValueError(f"{step.page}, {step.heading}: expected {step.language} with {step.lines or 'any command'}")
    return "".join(blocks)


def walk(clone: Path, skip: list[str]) -> list[tuple[str, float]]:
    """Run the steps in a clone.

    Args:
        clone: the folder.
        skip: names of steps to leave out.

    Returns:
        Name and seconds of each step.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    times = []
    for step in STEPS:
        if step.name in skip:
            continue
        code = code_of(step)
        print(f"==> {step.name}: {step.page}, {step.heading}\n{code}", flush=True)
        if step.language == "python":
            command = [str(clone / ".venv/bin/python"), "-c", code]
        else:
            activate = "source .venv/bin/activate; " if (clone / ".venv").exists() else ""
            command = ["bash", "-euo", "pipefail", "-c", activate + code]
        start = time.monotonic()
        subprocess.run(command, cwd=clone, check=True)
        times.append((step.name, time.monotonic() - start))
    return times


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument("--skip", nargs="+", choices=names, default=[], metavar="STEP", help=f"of {', '.join(names)}")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "fma-mm")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        try:
            times = walk(clone, args.skip)
        except subprocess.CalledProcessError as error:
            print(f"the walk ended: a command failed with status {error.returncode}", file=sys.stderr)
            return 1
    print("\n| step | time |\n| --- | --- |")
    for name, seconds in times:
        print(f"| {name} | {int(seconds // 60)} min {seconds % 60:02.0f} s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
