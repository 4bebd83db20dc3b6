import math

import pytest
import torch
from helpers.language_models import DECODERS, make_attention, random_input
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.attention import SelfAttention


def dense(
    attention: SelfAttention, x: torch.Tensor, causal: bool, rotary: bool, cell_size: int | None = None
) -> torch.Tensor:
    """Softmax attention by its definition; a rotation is a product of complex numbers.

    With a cell size, a token reads its cell and the touching cells alone.
    """
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
    if cell_size is not None:
        cell = torch.arange(length) // cell_size
        logits = logits.masked_fill((cell - cell[:, None]).abs() > 1, -math.inf)
    out = (logits.softmax(-1) @ v).permute(2, 0, 1, 3).reshape(length, batch, dim)
    return out @ attention.out_proj.weight.T + attention.out_proj.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
@settings(max_examples=12)
@given(length=st.integers(1, 40))
def test_full_attention_is_the_dense_definition(causal, rotary, length):
    attention = make_attention(causal, fma_attention="full", fma_positions="rotary" if rotary else "learned")
    x = random_input(length)
    torch.testing.assert_close(attention(x)[0], dense(attention, x, causal, rotary), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=12)
@given(length=st.integers(1, 60), backend=st.sampled_from(["auto", "torch", "reference"]))
def test_near_field_is_its_dense_definition(causal, length, backend):
    attention, x = (
        make_attention(causal, fma_attention="near", fma_positions="rotary", fma_backend=backend),
        random_input(length),
    )
    expected = dense(attention, x, causal, rotary=True, cell_size=4)
    torch.testing.assert_close(attention(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=12)
@given(data=st.data())
def test_near_field_reads_touching_cells_alone(causal, data):
    length = data.draw(st.integers(1, 60))
    token = data.draw(st.integers(0, length - 1))
    attention, x = make_attention(causal, fma_attention="near", fma_positions="rotary"), random_input(length)
    changed = x.clone()
    changed[token] = 5 * random_input(1, seed=1)[0]
    differs = (attention(x)[0] - attention(changed)[0]).abs().amax((1, 2)) > 1e-12
    place = torch.arange(length)
    reads = (place // 4 - token // 4).abs() <= 1
    assert torch.equal(differs, reads & (place >= token) if causal else reads)


@pytest.mark.parametrize("causal", [False, True])
def test_controls_have_the_projections_alone(causal):
    """With the same initialisation; FMA has the weights of its summaries beside them."""
    full, near, fma, linear = (
        dict(make_attention(causal, fma_attention=name, random=False).named_parameters())
        for name in ("full", "near", "fma", "fma-linear")
    )
    assert set(full) == {f"{x}_proj.{y}" for x in ("q", "k", "v", "out") for y in ("weight", "bias")}
    assert set(near) == set(full)
    summaries = {f"attention.{x}_basis.axis0_level{y}" for x in ("key", "value") for y in (1, 2, 3)}
    assert set(fma) - set(full) == summaries
    assert set(linear) - set(fma) == {f"attention.query_basis.axis0_level{y}" for y in (1, 2, 3)}
    for other in (near, fma, linear):
        assert all(torch.equal(other[name], weight) for name, weight in full.items())


@pytest.mark.parametrize("name", ["full", "near", "fma", "fma-linear"])
def test_flags_reach_the_operators(name):
    flags = dict(fma_basis_kind="direct", fma_backend="torch", fma_group_bias=True)
    core = make_attention(True, fma_attention=name, **flags).attention
    assert (core.attention, core.backend, core.group_bias) == (name.replace("-", "_"), "torch", True)
    kinds = {basis.kind for basis in core.children()}
    assert kinds == ({"direct"} if name.startswith("fma") else set())
    assert not make_attention(True, fma_attention=name).attention.group_bias, "off, unless the flag is given"


@pytest.mark.parametrize("name", ["fma", "fma-linear"])
def test_value_summaries_start_as_zeros_unless_the_flag_says_otherwise(name):
    def gains(**flags) -> tuple[float, ...]:
        core = make_attention(True, fma_attention=name, random=False, **flags).attention
        return tuple(basis.weight(0, 1).sum().item() for basis in (core.key_basis, core.value_basis))

    means = gains(fma_value_gain=1.0)
    assert means[0] == means[1] > 0
    assert gains() == (means[0], 0)
    assert gains(fma_value_gain=0.5) == (means[0], means[1] / 2)
    assert gains(fma_basis_kind="mean", fma_value_gain=0.5) == gains(fma_basis_kind="mean"), "means have no weights"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["near", "fma", "fma-linear"])
@settings(max_examples=12)
@given(length=st.integers(1, 8), basis_kind=st.sampled_from(["nested", "direct", "mean"]))
def test_two_cells_are_full_attention(causal, kind, length, basis_kind):
    attention = make_attention(causal, fma_attention=kind, fma_basis_kind=basis_kind, fma_positions="rotary")
    x = random_input(length)
    torch.testing.assert_close(attention(x)[0], dense(attention, x, causal, rotary=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=12)
@given(length=st.integers(9, 90))
def test_constant_keys_and_means_are_full_attention(causal, length):
    flags = dict(fma_attention="fma", fma_basis_kind="mean")
    x = random_input(length)
    for group_bias in (True, False):  # without, a summary weighs as one token
        attention = make_attention(causal, **flags, fma_group_bias=group_bias)
        attention.k_proj.weight.data.zero_()
        difference = attention(x)[0] - dense(attention, x, causal, rotary=False)
        assert (difference.abs().max() < 1e-12) == group_bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["near", "fma-nested", "fma-direct", "fma-mean", "fma-biased", "fma-linear"])
def test_attention_is_that_of_the_operators_by_definition(causal, name):
    attention = make_attention(causal, **DECODERS[name], fma_positions="rotary")
    x = random_input(61)
    mask = torch.arange(61) >= torch.tensor([[61], [37]])
    out = attention(x, key_padding_mask=mask)[0]
    attention.attention.backend = "reference"
    expected = attention(x, key_padding_mask=mask)[0]
    for row, length in enumerate([61, 37]):
        torch.testing.assert_close(out[:length, row], expected[:length, row], rtol=0, atol=1e-12)
