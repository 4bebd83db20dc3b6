import importlib.util

import pytest
from helpers.language_models import parse_flags

MODELS = ["fma_lm_tiny", "fma_mlm_tiny"]


@pytest.mark.parametrize("model", MODELS)
def test_fp16_asks_for_a_gpu(model):
    with pytest.raises(ValueError, match=r"--fp16: True, expected a GPU.* On a CPU use --bf16"):
        parse_flags(model, "--fp16", "--cpu")
    assert parse_flags(model, "--memory-efficient-fp16", "--cpu").fp16


@pytest.mark.parametrize("model", MODELS)
def test_bf16_is_no_request_for_a_tpu(model, monkeypatch):
    args = parse_flags(model, "--bf16", "--cpu")
    assert args.bf16 and not args.tpu
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch_xla" or find(name))
    assert parse_flags(model, "--bf16").tpu, "with PyTorch/XLA it is"
