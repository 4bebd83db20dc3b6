"""Sequences of recall, and what the task makes of them."""

import pytest
import torch
from fairseq.tasks.language_modeling import LanguageModelingConfig

from fma_tools.command import CommandError
from fma_tools.language_models.sequences import distances
from fma_tools.prepare import recall
from lm.tasks.recall import RecallTask


def test_every_pair_is_asked_for_once():
    for line in recall.lines(50, length=64, pairs=8, words=20, seed=3):
        tokens = line.split()
        pairs = dict(zip(tokens[:16:2], tokens[1:16:2], strict=True))
        assert len(pairs) == 8 and len(tokens) == 64
        asked = [i for i, token in enumerate(tokens) if token == "?"]
        assert {tokens[i + 1] for i in asked} == set(pairs) and len(asked) == 8
        assert all(tokens[i + 2] == pairs[tokens[i + 1]] for i in asked)
        assert tokens[16:].count(".") == 48 - 24


def test_the_task_predicts_answers_alone(tmp_path):
    recall.prepare(tmp_path / "data", dict(train=20, valid=3, test=7), length=32, pairs=3, words=5, seed=0)
    cfg = LanguageModelingConfig(
        data=str(tmp_path / "data"), tokens_per_sample=32, sample_break_mode="eos", dataset_impl="mmap",
        use_plasma_view=False, plasma_path="", seed=0,
    )  # fmt: skip
    task = RecallTask.setup_task(cfg)
    task.load_dataset("test")
    dataset, words = task.dataset("test"), task.target_dictionary
    batch = dataset.collater([dataset[i] for i in range(7)])
    asked = batch["target"] != words.pad()
    assert batch["ntokens"] == asked.sum() == 7 * 3
    far = iter(distances(batch["net_input"]["src_tokens"], asked).tolist())
    for row in range(7):
        tokens = [words[i] for i in batch["net_input"]["src_tokens"][row]]
        for place in asked[row].nonzero()[:, 0].tolist():
            assert tokens[place - 1] == "?" and tokens.index(tokens[place]) == place - next(far)
            assert words[batch["target"][row, place]] == tokens[tokens.index(tokens[place]) + 1]


@pytest.mark.parametrize(
    "numbers, message",
    [
        (dict(length=39, pairs=8, words=20), "--length 39: expected 40 or more"),
        (dict(length=90, pairs=8, words=7), "--pairs 8: expected 1 to 7"),
        (dict(length=90, pairs=0, words=7), "--pairs 0"),
    ],
)
def test_mistakes_are_named(tmp_path, numbers, message):
    with pytest.raises(CommandError, match=message):
        recall.prepare(tmp_path / "data", dict(train=1), **numbers, seed=0)


def test_ranges_of_distance():
    tokens = torch.tensor([[5, 9, 6, 8, 1, 6, 8, 1, 5, 9]])
    asked = torch.zeros(1, 10, dtype=torch.bool)
    asked[0, [5, 8]] = True
    assert distances(tokens, asked).tolist() == [3, 8]
