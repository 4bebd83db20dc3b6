import importlib.util

import pytest
from helpers.language_models import parse

MODELS = ["fma_lm_tiny", "fma_mlm_tiny"]


@pytest.mark.parametrize("model", MODELS)
def test_fp16_asks_for_a_gpu(model):
    with pytest.raises(ValueError, match=r"--fp16: True, expected a GPU.* On a CPU use --bf16"):
        parse(model, "--fp16", "--cpu")
    assert parse(model, "--memory-efficient-fp16", "--cpu").common.fp16


@pytest.mark.parametrize("model", MODELS)
def test_bf16_is_no_request_for_a_tpu(model, monkeypatch):
    common = parse(model, "--bf16", "--cpu").common
    assert common.bf16 and not common.tpu
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch_xla" or find(name))
    assert parse(model, "--bf16").common.tpu, "with PyTorch/XLA it is"
