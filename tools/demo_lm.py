#!/usr/bin/env python
"""Language models in three minutes on a CPU: bytes of Python's standard library, with FMA, full and local attention.

    python tools/demo_lm.py             # or: make demo-lm

Takes files of the standard library at random, 4 MB in all; trains the same small model with three attentions, with the
same tokens, as configs/lm/demo.yaml says; prints the bits per character of each and of the frequencies of bytes alone,
and lets the model with FMA continue a prompt. Local attention reads what is near field to FMA, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

# The profiler that counts memory warns of what was allocated before; PyTorch reads this when it is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


from fma_tools.command import run
from fma_tools.language_models.comparison import CHECKPOINT, Settings, compare
from fma_tools.language_models.demo import continuation, prepare, sample_library, unigram_bits
from fma_tools.language_models.recipes import Variant

CONFIG = Path(__file__).resolve().parents[1] / "configs/lm/demo.yaml"
SIZE = 4 * 10**6  # bytes
ATTENTIONS = ["fma", "full", "local:window=32"]
CONTEXT = 512
PROMPT = "class Reader:"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/demo_lm"), metavar="DIR", help="%(default)s")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    return parser


def demo(words: list[str], args: argparse.Namespace) -> None:
    """Prepare, train, and write.

    Args:
        words: the arguments as they were given.
        args: parsed arguments.
    """
    text = sample_library(SIZE)
    print(f"==> 1/3 {len(text):,} bytes of the standard library of this Python -> {args.out / 'text'}", flush=True)
    data = prepare(text, args.out / "text")
    print(f"==> 2/3 training {', '.join(ATTENTIONS)}, two at a time (logs: {args.out}/*/log.txt)", flush=True)
    attentions = [Variant.parse(attention) for attention in ATTENTIONS]
    settings = Settings(CONFIG, data, attentions, CONTEXT, args.out, name="demo_lm", jobs=2, set=args.set)
    compare(settings, ["python", "tools/demo_lm.py", *words])
    print(f"The frequencies of bytes alone: {unigram_bits(text):.3f} bits per character.")
    print(f"==> 3/3 the model with FMA continues {PROMPT!r}:", flush=True)
    print(continuation(settings.folders["fma"][0] / CHECKPOINT, data, PROMPT))


def main(argv: list[str] | None = None) -> None:
    """Run the demo.

    Args:
        argv: the arguments; those of the process when None.
    """
    words, parser = sys.argv[1:] if argv is None else argv, make_parser()
    run(parser, parser.parse_args(words), partial(demo, words))


if __name__ == "__main__":
    main()
