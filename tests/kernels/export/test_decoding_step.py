"""The decoding step of fixed shapes is the attention over the whole sequence, token by token."""

import pytest
import torch
from helpers.tensors import random
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import CoreAttention, DecodingState
from fma_kernels.export import DecodingStep


def core(attention="fma", kind="nested", cell_size=4, rank=2, **options):
    layer = CoreAttention(
        2, 3, cell_size=cell_size, rank=rank, causal=True, attention=attention, basis_kind=kind, num_levels=6, **options
    ).double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data += 0.2 * random(*parameter.shape, seed=number)
    return layer


@torch.no_grad()
def decode(layer, tensors, max_tokens):
    step = DecodingStep(layer, max_tokens)
    state, outputs = step.empty(len(tensors[0]), tensors[0]), []
    for position in range(tensors[0].shape[2]):
        shapes = {name: x.shape for name, x in state.items()}
        out, state = step(*(x[:, :, position : position + 1] for x in tensors), torch.tensor(position), state)
        assert {name: x.shape for name, x in state.items()} == shapes
        outputs.append(out)
    return torch.cat(outputs, 2), state


@settings(max_examples=40)
@given(
    name=st.sampled_from(["full", "near", "fma"]),
    kind=st.sampled_from(["nested", "direct", "mean"]),
    cell=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3)]),
    length=st.integers(1, 90),
    more=st.integers(0, 40),
    group_bias=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
)
def test_it_is_the_forward_pass(name, kind, cell, length, more, group_bias, scale):
    layer = core(name, kind, *cell, group_bias=group_bias, scale=scale)
    if kind == "direct":
        more = min(more, 2 * cell[0] * 2**6 - length)  # levels that the bases have
        length += min(more, 0)
        more = max(more, 0)
    tensors = [random(2, 2, length, 3, seed=seed) for seed in range(3)]
    with torch.no_grad():
        expected = layer(*tensors)
    torch.testing.assert_close(decode(layer, tensors, length + more)[0], expected, rtol=0, atol=1e-10)


def test_the_state_is_small():
    layer = core(cell_size=16, rank=2).float()
    for tokens in (2**10, 2**14, 2**20):
        state = DecodingStep(layer, tokens).empty(1, torch.zeros(()))
        numbers = sum(x.numel() for x in state.values())
        levels = state["far"].shape[3]
        assert levels == (tokens // 32).bit_length() - 1
        assert numbers == 2 * 2 * 3 * (2 * 16 + levels * 3 * 2)
    reference = DecodingState(layer.key_basis, layer.value_basis)
    tensors = [random(1, 2, 2**10, 3, seed=seed).float() for seed in range(3)]
    reference.prefill(*tensors)
    assert numbers * 4 < 2 * reference.nbytes


@pytest.mark.parametrize(
    ("layer", "tokens", "message"),
    [
        (lambda: CoreAttention(2, 3, cell_size=4, causal=True, attention="fma_linear"), 40, "attention='fma_linear'"),
        (lambda: CoreAttention(2, 3, cell_size=4), 40, "causal=False: expected True"),
        (lambda: CoreAttention(2, 3, cell_size=4, causal=True), 0, "max_tokens=0: expected an integer >= 1"),
        (
            lambda: CoreAttention(2, 3, cell_size=4, causal=True, basis_kind="direct", num_levels=2),
            40,
            "num_levels=2: expected at least 3 for 40 tokens",
        ),
        (lambda: torch.nn.Identity(), 40, "attention='Identity'"),
    ],
)
def test_what_cannot_decode_is_named(layer, tokens, message):
    with pytest.raises(ValueError, match=message):
        DecodingStep(layer(), tokens)


def test_shapes_are_checked():
    layer = core()
    step = DecodingStep(layer, 10)
    x = random(1, 2, 2, 3)
    with pytest.raises(ValueError, match=r"query.shape=\(1, 2, 2, 3\): expected \(B, H, 1, d\)"):
        step(x, x, x, torch.tensor(0), step.empty(1, x))
