#!/usr/bin/env python3
"""What the fused kernels need of a multiprocessor, found by compiling them for it. Needs no GPU.

    python tools/kernel_resources.py                                  # for sm_80 and sm_90
    python tools/kernel_resources.py --arch 90 --kernels forward,keys --cases plain
    python tools/kernel_resources.py --check                          # status 1 if a kernel breaks a rule

Prints for each kernel: warps per program; registers per thread; bytes of stack per thread; instructions that move
spilled registers (LDL, STL), and how many of them are in a loop; KiB of shared memory; programs and their warps that
one multiprocessor holds at a time; instructions of the tensor cores (HMMA, HGMMA) and asynchronous copies to shared
memory (LDGSTS).

The rules: no register is spilled; a program needs no more shared memory than it can have; and products of 16-bit
matrices run on the tensor cores (HMMA on sm_80, HGMMA on sm_90).

The plain cases are all tilings of the attention. To these, the usual ones add its options and some kernels of the
summaries, for the last architecture alone; --cases all compiles everything that is shipped for all architectures, which
takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it makes the kernels, which the interpreter's variable would spoil
    from fma_kernels.backends.triton.shipped import Case


@dataclass(frozen=True)
class Architecture:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities").

    Attributes:
        shared: bytes of shared memory.
        block_shared: the most that one program may have.
        tensor_core: the instruction that multiplies matrices.
    """

    shared: int
    block_shared: int
    tensor_core: str
    registers: int = 64 * 1024
    warps: int = 64
    programs: int = 32

    def resident(self, warps: int, registers: int, shared: int) -> int:
        """How many programs it holds at a time.

        Args:
            warps: warps per program.
            registers: registers per thread.
            shared: bytes of shared memory per program.
        """
        warp_registers = -(-registers * 32 // 256) * 256
        # Warps are dealt to four schedulers, each with its share of the registers.
        by_registers = self.registers // 4 // warp_registers * 4 // warps
        by_shared = self.shared // (-(-shared // 128) * 128 + 1024)  # the system takes 1 KiB for each
        return min(by_registers, by_shared, self.warps // warps, self.programs)


ARCHITECTURES = {
    80: Architecture(shared=164 * 1024, block_shared=163 * 1024, tensor_core="HMMA"),
    90: Architecture(shared=228 * 1024, block_shared=227 * 1024, tensor_core="HGMMA"),
}


@dataclass(frozen=True)
class Row:
    """Resources of one kernel.

    Attributes:
        kernel: name of the case.
        arch: 80 or 90.
        warps: warps per program.
        tensor_cores: whether its products belong on the tensor cores.
        registers: per thread.
        stack: bytes per thread.
        spills: instructions that read or write spilled registers.
        loop_spills: those of them that are in a loop.
        shared: bytes of shared memory per program.
        hmma, hgmma: instructions of the tensor cores.
        copies: asynchronous copies to shared memory.
    """

    kernel: str
    arch: int
    warps: int
    tensor_cores: bool
    registers: int
    stack: int
    spills: int
    loop_spills: int
    shared: int
    hmma: int
    hgmma: int
    copies: int

    @property
    def programs(self) -> int:
        """Programs that a multiprocessor holds at a time."""
        return ARCHITECTURES[self.arch].resident(self.warps, self.registers, self.shared)

    def offences(self) -> Iterator[str]:
        """The rules that it breaks."""
        limits = ARCHITECTURES[self.arch]
        if self.spills:
            yield f"{self.spills} instructions move spilled registers ({self.loop_spills} in a loop), expected none"
        if self.shared > limits.block_shared:
            yield f"{self.shared} bytes of shared memory, expected at most {limits.block_shared}"
        if self.tensor_cores and not getattr(self, limits.tensor_core.lower()):
            yield f"no {limits.tensor_core}, expected products on the tensor cores"


def compiled(case: Case, arch: int) -> Row:
    """Compile a kernel as a launch would, with aligned pointers and strides.

    Args:
        case: the kernel.
        arch: 80 or 90.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: case.types.get(name, "constexpr") for name in case.kernel.arg_names}
    aligned = {
        (parameter.num,): [["tt.divisibility", 16]]
        for parameter in case.kernel.params
        if signature[parameter.name] not in ("constexpr", "fp32") and not parameter.do_not_specialize
    }
    source = ASTSource(case.kernel, signature, case.constants, aligned)
    options = dict(num_warps=case.warps, num_stages=case.stages)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    listing = disassembled(kernel.asm["cubin"])
    return Row(case.name, arch, case.warps, case.tensor_cores, shared=kernel.metadata.shared, **counted(listing))


def disassembled(cubin: bytes) -> str:
    """Resource usage and instructions of a compiled kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def counted(listing: str) -> dict[str, int]:
    """Registers, stack and counts of instructions in what :func:`disassembled` gives."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?(\w+)(.*);", listing, re.MULTILINE)
    instructions = [(int(address, 16), name, rest) for address, name, rest in found]
    branches = [(address, re.search(r" 0x(\w+)", rest)) for address, name, rest in instructions if name == "BRA"]
    loops = [(int(target[1], 16), address) for address, target in branches if target and int(target[1], 16) < address]
    count = Counter(name for _, name, _ in instructions)
    spills = [address for address, name, _ in instructions if name in ("LDL", "STL")]
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", listing).groups())
    return dict(
        registers=registers,
        stack=stack,
        spills=len(spills),
        loop_spills=sum(any(first <= address <= last for first, last in loops) for address in spills),
        hmma=count["HMMA"],
        hgmma=count["HGMMA"],
        copies=count["LDGSTS"],
    )


HEADER = (
    f"{'kernel':40} arch warps  regs stack    spills  shared  programs  HMMA HGMMA LDGSTS\n"
    f"{'(in loop)':>73}{'KiB':>8}{'(warps)':>10}"
)


def line(row: Row) -> str:
    """A row of the table."""
    spills, resident = f"{row.spills} ({row.loop_spills})", f"{row.programs} ({row.programs * row.warps})"
    return (
        f"{row.kernel:40} {row.arch:4} {row.warps:5} {row.registers:5} {row.stack:5} {spills:>9} "
        f"{row.shared / 1024:7.1f} {resident:>9} {row.hmma:5} {row.hgmma:5} {row.copies:6}"
    )


def selected(cases: Iterable[Case], archs: list[int], kernels: list[str] | None, tier: str) -> list[tuple[Case, int]]:
    """What to compile for which architecture, in order.

    Args:
        cases: all of them.
        archs: the architectures.
        kernels: first words of names, or None for all.
        tier: ``"plain"``, ``"usual"`` or ``"all"``.

    Raises:
        ValueError: there is no kernel of a name.
    """
    cases = list(cases)
    names = list(dict.fromkeys(case.name.split()[0] for case in cases))
    if unknown := [name for name in kernels or [] if name not in names]:
        raise ValueError(f"--kernels {unknown[0]}: expected some of {','.join(names)}")
    archs_of = {
        "plain": dict(plain=archs),
        "usual": dict(plain=archs, usual=archs[-1:]),
        "all": dict(plain=archs, usual=archs, all=archs),
    }[tier]
    return [
        (case, arch)
        for case in cases
        if kernels is None or case.name.split()[0] in kernels
        for arch in archs_of.get(case.tier, [])
    ]


def report(chosen: list[tuple[Case, int]]) -> tuple[list[Row], list[str]]:
    """Compile, and print the table.

    Returns:
        Its rows, and a line for each rule that is broken.
    """
    rows, offences = [], []
    print(HEADER)
    for case, arch in chosen:
        row = compiled(case, arch)
        print(line(row), flush=True)
        rows.append(row)
        offences += [f"{row.kernel}, sm_{arch}: {offence}" for offence in row.offences()]
    return rows, offences


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Resources of the fused kernels, without a GPU.")
    parser.add_argument(
        "--arch", type=int, nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES, help="80, 90 or both (both)"
    )
    parser.add_argument("--kernels", type=lambda names: names.split(","), metavar="NAME,...", help="only these (all)")
    parser.add_argument("--cases", choices=("plain", "usual", "all"), default="usual", help="how many of each (usual)")
    parser.add_argument("--check", action="store_true", help="end with status 1 if a kernel breaks a rule")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to a file")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    from triton import knobs

    if knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: expected it not to be, as the interpreter compiles nothing")
    from fma_kernels.backends.triton import shipped

    try:
        chosen = selected(shipped.cases(), args.arch, args.kernels, args.cases)
    except ValueError as error:
        parser.error(str(error))
    rows, offences = report(chosen)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) | {"programs": row.programs} for row in rows], indent=1) + "\n")
    print(f"{len(rows)} compiled, {len(offences)} break a rule", *offences, sep="\n")
    if args.check and offences:
        sys.exit(1)


if __name__ == "__main__":
    main()
