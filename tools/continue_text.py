#!/usr/bin/env python
"""Let the byte model that ships with the package continue a text: Python, as it has read nothing else.

    python tools/continue_text.py "def main("
    python tools/continue_text.py "import " --length 500 --seed 3
    python tools/continue_text.py "import " --onnx step.onnx

fairseq-interactive samples from the model, ``fma_lm`` of 2 layers and 64 channels with FMA, trained on the bytes of
Python's standard library (docs/results.md). With --onnx, onnxruntime writes the most probable bytes, from a file of
``tools/export_lm.py --step``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fma_tools.command import CommandError, run
from fma_tools.language_models.demo import continuation
from fma_tools.language_models.onnx_generation import continue_bytes
from fma_tools.language_models.recipes import shipped_checkpoint


def continue_text(args: argparse.Namespace) -> None:
    """Print the text and its continuation.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: the text is not one line, a number is too small, or the weights are not those that were published.
    """
    if not args.text or "\n" in args.text:
        raise CommandError(f"TEXT {args.text!r}: expected one line")
    if args.length < 1:
        raise CommandError(f"--length {args.length}: expected an integer >= 1")
    if args.onnx is not None:
        from fma_kernels.export import open_onnx

        try:
            print(continue_bytes(open_onnx(args.onnx), args.text, args.length))
        except (ImportError, ValueError) as error:
            raise CommandError(f"--onnx {args.onnx}: {error}") from error
        return
    checkpoint = shipped_checkpoint()
    print(continuation(checkpoint, checkpoint.parent, args.text, args.length, args.seed))


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", metavar="TEXT", help="one line")
    parser.add_argument("--length", type=int, default=300, metavar="BYTES", help="to write (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the samples (%(default)s)")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="let onnxruntime write the most probable bytes")
    run(parser, parser.parse_args(argv), continue_text)


if __name__ == "__main__":
    main()
