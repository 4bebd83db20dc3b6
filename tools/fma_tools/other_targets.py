"""Kernels compiled ahead of time for GPUs that none of them was tuned for, or has run on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .resources import compile_case, counted, disassembled, tabulate

if TYPE_CHECKING:  # importing it makes the kernels, which the interpreter's variable would spoil
    from fma_kernels.backends.triton.compile_cases import Case


@dataclass(frozen=True)
class Target:
    """A GPU as Triton names it.

    Attributes:
        backend: "cuda" or "hip".
        arch: its architecture.
        warp: threads of a warp.
        shared: bytes of shared memory that a program may have (CUDA C++ Programming Guide, "Compute Capabilities";
            LDS of a workgroup in AMD's instruction set guides).
    """

    backend: str
    arch: int | str
    warp: int
    shared: int


TARGETS = {
    "sm_100": Target("cuda", 100, 32, 227 * 1024),
    "sm_120": Target("cuda", 120, 32, 99 * 1024),
    "gfx90a": Target("hip", "gfx90a", 64, 64 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}


@dataclass(frozen=True)
class TargetRow:
    """A kernel compiled for a target.

    Attributes:
        kernel: name of the case.
        target: name of the target.
        shared: bytes of shared memory per program.
        spills: of registers: instructions that move them on NVIDIA's GPUs, registers on AMD's.
    """

    kernel: str
    target: str
    shared: int
    spills: int

    def offences(self) -> Iterator[str]:
        """The reasons why the kernel would run badly, or not at all."""
        if self.shared > TARGETS[self.target].shared:
            yield f"{self.shared} bytes of shared memory, expected at most {TARGETS[self.target].shared}"
        if self.spills:
            yield f"{self.spills} spills, expected none"


def compiled_for(case: Case, name: str) -> TargetRow:
    """Compile a kernel for a target.

    Args:
        case: the kernel.
        name: of the target.
    """
    target = TARGETS[name]
    kernel = compile_case(case, target.backend, target.arch, target.warp)
    if target.backend == "cuda":
        spills = counted(disassembled(kernel.asm["cubin"]))["spills"]
    else:
        spills = sum(map(int, re.findall(r"\.[vs]gpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"])))
    return TargetRow(case.name, name, kernel.metadata.shared, spills)


def is_launched(case: Case, name: str) -> bool:
    """Whether a kernel is launched on a target: TF32 on NVIDIA's GPUs alone."""
    return TARGETS[name].backend == "cuda" or case.constants.get("PRECISION") != "tf32"


def report_targets(cases: Sequence[Case], names: Sequence[str]) -> tuple[list[TargetRow], list[str]]:
    """Compile every case that is launched on a target for it, and print the table.

    Returns:
        Its rows, and a line for each kernel that would not run, or not well.
    """
    rows = (compiled_for(case, name) for case in cases for name in names if is_launched(case, name))
    return tabulate(
        f"{'kernel':40} target  shared KiB  spills", rows,
        lambda row: f"{row.kernel:40} {row.target} {row.shared / 1024:11.1f} {row.spills:7}", lambda row: row.target,
    )  # fmt: skip
