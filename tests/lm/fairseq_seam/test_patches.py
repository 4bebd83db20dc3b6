import functools
from types import SimpleNamespace

import numpy
import pytest
from fairseq.data import MonolingualDataset, TokenBlockDataset
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from helpers.language_models import make_dictionary, random_tokens

from lm.fairseq_seam import patches


def test_patches_apply_once():
    before = LanguageModelingTask.eval_lm_dataloader, numpy.compat
    patches.apply()
    assert (LanguageModelingTask.eval_lm_dataloader, numpy.compat) == before


def test_samples_that_are_sentences():
    sentences = [random_tokens(count) for count in (3, 1, 4)]
    dataset = TokenBlockDataset(sentences, [3, 1, 4], block_size=None, pad=1, eos=2, break_mode="eos")
    assert [dataset[i].tolist() for i in range(3)] == [sentence.tolist() for sentence in sentences]


@pytest.fixture
def load():
    """fairseq's loader of 4 samples of 64 tokens, with the keyword arguments that ``fairseq-eval-lm`` gives it."""
    dictionary = make_dictionary()
    task = LanguageModelingTask(LanguageModelingConfig(tokens_per_sample=64), dictionary, dictionary, ["future"])
    sizes = [64] * 4
    blocks = TokenBlockDataset(random_tokens(4, 64), sizes, 64, pad=1, eos=2, include_targets=True)
    dataset = MonolingualDataset(blocks, sizes, dictionary, targets=["future"], shuffle=False)
    return functools.partial(task.eval_lm_dataloader, dataset)


@pytest.mark.parametrize(
    "options",
    [dict(max_positions=64), dict(), dict(max_positions=96, context_window=32)],
    ids=str,
)
def test_evaluation_reads_every_sample(load, options):
    batches = load(**{"num_workers": 0, **options})
    assert sum(batch["target"].ne(1).sum() for batch in batches) == 4 * 64


def test_evaluation_without_a_context_takes_several_workers(load, monkeypatch):
    batches = SimpleNamespace(next_epoch_itr=lambda shuffle: "batches")  # without starting the workers
    monkeypatch.setattr(LanguageModelingTask, "get_batch_iterator", lambda self, **options: batches)
    assert load(num_workers=2) == "batches"


@pytest.mark.parametrize(
    "options,error",
    [
        (dict(max_positions=63), "tokens_per_sample=64: expected at most 63, the positions of the model"),
        (dict(max_positions=95, context_window=32), "tokens_per_sample=96: expected at most 95"),
        (dict(num_workers=2, context_window=32), "num_workers=2: expected at most 1 with context_window=32"),
    ],
    ids=str,
)
def test_evaluation_refuses_what_fairseq_would_skip_or_mix_up(load, options, error):
    with pytest.raises(ValueError, match=error):
        load(**{"num_workers": 0, **options})
