"""Multi-query associative recall (arXiv 2312.04927): pairs of keys and values, and later questions for the values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from ..command import CommandError
from .fairseq_data import preprocess, require_empty

QUESTION, FILLER = "?", "."


def lines(count: int, length: int, pairs: int, words: int, seed: int) -> Iterator[str]:
    """Random sequences: pairs first, then questions at random places, each for another key, and filler between them.

    Args:
        count: how many.
        length: tokens of each.
        pairs: pairs of a key and its value, and questions.
        words: different keys, and different values.
        seed: of the random numbers.
    """
    generator = random.Random(seed)
    slots = (length - 2 * pairs) // 3
    for _ in range(count):
        keys = generator.sample(range(words), pairs)
        values = [generator.randrange(words) for _ in keys]
        tokens = [word for key, value in zip(keys, values, strict=True) for word in (f"k{key}", f"v{value}")]
        asked = iter(generator.sample(range(pairs), pairs))
        places = set(generator.sample(range(slots), pairs))
        for slot in range(slots):
            if slot in places:
                i = next(asked)
                tokens += [QUESTION, f"k{keys[i]}", f"v{values[i]}"]
            else:
                tokens += [FILLER] * 3
        yield " ".join(tokens)


def prepare(out: Path, sizes: dict[str, int], length: int, pairs: int, words: int, seed: int) -> None:
    """Write data of the task ``recall``.

    Args:
        out: the folder; it may be there, but must be empty.
        sizes: sequences by the name of the split.
        length, pairs, words, seed: as in :func:`lines`.

    Raises:
        CommandError: a number is outside of what is stated above, or the folder has files.
    """
    for split, size in sizes.items():
        if size < 1:
            raise CommandError(f"--{split} {size}: expected an integer >= 1")
    if not 1 <= pairs <= words:
        raise CommandError(f"--pairs {pairs}: expected 1 to {words}, the number of --words")
    if length < 5 * pairs:
        raise CommandError(f"--length {length}: expected {5 * pairs} or more, for {pairs} pairs and their questions")
    require_empty(out)
    text = lines(sum(sizes.values()), length, pairs, words, seed)
    paths = {}
    for split, size in sizes.items():
        paths[split] = out / "text" / split
        paths[split].parent.mkdir(parents=True, exist_ok=True)
        paths[split].write_text("".join(f"{next(text)}\n" for _ in range(size)))
    preprocess(paths, out)
    print(f"{out}: {sum(sizes.values()):,} sequences of {length} tokens with {pairs} pairs, for the task recall")
