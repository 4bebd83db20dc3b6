#!/usr/bin/env python
"""Write a page in which a pointer asks what each token of a text reads in a language model, and with which weights.

    python tools/visualize_text.py FILE --html text.html                                  # the byte model that ships
    python tools/visualize_text.py FILE --html text.html --checkpoint PT --data DIR       # a byte model of your own

The HTML file is one page without a server, for all layers and heads. The model, causal or masked, is one of ``lm`` for
bytes, with the attention fma, fma-linear, near or full; --data is the folder with its dictionary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fma_tools.command import CommandError, require_positive, run
from fma_tools.explorer import TextInput, record, write_page
from fma_tools.language_models.recipes import shipped_checkpoint


def explore(args: argparse.Namespace) -> None:
    """Write the page.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: something that the command line names is missing or does not fit.
    """
    if args.html.suffix != ".html":
        raise CommandError(f"--html {args.html}: expected the name of a .html file")
    if args.html.exists() and not args.force:
        raise CommandError(f"--html {args.html}: exists already; choose another name, or overwrite it with --force")
    if not args.text.is_file():
        raise CommandError(f"text {args.text}: no such file")
    values = args.text.read_bytes()[: args.length]
    checkpoint = args.checkpoint or shipped_checkpoint()
    try:
        from fma_tools.language_models.reading import attentions, open_bytes, shown_byte  # imports fairseq

        model, tokens = open_bytes(checkpoint, args.data or checkpoint.parent, values)
        recordings = record(attentions(model), lambda: model(tokens))
        about = f"weights of {checkpoint.name}, the first {len(values)} bytes of {args.text.name}"
        write_page(args.html, recordings, TextInput([shown_byte(value) for value in values]), about)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(f"wrote {args.html}")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, metavar="FILE", help="the text, in bytes")
    parser.add_argument("--html", type=Path, required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--checkpoint", type=Path, metavar="PT", help="of fairseq; the weights that ship by default")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with dict.txt, for --checkpoint")
    parser.add_argument("--length", type=int, default=1024, metavar="BYTES", help="bytes to read (%(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    args = parser.parse_args(argv)
    require_positive(parser, args, "length")
    if (args.checkpoint is None) != (args.data is None):
        parser.error("--checkpoint and --data: expected both or none")
    run(parser, args, explore)


if __name__ == "__main__":
    main()
