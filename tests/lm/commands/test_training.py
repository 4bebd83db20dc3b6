"""fairseq-preprocess, and fairseq-train up to its checkpoint."""

import re
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from helpers.fairseq_commands import logged, training_flags

from lm.attention import AttentionFlags

FMA_FLAGS = [field.name for field in fields(AttentionFlags) if field.name.startswith("fma_")]


def load(folder: Path, name: str = "checkpoint_last.pt") -> dict:
    return torch.load(folder / name, weights_only=False)


def assert_same_training(one: Path, other: Path) -> None:
    """Last checkpoints have bit-equal weights and states of the optimizer, at the same place."""
    one, other = load(one), load(other)
    assert one["optimizer_history"][-1]["num_updates"] == other["optimizer_history"][-1]["num_updates"]
    assert one["optimizer_history"][-1]["lr_scheduler_state"] == other["optimizer_history"][-1]["lr_scheduler_state"]
    for key in ("train_iterator", "val_loss", "best"):
        assert one["extra_state"][key] == other["extra_state"][key]
    for key in ("model", "last_optimizer_state"):
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


@pytest.mark.slow
def test_preprocess_makes_a_token_of_every_byte(preprocessed, source):
    folder, output = preprocessed
    for split, text in source.items():
        assert re.search(rf"{split}\.txt: \d+ sents, {len(text) + 1} tokens, 0.0% replaced", output)
    assert len((folder / "dict.txt").read_text().splitlines()) >= len(set(source["train"]) - {ord("\n")})


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fma_lm", "fma_mlm"])
def test_train_writes_a_checkpoint_that_opens_again(model, request):
    folder, output = request.getfixturevalue(model.removeprefix("fma_"))
    losses = [float(line["loss"]) for line in logged(output, "train_inner")]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert float(logged(output, "valid")[-1]["valid_loss"]) < 5

    checkpoint = load(folder)
    assert isinstance(checkpoint["cfg"]["model"], dict)
    assert checkpoint["cfg"]["model"]["_name"] == f"{model}_tiny"
    assert {name for name in checkpoint["cfg"]["model"] if name.startswith("fma_")} == set(FMA_FLAGS)
    assert checkpoint["cfg"]["model"]["fma_cell_size"] == 8
    (loaded,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(folder / "checkpoint_last.pt")])
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in checkpoint["model"].items())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fma_lm", "fma_mlm"])
def test_a_killed_training_goes_on_as_if_it_had_not_been(model, start, corpus, reference_flags, tmp_path, request):
    whole, _ = request.getfixturevalue(model.removeprefix("fma_"))
    flags = training_flags(model, tmp_path, reference_flags)
    killed = start("train", corpus, *flags)
    killed.wait_for('"num_updates": "23"')
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert load(tmp_path)["optimizer_history"][-1]["num_updates"] == 20

    resumed = start("train", corpus, *flags).output()
    assert [line["num_updates"] for line in logged(resumed, "train_inner")] == [str(i) for i in range(21, 61)]
    assert_same_training(tmp_path, whole)


@pytest.mark.slow
def test_bf16(learned):
    folder, output = learned
    losses = [float(line["loss"]) for line in logged(output, "train_inner")]
    assert losses[-1] < losses[0]
    weight = load(folder)["model"]["decoder.layers.0.fc1.weight"]  # in float32, as fairseq saves all weights
    assert torch.equal(weight, weight.bfloat16().float())


@pytest.mark.slow
def test_memory_efficient_fp16_and_samples_that_are_sentences(sinusoidal):
    folder, output = sinusoidal
    lines = logged(output, "train_inner")
    assert float(lines[-1]["loss"]) < float(lines[0]["loss"])
    assert float(lines[-1]["loss_scale"]) > 0
    weight = load(folder)["model"]["decoder.layers.0.fc1.weight"]
    assert torch.equal(weight, weight.half().float())
