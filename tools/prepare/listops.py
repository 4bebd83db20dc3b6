#!/usr/bin/env python
"""Make ListOps, a task of the Long Range Arena that needs the whole sequence, without a download.

    python tools/prepare/listops.py                                         # data/listops: 500 to 2,000 tokens
    python tools/prepare/listops.py --lengths 200 500 --train 20000 --out data/listops-500

Lists such as ``[MAX 2 9 [MIN 4 7 ] 0 ]`` with the digit that they come to, by the published rules (arXiv 2011.04006),
drawn anew from a seed. Written for fairseq's task ``sentence_prediction``;
docs/far_field_sequences.md compares attentions on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fma_tools.command import run
from fma_tools.prepare.listops import prepare


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/listops"), metavar="DIR", help="%(default)s")
    parser.add_argument("--lengths", type=int, nargs=2, default=[500, 2000], metavar=("SHORTEST", "LONGEST"))
    parser.add_argument("--train", type=int, default=96000, help="lists to train on (%(default)s)")
    parser.add_argument("--valid", type=int, default=2000, help="lists to choose a model by (%(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="lists to test on (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")

    def carry_out(args: argparse.Namespace) -> None:
        prepare(args.out, dict(train=args.train, valid=args.valid, test=args.test), *args.lengths, args.seed)

    run(parser, parser.parse_args(argv), carry_out)


if __name__ == "__main__":
    main()
