#!/usr/bin/env python
"""Make multi-query associative recall, the task on which attentions with summaries should fail, without a download.

    python tools/prepare/recall.py                                          # data/recall: 48 tokens, 4 pairs
    python tools/prepare/recall.py --length 256 --pairs 16 --words 64 --out data/recall-256

Sequences such as ``k3 v7 k1 v4 . . . ? k1 v4 . . . ? k3 v7``: pairs of keys and values, and later questions. After
arXiv 2312.04927. Written for the task ``recall`` of the fairseq plugin, which predicts the answers alone;
docs/far_field_sequences.md compares attentions on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fma_tools.command import run
from fma_tools.prepare.recall import prepare


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/recall"), metavar="DIR", help="%(default)s")
    parser.add_argument("--length", type=int, default=48, metavar="TOKENS", help="of a sequence (%(default)s)")
    parser.add_argument("--pairs", type=int, default=4, help="pairs and questions of a sequence (%(default)s)")
    parser.add_argument("--words", type=int, default=16, help="different keys, and values (%(default)s)")
    parser.add_argument("--train", type=int, default=200000, help="sequences to train on (%(default)s)")
    parser.add_argument("--valid", type=int, default=1000, help="sequences to choose a model by (%(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="sequences to test on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")

    def carry_out(args: argparse.Namespace) -> None:
        sizes = dict(train=args.train, valid=args.valid, test=args.test)
        prepare(args.out, sizes, args.length, args.pairs, args.words, args.seed)

    run(parser, parser.parse_args(argv), carry_out)


if __name__ == "__main__":
    main()
