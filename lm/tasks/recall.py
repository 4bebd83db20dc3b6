"""``recall``: ``language_modeling`` that predicts answers alone, for multi-query associative recall."""

from __future__ import annotations

import torch
from fairseq.data import BaseWrapperDataset
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask

#: The word before a key that is asked for. Its value comes next, and is the answer.
QUESTION = "?"


class Answers(BaseWrapperDataset):
    """Samples of a language model whose targets are answers; all other targets are padding.

    Args:
        dataset: the samples.
        question: number of the word :data:`QUESTION`.
        pad: number of padding.
    """

    def __init__(self, dataset, question: int, pad: int):
        super().__init__(dataset)
        self.question, self.pad = question, pad

    def collater(self, samples: list) -> dict:
        batch = super().collater(samples)
        if batch:
            tokens = batch["net_input"]["src_tokens"]
            asked = torch.zeros_like(tokens, dtype=torch.bool)
            asked[:, 1:] = tokens[:, :-1] == self.question
            batch["target"] = batch["target"].masked_fill(~asked, self.pad)
            batch["ntokens"] = int(asked.sum())  # fairseq divides the loss by it
        return batch


@register_task("recall", dataclass=LanguageModelingConfig)
class RecallTask(LanguageModelingTask):
    """Language modelling of lines ``key value key value ... ? key value ...``, where only what is asked for counts."""

    def load_dataset(self, split: str, **kwargs) -> Answers:
        """Load a split."""
        samples = super().load_dataset(split, **kwargs)
        question = self.dictionary.index(QUESTION)
        self.datasets[split] = Answers(samples or self.datasets[split], question, self.dictionary.pad())
        return self.datasets[split]
