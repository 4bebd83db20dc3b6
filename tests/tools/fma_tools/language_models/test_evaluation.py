"""Bits of a model whose probabilities are known, and its steps."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fma_tools.language_models.costs import Step, median_times
from fma_tools.language_models.evaluation import evaluate
from fma_tools.language_models.loading import Trained

PAD = 0


class Samples:
    """Samples of tokens; the last one is shorter."""

    def __init__(self, lengths):
        self.lengths, self.taken = lengths, []

    def __len__(self):
        return len(self.lengths)

    def size(self, index):
        return self.lengths[index]

    def __getitem__(self, index):
        self.taken.append(index)
        return torch.arange(self.lengths[index]) % 3 + 1

    def collater(self, samples):
        target = nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=PAD)
        return dict(target=target, net_input=dict(tokens=target))


class Surer(nn.Module):
    """Gives a token half of the probability of the one before; the first of them 1/2. Other tokens share the rest."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, tokens):
        return tokens

    def get_normalized_probs(self, output, log_probs, sample):
        right = 0.5 ** torch.arange(1, output.shape[1] + 1).double()[:, None]
        one_hot = nn.functional.one_hot(output, 4)
        return torch.where(one_hot == 1, right, (1 - right) / 3).log() + self.weight


class Task(SimpleNamespace):
    target_dictionary = SimpleNamespace(pad=lambda: PAD)

    def dataset(self, split):
        assert split == "valid"
        return self.samples

    def build_criterion(self, cfg):
        def criterion(model, sample):
            return model.get_normalized_probs(model(**sample["net_input"]), True, sample).exp().square().sum(), 1, {}

        return criterion


def trained(lengths):
    return Trained(Surer(), SimpleNamespace(criterion=None), Task(samples=Samples(lengths)), updates=7)


def test_bits_by_the_place_in_the_context():
    model = trained([8, 8, 8, 3])
    found = evaluate(model, "valid", context=8, samples=10)
    assert model.task.samples.taken == [0, 1, 2], "without the shorter last one"
    assert found["bits_by_quarter"] == pytest.approx([1.5, 3.5, 5.5, 7.5])
    assert found["bits"] == pytest.approx(4.5)
    assert (found["tokens"], found["updates"], found["parameters"]) == (24, 7, 4)
    assert found["tokens_by_repetition"] == [0, 0, 0, 0, 24]
    assert found["bits_by_repetition"][-1] == pytest.approx(4.5)


def test_bits_of_repeated_text():
    """Tokens 1, 2, 3, 1, 2, 3 ...: from the ninth on, the last six stood before, three tokens back."""
    found = evaluate(trained([12]), "valid", context=12, samples=1)
    assert found["tokens_by_repetition"] == [4, 0, 0, 0, 8]
    assert found["bits_by_repetition"][0] == pytest.approx((9 + 10 + 11 + 12) / 4)
    assert found["bits_by_repetition"][1] is None


def test_samples_are_spread_evenly():
    model = trained([8] * 10)
    evaluate(model, "valid", context=8, samples=4)
    assert model.task.samples.taken == [0, 2, 5, 7]


def test_only_tokens_to_predict_count():
    """Of a masked model, or behind the end of a sample, the target is padding."""
    model = trained([8])
    real = Samples.__getitem__

    def masked(self, index):
        return real(self, index) * (torch.arange(8) % 4 == 1)

    model.task.samples = type("Masked", (Samples,), {"__getitem__": masked})([8])
    found = evaluate(model, "valid", context=8, samples=1)
    assert found["tokens"] == 2 and found["bits"] == pytest.approx((2 + 6) / 2)
    assert found["bits_by_quarter"][0] == pytest.approx(2) and found["bits_by_quarter"][1] is None
    assert sum(found["tokens_by_repetition"]) == 0, "they are no text"


def test_a_split_without_a_whole_sample_is_refused():
    with pytest.raises(ValueError, match="valid: no tokens to predict in samples of 9 tokens"):
        evaluate(trained([3]), "valid", context=9, samples=1)


def test_a_step_updates_the_model_and_its_time_is_a_median(monkeypatch):
    model = trained([8] * 4)
    step = Step(model, "valid", 3, torch.device("cpu"))
    assert step.batch["target"].shape == (3, 8)
    assert step.peak_mib() > 0
    assert (model.model.weight != 0).any(), "the optimizer has taken steps"
    times = iter([5.0, 50.0, 1.0, 10.0, 9.0, 90.0])
    monkeypatch.setattr("fma_tools.language_models.costs.milliseconds", lambda run, device: next(times))
    assert median_times({"a": step, "b": step}, 3) == {"a": 5.0, "b": 50.0}
