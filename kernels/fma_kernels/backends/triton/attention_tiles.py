"""Device functions that the attention kernels share: loading tiles of rows, logits, dropout."""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def locate(items, heads):
    """(item, batch, head) of this program: the items of one head follow each other, so that they share its rows."""
    program = tl.program_id(0)
    sequence = program // items
    return program % items, (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64)


@triton.jit
def _mask(rows, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    mask = (rows >= 0)[:, None]
    if DIM < BLOCK_DIM:
        mask = mask & (tl.arange(0, BLOCK_DIM) < DIM)[None, :]
    return mask


@triton.jit
def _channels(row, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Addresses of a row's channels, from that of the first, (rows, 1).

    Rows begin at multiples of the power of two that divides their length, up to 16 bytes. The callers see to it; the
    compiler has to be told.
    """
    BYTES: tl.constexpr = DIM * row.dtype.element_ty.primitive_bitwidth // 8
    ALIGNMENT: tl.constexpr = 16 if BYTES % 16 == 0 else 8 if BYTES % 8 == 0 else 4 if BYTES % 4 == 0 else 2
    return tl.multiple_of(row + tl.arange(0, BLOCK_DIM)[None, :], [ALIGNMENT, ALIGNMENT])


@triton.jit
def load_rows(pointer, rows, stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Rows of a (rows, d) matrix: (len(rows), BLOCK_DIM); zeros for row -1 and beyond d."""
    row = pointer + rows.to(tl.int64)[:, None] * stride
    return tl.load(_channels(row, DIM, BLOCK_DIM), mask=_mask(rows, DIM, BLOCK_DIM), other=0.0)


@triton.jit
def store_rows(pointer, rows, stride, tile, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Inverse of :func:`load_rows`, in the dtype of the pointer."""
    row = pointer + rows.to(tl.int64)[:, None] * stride
    tl.store(_channels(row, DIM, BLOCK_DIM), tile.to(pointer.dtype.element_ty), mask=_mask(rows, DIM, BLOCK_DIM))


@triton.jit
def load_two(near, far, rows, near_rows, near_stride, far_stride, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Rows of two matrices in one tile: number ``near_rows`` + i is row i of the far one."""
    is_far = rows >= near_rows
    index = tl.where(is_far, rows - near_rows, rows).to(tl.int64)[:, None]
    row = tl.where(is_far[:, None], far + index * far_stride, near + index * near_stride)
    return tl.load(_channels(row, DIM, BLOCK_DIM), mask=_mask(rows, DIM, BLOCK_DIM), other=0.0)


@triton.jit
def paired(bits, group):
    """Whether the bit of each owner's group is set for each partner: (owners, partners)."""
    return ((bits[None, :] >> group[:, None]) & 1) != 0


@triton.jit
def log_sum_exp(LSE, rows):
    """Log-sum-exps in units of log 2, rounded, and the factor of the weights 2 ** (logit - rounded) that mends it.

    Weights of a row -1, and of a query that has read nothing, are 0.
    """
    lse = tl.load(LSE + rows, mask=rows >= 0, other=float("inf"))
    exact = tl.where(lse == float("-inf"), float("inf"), lse).to(tl.float64) * LOG2_E
    rounded = exact.to(tl.float32)
    rest = tl.where(rounded == float("inf"), 0.0, (rounded - exact).to(tl.float32))
    return rounded, 1.0 + rest * LN_2


@triton.jit
def dropout_factor(SEED, level, batch, head, heads, query_rows, key_rows, probability):
    """0 or 1 / (1 - p) for (owners, partners), whichever of both the queries are.

    A function of the seed and of the pair alone (Philox), so that both passes see the same, in whatever order.
    """
    seed = tl.load(SEED)
    zero = query_rows * 0 + key_rows * 0
    sequence = (batch * heads + head).to(tl.int32)
    bits, _, _, _ = tl.philox(seed, zero + key_rows, zero + query_rows, zero + sequence, zero + level)
    keep = tl.uint_to_uniform_float(bits) >= probability
    return tl.where(keep, 1.0 / (1.0 - probability), 0.0)
