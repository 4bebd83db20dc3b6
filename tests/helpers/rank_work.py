"""Work for the ranks of the tests: functions of a module, so that they travel to the processes."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils.checkpoint import checkpoint

from fma_kernels import FMAttention, Hierarchy, fma
from fma_kernels.distributed import FMAContextParallel, shard, sum_gradients, unshard
from helpers.attention_problems import make_problem

BASES = ("query_basis", "key_basis", "value_basis")


def _call(problem):
    """The arguments of :func:`fma` for a problem beside tokens and mask, and the bases among them."""
    h = problem.hierarchy
    names = {"near": (), "fma": ("key_basis", "value_basis")}.get(problem.attends, BASES)
    bases = {name: basis for name, basis in zip(BASES, problem.bases, strict=True) if name in names}
    call = dict(grid=h.grid, cell_size=h.cell_size, rank=h.rank, causal=h.causal, near_only=not bases, **bases)
    return call | dict(group_bias=problem.group_bias), [*bases.values()]


def difference_to_one_process(group, grid, cell_size, rank, options, backend="torch", dtype=torch.float64):
    """The largest difference between ranks and one process, of outputs, log-sum-exps and all gradients."""
    problem = make_problem(Hierarchy(grid, cell_size, rank, causal=options.pop("causal", False)), **options)
    call, bases = _call(problem)
    call.update(return_lse=True, backend=backend)
    parameters = [p for basis in bases for p in basis.to(dtype).parameters()]
    tokens = [x.detach().to(dtype).requires_grad_() for x in problem.tensors]
    out, lse = fma(*tokens, key_padding_mask=problem.mask, **call)
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    grad_lse = torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(dtype) * lse.isfinite()
    expected = torch.autograd.grad((out, lse), [*tokens, *parameters], (grad_out, grad_lse), allow_unused=True)

    def mine(x, dim):
        return shard(x, group, grid=grid, cell_size=cell_size, dim=dim)

    own = [mine(x, 2).detach().requires_grad_() for x in tokens]
    mask = None if problem.mask is None else mine(problem.mask, 1)
    own_out, own_lse = fma(*own, key_padding_mask=mask, group=group, **call)
    torch.autograd.backward((own_out, own_lse), (mine(grad_out, 2), mine(grad_lse, 2)))
    sum_gradients(parameters, group)
    with torch.no_grad():
        whole = [unshard(x, group, grid=grid, cell_size=cell_size, dim=2) for x in (own_out, own_lse)]
    differences = [_largest(a, b) for a, b in zip(whole, (out, lse), strict=True)]
    differences += [_largest(x.grad, mine(e, 2)) for x, e in zip(own, expected, strict=False)]
    for parameter, gradient in zip(parameters, expected[3:], strict=True):
        given = torch.zeros(()) if parameter.grad is None else parameter.grad
        differences.append(_largest(given, torch.zeros(()) if gradient is None else gradient))
    return max(differences)


def _largest(a, b):
    a, b = (x.detach().masked_fill(x == -torch.inf, 0) for x in (a, b))
    return (a - b).abs().max().item() if a.numel() or b.numel() else 0.0


def message(group, arguments_by_rank):
    """The error of :func:`fma` on this rank; the shape and the arguments are given by rank."""
    shape, arguments = arguments_by_rank[group.rank()]
    x = torch.zeros(shape)
    try:
        fma(x, x, x, group=group, **arguments)
    except ValueError as error:
        return str(error)
    return None


def gradients(group, attends, checkpointed=False):
    """Gradients of a module, of the own tokens and of the parameters of this rank, as bytes."""
    layer = attention(attends).float()
    context_parallel(layer, group)
    x = shard(inputs().float(), group, grid=LENGTH, cell_size=4).detach().requires_grad_()
    out = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
    out.square().sum().backward()
    return [x.grad.numpy().tobytes(), *(p.grad.numpy().tobytes() for p in layer.parameters())]


LENGTH = 61


def inputs():
    """Tokens (2, 61, 8)."""
    return torch.randn(2, LENGTH, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attention(attends="fma", **options):
    """A causal attention over such tokens."""
    torch.manual_seed(0)
    layer = FMAttention(8, 2, cell_size=4, rank=2, causal=True, attention=attends, **options).double()
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


def context_parallel(layer, group, **options):
    """Split the attention over the ranks of a group, from outside."""
    parallelize_module(layer, DeviceMesh.from_group(group, "cpu"), FMAContextParallel(**options))


def module_difference(group, attends, check=True):
    """The largest difference between a module over ranks and the same in one process: outputs and gradients."""
    layer, whole = attention(attends), inputs().requires_grad_()
    expected = layer(whole)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected.backward(gradient)
    expected_gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    context_parallel(layer, group, check=check)
    cut = dict(group=group, grid=LENGTH, cell_size=4)
    x = shard(whole, **cut).detach().requires_grad_()
    out = layer(x, None if check else (LENGTH,))
    out.backward(shard(gradient, **cut))
    sum_gradients(layer.parameters(), group)
    differences = [_largest(out, shard(expected, **cut)), _largest(x.grad, shard(whole.grad, **cut))]
    differences += [_largest(p.grad, e) for p, e in zip(layer.parameters(), expected_gradients, strict=True)]
    return max(differences)


class Block(nn.Module):
    """A residual block of an attention and a feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.attention, self.feed_forward = attention(), nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.feed_forward(x)


def sharded_difference(group):
    """A model of two blocks whose parameters FSDP2 shards over two ranks, while two others hold each sequence.

    The largest difference to one process of the loss and of all gradients.
    """
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    batch = torch.randn(4, LENGTH, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    reference = copy.deepcopy(model)
    loss = reference(batch).square().sum(-1).mean()
    loss.backward()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("context", "data"))
    parallelize_module(model, mesh["context"], {"*.attention": FMAContextParallel()})
    for block in model:
        fully_shard(block, mesh=mesh)  # sharded over the last axis, replicated over the first
    fully_shard(model, mesh=mesh)
    context, data = mesh["context"].get_group(), mesh["data"].get_local_rank()
    x = shard(batch.chunk(2)[data], context, grid=LENGTH, cell_size=4)
    own = model(x).square().sum(-1).sum() * (4 / (4 * LENGTH))  # FSDP divides by the ranks
    own.backward()
    total = own.detach().clone()
    dist.all_reduce(total, group=group)
    differences = [abs(total.item() / 4 - loss.item())]
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        differences.append(_largest(parameter.grad.full_tensor(), expected.grad))
    return max(differences)


def counted_bytes(group, grid, cell_size, rank, options):
    """Bytes that were sent and received in a forward and in a backward pass, as PyTorch was asked for them."""
    problem = make_problem(Hierarchy(grid, cell_size, rank, causal=options.pop("causal", False)), **options)
    own = [shard(x, group, grid=grid, cell_size=cell_size, dim=2).detach().requires_grad_() for x in problem.tensors]
    passes, send = [[0, 0]], dist.all_to_all_single

    def counting(output, input, received, sent, group):
        others = [i for i in range(group.size()) if i != group.rank()]
        for i, sizes in enumerate((sent, received)):
            passes[-1][i] += sum(sizes[other] for other in others) * input.itemsize
        return send(output, input, received, sent, group=group)

    dist.all_to_all_single = counting
    try:
        out = fma(*own, **_call(problem)[0], group=group)
        passes.append([0, 0])
        out.sum().backward()
    finally:
        dist.all_to_all_single = send
    return passes
