#!/usr/bin/env python
"""Make a file of weights to publish out of a checkpoint of tools/train.py or fairseq.

    python tools/publish.py work_dirs/fma2d-nano_b64-33k_cifar10/iter_6000.pth fma2d-nano_b64-33k_cifar10
    python tools/publish.py work_dirs/lm/checkpoints/checkpoint_last.pt fma_lm_stdlib --out lm/weights

Keeps the weights, the classes of the data set and the configuration of fairseq's model; leaves out the optimizer, the
logs and all absolute paths. The first digits of its SHA-256 are a part of its name, and are checked when it is loaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fma_tools.command import run
from fma_tools.publishing import publish


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of mmengine or fairseq")
    parser.add_argument("name", help="of the model")
    parser.add_argument("--out", type=Path, default=Path("fma_mm/weights"), metavar="DIR", help="%(default)s")
    run(parser, parser.parse_args(argv), lambda args: print(publish(args.checkpoint, args.name, args.out)))


if __name__ == "__main__":
    main()
