import functools

import pytest
import torch
from helpers.language_models import make_decoder, make_encoder, random_tokens

SIDES = {make_decoder: "decoder", make_encoder: "encoder"}


def gradients(model, tokens):
    model.train()(tokens)[0].square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("make", SIDES)
@pytest.mark.parametrize("flag", ["checkpoint_activations", "offload_activations"])
@pytest.mark.parametrize("attention", ["near", "fma"])
def test_checkpointed_activations_give_the_same_gradients(make, flag, attention):
    tokens = random_tokens(2, 50)
    model = make(**{flag: True}, fma_attention=attention)
    layer = getattr(model, SIDES[make])
    layer = getattr(layer, "sentence_encoder", layer).layers[0]
    assert isinstance(layer.forward, functools.partial)  # fairseq wraps it
    for mine, expected in zip(gradients(model, tokens), gradients(make(fma_attention=attention), tokens), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
