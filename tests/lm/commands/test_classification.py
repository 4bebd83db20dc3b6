"""Classification by fairseq's own task sentence_prediction: from random weights, and from a masked model."""

import pytest
import torch
from helpers.fairseq_commands import logged

from fma_tools.prepare import listops

SIZES = "--encoder-layers 1 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 2"
COMMON = f"--arch fma_mlm_tiny {SIZES} --fma-cell-size 4 --fma-rank 2 --dropout 0 --attention-dropout 0 --batch-size 16"
COMMON += " --required-batch-size-multiple 1 --num-workers 0 --optimizer adam --lr 0.003 --log-format json"
COMMON += " --log-interval 1 --no-epoch-checkpoints"


@pytest.mark.slow
def test_from_a_masked_model(start, tmp_path):
    data = tmp_path / "data"
    listops.prepare(data, dict(train=64, valid=20), 8, 24, seed=0)
    masked = "--task masked_lm --criterion masked_lm --sample-break-mode eos --tokens-per-sample 64 --max-update 2"
    flags = f"{COMMON} {masked} --save-dir {tmp_path / 'masked'}".split()
    start("train", data / "input0", *flags).output()

    task = "--task sentence_prediction --criterion sentence_prediction --num-classes 10 --init-token 0"
    task += " --max-positions 64"
    again = "--reset-optimizer --reset-dataloader --reset-meters --reset-lr-scheduler"
    flags = f"{COMMON} {task} {again} --restore-file {tmp_path / 'masked/checkpoint_last.pt'} --max-update 12".split()
    output = start("train", data, *flags, "--save-dir", tmp_path / "classes").output()
    assert "Loaded checkpoint" in output and len(logged(output, "train_inner")) == 12
    assert 0 <= float(logged(output, "valid")[-1]["valid_accuracy"]) <= 100

    state = torch.load(tmp_path / "classes/checkpoint_last.pt", weights_only=False)["model"]
    assert state["classification_heads.sentence_classification_head.out_proj.weight"].shape == (10, 32)
    before = torch.load(tmp_path / "masked/checkpoint_last.pt", weights_only=False)["model"]
    name = "encoder.sentence_encoder.layers.0.fc1.weight"
    assert torch.allclose(state[name], before[name], atol=0.1) and not torch.equal(state[name], before[name])
