"""Lists of ListOps against a second evaluator, and the rules that they are drawn by."""

import random
import statistics

import pytest
from fairseq.data import Dictionary, data_utils

from fma_tools.command import CommandError
from fma_tools.prepare import listops


def evaluate(text: str) -> int:
    """The value of a list, by a stack."""
    stack = [[]]
    for word in text.split():
        if word.startswith("["):
            stack.append([word[1:]])
        elif word == "]":
            name, *values = stack.pop()
            function = dict(MIN=min, MAX=max, MED=lambda x: int(statistics.median(x)), SM=lambda x: sum(x) % 10)[name]
            stack[-1].append(function(values))
        else:
            stack[-1].append(int(word))
    ((value,),) = stack
    return value


def test_known_lists():
    assert evaluate("[MAX 2 9 [MIN 4 7 ] 0 ]") == 9
    assert evaluate("[MED 2 9 [SM 8 7 ] 0 ]") == 3, "the median of 0, 2, 5, 9 is 3.5"
    operators = listops.OPERATORS
    assert operators["MED"]([2, 9, 5, 0]) == 3 and operators["MED"]([7, 1, 3]) == 3 and operators["SM"]([8, 7]) == 5


def test_values_lengths_and_depths():
    drawn = list(listops.lists(300, 10, 60, seed=1))
    texts = [text for text, _ in drawn]
    assert len(set(texts)) == 300
    assert all(10 <= len(text.split()) <= 60 and text.startswith("[") for text in texts)
    assert all(evaluate(text) == value for text, value in drawn)
    assert {text.split()[0] for text in texts} == {"[MIN", "[MAX", "[MED", "[SM"}
    assert drawn == list(listops.lists(300, 10, 60, seed=1)) != list(listops.lists(300, 10, 60, seed=2))


def test_depth_and_arguments_are_limited():
    generator, deepest = random.Random(0), 0
    for _ in range(300):
        tokens, _ = listops.draw(generator, 10**6)
        depth = 0
        for token in tokens:
            depth += token.startswith("[")
            deepest = max(deepest, depth)
            depth -= token == "]"
    assert deepest == listops.MAX_DEPTH - 1


def test_data_of_fairseq(tmp_path):
    listops.prepare(tmp_path / "data", dict(train=30, valid=5, test=5), 10, 40, seed=0)
    words, labels = (Dictionary.load(str(tmp_path / "data" / name / "dict.txt")) for name in ("input0", "label"))
    texts = data_utils.load_indexed_dataset(str(tmp_path / "data/input0/test"), words)
    values = data_utils.load_indexed_dataset(str(tmp_path / "data/label/test"), labels)
    assert len(texts) == len(values) == 5
    for text, value in zip(texts, values, strict=True):
        assert str(evaluate(words.string(text))) == labels.string(value)
    with pytest.raises(CommandError, match="has files already"):
        listops.prepare(tmp_path / "data", dict(train=30, valid=5, test=5), 10, 40, seed=0)


@pytest.mark.parametrize(
    "sizes, lengths, message",
    [
        (dict(train=0), (10, 40), "--train 0: expected an integer >= 1"),
        (dict(train=1), (3, 40), "--lengths 3 40: expected 4 <= shortest"),
        (dict(train=1), (41, 40), "--lengths 41 40"),
    ],
)
def test_mistakes_are_named(tmp_path, sizes, lengths, message):
    with pytest.raises(CommandError, match=message):
        listops.prepare(tmp_path / "data", sizes, *lengths, seed=0)
    assert not (tmp_path / "data").exists()
