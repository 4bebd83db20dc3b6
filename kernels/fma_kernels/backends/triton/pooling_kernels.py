"""Kernels that make the summaries of all levels, and their gradients.

They know cells only by number; the tables of :mod:`.pooling_tables` say what lies where. Sums are in float32, each by
one program in a fixed order. Tiles are [rows, CHANNELS] with VECTOR neighbouring channels per thread whatever the
dtype, so that tiles meet without a change of layout; a tuple of them holds the summaries of a cell.

Shapes: X (B, H, tokens, DIM), with strides in units of VECTOR, which tells the compiler what divides them; WEIGHT
(levels, H or 1, SUMMARIES, INPUTS, DIM); UPPER the same with INPUTS = FANOUT * SUMMARIES; SCALE (B or 1, S); OUT, SUMS,
GRAD, GRAD_SUMS (B, H, S, DIM).
"""
# ruff: noqa: RUF005  Triton has no starred displays

from __future__ import annotations

import triton
import triton.language as tl

#: Arguments whose values and alignment change with the input, but need no kernel of their own.
SIZES = [
    "x_batch", "x_head", "x_row", "tokens", "rows", "scale_batch", "batches", "heads", "blocks", "splits", "first_cell",
    "level", "last_weight", "weight_level",
]  # fmt: skip


@triton.jit
def _channels(chunk, CHANNELS: tl.constexpr, VECTOR: tl.constexpr):
    channel = chunk * CHANNELS + tl.arange(0, CHANNELS)
    return tl.max_contiguous(tl.multiple_of(channel, VECTOR), VECTOR)


@triton.jit
def _load_rows(X, row, stride, channel, DIM: tl.constexpr):
    """Rows of X, zeros where there is none."""
    there = (row >= 0)[:, None] & (channel < DIM)[None, :]
    return tl.load(X + row.to(tl.int64)[:, None] * stride + channel[None, :], mask=there, other=0.0)


@triton.jit
def _store_rows(X, row, channel, value, DIM: tl.constexpr):
    there = (row >= 0)[:, None] & (channel < DIM)[None, :]
    tl.store(X + row.to(tl.int64)[:, None] * DIM + channel[None, :], value.to(X.dtype.element_ty), mask=there)


@triton.jit
def _exists(MASK, row):
    return tl.load(MASK + row, mask=row >= 0, other=1) == 0


@triton.jit
def _summary_rows(ROWS, cell, summary, SUMMARIES: tl.constexpr):
    return tl.load(ROWS + cell * SUMMARIES + summary, mask=cell >= 0, other=-1)


@triton.jit
def _scales(SCALE, row):
    return tl.load(SCALE + row, mask=row >= 0, other=0.0)


@triton.jit
def _join(below, UPPER, channel, CELLS: tl.constexpr, FANOUT: tl.constexpr, SUMMARIES: tl.constexpr, DIM: tl.constexpr):
    """Summaries of CELLS cells from those of their children, siblings one after the other."""
    child = tl.arange(0, CELLS * FANOUT) % FANOUT
    above = ()
    for s in tl.static_range(SUMMARIES):
        total = tl.zeros([CELLS * FANOUT, channel.shape[0]], tl.float32)
        for t in tl.static_range(SUMMARIES):
            total += below[t] * _load_rows(UPPER, (s * FANOUT + child) * SUMMARIES + t, DIM, channel, DIM)
        above = above + (tl.sum(tl.reshape(total, [CELLS, FANOUT, channel.shape[0]]), 1),)
    return above


@triton.jit
def _spread(
    above, UPPER, channel, CELLS: tl.constexpr, FANOUT: tl.constexpr, SUMMARIES: tl.constexpr, DIM: tl.constexpr
):
    """The transpose of :func:`_join`: from CELLS cells to their children."""
    child = tl.arange(0, CELLS * FANOUT) % FANOUT
    repeated = ()
    for s in tl.static_range(SUMMARIES):
        each = tl.broadcast_to(above[s][:, None, :], [CELLS, FANOUT, channel.shape[0]])
        repeated = repeated + (tl.reshape(each, [CELLS * FANOUT, channel.shape[0]]),)
    below = ()
    for t in tl.static_range(SUMMARIES):
        total = tl.zeros([CELLS * FANOUT, channel.shape[0]], tl.float32)
        for s in tl.static_range(SUMMARIES):
            total += repeated[s] * _load_rows(UPPER, (s * FANOUT + child) * SUMMARIES + t, DIM, channel, DIM)
        below = below + (total,)
    return below


@triton.jit(do_not_specialize=SIZES)
def pool(
    X, MASK, WEIGHT, UPPER, SCALE, OUT, SUMS, INPUT_ROWS, ROWS, CELLS,
    x_batch, x_head, x_row, tokens, rows, scale_batch, heads, blocks, first_cell, level, last_weight, weight_level,
    DIM: tl.constexpr, INPUTS: tl.constexpr, SUMMARIES: tl.constexpr, FANOUT: tl.constexpr, LEVELS: tl.constexpr,
    LEAVES: tl.constexpr, PART: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    SHARED: tl.constexpr, ALL_SUMS: tl.constexpr,
):  # fmt: skip
    """A block of cells: PART summaries of its leaves from their inputs, and of the LEVELS - 1 levels above from those.

    X is what lies below ``level``, the lowest level made here: the tokens, or SUMS. Everything goes to OUT with its
    scale; the highest level, or all with ALL_SUMS, goes to SUMS without.
    """
    PARTS: tl.constexpr = SUMMARIES // PART
    CHUNKS: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    index = tl.program_id(0)
    first = index % PARTS * PART
    index = index // PARTS
    block = index % blocks
    index = index // blocks
    channel = _channels(index % CHUNKS, CHANNELS, VECTOR)
    head = (index // CHUNKS % heads).to(tl.int64)
    batch = (index // CHUNKS // heads).to(tl.int64)
    X += (batch * x_batch + head * x_head) * VECTOR
    OUT += (batch * heads + head) * rows * DIM
    SUMS += (batch * heads + head) * rows * DIM
    weights = 1 if SHARED else heads
    own = 0 if SHARED else head
    WEIGHT += ((weight_level * weights + own) * SUMMARIES + first) * INPUTS * DIM
    CELLS += block * LEVELS * LEAVES

    cell = tl.load(CELLS + tl.arange(0, LEAVES))
    sums = ()
    for _ in tl.static_range(PART):
        sums = sums + (tl.zeros([LEAVES, CHANNELS], tl.float32),)
    for j in tl.range(INPUTS, loop_unroll_factor=4):
        row = tl.load(INPUT_ROWS + (cell - first_cell) * INPUTS + j, mask=cell >= 0, other=-1)
        x = _load_rows(X, row, x_row * VECTOR, channel, DIM).to(tl.float32)
        if MASK is not None:
            x = tl.where(_exists(MASK + batch * tokens, row)[:, None], x, 0.0)
        added = ()
        for s in tl.static_range(PART):
            weight = tl.load(WEIGHT + (s * INPUTS + j) * DIM + channel, mask=channel < DIM, other=0.0)
            added = added + (sums[s] + x * weight[None, :],)
        sums = added

    for k in tl.static_range(LEVELS):
        if k > 0:
            cell = tl.load(CELLS + k * LEAVES + tl.arange(0, LEAVES // FANOUT**k))
            upper = tl.minimum(level + k - 2, last_weight) * weights + own
            upper *= SUMMARIES * FANOUT * SUMMARIES * DIM
            sums = _join(sums, UPPER + upper, channel, LEAVES // FANOUT**k, FANOUT, SUMMARIES, DIM)
        kept = ()
        for s in tl.static_range(PART):
            row = _summary_rows(ROWS, cell, first + s, SUMMARIES)
            # Delayed windows may have children but not exist themselves.
            value = tl.where((row >= 0)[:, None], sums[s], 0.0)
            kept = kept + (value,)
            if SCALE is None:
                _store_rows(OUT, row, channel, value, DIM)
            else:
                _store_rows(OUT, row, channel, value * _scales(SCALE + batch * scale_batch, row)[:, None], DIM)
            if ALL_SUMS or k == LEVELS - 1:
                _store_rows(SUMS, row, channel, value, DIM)
        sums = kept


@triton.jit(do_not_specialize=SIZES)
def spread_gradients(
    GRAD, SCALE, UPPER, GRAD_SUMS, ROWS, PARENTS, CELLS,
    rows, scale_batch, heads, blocks, level, last_weight,
    DIM: tl.constexpr, SUMMARIES: tl.constexpr, FANOUT: tl.constexpr, LEVELS: tl.constexpr, LEAVES: tl.constexpr,
    PART: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Gradients of the sums of a block, from those of its results and of the sums that its highest level goes into."""
    PARTS: tl.constexpr = SUMMARIES // PART
    CHUNKS: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    TOPS: tl.constexpr = LEAVES // FANOUT ** (LEVELS - 1)
    index = tl.program_id(0)
    first = index % PARTS * PART
    index = index // PARTS
    block = index % blocks
    index = index // blocks
    channel = _channels(index % CHUNKS, CHANNELS, VECTOR)
    head = (index // CHUNKS % heads).to(tl.int64)
    batch = (index // CHUNKS // heads).to(tl.int64)
    GRAD += (batch * heads + head) * rows * DIM
    GRAD_SUMS += (batch * heads + head) * rows * DIM
    weights = 1 if SHARED else heads
    own = 0 if SHARED else head
    CELLS += block * LEVELS * LEAVES

    cell = tl.load(CELLS + (LEVELS - 1) * LEAVES + tl.arange(0, TOPS))
    link = tl.load(PARENTS + cell, mask=cell >= 0, other=-1)
    parent = tl.where(link >= 0, link // FANOUT, -1)
    child = link % FANOUT
    upper = (tl.minimum(level + LEVELS - 2, last_weight) * weights + own) * SUMMARIES * FANOUT * SUMMARIES * DIM
    grads = ()
    for _ in tl.static_range(PART):
        grads = grads + (tl.zeros([TOPS, CHANNELS], tl.float32),)
    for t in tl.range(SUMMARIES):
        above = _load_rows(GRAD_SUMS, _summary_rows(ROWS, parent, t, SUMMARIES), DIM, channel, DIM)
        added = ()
        for s in tl.static_range(PART):
            weight_row = tl.where(link >= 0, (t * FANOUT + child) * SUMMARIES + first + s, -1)
            added = added + (grads[s] + above * _load_rows(UPPER + upper, weight_row, DIM, channel, DIM),)
        grads = added

    for k in tl.static_range(LEVELS):  # k levels below the highest
        if k > 0:
            cell = tl.load(CELLS + (LEVELS - 1 - k) * LEAVES + tl.arange(0, TOPS * FANOUT**k))
            upper = tl.minimum(level + LEVELS - 2 - k, last_weight) * weights + own
            upper *= SUMMARIES * FANOUT * SUMMARIES * DIM
            grads = _spread(grads, UPPER + upper, channel, TOPS * FANOUT ** (k - 1), FANOUT, SUMMARIES, DIM)
        kept = ()
        for s in tl.static_range(PART):
            row = _summary_rows(ROWS, cell, first + s, SUMMARIES)
            value = _load_rows(GRAD, row, DIM, channel, DIM).to(tl.float32)
            if SCALE is not None:
                value *= _scales(SCALE + batch * scale_batch, row)[:, None]
            value = tl.where((row >= 0)[:, None], value + grads[s], 0.0)
            _store_rows(GRAD_SUMS, row, channel, value, DIM)
            kept = kept + (value,)
        grads = kept


@triton.jit(do_not_specialize=SIZES)
def input_gradients(
    X, MASK, GRAD_SUMS, WEIGHT, GRAD_X, GRAD_WEIGHT, INPUT_ROWS, ROWS, BOUNDS,
    x_batch, x_head, x_row, tokens, rows, batches, heads, splits, first_cell,
    DIM: tl.constexpr, INPUTS: tl.constexpr, SUMMARIES: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr, VECTOR: tl.constexpr, SHARED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Gradients of the inputs of cells and of their weights, BLOCK inputs of every cell of a split.

    A split is one of ``splits`` runs over the cells of a group, those between two BOUNDS of which the rows of
    INPUT_ROWS are numbered, and over the batch. It leaves its sum in GRAD_WEIGHT (groups, splits, H, SUMMARIES, INPUTS,
    DIM). GRAD_X (B, H, tokens, DIM) may be None; with ADD, what it holds is added to.
    """
    PARTS: tl.constexpr = SUMMARIES // PART
    CHUNKS: tl.constexpr = (DIM + CHANNELS - 1) // CHANNELS
    BLOCKS: tl.constexpr = (INPUTS + BLOCK - 1) // BLOCK
    index = tl.program_id(0)
    part = index % PARTS
    index = index // PARTS
    j = index % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    index = index // BLOCKS
    channel = _channels(index % CHUNKS, CHANNELS, VECTOR)
    index = index // CHUNKS
    head = (index % heads).to(tl.int64)
    split = index // heads
    group = split // splits
    X += head * x_head * VECTOR
    WEIGHT += (0 if SHARED else head) * SUMMARIES * INPUTS * DIM
    weight_row = tl.where(j < INPUTS, j, -1)

    begin = tl.load(BOUNDS + group)
    end = tl.load(BOUNDS + group + 1)
    items = (end - begin) * batches
    size = tl.cdiv(items, splits)
    start = split % splits * size
    stop = tl.minimum(start + size, items)

    weights = ()
    sums = ()
    for s in tl.static_range(PART):
        sums = sums + (tl.zeros([BLOCK, CHANNELS], tl.float32),)
        if GRAD_X is not None and PARTS == 1:
            weights = weights + (_load_rows(WEIGHT + s * INPUTS * DIM, weight_row, DIM, channel, DIM),)
    batch = (start // tl.maximum(end - begin, 1)).to(tl.int64)
    cell = begin + start % tl.maximum(end - begin, 1)
    next_row = tl.load(INPUT_ROWS + cell * INPUTS + j, mask=(j < INPUTS) & (start < stop), other=-1)
    next_x = _load_rows(X + batch * x_batch * VECTOR, next_row, x_row * VECTOR, channel, DIM)
    for item in range(start, stop):
        row = next_row
        x = next_x.to(tl.float32)
        # The next tile is on its way while this one is worked on.
        last = cell + 1 == end
        next_cell = tl.where(last, begin, cell + 1)
        next_batch = batch + last
        next_row = tl.load(INPUT_ROWS + next_cell * INPUTS + j, mask=(j < INPUTS) & (item + 1 < stop), other=-1)
        next_x = _load_rows(X + next_batch * x_batch * VECTOR, next_row, x_row * VECTOR, channel, DIM)
        if MASK is not None:
            exists = _exists(MASK + batch * tokens, row)
            x = tl.where(exists[:, None], x, 0.0)
        grads = GRAD_SUMS + (batch * heads + head) * rows * DIM + channel
        grad_x = tl.zeros([BLOCK, CHANNELS], tl.float32)
        added = ()
        for s in tl.static_range(PART):
            summary = tl.load(ROWS + (first_cell + cell) * SUMMARIES + part * PART + s).to(tl.int64)
            grad = tl.load(grads + summary * DIM, mask=channel < DIM, other=0.0)
            added = added + (sums[s] + x * grad[None, :],)
            if GRAD_X is not None and PARTS == 1:
                grad_x += weights[s] * grad[None, :]
        sums = added
        if GRAD_X is not None:  # noqa: SIM102  known when the kernel is compiled
            if part == 0:
                if PARTS > 1:  # too many weights to keep: this part reads them all
                    for t in range(SUMMARIES):
                        summary = tl.load(ROWS + (first_cell + cell) * SUMMARIES + t).to(tl.int64)
                        grad = tl.load(grads + summary * DIM, mask=channel < DIM, other=0.0)
                        weight = _load_rows(WEIGHT + t * INPUTS * DIM, weight_row, DIM, channel, DIM)
                        grad_x += weight * grad[None, :]
                if MASK is not None:
                    grad_x = tl.where(exists[:, None], grad_x, 0.0)
                own = GRAD_X + (batch * heads + head) * tokens * DIM
                if ADD:
                    grad_x += _load_rows(own, row, DIM, channel, DIM).to(tl.float32)
                _store_rows(own, row, channel, grad_x, DIM)
        cell = next_cell
        batch = next_batch

    GRAD_WEIGHT += ((split * heads + head) * SUMMARIES + part * PART) * INPUTS * DIM
    for s in tl.static_range(PART):
        _store_rows(GRAD_WEIGHT + s * INPUTS * DIM, weight_row, channel, sums[s], DIM)
