"""fairseq-eval-lm and fairseq-validate."""

import math
import re

import pytest
import torch
from helpers.fairseq_commands import logged

FLAGS = ["--gen-subset", "valid", "--batch-size", "4", "--num-workers", "0", "--log-format", "simple"]


def evaluated(text: str) -> tuple[int, float]:
    """The number of tokens and the loss that ``fairseq-eval-lm`` printed."""
    tokens = re.search(r"Evaluated ([\d,]+) tokens", text)[1]
    return int(tokens.replace(",", "")), float(re.search(r"Loss \(base 2\): (\S+), ", text)[1])


def valid_loss(output: str) -> float:
    return float(logged(output, "valid")[-1]["valid_loss"])


@pytest.fixture
def evaluate(call, corpus, caplog):
    """Run fairseq-eval-lm in this process: evaluate(folder of the model, *flags)."""

    def evaluate(folder, *flags):
        with caplog.at_level("INFO"):
            call("eval-lm", corpus, *FLAGS, "--path", folder / "checkpoint_last.pt", *flags)
        return evaluated(caplog.text)

    return evaluate


@pytest.mark.slow
def test_eval_lm_gives_the_loss_of_validation_in_bits_per_byte(start, corpus, lm, source):
    folder, output = lm
    flags = ["--path", folder / "checkpoint_last.pt", "--tokens-per-sample", 64]
    tokens, loss = evaluated(start("eval-lm", corpus, *FLAGS, *flags).output())
    assert tokens == len(source["valid"]) + 1
    assert loss == pytest.approx(valid_loss(output), abs=1e-3)
    assert loss < math.log2(len(set(source["train"])))


@pytest.mark.slow
@pytest.mark.parametrize("tokens_per_sample", [40, 100, 2048])
def test_eval_lm_at_other_lengths_leaves_out_nothing(tokens_per_sample, evaluate, lm, source):
    tokens, loss = evaluate(lm[0], "--tokens-per-sample", tokens_per_sample)
    assert tokens == len(source["valid"]) + 1
    assert loss == pytest.approx(valid_loss(lm[1]), rel=0.2)


@pytest.mark.slow
def test_eval_lm_with_a_context_reads_it_before_every_sample(evaluate, lm, opened, source):
    tokens, loss = evaluate(lm[0], "--tokens-per-sample", 64, "--context-window", 32)
    assert tokens == len(source["valid"]) + 1

    model, dictionary = opened
    words = [dictionary.eos() if byte == ord("\n") else dictionary.index(str(byte)) for byte in source["valid"]]
    stream = torch.tensor([dictionary.eos(), *words, dictionary.eos()])
    total = 0.0
    for begin in range(0, tokens, 32):
        first, end = max(0, begin - 32), min(begin + 32, tokens)
        with torch.no_grad():
            scores = model(stream[None, first:end])[0][0, begin - first :].log_softmax(-1)
        total -= scores.gather(1, stream[begin + 1 : end + 1, None]).sum().item()
    assert loss == pytest.approx(total / math.log(2) / tokens, abs=2e-4)


@pytest.mark.slow
def test_eval_lm_refuses_a_context_that_workers_would_mix_up(evaluate, lm):
    with pytest.raises(ValueError, match=r"num_workers=2: expected at most 1 with context_window=32"):
        evaluate(lm[0], "--tokens-per-sample", 64, "--context-window", 32, "--num-workers", 2)


@pytest.mark.slow
def test_eval_lm_refuses_samples_beyond_learned_positions(evaluate, learned, source):
    folder, _ = learned
    with pytest.raises(ValueError, match=r"tokens_per_sample=65: expected at most 64, the positions of the model"):
        evaluate(folder, "--tokens-per-sample", 65)
    with pytest.raises(ValueError, match=r"tokens_per_sample=96: expected at most 64, the positions of the model"):
        evaluate(folder, "--tokens-per-sample", 96, "--context-window", 32)
    assert evaluate(folder, "--tokens-per-sample", 64, "--context-window", 32)[0] == len(source["valid"]) + 1


@pytest.mark.slow
def test_eval_lm_goes_on_with_sinusoidal_positions(evaluate, sinusoidal, source):
    assert evaluate(sinusoidal[0], "--tokens-per-sample", 1024)[0] == len(source["valid"]) + 1


@pytest.mark.slow
def test_eval_lm_does_not_leave_out_samples_of_more_than_max_tokens(evaluate, lm):
    with pytest.raises(AssertionError, match="Sentences lengths should not exceed max_tokens=32"):
        evaluate(lm[0], "--tokens-per-sample", 64, "--max-tokens", 32)


@pytest.mark.slow
@pytest.mark.parametrize("model, task", [("lm", "language_modeling"), ("mlm", "masked_lm")])
def test_validate_gives_the_loss_of_validation(model, task, start, corpus, request):
    folder, output = request.getfixturevalue(model)
    flags = f"--task {task} --path {folder}/checkpoint_last.pt --batch-size 4 --required-batch-size-multiple 1 "
    flags += "--num-workers 0 --log-format json"
    (line,) = logged(start("validate", corpus, *flags.split()).output(), "valid")
    assert float(line["valid_loss"]) == pytest.approx(valid_loss(output), abs=2e-3)
