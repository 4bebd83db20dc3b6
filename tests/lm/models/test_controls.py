"""Models that differ in their attention alone."""

import pytest
import torch
from helpers.language_models import DECODERS, build, parse

SMALL = {
    "fma_lm_tiny": dict(decoder_layers=2, decoder_embed_dim=16, decoder_input_dim=16, decoder_output_dim=16),
    "fma_mlm_tiny": dict(encoder_layers=2, encoder_embed_dim=16),
}


@pytest.mark.parametrize("arch", SMALL)
def test_models_start_with_the_same_weights(arch):
    def weights(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return build(arch, **SMALL[arch], **DECODERS[name]).state_dict()

    full = weights("full")
    assert weights("near").keys() == full.keys()
    for name in DECODERS:
        others = weights(name)
        assert all(torch.equal(others[key], weight) for key, weight in full.items())
        assert all(
            ".self_attn.attention." in key and "_basis.axis0_level" in key for key in others.keys() - full.keys()
        )
    assert any(key.endswith("layers.1.self_attn.attention.key_basis.axis0_level1") for key in weights("fma-nested"))


@pytest.mark.parametrize("arch", SMALL)
def test_flags_reach_the_attention_from_the_command_line(arch):
    attention = dict(fma_attention="fma-linear", fma_backend="torch", fma_basis_kind="mean")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in attention.items()]
    model = parse(arch, *flags, "--fma-group-bias").model
    assert {name: model[name] for name in attention} == attention and model.fma_group_bias
    assert not parse(arch).model.fma_group_bias, "off, unless the flag is given"
