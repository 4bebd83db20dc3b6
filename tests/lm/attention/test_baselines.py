import sys

import pytest
import torch
from helpers.language_models import DECODERS, ENCODERS, make_attention, random_input

LIBRARIES = {
    "local": "local_attention",
    "linear": "linear_attention_transformer",
    "h-transformer": "h_transformer_1d",
    "reformer": "reformer_pytorch",
}
CASES = [(name, True) for name in LIBRARIES if name in DECODERS] + [(name, False) for name in LIBRARIES]


@pytest.mark.parametrize("name,causal", CASES)
def test_missing_library(name, causal, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == LIBRARIES[name]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(ImportError, match=rf"fma_attention: '{name}'.*{LIBRARIES[name]}.*'fma-mm\[baselines\]'"):
        make_attention(causal, **ENCODERS[name])


def test_reformer_shares_queries_and_keys():
    attention = make_attention(False, fma_attention="reformer")
    assert {name.split(".")[0] for name, _ in attention.named_parameters()} == {"q_proj", "v_proj", "out_proj"}


def test_reformer_drops_weights_in_training():
    """Its hashes are random as well, so they are fixed."""
    attention, x = make_attention(False, fma_attention="reformer", dropout=0.5), random_input(30)
    outputs = []
    for _ in range(2):
        for mode in (attention.eval, attention.train):
            mode()
            torch.manual_seed(len(outputs) // 2)
            outputs.append(attention(x)[0])
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[3])
