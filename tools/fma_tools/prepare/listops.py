"""ListOps: nested lists of operators and digits, and the digit that each comes to (arXiv 1804.06028).

The rules are those of the Long Range Arena (arXiv 2011.04006): operators MIN, MAX, MED (the median, rounded down) and
SM (the sum modulo 10), two to ten arguments, at most ten levels, and a list where a random number is below a quarter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from ..command import CommandError
from .fairseq_data import preprocess, require_empty

#: The operators by name, as functions of the arguments.
OPERATORS = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: int((sorted(values)[(len(values) - 1) // 2] + sorted(values)[len(values) // 2]) / 2),
    "SM": lambda values: sum(values) % 10,
}
CLOSE = "]"
MAX_DEPTH, MAX_ARGUMENTS, NESTING = 10, 10, 0.25


def draw(generator: random.Random, longest: int, depth: int = 1) -> tuple[list[str], int] | None:
    """A random expression.

    Args:
        generator: of random numbers.
        longest: most tokens of it.
        depth: of the expression in the whole; a list at 1, and a digit at :data:`MAX_DEPTH`.

    Returns:
        Its tokens and its value, or None if it would be longer.
    """
    if depth == MAX_DEPTH or (depth > 1 and generator.random() > NESTING):
        digit = generator.randrange(10)
        return [str(digit)], digit
    name = generator.choice(list(OPERATORS))
    tokens, values = [f"[{name}"], []
    for _ in range(generator.randint(2, MAX_ARGUMENTS)):
        part = draw(generator, longest - len(tokens) - 1, depth + 1)
        if part is None or len(tokens) + len(part[0]) >= longest:
            return None
        tokens += part[0]
        values.append(part[1])
    return [*tokens, CLOSE], OPERATORS[name](values)


def lists(count: int, shortest: int, longest: int, seed: int) -> Iterator[tuple[str, int]]:
    """Different lists with their values.

    Args:
        count: how many.
        shortest, longest: tokens of a list.
        seed: of the random numbers.
    """
    generator, seen = random.Random(seed), set()
    while len(seen) < count:
        found = draw(generator, longest)
        if found is None or len(found[0]) < shortest:
            continue
        text = " ".join(found[0])
        if text not in seen:
            seen.add(text)
            yield text, found[1]


def prepare(out: Path, sizes: dict[str, int], shortest: int, longest: int, seed: int) -> None:
    """Write data of fairseq's task ``sentence_prediction``: the folders ``input0`` and ``label`` with their splits.

    No list is in two splits.

    Args:
        out: the folder; it may be there, but must be empty.
        sizes: lists by the name of the split.
        shortest, longest: tokens of a list.
        seed: of the random numbers.

    Raises:
        CommandError: a number is outside of what is stated above, or the folder has files.
    """
    for split, size in sizes.items():
        if size < 1:
            raise CommandError(f"--{split} {size}: expected an integer >= 1")
    if not 4 <= shortest <= longest:
        raise CommandError(f"--lengths {shortest} {longest}: expected 4 <= shortest <= longest")
    require_empty(out)
    parts = {name: out / "text" / name for name in ("input0", "label")}
    for path in parts.values():
        path.mkdir(parents=True)
    pairs = lists(sum(sizes.values()), shortest, longest, seed)
    for split, size in sizes.items():
        print(f"{out}: drawing {size:,} lists", flush=True)
        with (parts["input0"] / split).open("w") as texts, (parts["label"] / split).open("w") as values:
            for _ in range(size):
                text, value = next(pairs)
                texts.write(f"{text}\n")
                values.write(f"{value}\n")
    for name, path in parts.items():
        preprocess({split: path / split for split in sizes}, out / name)
    print(f"{out}: lists of {shortest} to {longest} tokens, for fairseq's task sentence_prediction")
