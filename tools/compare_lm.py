#!/usr/bin/env python
"""Train language models that differ in their attention alone, and say how well they predict and what they cost.

    python tools/compare_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --context 1024 \\
        --attention full local linear h-transformer fma fma:basis_kind=direct fma:basis_kind=mean fma-linear
    python tools/compare_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --context 1024 --name cell_rank \\
        --attention fma:cell={16,32,64},rank={1,2,4}
    python tools/compare_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --context 1024 --name far_field \\
        --attention near:cell=8 full fma:cell=8,rank=2 --seeds 0 1 2 --batch 8 --set optimization.max_update=1250

All models have the same recipe, so as many tokens in the same order from the same seed; it and the meaning of
ATTENTION are those of train_lm.py. Trainings that ended before are not repeated.

* Bits are the mean negative log-likelihood of a token to base 2, over samples that are spread evenly over the
  validation split: bits per character for a corpus of bytes. "last quarter" counts only the tokens whose context is
  longest. For a masked model they are of masked tokens, and perplexity is 2 to their power.
* With several seeds the figures are means, with the least and the most in brackets.
* A second table has the bits by place in the context, and by how far back the last 6 tokens up to the predicted one
  stood before: what attention can copy, and from where. Its last column says from how many tokens on the training
  loss stays below that of the first attention.
* A step is a forward and backward pass over one batch and an update by Adam. Its time is the median over rounds in
  which the models take turns, its memory the peak of what it allocates beyond weights and the optimizer's state.

Prints a table, and writes NAME.json, NAME.md and NAME.png to --out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# The profiler that counts memory warns of what was allocated before; PyTorch reads this when it is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


from fma_tools.command import run, settings_of
from fma_tools.language_models.comparison import Settings, compare
from fma_tools.language_models.recipes import Variant


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="recipe, a file of configs/lm")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder that fairseq-preprocess wrote")
    parser.add_argument(
        "--attention", nargs="+", type=Variant.parse, required=True, metavar="ATTENTION",
        help="attentions to compare, written as for train_lm.py; ratios are to the first",
    )  # fmt: skip
    parser.add_argument("--context", type=int, required=True, metavar="TOKENS", help="tokens per sample")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/compare_lm"), metavar="DIR", help="%(default)s")
    parser.add_argument("--name", default="comparison", help="of the files that are written (%(default)s)")
    parser.add_argument("--split", default="valid", help="split to evaluate on (%(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="samples to evaluate on (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="samples of a timed step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training on a CPU (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="SEED", help="train each with these seeds")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    words, parser = sys.argv[1:] if argv is None else argv, make_parser()
    args = parser.parse_args(words)
    command = ["python", "tools/compare_lm.py", *words]
    run(parser, args, lambda args: compare(settings_of(Settings, args), command))


if __name__ == "__main__":
    main()
