#!/usr/bin/env python
"""Build the documentation site: pages by Sphinx, where a warning is an error, and two pages of the explorer.

    python docs/build.py                    # to work_dirs/site; open work_dirs/site/index.html
    python docs/build.py --out DIR
"""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from fma_tools.command import CommandError, run

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "fma2d-nano_b64-33k_cifar10"


def explorer_pages(out: Path) -> None:
    """Write the explorer's pages: a cat, which is a class of CIFAR-10, and a method of Python's standard library.

    Args:
        out: their folder.
    """
    from PIL import Image
    from skimage import data

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        picture, text = Path(folder, "cat.png"), Path(folder, "textwrap.py")
        Image.fromarray(data.chelsea()).crop((70, 0, 370, 300)).resize((64, 64), Image.LANCZOS).save(picture)
        text.write_text(inspect.getsource(textwrap.TextWrapper._wrap_chunks))
        weights = next((ROOT / "fma_mm/weights").glob(f"{CONFIG}-*.pth"))
        model = ["--config", ROOT / f"configs/cifar10/{CONFIG}.py", "--checkpoint", weights]
        tool("visualize_attention", picture, *model, "--html", out / "image.html", "--force")
        tool("visualize_text", text, "--html", out / "text.html", "--force")


def tool(name: str, *arguments: object) -> None:
    """Run a tool.

    Raises:
        CommandError: it failed; what it wrote is the message.
    """
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise CommandError(f"{name}.py: {done.stdout}")


def build(args: argparse.Namespace) -> int:
    """Build the site; returns Sphinx's status."""
    try:
        from sphinx.cmd.build import build_main
    except ImportError as error:
        raise CommandError("sphinx is not installed; install it with: pip install 'fma-mm[docs]'") from error
    options = ["-q", "-W", "--keep-going", "-d", str(args.out / ".doctrees")]
    status = build_main([*options, str(ROOT / "docs"), str(args.out)])
    if not status:
        explorer_pages(args.out / "explorer")
        print(f"wrote {args.out / 'index.html'}")
    return status


def main(argv: list[str] | None = None) -> int | None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        Sphinx's status: 0 if all went well.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/site"), metavar="DIR", help="%(default)s")
    return run(parser, parser.parse_args(argv), build)


if __name__ == "__main__":
    sys.exit(main())
