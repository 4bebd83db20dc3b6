"""Tracing, compiling, exporting and recomputing work with the fused kernels inside a module."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fma_kernels import FMAttention, Hierarchy, SummaryBasis, aggregate, fma, fma_attention
from fma_kernels.ops import attention

pytest.importorskip("triton")
from fma_kernels.backends.triton import attention_kernels, pooling_kernels

LAUNCHED = {"attend_forward", "attend_backward_queries", "attend_backward_keys", "attend_backward_carry"}
LAUNCHED |= {"sum_partials", "pool", "spread_gradients", "input_gradients"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = pytest.mark.parametrize("kind", ["fma", "fma_linear"])
on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")


def make_module(kind="fma", **options):
    torch.manual_seed(0)
    return FMAttention(32, 2, cell_size=8, rank=2, attention=kind, backend="triton", **options).to(DEVICE)


def tokens(n=40, batch=1):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(batch, n, 32, generator=generator).to(DEVICE).requires_grad_()


def results(function, module, x):
    out = function(x, (x.shape[1],))
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]


def assert_same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_the_operator_keeps_its_contract(masked):
    """Schema, shapes, strides and dtypes under tracing, gradients: PyTorch's own checks."""
    hierarchy = Hierarchy((40,), 8, 2)
    h = hierarchy.pack()
    x = [torch.randn(1, 1, 40, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    far = [torch.randn(1, 1, hierarchy.num_summaries, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    mask = torch.arange(40, device=DEVICE)[None] % 3 == 0 if masked else None
    for summaries in (far, [None, *far[1:]], [None] * 3):
        inputs = (*x, *summaries, mask, None, *h, [], 0.5, True, 0.0, "triton")
        torch.library.opcheck(attention._attend, inputs)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("kind", ["fma", "fma_linear"])
def test_small_summaries_and_attention_in_one_operator(kind, causal):
    """The same numbers as by two operators, with dropout too; the gradients are added in place."""
    grid, options = (40,), dict(cell_size=8, rank=2, causal=causal)
    hierarchy = Hierarchy(grid, **options)
    x = [torch.randn(2, 2, 40, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    bases = [SummaryBasis(2, 16, 8, 2, num_levels=3, causal_queries=causal and i == 0).to(DEVICE) for i in range(3)]
    for parameter in (p for basis in bases for p in basis.parameters()):
        parameter.data += 0.1 * torch.randn_like(parameter)
    query, key, value = bases
    query = query if kind == "fma_linear" else None
    mask = torch.arange(40, device=DEVICE).expand(2, -1) % 5 == 1
    shared = dict(key_padding_mask=mask, dropout_p=0.2, return_lse=True, backend="triton")
    pool = dict(key_padding_mask=mask, backend="triton")

    def together():
        return fma(*x, query_basis=query, key_basis=key, value_basis=value, **options, **shared)

    def apart():
        queries = None if query is None else aggregate(x[0], query, hierarchy, queries=True, **pool)
        summaries = [aggregate(part, basis, hierarchy, **pool) for part, basis in zip(x[1:], (key, value), strict=True)]
        return fma_attention(*x, *summaries, hierarchy, query_summaries=queries, **shared)

    leaves = [*x, *(p for basis in bases if basis is not None for p in basis.parameters())]
    made = []
    for function in (together, apart):
        torch.manual_seed(3)
        out, lse = function()
        total = out.square().sum() + lse.masked_fill(lse.isinf(), 0).sum()
        made.append([out.detach(), lse.detach(), *torch.autograd.grad(total, leaves, allow_unused=True)])
    for mine, theirs in zip(*made, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@KINDS
def test_compiles_in_one_graph_for_any_length(kind):
    module = make_module(kind)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (40, 57):
        x = tokens(n)
        assert_same(results(compiled, module, x), results(module, module, x))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_with_a_grid_of_symbols(backend):
    """The grid comes from the shape of an image: symbols, where shapes are dynamic."""
    attention = FMAttention(32, 2, cell_size=4, rank=2, ndim=2, backend=backend).to(DEVICE)

    def model(image):
        return attention(image.flatten(1, 2), image.shape[1:3]).view_as(image)

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((12, 14), (13, 9)):
        image = torch.randn(1, height, width, 32, device=DEVICE)
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-5)


class OfLength(torch.nn.Module):
    """A model of sequences of one length."""

    def __init__(self, n, kind):
        super().__init__()
        self.grid, self.attention = (n,), make_module(kind)

    def forward(self, x):
        return self.attention(x, self.grid).relu()


@KINDS
def test_exports_with_any_batch_size(kind):
    model = OfLength(40, kind).eval()
    dynamic = {"x": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(model, (tokens(batch=3).detach(),), dynamic_shapes=dynamic)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert any("fma_kernels.fma" in str(node.target) for graph in graphs for node in graph.nodes)
    x = tokens(batch=2)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.slow
def test_ahead_of_time_inductor_package(tmp_path):
    model = OfLength(40, "fma").eval()
    with torch.no_grad():
        program = torch.export.export(model, (tokens().detach(),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        x = tokens() + 1
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), model(x), rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_repeats_the_same_dropout():
    module, grads = make_module(attn_drop=0.3), []
    for save in (None, CheckpointPolicy.PREFER_RECOMPUTE, CheckpointPolicy.MUST_SAVE):
        x = tokens()
        torch.manual_seed(1)
        if save is None:
            out = module(x, (40,))
        else:
            op = torch.ops.fma_kernels.fma.default
            policy = lambda _, f, *args, save=save, op=op, **options: (  # noqa: E731
                save if f is op else CheckpointPolicy.PREFER_RECOMPUTE
            )
            contexts = partial(create_selective_checkpoint_contexts, policy)
            out = checkpoint(module, x, (40,), use_reentrant=False, context_fn=contexts)
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_autocast_gives_its_dtype():
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    module, x = make_module(), tokens()
    with torch.autocast(DEVICE.type, dtype):
        out = module(x, (40,))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), module(x, (40,)), rtol=2e-2, atol=2e-2)


def test_forward_mode_raises():
    module, x = make_module(), tokens().detach()
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: module(x, (40,)), (x,), (x,))


# ---------------------------------------------------------------------- on a GPU


@on_gpu
@KINDS
def test_cuda_graphs_replay_the_step(kind):
    module, x = make_module(kind), tokens(200)
    expected = results(module, module, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            results(module, module, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(module, module, x)
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    assert_same(captured, expected)


def step_of_length(kind, n):
    # No other test has the head dimension 28.
    module = FMAttention(56, 2, cell_size=8, rank=2, attention=kind, backend="triton").to(DEVICE)
    results(module, module, torch.randn(1, n, 56, device=DEVICE, requires_grad=True))


@on_gpu
@KINDS
def test_another_length_compiles_no_kernel(kind):
    """A cell of 8 and n from 100 to 1000: after the longest, every launch finds its kernel."""
    import triton

    compiled = []
    hook = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda **options: compiled.append(options)
    try:
        step_of_length(kind, 1000)
        first = len(compiled)
        assert first
        for n in (100, 101, 128, 333):
            step_of_length(kind, n)
        assert len(compiled) == first
    finally:
        triton.knobs.runtime.jit_post_compile_hook = hook


@KINDS
def test_a_longer_sequence_has_one_kernel_more_at_most(monkeypatch, kind):
    """Growing lengths compile one new kernel: the one that pools the levels above the first four."""
    kernels, seen = (attention_kernels, pooling_kernels), set()

    class Recorded:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            def launch(*args, **options):
                dtypes = [x.dtype if isinstance(x, torch.Tensor) else type(x) for x in args]
                seen.add((self.name, tuple(dtypes), tuple(sorted(options.items(), key=str))))

            return launch

    for module in kernels:
        for name in LAUNCHED & {*vars(module)}:
            monkeypatch.setattr(module, name, Recorded(name))
    new = []
    for n in (100, 101, 128, 333, 1000):
        before = set(seen)
        step_of_length(kind, n)
        new.append({name for name, *_ in seen - before})
    assert new[0] <= LAUNCHED and len(new[0]) >= 6
    assert new[1:] == [set(), set(), {"pool"}, set()]
