import pytest
import torch
from helpers.language_models import DECODERS, ENCODERS, make_decoder, make_encoder, random_tokens

CASES = [(make_decoder, name) for name in DECODERS] + [(make_encoder, name) for name in ENCODERS]


@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 0.1), (torch.float16, 0.03)], ids=str)
@pytest.mark.parametrize("make,name", CASES)
def test_low_precision(make, name, dtype, tolerance):
    kinds = DECODERS if make is make_decoder else ENCODERS
    model, tokens = make(**kinds[name]), random_tokens(2, 60)
    torch.manual_seed(0)  # of random hashes
    expected = model(tokens)[0]
    model = model.to(dtype).train()
    torch.manual_seed(0)
    out = model(tokens)[0]
    out.float().logsumexp(-1).sum().backward()
    assert out.dtype == dtype
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    error = (out.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < tolerance, f"{error:.4f}"


@pytest.mark.parametrize("name", ["full", "near", "fma-nested", "local"])
def test_bfloat16_decoding(name):
    model, tokens, state = make_decoder(**DECODERS[name]).bfloat16(), random_tokens(2, 30), {}
    with torch.no_grad():
        steps = [model.decoder(tokens[:, : n + 1], incremental_state=state)[0] for n in range(30)]
        expected = model(tokens)[0]
    assert steps[0].dtype == torch.bfloat16
    error = (torch.cat(steps, 1) - expected).float().square().mean().sqrt() / expected.float().square().mean().sqrt()
    assert error < 0.1, f"{error:.3f}"
