import pytest
import torch
from helpers.language_models import DECODERS, ENCODERS, make_attention, random_input
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = [(name, True) for name in DECODERS] + [(name, False) for name in ENCODERS]


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


def test_mask_of_pairs_is_refused():
    attention = make_attention(True)
    with pytest.raises(ValueError, match=r"attn_mask: a tensor of shape \(3, 3\), expected None"):
        attention(random_input(3), attn_mask=torch.zeros(3, 3))


@pytest.mark.parametrize("name", ["full", "near", "fma-nested", "fma-linear", "local"])
def test_dropout_of_weights_is_for_training(name):
    attention, x = make_attention(True, **DECODERS[name], dropout=0.5).train(), random_input(30)
    assert not torch.equal(attention(x)[0], attention(x)[0])
    attention.eval()
    assert torch.equal(attention(x)[0], attention(x)[0])
