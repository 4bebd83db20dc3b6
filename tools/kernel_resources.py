#!/usr/bin/env python3
"""Resources that the fused kernels need of a multiprocessor, found by compiling them for it. Needs no GPU.

    python tools/kernel_resources.py                                  # for sm_80 and sm_90
    python tools/kernel_resources.py --arch 90 --kernels forward,keys --cases plain
    python tools/kernel_resources.py --check                          # status 1 if a kernel breaks a rule
    python tools/kernel_resources.py --targets sm_100 sm_120 gfx90a gfx942 --cases plain    # GPUs it was not tuned for

Prints for each kernel: warps per program; registers per thread; bytes of stack per thread; instructions that move
spilled registers (LDL, STL), and how many of them are in a loop; KiB of shared memory; programs and their warps that
one multiprocessor holds at a time; instructions of the tensor cores (HMMA, HGMMA) and asynchronous copies to shared
memory (LDGSTS).

The rules: no register is spilled; a program needs no more shared memory than it can have; and products of 16-bit
matrices run on the tensor cores (HMMA on sm_80, HGMMA on sm_90).

The plain cases are all tilings of the attention. To these, the usual ones add its options and some kernels of the
summaries, for the last architecture alone; --cases all compiles everything that is shipped for all architectures, which
takes some minutes.

With --targets, the kernels are compiled for other GPUs, and the table has shared memory and spills alone. That they
compile does not mean that they are right there, or fast: none has run on these GPUs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fma_tools.command import CommandError, run
from fma_tools.other_targets import TARGETS, report_targets
from fma_tools.resources import ARCHITECTURES, report, selected


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Resources of the fused kernels, without a GPU.")
    parser.add_argument(
        "--arch", type=int, nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES, help="80, 90 or both (both)"
    )
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), help="other GPUs, in place of --arch")
    parser.add_argument("--kernels", type=lambda names: names.split(","), metavar="NAME,...", help="only these (all)")
    parser.add_argument("--cases", choices=("plain", "usual", "all"), default="usual", help="how many of each (usual)")
    parser.add_argument("--check", action="store_true", help="end with status 1 if a kernel breaks a rule")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to a file")
    return parser


def describe(args: argparse.Namespace) -> int:
    """Compile, and report.

    Args:
        args: parsed arguments.

    Returns:
        The status.
    """
    from triton import knobs

    if knobs.runtime.interpret:
        raise CommandError("TRITON_INTERPRET is set: expected it not to be, as the interpreter compiles nothing")
    from fma_kernels.backends.triton.compile_cases import cases

    if args.targets:
        chosen = [case for case, _ in selected(cases(), [90], args.kernels, args.cases)]
        rows, offences = report_targets(chosen, args.targets)
        found = [asdict(row) for row in rows]
    else:
        rows, offences = report(selected(cases(), args.arch, args.kernels, args.cases))
        found = [asdict(row) | {"programs": row.programs} for row in rows]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(rows)} compiled, {len(offences)} break a rule", *offences, sep="\n")
    return 1 if args.check and offences else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        The status.
    """
    parser = make_parser()
    return run(parser, parser.parse_args(argv), describe)


if __name__ == "__main__":
    sys.exit(main())
