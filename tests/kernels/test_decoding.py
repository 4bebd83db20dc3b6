"""Decoding token by token against the full causal forward pass, and what it keeps for that."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers.tensors import random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fma_kernels import DecodingState, FMAttention, Hierarchy, SummaryBasis, aggregate, fma_attention

KINDS = ["nested", "direct", "mean"]
EXACT = dict(rtol=0, atol=1e-10)


def make_basis(kind="nested", *, heads=2, dim=3, cell_size=4, rank=2, num_levels=8, share_heads=False, seed=0):
    basis = SummaryBasis(heads, dim, cell_size, rank, num_levels=num_levels, kind=kind, share_heads=share_heads)
    basis = basis.double().requires_grad_(False)
    for number, parameter in enumerate(basis.parameters()):
        parameter += 0.3 * random(*parameter.shape, seed=seed + number)
    return basis


@dataclass
class Sequence:
    """Tokens, and the bases that summarise them."""

    tensors: list[torch.Tensor]  # query, key, value
    bases: list[SummaryBasis]
    mask: torch.Tensor | None = None
    group_bias: bool = True
    scale: float | None = None
    near_only: bool = False

    def state(self) -> DecodingState:
        return DecodingState(*self.bases, near_only=self.near_only, group_bias=self.group_bias, scale=self.scale)

    def part(self, start: int, stop: int) -> list[torch.Tensor | None]:
        return [*(x[:, :, start:stop] for x in self.tensors), None if self.mask is None else self.mask[:, start:stop]]

    def forward(self, stop: int | None = None, backend: str = "reference") -> torch.Tensor:
        """The whole causal attention over the first tokens."""
        query, key, value, mask = self.part(0, self.tensors[0].shape[2] if stop is None else stop)
        hierarchy = Hierarchy((key.shape[2],), self.bases[0].cell_size, self.bases[0].rank, causal=True)
        summaries = [None, None]
        if not self.near_only:
            sources = zip((key, value), self.bases, strict=True)
            summaries = [aggregate(x, basis, hierarchy, key_padding_mask=mask) for x, basis in sources]
        return fma_attention(
            query, key, value, *summaries, hierarchy, scale=self.scale, group_bias=self.group_bias,
            key_padding_mask=mask, backend=backend,
        )  # fmt: skip

    def decode(self, state: DecodingState, prompt: int, cuts: list[int]) -> torch.Tensor:
        """A prompt of that many tokens if any, then chunks between the cuts."""
        length = self.tensors[0].shape[2]
        outputs = [state.prefill(*self.part(0, prompt))] if prompt else []
        cuts = sorted({prompt, *(cut for cut in cuts if prompt < cut < length), length})
        for start, stop in itertools.pairwise(cuts):
            outputs.append(state.step(*self.part(start, stop)))
        return torch.cat(outputs, 2)


def make_sequence(length, kinds=("nested", "nested"), *, batch=2, mask=None, group_bias=True, seed=0, **options):
    bases = [make_basis(kind, seed=seed + i, **options) for i, kind in enumerate(kinds)]
    shape = (batch, bases[0].num_heads, length, bases[0].head_dim)
    tensors = [random(*shape, seed=seed + number) for number in (10, 11, 12)]
    return Sequence(tensors, bases, mask, group_bias)


def left_padding(length, *missing):
    return torch.arange(length) < torch.tensor(missing)[:, None]


@st.composite
def sequences(draw):
    length, batch = draw(st.integers(1, 110)), draw(st.integers(1, 3))
    rank = draw(st.integers(1, 3))
    cell_size = rank * draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    mask = None
    if draw(st.booleans()):
        mask = left_padding(length, *(draw(st.integers(0, length)) for _ in range(batch)))
    if draw(st.booleans()):  # tokens anywhere
        anywhere = random(batch, length, seed=seed) > 0.5
        mask = anywhere if mask is None else mask | anywhere
    levels = Hierarchy((length,), cell_size, rank).num_levels
    sequence = make_sequence(
        length, [draw(st.sampled_from(KINDS)) for _ in range(2)], batch=batch, mask=mask, seed=seed, rank=rank,
        cell_size=cell_size, group_bias=draw(st.booleans()), share_heads=draw(st.booleans()),
        num_levels=max(1, levels + draw(st.integers(0, 2))),
    )  # fmt: skip
    sequence.scale = draw(st.sampled_from([None, 0.3]))
    return sequence


@settings(max_examples=150)
@given(sequences(), st.data())
def test_outputs_are_those_of_the_full_forward_pass_however_the_tokens_come(sequence, data):
    length = sequence.tensors[0].shape[2]
    prompt = data.draw(st.integers(0, length), label="prompt")
    cuts = data.draw(st.lists(st.integers(1, length), max_size=12), label="cuts")
    if data.draw(st.booleans(), label="one by one"):
        cuts = list(range(length))
    state = sequence.state()
    torch.testing.assert_close(sequence.decode(state, prompt, cuts), sequence.forward(), **EXACT)
    assert state.num_tokens == length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_after_any_prompt_equals_the_prompt_longer_by_one(kind, masked):
    """Every length around which a cell of some level ends, and with it what is kept."""
    mask = random(2, 140) > 0.7 if masked else None
    sequence = make_sequence(140, (kind, kind), mask=mask)
    for prompt in range(1, 140):
        stepped, longer = sequence.state(), sequence.state()
        stepped.prefill(*sequence.part(0, prompt))
        last = stepped.step(*sequence.part(prompt, prompt + 1))
        expected = longer.prefill(*sequence.part(0, prompt + 1))
        torch.testing.assert_close(last, expected[:, :, -1:], **EXACT)
        assert stepped.nbytes == longer.nbytes


def expected_bytes(tokens, basis, batch, size):
    """The bytes that the documentation states, with keys and values in numbers of ``size`` bytes."""
    m, p = basis.cell_size, basis.rank
    levels = Hierarchy((tokens + 1,), m, p).num_levels
    rows, latest, begun = 2 * m + 2 * p * levels, p * (levels + 1 if tokens >= m else 0), 0
    if basis.kind == "direct":
        latest = min(latest, p * basis.num_levels)  # none beyond the last level
        begun = p * sum(tokens // m % 2**level > 0 for level in range(basis.num_levels))
    channels = 2 * basis.num_heads * basis.head_dim  # of keys and values
    sums = max(size, 4)
    # A row has a bias beside its channels, and the sums of a sub-block have a count.
    return batch * (rows * (channels * size + sums) + latest * (channels + 1) * sums + begun * channels * sums)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_levels", [10, 14])  # as many as 100,000 tokens have, and more
def test_memory_is_what_the_documentation_says(kind, dtype, num_levels):
    basis = make_basis(kind, heads=1, dim=1, cell_size=64, rank=2, num_levels=num_levels).float()
    tokens = torch.zeros(3, 2, 1, 100_000, 1, dtype=dtype)
    prompt = DecodingState(basis, basis)
    prompt.prefill(*tokens)
    assert prompt.nbytes == expected_bytes(100_000, basis, 2, dtype.itemsize)
    chunks = DecodingState(basis, basis)
    for stop in (1, 63, 64, 127, 128, 129, 4096, 50_000, 100_000):
        chunks.step(*tokens[..., chunks.num_tokens : stop, :])
        assert chunks.nbytes == expected_bytes(stop, basis, 2, dtype.itemsize)


def test_the_outputs_of_a_long_sequence():
    sequence = make_sequence(20_300, batch=1, heads=1, dim=2, cell_size=8)
    expected = sequence.forward(backend="torch")[:, :, 20_000:]
    for prompt, cuts in ((20_000, range(20_000, 20_300)), (0, [777, 9_000, 20_000, 20_100])):
        mine = sequence.decode(sequence.state(), prompt, list(cuts))[:, :, -300:]
        torch.testing.assert_close(mine, expected, **EXACT)


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_takes_as_many_operations_in_any_context(kind):
    basis = make_basis(kind, heads=1, dim=1, cell_size=32, num_levels=14)
    state = DecodingState(basis, basis)
    tokens = torch.zeros(3, 1, 1, 50_016, 1, dtype=torch.float64)
    counts = {}
    for context in (256, 50_016):
        state.step(*tokens[..., : context - state.num_tokens, :])
        with Operations() as operations:
            state.step(*tokens[..., :1, :])
        counts[context] = operations.count
    assert counts[256] == counts[50_016] < 25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [3, 16, 45, 64])
def test_reorder_repeats_moves_and_drops_rows(kind, context):
    length = context + 40
    mask = left_padding(length, 0, 5, context - 1)
    sequence = make_sequence(length, (kind, kind), batch=3, mask=mask)
    state = sequence.state()
    state.prefill(*sequence.part(0, context))
    for index in ([2, 0, 0, 1], [3, 1], [1]):
        index, batch, before = torch.tensor(index), len(sequence.mask), state.nbytes
        state.reorder(index)
        assert state.nbytes * batch == before * len(index)
        sequence.tensors = [x[index] for x in sequence.tensors]
        sequence.mask = sequence.mask[index]
        stop = state.num_tokens + 13
        out = state.step(*sequence.part(state.num_tokens, stop))
        torch.testing.assert_close(out, sequence.forward(stop)[:, :, -13:], **EXACT)


def test_constant_keys_give_full_attention():
    sequence = make_sequence(70, ("mean", "nested"))
    sequence.bases[1] = SummaryBasis(2, 3, 4, 2).double()
    query, key, value = sequence.tensors
    sequence.tensors[1] = key[:, :, :1].expand_as(key)
    expected = F.scaled_dot_product_attention(query, sequence.tensors[1], value, is_causal=True)
    torch.testing.assert_close(sequence.decode(sequence.state(), 30, list(range(70))), expected, **EXACT)


@pytest.mark.parametrize("attention", ["full", "near", "fma"])
def test_a_module_decodes_what_it_computes(attention):
    attention = FMAttention(
        12, 2, cell_size=4, rank=2, causal=True, attention=attention, scale=0.3, attn_drop=0.5, proj_drop=0.5
    ).double()  # fmt: skip
    x, mask = random(2, 50, 12), left_padding(50, 0, 7)
    state = attention.decoding_state()
    out = [attention.decode(x[:, :30], state, mask[:, :30])]
    out += [attention.decode(token, state) for token in x[:, 30:].split(1, 1)]
    torch.testing.assert_close(torch.cat(out, 1), attention.eval()(x, (50,), mask), **EXACT)


@pytest.mark.parametrize(
    ("options", "name"), [(dict(), "causal"), (dict(causal=True, attention="fma_linear"), "attention='fma_linear'")]
)
def test_a_module_says_why_it_cannot_decode(options, name):
    with pytest.raises(ValueError, match=f"{name}.*to decode"):
        FMAttention(12, 2, cell_size=4, **options).decoding_state()


@pytest.mark.parametrize("prompt", [0, 3, 30, 45])
def test_the_near_field_alone_decodes_from_two_cells(prompt):
    sequence = make_sequence(70, mask=left_padding(70, 0, 6))
    sequence.near_only = True
    state = sequence.state()
    torch.testing.assert_close(sequence.decode(state, prompt, [4, 33, 34, 50]), sequence.forward(), **EXACT)
    kept = state.nbytes
    state.take(*(x[:, :, :20] for x in sequence.tensors))
    assert state.nbytes == kept  # of any context


def test_take_is_prefill_and_then_step():
    sequence = make_sequence(40)
    state = sequence.state()
    out = [state.take(*sequence.part(start, start + 10)) for start in range(0, 40, 10)]
    torch.testing.assert_close(torch.cat(out, 2), sequence.forward(), **EXACT)


def test_a_query_that_reads_nothing_gives_zeros():
    sequence = make_sequence(30, mask=left_padding(30, 0, 12))
    out = sequence.decode(sequence.state(), 0, [5])
    assert (out[1, :, :12] == 0).all()
    assert (out[1, :, 12:] != 0).all() and (out[0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_as_good_as_that_of_the_full_forward_pass(dtype, kind):
    exact = make_sequence(200, (kind, kind), dim=16, heads=4)
    exact.tensors = [x.to(dtype).double() for x in exact.tensors]
    low = Sequence([x.to(dtype) for x in exact.tensors], [make_basis(kind, dim=16, heads=4, seed=i) for i in (0, 1)])
    low.bases = [basis.float() for basis in low.bases]
    expected = exact.forward()
    error = (low.forward(backend="torch").double() - expected).abs().max()
    for prompt in (0, 90):
        out = low.decode(low.state(), prompt, list(range(200)))
        assert out.dtype == dtype
        assert (out.double() - expected).abs().max() <= 2 * error + 1e-6


def test_autocast_changes_nothing():
    sequence = make_sequence(60)
    sequence.tensors = [x.float() for x in sequence.tensors]
    expected = sequence.decode(sequence.state(), 30, list(range(60)))
    with torch.autocast("cpu", torch.bfloat16):
        out = sequence.decode(sequence.state(), 30, list(range(60)))
    assert torch.equal(out, expected)


def test_nothing_is_kept_for_gradients():
    sequence = make_sequence(40)
    for leaf in (*sequence.tensors, *(p for basis in sequence.bases for p in basis.parameters())):
        leaf.requires_grad_()
    assert not sequence.decode(sequence.state(), 20, list(range(40))).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_does_not_follow_the_tensors_that_came(kind):
    sequence = make_sequence(60, (kind, kind), batch=1)
    expected = sequence.forward()[:, :, 40:]
    state = sequence.state()
    later = sequence.part(40, 60)
    later[:3] = [x.clone() for x in later[:3]]
    state.prefill(*sequence.part(0, 30))
    state.step(*sequence.part(30, 40))
    for x in sequence.tensors:
        x.fill_(torch.nan)
    torch.testing.assert_close(state.step(*later), expected, **EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(dtype, kind):
    mask = left_padding(600, 0, 100).cuda()
    sequence = make_sequence(600, (kind, kind), heads=2, dim=32, cell_size=32, rank=4, mask=mask)
    sequence.tensors = [x.to("cuda", dtype) for x in sequence.tensors]
    sequence.bases = [basis.float().cuda() for basis in sequence.bases]
    exact = Sequence([x.double() for x in sequence.tensors], [b.double() for b in sequence.bases], mask)
    expected = exact.forward()
    sequence.bases = [basis.float() for basis in sequence.bases]  # a module is converted in place
    error = (sequence.forward(backend="torch").double() - expected).abs().max()
    for prompt in (0, 333):
        state = sequence.state()
        out = sequence.decode(state, prompt, list(range(400)))
        state.reorder(torch.tensor([1, 1, 0], device="cuda"))
        assert (out.double() - expected).abs().max() <= 2 * error + 1e-5


TOKENS = torch.zeros(2, 2, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query=TOKENS[0]), r"query.shape=\(2, 5, 3\).*\(B, 2, T, 3\)"),
        (dict(query=TOKENS[:, :1]), r"query.shape=\(2, 1, 5, 3\).*\(B, 2, T, 3\) with T >= 1, to go with key_basis"),
        (dict(query=TOKENS[..., :2]), r"query.shape=\(2, 2, 5, 2\)"),
        (dict(query=TOKENS[:, :, :0]), r"query.shape=\(2, 2, 0, 3\).*T >= 1"),
        (dict(query=TOKENS.long()), "query.dtype=torch.int64.*floating"),
        (dict(key=TOKENS[:1]), r"key.shape=\(1, 2, 5, 3\): expected \(2, 2, 5, 3\), to go with query"),
        (dict(value=TOKENS[:, :, :4]), r"value.shape=\(2, 2, 4, 3\)"),
        (dict(value=TOKENS.double()), "value.dtype=torch.float64.*torch.float32"),
        (dict(key_padding_mask=torch.zeros(2, 4, dtype=torch.bool)), r"key_padding_mask.shape=\(2, 4\)"),
        (dict(key_padding_mask=torch.zeros(2, 5)), "key_padding_mask.dtype=torch.float32.*bool"),
    ],
)
@pytest.mark.parametrize("method", ["prefill", "step"])
def test_bad_tokens_are_refused_by_name(method, change, message):
    state = DecodingState(*[SummaryBasis(2, 3, 4, 2) for _ in range(2)])
    with pytest.raises(ValueError, match=message):
        getattr(state, method)(**dict(query=TOKENS, key=TOKENS, value=TOKENS) | change)
    assert (state.num_tokens, state.nbytes) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[:1], r"query.shape=\(1, 2, 5, 3\): expected \(2, 2, 5, 3\), to go with the tokens before"),
        (TOKENS.double(), "query.dtype=torch.float64: expected torch.float32, the dtype of the tokens before"),
        (TOKENS.to("meta"), "query.device=.*meta.*: expected cpu, the device of the tokens before"),
    ],
)
def test_tokens_that_do_not_go_with_those_before_are_refused(tokens, message):
    state = DecodingState(*[SummaryBasis(2, 3, 4, 2) for _ in range(2)])
    state.step(TOKENS, TOKENS, TOKENS)
    with pytest.raises(ValueError, match=message):
        state.step(tokens, tokens, tokens)
    assert state.num_tokens == 5


def test_a_second_prompt_is_refused():
    state = DecodingState(*[SummaryBasis(2, 3, 4, 2) for _ in range(2)])
    state.step(TOKENS, TOKENS, TOKENS)
    with pytest.raises(ValueError, match=r"num_tokens=5: expected 0 before prefill\(\); step\(\)"):
        state.prefill(TOKENS, TOKENS, TOKENS)


@pytest.mark.parametrize(("method", "name"), [("prefill", "key_basis"), ("step", "value_basis")])
def test_a_context_beyond_the_levels_of_a_direct_basis_is_refused_and_the_state_kept(method, name):
    kinds = ("direct", "mean") if name == "key_basis" else ("mean", "direct")
    sequence = make_sequence(34, kinds, num_levels=2)
    state = sequence.state()
    with pytest.raises(ValueError, match=rf"{name}.num_levels=2: expected at least 3 for 34 tokens"):
        getattr(state, method)(*sequence.part(0, 34))
    state.prefill(*sequence.part(0, 20))
    with pytest.raises(ValueError, match=rf"{name}.num_levels=2: expected at least 3 for 33 tokens"):
        state.step(*sequence.part(20, 33))
    out = state.step(*sequence.part(20, 32))  # two cells of the level that there is not: it is not read yet
    torch.testing.assert_close(out, sequence.forward(32)[:, :, 20:], **EXACT)
    with pytest.raises(ValueError, match="for 33 tokens"):
        state.step(*sequence.part(32, 33))


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ((dict(causal_queries=True), dict()), "key_basis.causal_queries=True: expected False"),
        ((dict(), dict(causal_queries=True)), "value_basis.causal_queries=True: expected False"),
        ((dict(ndim=2), dict()), "key_basis.ndim=2: expected 1"),
        ((dict(), dict(rank=1)), "value_basis.rank=1: expected 2, that of key_basis"),
        ((dict(), dict(cell_size=8)), "value_basis.cell_size=8: expected 4"),
        ((dict(), dict(num_heads=1)), "value_basis.num_heads=1: expected 2"),
        ((dict(), dict(head_dim=4)), "value_basis.head_dim=4: expected 3"),
    ],
)
def test_bases_that_cannot_serve_are_refused(bases, message):
    common = dict(num_heads=2, head_dim=3, cell_size=4, rank=2)
    with pytest.raises(ValueError, match=message):
        DecodingState(*(SummaryBasis(**common | basis) for basis in bases))


def test_what_is_no_basis_and_weights_elsewhere_are_refused():
    basis = SummaryBasis(2, 3, 4, 2)
    with pytest.raises(ValueError, match="value_basis=None: expected a SummaryBasis"):
        DecodingState(basis, None)
    state = DecodingState(basis, SummaryBasis(2, 3, 4, 2).to("meta"))
    with pytest.raises(ValueError, match=r"value_basis=.*meta.*: expected weights on cpu, where query is"):
        state.step(TOKENS, TOKENS, TOKENS)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([0, 2]), r"index=\[0, 2\]: expected rows 0 to 1"),
        (torch.tensor([-1]), r"index=\[-1\]"),
        (torch.tensor([[0]]), r"index.shape=\(1, 1\)"),
        (torch.tensor([], dtype=torch.int64), r"index.shape=\(0,\).*not empty"),
        (torch.tensor([True, False]), "index.dtype=torch.bool: expected torch.int64"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), "index.device=.*meta.*: expected cpu"),
    ],
)
def test_bad_rows_are_refused(index, message):
    state = DecodingState(*[SummaryBasis(2, 3, 4, 2) for _ in range(2)])
    with pytest.raises(ValueError, match="num_tokens=0: expected at least 1 before reorder"):
        state.reorder(torch.tensor([0]))
    state.step(TOKENS, TOKENS, TOKENS)
    with pytest.raises(ValueError, match=message):
        state.reorder(index)
    assert state.step(TOKENS, TOKENS, TOKENS).shape == TOKENS.shape
