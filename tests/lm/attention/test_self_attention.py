import math
import sys
from dataclasses import replace

import pytest
import torch
from helpers.language_models import DECODERS, ENCODERS
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.attention import AttentionFlags, SelfAttention, build_self_attention

CASES = [(name, True) for name in DECODERS] + [(name, False) for name in ENCODERS]
LIBRARIES = {
    "local": "local_attention",
    "linear": "linear_attention_transformer",
    "h-transformer": "h_transformer_1d",
    "reformer": "reformer_pytorch",
}
SMALL = AttentionFlags(fma_cell_size=4, fma_rank=2, fma_window=4, fma_positions="sinusoidal")


def make_attention(causal: bool, dim: int = 16, heads: int = 2, max_tokens: int = 64, **flags) -> SelfAttention:
    torch.manual_seed(0)
    attention = build_self_attention(replace(SMALL, **flags), dim, heads, causal=causal, max_tokens=max_tokens)
    for parameter in attention.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return attention.double().eval()


def random_input(length: int, batch: int = 2, dim: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(attention: SelfAttention, x: torch.Tensor, causal: bool, rotary: bool) -> torch.Tensor:
    """Softmax attention by its definition; a rotation is a product of complex numbers."""
    length, batch, dim = x.shape
    heads, head_dim = attention.num_heads, dim // attention.num_heads
    q, k, v = (
        (x @ linear.weight.T + linear.bias).view(length, batch, heads, head_dim).permute(1, 2, 0, 3)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if rotary:
        frequency = 10000 ** (-2 * torch.arange(head_dim // 2, dtype=torch.float64) / head_dim)
        turn = torch.polar(torch.ones(()).double(), torch.arange(length)[:, None] * frequency)
        q, k = (torch.complex(*z.chunk(2, -1)) * turn for z in (q, k))
        logits = (q @ k.mH).real
    else:
        logits = q @ k.mT
    logits = logits / math.sqrt(head_dim)
    if causal:
        logits = logits.masked_fill(torch.arange(length) > torch.arange(length)[:, None], -math.inf)
    out = (logits.softmax(-1) @ v).permute(2, 0, 1, 3).reshape(length, batch, dim)
    return out @ attention.out_proj.weight.T + attention.out_proj.bias


@pytest.mark.parametrize("name,causal", CASES)
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_every_parameter_has_a_gradient(name, causal, positions):
    attention = make_attention(causal, **ENCODERS[name], fma_positions=positions)
    for length in (1, 21):
        attention.zero_grad()
        x = random_input(length).requires_grad_()
        out, weights = attention(x, x, x)
        out.square().sum().backward()
        assert out.shape == x.shape and weights is None
        assert all(grad.isfinite().all() for grad in [out, x.grad, *(p.grad for p in attention.parameters())])


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=12)
@given(length=st.integers(2, 64), data=st.data())
def test_causal_attention_reads_no_later_token(name, length, data):
    attention = make_attention(True, **DECODERS[name], fma_positions=data.draw(st.sampled_from(["learned", "rotary"])))
    x = random_input(length)
    first = data.draw(st.integers(1, length - 1))
    changed = torch.cat([x[:first], 5 * random_input(length - first, seed=1)])
    out, other = attention(x)[0], attention(changed)[0]
    torch.testing.assert_close(other[:first], out[:first], rtol=0, atol=1e-12)
    assert not torch.equal(other[first:], out[first:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
@settings(max_examples=12)
@given(length=st.integers(1, 40))
def test_full_attention_is_the_dense_definition(causal, rotary, length):
    attention = make_attention(causal, fma_attention="full", fma_positions="rotary" if rotary else "learned")
    x = random_input(length)
    torch.testing.assert_close(attention(x)[0], dense(attention, x, causal, rotary), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["fma", "fma-linear"])
@settings(max_examples=12)
@given(length=st.integers(1, 8), aggregation=st.sampled_from(["nested", "direct", "mean"]))
def test_two_cells_are_full_attention(causal, kind, length, aggregation):
    attention = make_attention(causal, fma_attention=kind, fma_aggregation=aggregation, fma_positions="rotary")
    x = random_input(length)
    torch.testing.assert_close(attention(x)[0], dense(attention, x, causal, rotary=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=12)
@given(length=st.integers(9, 90))
def test_constant_keys_and_means_are_full_attention(causal, length):
    flags = dict(fma_attention="fma", fma_aggregation="mean")
    x = random_input(length)
    for group_bias in (True, False):  # without, a summary weighs as one token
        attention = make_attention(causal, **flags, fma_group_bias=group_bias)
        attention.k_proj.weight.data.zero_()
        difference = attention(x)[0] - dense(attention, x, causal, rotary=False)
        assert (difference.abs().max() < 1e-12) == group_bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["fma-nested", "fma-direct", "fma-mean", "fma-biased", "fma-linear"])
def test_attention_is_that_of_the_operators_by_definition(causal, name):
    attention = make_attention(causal, **DECODERS[name], fma_positions="rotary")
    x = random_input(61)
    mask = torch.arange(61) >= torch.tensor([[61], [37]])
    out = attention(x, key_padding_mask=mask)[0]
    attention.attention.core.backend = "reference"
    expected = attention(x, key_padding_mask=mask)[0]
    for row, length in enumerate([61, 37]):
        torch.testing.assert_close(out[:length, row], expected[:length, row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name,causal", [(name, causal) for name, causal in CASES if name in LIBRARIES])
def test_missing_library(name, causal, monkeypatch):
    for module in [module for module in sys.modules if module.split(".")[0] == LIBRARIES[name]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(ImportError, match=rf"fma_attention: '{name}'.*{LIBRARIES[name]}.*'fma-mm\[baselines\]'"):
        make_attention(causal, **ENCODERS[name])


def test_reformer_shares_queries_and_keys():
    attention = make_attention(False, fma_attention="reformer")
    assert {name.split(".")[0] for name, _ in attention.named_parameters()} == {"q_proj", "v_proj", "out_proj"}


def test_mask_of_pairs_is_refused():
    attention = make_attention(True)
    with pytest.raises(ValueError, match=r"attn_mask: a tensor of shape \(3, 3\), expected None"):
        attention(random_input(3), attn_mask=torch.zeros(3, 3))


@pytest.mark.parametrize("name", ["full", "fma-nested", "fma-linear", "local"])
def test_dropout_of_weights_is_for_training(name):
    torch.manual_seed(0)
    attention = build_self_attention(
        replace(SMALL, **DECODERS[name]), 16, 2, causal=True, max_tokens=64, dropout=0.5
    ).double()
    x = random_input(30)
    assert not torch.equal(attention(x)[0], attention(x)[0])
    attention.eval()
    assert torch.equal(attention(x)[0], attention(x)[0])
