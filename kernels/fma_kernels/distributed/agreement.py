"""Numbers that all ranks compare before work starts, so that none waits for another that does something else."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def agree(
    describe: Callable[[], dict[str, float]], group: ProcessGroup, device: torch.device
) -> list[dict[str, float]]:
    """Compare what the ranks of a group are about to do.

    Args:
        describe: says what this rank does by names and numbers, the same names on all; raises ``ValueError`` where an
            argument is wrong. Numbers whose name begins with "own " may differ.
        group: the ranks; all of them call this.
        device: where the tensors of the group are.

    Returns:
        The numbers of all ranks.

    Raises:
        ValueError: ``describe`` raised it, on this rank or on another, or the ranks do not do the same. All ranks
            raise, and none waits.
    """
    error, names, mine = None, [], []
    try:
        description = describe()
        names, mine = list(description), list(description.values())
    except ValueError as raised:
        error = raised
    rows = _exchange(mine, error is not None, group, device)
    if error is not None:
        raise error
    for rank, (failed, *numbers) in enumerate(rows):
        if failed:
            raise ValueError(f"group: expected arguments that fit on every rank; those of rank {rank} do not")
        for name, number, own in zip(names, numbers, mine, strict=False):
            if number != own and not name.startswith("own "):
                raise ValueError(f"{name}={own:g}: expected {number:g}, as on rank {rank}")
    return [dict(zip(names, numbers, strict=False)) for _, *numbers in rows]


#: Room for the numbers of a rank. Fixed, so that ranks of different opinions can compare them.
_ROOM = 32


def _exchange(numbers: list[float], failed: bool, group: ProcessGroup, device: torch.device) -> list[list[float]]:
    """Whether each rank failed, and its numbers."""
    row = torch.zeros(_ROOM, dtype=torch.float64)
    row[: len(numbers) + 1] = torch.tensor([failed, *numbers], dtype=torch.float64)
    rows: list[Tensor] = [torch.empty(_ROOM, dtype=torch.float64, device=device) for _ in range(group.size())]
    dist.all_gather(rows, row.to(device), group=group)
    return torch.stack(rows).tolist()
