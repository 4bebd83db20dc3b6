"""fairseq-interactive and fairseq-generate."""

import math
import re

import pytest
import torch
from fairseq.data import Dictionary

PROMPTS = ["def heap(", "", "import os, sys", "x"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


def flags(model, prompts, more: str) -> list:
    """The flags of fairseq-interactive, whose batch are all prompts."""
    batch = f"--tokenizer byte_values --buffer-size {len(PROMPTS)} --batch-size {len(PROMPTS)} {more}"
    return ["--path", model / "checkpoint_last.pt", "--input", prompts, *batch.split()]


def hypotheses(output: str) -> dict[int, list[str]]:
    """Tokens and text of the best hypotheses, by the number of their prompt: ``H`` and ``D`` of the output."""
    found = re.findall(r"^H-(\d+)\t\S+\t(.*)\nD-\1\t\S+\t([\s\S]*?)\nP-\1\t", output, re.MULTILINE)
    return {int(number): [tokens, text] for number, tokens, text in reversed(found)}


def greedy(model: torch.nn.Module, dictionary: Dictionary, prompt: str, length: int) -> str:
    """Continuation of a prompt, word by word, from the whole sequence each time."""
    tokens = [dictionary.eos(), *(dictionary.index(str(byte)) for byte in prompt.encode())]
    while len(tokens) <= length:
        scores, _ = model(torch.tensor([tokens]))
        scores[..., dictionary.pad()] = -torch.inf
        tokens.append(int(scores[0, -1].argmax()))
    return " ".join(dictionary[token] for token in tokens[1:])


@pytest.mark.slow
def test_interactive_continues_each_prompt_as_full_forwards_do(start, corpus, lm, prompts, opened):
    task = ["--task", "byte_language_modeling"]
    output = start("interactive", corpus, *task, *flags(lm[0], prompts, "--beam 1 --max-len-b 40")).output()
    found = hypotheses(output)
    with torch.no_grad():
        for number, prompt in enumerate(PROMPTS):
            tokens, text = found[number]
            assert text.startswith(prompt)
            assert tokens == greedy(*opened, prompt, 40)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["language_modeling", "byte_language_modeling"])
def test_sampling_ends_with_a_line_or_goes_on_behind_it(task, call, corpus, lm, prompts, capsys):
    call("interactive", corpus, "--task", task, *flags(lm[0], prompts, "--sampling --beam 1 --max-len-b 150"))
    found = hypotheses(capsys.readouterr().out)
    assert len(found) == len(PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        assert found[number][1].startswith(prompt)
    if task == "language_modeling":
        assert all("\n" not in text for _, text in found.values())
        assert min(len(text) for _, text in found.values()) < 150
    else:
        assert max(len(tokens.split()) for tokens, _ in found.values()) == 150
        assert any("\n" in text.rstrip("\n") for _, text in found.values())


@pytest.mark.slow
def test_beams_have_the_scores_of_full_forwards(call, corpus, lm, prompts, opened, capsys):
    options = flags(lm[0], prompts, "--beam 3 --nbest 3 --max-len-b 30")
    call("interactive", corpus, "--task", "byte_language_modeling", *options)
    lines = re.findall(r"^H-(\d+)\t\S+\t(.*)$[\s\S]*?^P-\1\t(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(set(lines)) == 3 * len(PROMPTS)
    model, dictionary = opened
    for _, words, scores in lines:
        tokens = torch.tensor([dictionary.eos(), *map(dictionary.index, words.split()), dictionary.bos()])
        with torch.no_grad():
            expected = model(tokens[None, :-1])[0][0].log_softmax(-1).gather(1, tokens[1:, None])[:, 0] / math.log(2)
        torch.testing.assert_close(torch.tensor([*map(float, scores.split())]), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_generate_continues_the_sentences_of_a_split(start, corpus, lm, source):
    sentences = source["test"].decode().split("\n")
    flags = "--task byte_language_modeling --tokenizer byte_values --sample-break-mode eos --gen-subset test --beam 1 "
    flags += "--max-len-a 1 --max-len-b 5 --batch-size 8 --required-batch-size-multiple 1 --num-workers 0"
    found = hypotheses(start("generate", corpus, *flags.split(), "--path", lm[0] / "checkpoint_last.pt").output())
    assert len(found) == len(sentences)
    for number, sentence in enumerate(sentences):
        assert found[number][1].startswith(sentence)


@pytest.mark.slow
def test_interactive_with_learned_positions_needs_no_length(call, corpus, learned, prompts, capsys):
    call("interactive", corpus, "--task", "byte_language_modeling", *flags(learned[0], prompts, "--beam 1"))
    found = hypotheses(capsys.readouterr().out)
    assert all(text.startswith(PROMPTS[number]) for number, (_, text) in found.items())
    assert {len(tokens.split()) for tokens, _ in found.values()} == {63}
