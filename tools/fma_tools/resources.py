"""Resources that fused kernels need of a multiprocessor, found by compiling them for it, without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .command import CommandError

if TYPE_CHECKING:  # importing it makes the kernels, which the interpreter's variable would spoil
    from triton.compiler import CompiledKernel

    from fma_kernels.backends.triton.compile_cases import Case

Row = TypeVar("Row")


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
        """Number of programs that it holds at a time.

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
class KernelRow:
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


def compile_case(case: Case, backend: str, arch: int | str, warp: int) -> CompiledKernel:
    """Compile a kernel as a launch would, with aligned pointers and strides.

    Args:
        case: the kernel.
        backend: "cuda" or "hip".
        arch: architecture, as Triton names it.
        warp: threads of a warp.
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
    return triton.compile(source, target=GPUTarget(backend, arch, warp), options=options)


def compiled(case: Case, arch: int) -> KernelRow:
    """Compile a kernel for a multiprocessor, and count what it needs.

    Args:
        case: the kernel.
        arch: 80 or 90.
    """
    kernel = compile_case(case, "cuda", arch, 32)
    listing = disassembled(kernel.asm["cubin"])
    return KernelRow(case.name, arch, case.warps, case.tensor_cores, shared=kernel.metadata.shared, **counted(listing))


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


def line(row: KernelRow) -> str:
    """A row of the table."""
    spills, resident = f"{row.spills} ({row.loop_spills})", f"{row.programs} ({row.programs * row.warps})"
    return (
        f"{row.kernel:40} {row.arch:4} {row.warps:5} {row.registers:5} {row.stack:5} {spills:>9} "
        f"{row.shared / 1024:7.1f} {resident:>9} {row.hmma:5} {row.hgmma:5} {row.copies:6}"
    )


def selected(cases: Iterable[Case], archs: list[int], kernels: list[str] | None, tier: str) -> list[tuple[Case, int]]:
    """The cases to compile and the architecture of each, in order.

    Args:
        cases: all of them.
        archs: the architectures.
        kernels: first words of names, or None for all.
        tier: ``"plain"``, ``"usual"`` or ``"all"``.

    Raises:
        CommandError: there is no kernel of a name.
    """
    cases = list(cases)
    names = list(dict.fromkeys(case.name.split()[0] for case in cases))
    if unknown := [name for name in kernels or [] if name not in names]:
        raise CommandError(f"--kernels {unknown[0]}: expected some of {','.join(names)}")
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


def report(chosen: list[tuple[Case, int]]) -> tuple[list[KernelRow], list[str]]:
    """Compile, and print the table.

    Returns:
        Its rows, and a line for each rule that is broken.
    """
    return tabulate(HEADER, (compiled(case, arch) for case, arch in chosen), line, lambda row: f"sm_{row.arch}")


def tabulate(
    header: str, rows: Iterable[Row], line: Callable[[Row], str], target: Callable[[Row], str]
) -> tuple[list[Row], list[str]]:
    """Print a table of compiled kernels, each line as soon as its kernel is.

    Args:
        header: first lines of the table.
        rows: what is compiled; with ``kernel`` and ``offences()``.
        line: a row as a line.
        target: what a row is compiled for, by name.

    Returns:
        The rows, and a line for each rule that is broken.
    """
    found, offences = [], []
    print(header)
    for row in rows:
        print(line(row), flush=True)
        found.append(row)
        offences += [f"{row.kernel}, {target(row)}: {offence}" for offence in row.offences()]
    return found, offences
