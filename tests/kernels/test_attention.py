"""Both attentions against the dense definition, and the properties that the method promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_problems import make_problem, problems
from helpers.tensors import LargestTensor, random
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import Hierarchy, SummaryBasis, aggregate, fma_attention, fma_linear_attention
from fma_kernels.backends.level_pass import LevelPass, Options
from fma_kernels.backends.reference import _membership
from fma_kernels.backends.torch import attention as blockwise

ALL = pytest.mark.parametrize("attends", ["near", "fma", "fma_linear"])
WITH_SUMMARIES = pytest.mark.parametrize("attends", ["fma", "fma_linear"])


def not_causal(problem):
    return not problem.hierarchy.causal


def has_summaries(problem):
    return problem.attends != "near"


def gradients(problem, backend):
    out = problem.attention(backend)
    grads = torch.autograd.grad((out * random(*out.shape)).sum(), problem.leaves, allow_unused=True)
    return [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(problem.leaves, grads, strict=True))]


@settings(max_examples=80)
@given(problems())
def test_outputs_and_all_gradients_equal_the_dense_definition(problem):
    for mine, theirs in zip(gradients(problem, "torch"), gradients(problem, "reference"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("grid", "cell_size", "rank", "causal"),
    [
        ((1,), 4, 2, True),
        ((113,), 4, 2, True),
        ((64,), 4, 4, False),
        ((64,), 1, 1, True),
        ((30, 1), 2, 1, False),
        ((1, 1), 7, 1, False),
        ((21, 28), 7, 1, False),
        ((15, 9), 3, 3, False),
        ((9, 4, 7), 2, 2, False),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@ALL
def test_awkward_shapes_equal_the_dense_definition(grid, cell_size, rank, causal, masked, attends):
    problem = make_problem(Hierarchy(grid, cell_size, rank, causal=causal), masked=masked, attends=attends)
    for mine, theirs in zip(gradients(problem, "torch"), gradients(problem, "reference"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_many_chunks_equal_one(monkeypatch):
    """The work is cut into chunks that end anywhere: at 40 numbers each, every cell is a chunk of its own."""
    from fma_kernels.backends.torch import chunks

    problem = make_problem(Hierarchy((9, 14), 2, 1), masked=True)
    expected = gradients(problem, "torch")
    monkeypatch.setitem(chunks._BUDGET, "cpu", 40)
    for mine, theirs in zip(gradients(problem, "torch"), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    monkeypatch.setitem(chunks._BUDGET, "cpu", 4000)
    for mine, theirs in zip(gradients(problem, "torch"), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("grid", "causal"), [((11,), False), ((21,), True), ((5, 6), False)])
@ALL
def test_gradcheck(grid, causal, attends):
    problem = make_problem(Hierarchy(grid, 2, 1, causal=causal), attends=attends, batch=1, heads=1, dim=2)
    assert problem.hierarchy.num_levels >= 1
    assert torch.autograd.gradcheck(lambda *_: problem.attention("torch"), problem.leaves)


@pytest.mark.parametrize(("grid", "causal"), [((16,), False), ((13,), True), ((14, 9), False), ((5, 8, 6), False)])
@pytest.mark.parametrize("masked", [False, True])
@ALL
def test_without_far_levels_it_is_full_attention(grid, causal, masked, attends):
    problem = make_problem(Hierarchy(grid, 8, 2, causal=causal), masked=masked, attends=attends)
    assert problem.hierarchy.num_levels == 0
    readable = torch.ones(problem.hierarchy.num_tokens, problem.hierarchy.num_tokens, dtype=torch.bool)
    readable = (readable.tril() if causal else readable).expand(2, 1, -1, -1)
    if masked:
        readable = readable & ~problem.mask[:, None, None]
    empty = ~readable.any(-1, keepdim=True)  # a query that may read nothing gives zeros
    expected = F.scaled_dot_product_attention(*problem.tensors, attn_mask=readable | empty).masked_fill(empty, 0)
    for backend in ("auto", "reference"):
        torch.testing.assert_close(problem.attention(backend), expected)


@settings(max_examples=40)
@given(problems(kind="mean", group_bias=True, num_global_tokens=0).filter(has_summaries))
def test_constant_keys_give_full_attention_on_any_shape(problem):
    """With equal keys all tokens weigh the same, and summaries that are means lose nothing."""
    query, key, value = problem.tensors
    problem.tensors = [query, key[:, :, :1].expand_as(key), value]
    n = problem.hierarchy.num_tokens
    if problem.hierarchy.causal:
        # Whole far cells come before the query: still the mean of all tokens up to it.
        readable = torch.ones(n, n, dtype=torch.bool).tril()
    else:
        readable = torch.ones(n, n, dtype=torch.bool)
    weights = readable.expand(value.shape[0], 1, n, n).double()
    if problem.mask is not None:
        weights = weights * ~problem.mask[:, None, None]
    expected = weights / weights.sum(-1, keepdim=True).clamp(min=1) @ value
    if problem.attends == "fma_linear":
        problem.tensors[0] = query[:, :, :1].expand_as(query)  # query summaries pool the queries as well
        if problem.hierarchy.causal:
            # They pool zeros before the start, so only constant logits of zero are constant for all of them.
            problem.tensors[0] = torch.zeros_like(query)
    if problem.attends == "fma_linear" and problem.mask is not None:
        problem.tensors[0] = torch.zeros_like(query)
    torch.testing.assert_close(problem.attention("torch"), expected)


@WITH_SUMMARIES
@pytest.mark.parametrize("kind", ["nested", "direct", "mean"])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_causal_outputs_do_not_depend_on_later_tokens(attends, kind, rank):
    problem = make_problem(Hierarchy((71,), 4, rank, causal=True), kind=kind, attends=attends)
    out = problem.attention("torch")
    for i in range(0, 71, 7):
        grads = torch.autograd.grad(out[:, :, i].sum(), problem.tensors, retain_graph=True)
        for x in grads:
            assert torch.count_nonzero(x[:, :, i + 1 :]) == 0
        # It does depend on every earlier value, through whatever summary: random weights are never 0.
        earlier = grads[2][:, :, : i + 1]
        assert torch.count_nonzero(earlier) == earlier.numel()


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["near", "fma", "fma_linear"]), st.sampled_from([1, 2]))
def test_a_prefix_of_a_causal_input_gives_the_prefix_of_the_output(n, more, attends, rank):
    whole = make_problem(Hierarchy((n + more,), 2, rank, causal=True), attends=attends)
    part = make_problem(Hierarchy((n,), 2, rank, causal=True), attends=attends)
    part.tensors, part.bases = [x[:, :, :n] for x in whole.tensors], whole.bases
    torch.testing.assert_close(part.attention("torch"), whole.attention("torch")[:, :, :n])


@ALL
def test_masked_tokens_have_no_influence(attends):
    problem = make_problem(Hierarchy((45,), 4, 2), masked=True, attends=attends)
    out = problem.attention("torch")
    noisy = [x.detach() + 100 * problem.mask[:, None, :, None] for x in problem.tensors]
    problem.tensors = noisy
    kept = ~problem.mask[:, None, :, None].expand_as(out)
    torch.testing.assert_close(problem.attention("torch")[kept], out[kept])


@ALL
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_sequence_of_padding_gives_zeros_and_finite_gradients(attends, backend):
    problem = make_problem(Hierarchy((40,), 4, 2), attends=attends)
    problem.mask = torch.zeros(2, 40, dtype=torch.bool)
    problem.mask[1] = True
    out = problem.attention(backend)
    assert torch.count_nonzero(out[1]) == 0
    for grad in torch.autograd.grad(out.sum(), problem.leaves, allow_unused=True):
        assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("grid", [(16,), (14, 9)])
@pytest.mark.parametrize("masked", [False, True])
@ALL
def test_with_global_tokens_and_without_far_levels_it_is_full_attention(grid, masked, attends):
    problem = make_problem(Hierarchy(grid, 8, 2), masked=masked, attends=attends, num_global_tokens=2)
    assert problem.hierarchy.num_levels == 0
    readable = F.pad(~problem.mask, [2, 0], value=True)[:, None, None] if masked else None
    expected = F.scaled_dot_product_attention(*problem.tensors, attn_mask=readable)
    for backend in ("auto", "reference"):
        torch.testing.assert_close(problem.attention(backend), expected)


@settings(max_examples=30)
@given(problems(num_global_tokens=2).filter(not_causal))
def test_global_tokens_get_full_attention(problem):
    mask = problem.mask
    readable = None if mask is None else F.pad(~mask, [2, 0], value=True)[:, None, None]
    expected = F.scaled_dot_product_attention(problem.tensors[0][:, :, :2], *problem.tensors[1:], attn_mask=readable)
    for backend in ("torch", "reference"):
        torch.testing.assert_close(problem.attention(backend)[:, :, :2], expected)


@settings(max_examples=30)
@given(
    problems(kind="mean", group_bias=True, masked=True, num_global_tokens=3).filter(not_causal).filter(has_summaries)
)
def test_constant_keys_give_full_attention_with_global_tokens(problem):
    """Global and other tokens weigh the same then, and what is masked weighs nothing."""
    query, key, value = problem.tensors
    if problem.attends == "fma_linear":
        query = torch.zeros_like(query)
    problem.tensors = [query, key[:, :, :1].expand_as(key), value]
    weights = F.pad(~problem.mask, [3, 0], value=True).double()[:, None, None]
    expected = (weights / weights.sum(-1, keepdim=True) @ value).expand_as(value)
    torch.testing.assert_close(problem.attention("torch"), expected)


@ALL
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_among_padding_only_global_tokens_are_read(attends, backend):
    problem = make_problem(Hierarchy((40,), 4, 2), attends=attends, num_global_tokens=2)
    problem.mask = torch.zeros(2, 40, dtype=torch.bool)
    problem.mask[1] = True
    out = problem.attention(backend)
    query, key, value = (x[1] for x in problem.tensors)
    torch.testing.assert_close(out[1], F.scaled_dot_product_attention(query, key[:, :2], value[:, :2]))
    for grad in torch.autograd.grad(out.sum(), problem.leaves, allow_unused=True):
        assert grad is None or grad.isfinite().all()


@WITH_SUMMARIES
def test_global_tokens_keep_the_low_precision_of_the_others(attends):
    """At most twice the error of PyTorch's own attention, as without them."""
    problem = make_problem(Hierarchy((19, 22), 4, 2), attends=attends, dim=16, num_global_tokens=2)
    problem.tensors = [x.detach().bfloat16() for x in problem.tensors]
    full = F.scaled_dot_product_attention(*(x.double() for x in problem.tensors))
    allowed = 2 * (F.scaled_dot_product_attention(*problem.tensors).double() - full).abs().max()
    out = problem.attention("torch")
    assert out.dtype == torch.bfloat16
    problem.tensors = [x.double() for x in problem.tensors]
    assert (out.double() - problem.attention("reference")).abs().max() <= allowed


@WITH_SUMMARIES
def test_group_bias_off_reads_a_summary_like_a_token(attends):
    """With logits of 0, all that a query reads weighs the same: the output is a mean over tokens and summaries."""
    problem = make_problem(Hierarchy((45,), 4, 2), kind="mean", attends=attends, group_bias=False)
    query, key, value = (x.detach() for x in problem.tensors)
    problem.tensors = [torch.zeros_like(query), key, value]
    hierarchy, basis = problem.hierarchy, problem.bases[2]
    rows = torch.cat([value, aggregate(value, basis, hierarchy)], 2)
    tables, expected = hierarchy.tables(), []
    for i in range(45):
        near = [j for cell in tables.near[i // 4].tolist() if cell >= 0 for j in range(4 * cell, min(4 * cell + 4, 45))]
        far = [45 + 2 * cell + s for cell in tables.far[i // 4].tolist() if cell >= 0 for s in range(2)]
        counts = F.pad(aggregate(torch.ones_like(value), basis, hierarchy)[0, 0, :, 0], [45, 0], value=1.0)
        expected.append(rows[:, :, [j for j in near + far if counts[j] > 0]].mean(2))
    torch.testing.assert_close(problem.attention("torch"), torch.stack(expected, 2))


@ALL
def test_large_logits_give_finite_gradients_beside_partial_cells(attends):
    """Places beyond the grid have logits too, as large as any: these must not reach a gradient as 0 * infinity."""
    problem = make_problem(Hierarchy((21,), 4, 2), attends=attends)
    problem.tensors = [(30 * x.detach()).requires_grad_() for x in problem.tensors]
    for mine, theirs in zip(gradients(problem, "torch"), gradients(problem, "reference"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("grid", "causal"), [((113,), True), ((113,), False), ((19, 22), False)])
@ALL
def test_low_precision_is_as_good_as_pytorch_attention(dtype, grid, causal, attends):
    """At most twice the error that PyTorch's own low-precision attention makes on such inputs."""
    hierarchy = Hierarchy(grid, 4, 2, causal=causal)
    tokens = [random(1, 2, hierarchy.num_tokens, 16, seed=i).to(dtype) for i in range(3)]
    far = [random(1, 2, hierarchy.num_summaries, 16, seed=i).to(dtype) for i in (3, 4, 5)]
    query = dict(query_summaries=far.pop(0)) if attends == "fma_linear" else {}
    summaries = [None, None] if attends == "near" else far[:2]
    out = fma_attention(*tokens, *summaries, hierarchy, **query)
    assert out.dtype == dtype
    wide = [None if x is None else x.double() for x in (*tokens, *summaries)]
    query = {name: x.double() for name, x in query.items()}
    expected = fma_attention(*wide, hierarchy, **query, backend="reference")
    near = dict(attn_mask=_membership(hierarchy, out.device)[0])
    readable = near if attends == "near" else dict(is_causal=causal)
    full = F.scaled_dot_product_attention(*wide[:3], **readable)
    theirs = F.scaled_dot_product_attention(*tokens, **readable)
    allowed = 2 * (theirs.double() - full).abs().max() + torch.finfo(dtype).tiny
    assert (out.double() - expected).abs().max() <= allowed


@ALL
def test_autocast_computes_in_its_dtype(attends):
    problem = make_problem(Hierarchy((50,), 4, 2), attends=attends)
    problem.tensors = [x.detach().float() for x in problem.tensors]
    for basis in problem.bases:
        basis.float()
    expected = problem.attention("torch")
    with torch.autocast("cpu", torch.bfloat16):
        out = problem.attention("torch")
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


@ALL
def test_training_goes_on_after_inference_mode(attends):
    """Tables that are kept per geometry are made at the first call, in whatever mode."""
    problem = make_problem(Hierarchy((53,), 4, 2), attends=attends)
    with torch.inference_mode():
        expected = problem.attention("torch").clone()
    out = problem.attention("torch")
    torch.testing.assert_close(out, expected)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), problem.tensors))


@pytest.mark.parametrize(
    ("hierarchy", "options"),
    [
        (Hierarchy((37,), 4, 2), dict(attends="fma")),
        (Hierarchy((37,), 4, 2), dict(attends="fma_linear")),
        (Hierarchy((37,), 4, 2), dict(attends="near")),
        (Hierarchy((7,), 2, 1), dict(num_global_tokens=2, dim=2)),
    ],
    ids=["fma", "fma_linear", "near", "global"],
)
def test_dropout_keeps_the_expectation_and_its_gradient_is_that_of_the_same_draw(hierarchy, options):
    problem = make_problem(hierarchy, batch=1, heads=1, **options)
    assert problem.hierarchy.num_levels >= 1
    exact = problem.attention("torch")
    torch.manual_seed(0)
    draws = torch.stack([problem.attention("torch", dropout_p=0.3).detach() for _ in range(300)])
    assert draws.std(0).min() > 0
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 5 * standard_error).all()

    def same_draw(*_):
        torch.manual_seed(3)
        return problem.attention("torch", dropout_p=0.3)

    assert torch.autograd.gradcheck(same_draw, problem.tensors)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(("grid", "causal"), [((45,), False), ((45,), True), ((14, 9), False)])
def test_the_near_field_alone_is_full_attention_among_touching_cells(backend, grid, causal):
    problem = make_problem(Hierarchy(grid, 3, causal=causal), masked=True, attends="near")
    problem.mask[:, 0] = False
    cell = torch.cartesian_prod(*(torch.arange(n) // 3 for n in grid)).view(-1, len(grid))
    readable = (cell[:, None] - cell[None]).abs().amax(-1) <= 1
    readable = (readable.tril() if causal else readable) & ~problem.mask[:, None, None]
    empty = ~readable.any(-1, keepdim=True)
    expected = F.scaled_dot_product_attention(*problem.tensors, attn_mask=readable | empty).masked_fill(empty, 0)
    torch.testing.assert_close(problem.attention(backend), expected)


@settings(max_examples=40)
@given(problems())
def test_the_log_sum_exp_and_its_gradients_are_those_of_the_dense_definition(problem):
    results = []
    for backend in ("torch", "reference"):
        out, lse = problem.attention(backend, return_lse=True)
        torch.testing.assert_close(out, problem.attention(backend))
        finite = lse.masked_fill(lse == -math.inf, 0)
        grads = torch.autograd.grad((finite * random(*lse.shape)).sum(), problem.leaves, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(problem.leaves, grads, strict=True)]
        results.append([lse, *grads])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@ALL
@pytest.mark.parametrize("grid", [(16,), (45,)])
def test_the_log_sum_exp_is_in_float32_at_least(attends, grid):
    problem = make_problem(Hierarchy(grid, 8, 2), attends=attends, num_global_tokens=2)
    exact = problem.attention("reference", return_lse=True)[1]
    problem.tensors = [x.detach().bfloat16() for x in problem.tensors]
    problem.bases = [basis.bfloat16() for basis in problem.bases]
    for backend in ("torch", "reference"):
        lse = problem.attention(backend, return_lse=True)[1]
        assert lse.dtype == torch.float32 and lse.shape == exact.shape
        torch.testing.assert_close(lse.double(), exact, rtol=0.05, atol=0.05)


def test_memory_grows_linearly():
    """No operation of the forward or backward pass makes anything near n x n."""
    for n in (2**14, 2**16):
        hierarchy = Hierarchy((n,), 64, 4)
        x, s = torch.randn(1, 1, n, 4), torch.randn(1, 1, hierarchy.num_summaries, 4)
        options = Options(scale=0.5)
        level_pass = LevelPass(hierarchy, 0, far=True)
        with LargestTensor() as largest:
            out, lse = blockwise.forward(level_pass, x, [x, s], [x, s], options)
            blockwise.backward(level_pass, out, torch.zeros_like(lse), out, lse, x, [x, s], [x, s], options)
        assert x.numel() <= largest.numel <= max(16 * n, 2**22)


def test_causal_linear_query_summaries_pool_backwards():
    """A sub-block's query summary is the mean of the tokens that end at its first one, over a fixed divisor."""
    hierarchy = Hierarchy((32,), 4, 2, causal=True)
    basis = SummaryBasis(1, 1, 4, 2, num_levels=hierarchy.num_levels, causal_queries=True).double()
    x = torch.arange(1.0, 33.0, dtype=torch.float64).view(1, 1, 32, 1)
    summaries = aggregate(x, basis, hierarchy, queries=True)[0, 0, :, 0]
    expected = []
    for level in hierarchy.levels:
        width = hierarchy.cell_width(level) // 2
        for start in range(0, hierarchy.summary_grid(level)[0] * width, width):
            window = x[0, 0, max(0, start - width + 1) : min(start + 1, 32), 0] if start < 32 else x[0, 0, :0, 0]
            expected.append(window.sum() / width)
    # Sub-blocks that start beyond the grid belong to no token.
    for level, mine, theirs in zip(
        hierarchy.levels,
        summaries.split(hierarchy.level_sizes),
        torch.stack(expected).split(hierarchy.level_sizes),
        strict=True,
    ):
        inside = -(-32 // (hierarchy.cell_width(level) // 2))
        torch.testing.assert_close(mine[:inside], theirs[:inside])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_global_tokens=-1), "num_global_tokens=-1.*an integer >= 0"),
        (dict(num_global_tokens=1), r"query.shape=\(2, 2, 42, 4\).*1 global tokens and the 40"),
        (dict(query=torch.zeros(2, 42, 4)), r"query.shape=\(2, 42, 4\).*2 global tokens and the 40"),
        (dict(key=torch.zeros(2, 2, 40, 4)), r"key.shape=\(2, 2, 40, 4\).*\(2, 2, 42, 4\)"),
        (dict(key_padding_mask=torch.zeros(2, 42, dtype=torch.bool)), r"key_padding_mask.shape=\(2, 42\).*\(2, 40\)"),
        (dict(hierarchy=Hierarchy((40,), 4, 2, causal=True)), "num_global_tokens=2.*0 with causal=True"),
    ],
)
def test_bad_global_tokens_are_refused_by_name(change, message):
    tokens, hierarchy = torch.zeros(2, 2, 42, 4), Hierarchy((40,), 4, 2)
    summaries = torch.zeros(2, 2, hierarchy.num_summaries, 4)
    arguments = dict(
        query=tokens, key=tokens, value=tokens, key_summaries=summaries, value_summaries=summaries,
        hierarchy=hierarchy, num_global_tokens=2,
    )  # fmt: skip
    fma_attention(**arguments)
    with pytest.raises(ValueError, match=message):
        fma_attention(**arguments | change)


GOOD = dict(scale=None, group_bias=True, key_padding_mask=None, dropout_p=0.0, backend="auto")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query=torch.zeros(2, 2, 40)), r"query.shape=\(2, 2, 40\).*four dimensions"),
        (dict(query=torch.zeros(2, 2, 41, 4)), r"query.shape=\(2, 2, 41, 4\).*40 tokens"),
        (dict(query=torch.zeros(2, 2, 40, 4, dtype=torch.int64)), "query.dtype=torch.int64.*floating"),
        (dict(key=torch.zeros(2, 3, 40, 4)), r"key.shape=\(2, 3, 40, 4\).*\(2, 2, 40, 4\)"),
        (dict(key=torch.zeros(2, 2, 40, 4).double()), "key.dtype=torch.float64.*torch.float32"),
        (dict(value=torch.zeros(2, 2, 39, 4)), "value.shape"),
        (dict(value=torch.zeros(2, 2, 40, 4, device="meta")), "value.device=.*meta.*cpu"),
        (dict(key_summaries=torch.zeros(2, 2, 3, 4)), r"key_summaries.shape=\(2, 2, 3, 4\)"),
        (dict(value_summaries=torch.zeros(2, 2, 3, 4)), "value_summaries.shape"),
        (dict(key_padding_mask=torch.zeros(2, 39, dtype=torch.bool)), r"key_padding_mask.shape=\(2, 39\)"),
        (dict(key_padding_mask=torch.zeros(2, 40)), "key_padding_mask.dtype=torch.float32"),
        (dict(dropout_p=1.0), "dropout_p=1.0"),
        (dict(backend="fast"), "backend='fast'.*auto, triton, cpp, torch, reference"),
        (dict(hierarchy=(40,)), "hierarchy=.*a Hierarchy"),
    ],
)
@pytest.mark.parametrize("function", [fma_attention, fma_linear_attention])
def test_bad_input_is_refused_by_name(change, message, function):
    hierarchy = Hierarchy((40,), 4, 2)
    tokens, summaries = torch.zeros(2, 2, 40, 4), torch.zeros(2, 2, hierarchy.num_summaries, 4)
    arguments = dict(query=tokens, key=tokens, value=tokens)
    if function is fma_linear_attention:
        arguments["query_summaries"] = summaries
    arguments |= dict(key_summaries=summaries, value_summaries=summaries, hierarchy=hierarchy, **GOOD)
    function(**arguments)
    with pytest.raises(ValueError, match=message):
        function(**arguments | change)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(key_summaries=None), "key_summaries=None: expected a tensor, as there are other summaries"),
        (dict(value_summaries=None), "value_summaries=None: expected a tensor"),
        (dict(key_summaries=None, value_summaries=None), "key_summaries=None: expected a tensor"),
        (dict(query_summaries=torch.zeros(2, 2, 3, 4)), r"query_summaries.shape=\(2, 2, 3, 4\)"),
    ],
)
def test_summaries_come_together(given, message):
    hierarchy = Hierarchy((40,), 4, 2)
    tokens, summaries = torch.zeros(2, 2, 40, 4), torch.zeros(2, 2, hierarchy.num_summaries, 4)
    options = dict(key_summaries=summaries, value_summaries=summaries, query_summaries=summaries) | given
    with pytest.raises(ValueError, match=message):
        fma_attention(tokens, tokens, tokens, hierarchy=hierarchy, **options)
    with pytest.raises(ValueError, match="query_summaries=None: expected a tensor"):
        fma_linear_attention(tokens, tokens, tokens, None, summaries, summaries, hierarchy)
