"""Kernels of the attention. Logits are in units of log 2 inside, so that exponentials are ``exp2``.

All of them gather tiles of rows that the tables of :mod:`.attention_tables` name. B and H strides come with every
tensor that a caller may lay out as it likes; results and what is saved between both passes are contiguous.
"""

import triton
import triton.language as tl

from .attention_tiles import LN_2, LOG2_E, dropout_factor, load_rows, load_two, locate, log_sum_exp, paired, store_rows

#: Arguments whose values and alignment change with the input but need no kernel of their own. How rows are aligned,
#: :func:`.tiles._channels` tells the compiler.
SIZES = ["Q", "K", "V", "FAR_K", "FAR_V", "OUT", "LSE", "CARRY", "CARRY_LSE", "GRAD_OUT", "BIAS"]
SIZES += ["level", "items", "slots", "group", "heads", "queries", "keys", "carries", "rows", "bias_stride"]
SIZES += ["slices", "partials", "first_sequence"]
SIZES += [f"{x}_{axis}" for x in ("q", "k", "v", "fk", "fv", "g") for axis in "bhn"]


@triton.jit
def _read(
    K, V, FAR_K, FAR_V, BIAS, PARTNERS, BITS, start, end, q, rows, own_group, scale, keys, k_n, v_n, fk_n, fv_n,
    DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DIM: tl.constexpr,
    HAS_FAR: tl.constexpr, HAS_BITS: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The next tile of keys and values that queries read: their rows, themselves, and the logits of all pairs."""
    entry = start + tl.arange(0, BLOCK)
    partners = tl.load(PARTNERS + entry, mask=entry < end, other=-1)
    bias = tl.load(BIAS + partners, mask=partners >= 0, other=float("-inf"))
    if HAS_FAR:
        k = load_two(K, FAR_K, partners, keys, k_n, fk_n, DIM, BLOCK_DIM)
        v = load_two(V, FAR_V, partners, keys, v_n, fv_n, DIM, BLOCK_DIM)
    else:
        k = load_rows(K, partners, k_n, DIM, BLOCK_DIM)
        v = load_rows(V, partners, v_n, DIM, BLOCK_DIM)
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E) + bias[None, :]
    if HAS_BITS:
        bits = tl.load(BITS + entry, mask=entry < end, other=0)
        logits = tl.where(paired(bits, own_group), logits, float("-inf"))
    if CAUSAL:
        later = (partners[None, :] > rows[:, None]) & (partners < keys)[None, :]
        logits = tl.where(later, float("-inf"), logits)
    return partners, k, v, logits


@triton.jit(do_not_specialize=SIZES)
def attend_forward(
    Q, K, V, FAR_K, FAR_V, BIAS, CARRY, CARRY_LSE, CARRY_ROWS, SEED, OUT, LSE,
    ROWS, FIRST, PARTNERS, BITS,
    scale, dropout_p, level, items, slots, group, heads, queries, keys, bias_stride, carries,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, fk_b, fk_h, fk_n, fv_b, fv_h, fv_n,
    DIM: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr, HAS_FAR: tl.constexpr, HAS_BITS: tl.constexpr, HAS_CARRY: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One item: softmax of its queries over all that they read, starting from what they carry."""
    item, batch, head = locate(items, heads)
    slot = tl.arange(0, BLOCK_OWN)
    own_group = slot // group
    rows = tl.load(ROWS + item * slots + slot, mask=slot < slots, other=-1)
    q = load_rows(Q + batch * q_b + head * q_h, rows, q_n, DIM, BLOCK_DIM)
    K += batch * k_b + head * k_h
    V += batch * v_b + head * v_h
    FAR_K += batch * fk_b + head * fk_h
    FAR_V += batch * fv_b + head * fv_h
    BIAS += batch * bias_stride
    sequence = batch * heads + head

    if HAS_CARRY:
        carry = tl.load(CARRY_ROWS + rows, mask=rows >= 0, other=-1)
        acc = load_rows(CARRY + sequence * carries * DIM, carry, DIM, DIM, BLOCK_DIM).to(tl.float32)
        peak = tl.load(CARRY_LSE + sequence * carries + carry, mask=carry >= 0, other=float("-inf")) * LOG2_E
        total = tl.where(peak == float("-inf"), 0.0, 1.0)
    else:
        acc = tl.zeros([BLOCK_OWN, BLOCK_DIM], tl.float32)
        peak = tl.full([BLOCK_OWN], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_OWN], tl.float32)

    begin, end = tl.load(FIRST + item), tl.load(FIRST + item + 1)
    for start in range(begin, end, BLOCK):
        partners, _, v, logits = _read(
            K, V, FAR_K, FAR_V, BIAS, PARTNERS, BITS, start, end, q, rows, own_group, scale, keys, k_n, v_n, fk_n, fv_n,
            DIM, BLOCK, BLOCK_DIM, HAS_FAR, HAS_BITS, CAUSAL, PRECISION,
        )  # fmt: skip
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        safe_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # nothing was read yet
        probability = tl.exp2(logits - safe_peak[:, None])
        factor = tl.exp2(peak - safe_peak)
        total = total * factor + tl.sum(probability, 1)
        if HAS_DROPOUT:
            probability *= dropout_factor(SEED, level, batch, head, heads, rows[:, None], partners[None, :], dropout_p)
        acc = acc * factor[:, None] + tl.dot(probability.to(v.dtype), v, input_precision=PRECISION)
        peak = new_peak

    read = total > 0
    total = tl.where(read, total, 1.0)
    store_rows(OUT + sequence * queries * DIM, rows, DIM, acc / total[:, None], DIM, BLOCK_DIM)
    lse = (peak.to(tl.float64) + tl.log2(total)) * LN_2  # rounded once: it is a factor of all of a query's weights
    tl.store(LSE + sequence * queries + rows, tl.where(read, lse.to(tl.float32), float("-inf")), mask=rows >= 0)


@triton.jit(do_not_specialize=SIZES)
def attend_backward_queries(
    Q, K, V, FAR_K, FAR_V, BIAS, SEED, OUT, LSE, GRAD_OUT, GRAD_LSE, GRAD_Q, DELTA,
    ROWS, FIRST, PARTNERS, BITS,
    scale, dropout_p, level, items, slots, group, heads, queries, keys, bias_stride,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, fk_b, fk_h, fk_n, fv_b, fv_h, fv_n, g_b, g_h, g_n,
    DIM: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr, HAS_FAR: tl.constexpr, HAS_BITS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One item: the gradient of its queries, and delta = out . grad_out - grad_lse, which the kernels of keys need."""
    item, batch, head = locate(items, heads)
    slot = tl.arange(0, BLOCK_OWN)
    own_group = slot // group
    rows = tl.load(ROWS + item * slots + slot, mask=slot < slots, other=-1)
    q = load_rows(Q + batch * q_b + head * q_h, rows, q_n, DIM, BLOCK_DIM)
    grad_out = load_rows(GRAD_OUT + batch * g_b + head * g_h, rows, g_n, DIM, BLOCK_DIM)
    K += batch * k_b + head * k_h
    V += batch * v_b + head * v_h
    FAR_K += batch * fk_b + head * fk_h
    FAR_V += batch * fv_b + head * fv_h
    BIAS += batch * bias_stride
    sequence = batch * heads + head

    out = load_rows(OUT + sequence * queries * DIM, rows, DIM, DIM, BLOCK_DIM)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
    delta -= tl.load(GRAD_LSE + sequence * queries + rows, mask=rows >= 0, other=0.0)
    tl.store(DELTA + sequence * queries + rows, delta, mask=rows >= 0)
    lse, rest = log_sum_exp(LSE + sequence * queries, rows)
    grad_out = grad_out.to(q.dtype)

    acc = tl.zeros([BLOCK_OWN, BLOCK_DIM], tl.float32)
    begin, end = tl.load(FIRST + item), tl.load(FIRST + item + 1)
    for start in range(begin, end, BLOCK):
        partners, k, v, logits = _read(
            K, V, FAR_K, FAR_V, BIAS, PARTNERS, BITS, start, end, q, rows, own_group, scale, keys, k_n, v_n, fk_n, fv_n,
            DIM, BLOCK, BLOCK_DIM, HAS_FAR, HAS_BITS, CAUSAL, PRECISION,
        )  # fmt: skip
        probability = tl.exp2(logits - lse[:, None])
        change = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        if HAS_DROPOUT:
            change *= dropout_factor(SEED, level, batch, head, heads, rows[:, None], partners[None, :], dropout_p)
        change = probability * (change - delta[:, None])
        acc += tl.dot(change.to(k.dtype), k, input_precision=PRECISION)
    store_rows(GRAD_Q + sequence * queries * DIM, rows, DIM, acc * (rest * scale)[:, None], DIM, BLOCK_DIM)


@triton.jit(do_not_specialize=SIZES)
def attend_backward_keys(
    Q, K, V, BIAS, SEED, LSE, DELTA, GRAD_OUT, GRAD_K, GRAD_V,
    ROWS, FIRST, PARTNERS, BITS,
    scale, dropout_p, level, items, slots, group, heads, queries, keys, bias_stride, partials, first_sequence,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n,
    DIM: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_DIM: tl.constexpr, PARTIAL: tl.constexpr, HAS_BITS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One item: the gradients of its keys and values, from the queries that read them.

    Whole; or with PARTIAL what the item's queries add to them, at its place among ``partials`` rows per sequence.
    """
    item, batch, head = locate(items, heads)
    here = batch * heads + head
    if PARTIAL:
        sequence = here + first_sequence
        batch, head = sequence // heads, sequence % heads
    else:
        sequence = here
    slot = tl.arange(0, BLOCK_OWN)
    own_group = slot // group
    rows = tl.load(ROWS + item * slots + slot, mask=slot < slots, other=-1)
    k = load_rows(K + batch * k_b + head * k_h, rows, k_n, DIM, BLOCK_DIM)
    v = load_rows(V + batch * v_b + head * v_h, rows, v_n, DIM, BLOCK_DIM)
    bias = tl.load(BIAS + batch * bias_stride + rows, mask=rows >= 0, other=float("-inf"))
    Q += batch * q_b + head * q_h
    GRAD_OUT += batch * g_b + head * g_h
    LSE += sequence * queries
    DELTA += sequence * queries

    grad_k = tl.zeros([BLOCK_OWN, BLOCK_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_OWN, BLOCK_DIM], tl.float32)
    begin, end = tl.load(FIRST + item), tl.load(FIRST + item + 1)
    for start in range(begin, end, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        partners = tl.load(PARTNERS + entry, mask=entry < end, other=-1)
        q = load_rows(Q, partners, q_n, DIM, BLOCK_DIM)
        grad_out = load_rows(GRAD_OUT, partners, g_n, DIM, BLOCK_DIM).to(q.dtype)
        lse, rest = log_sum_exp(LSE, partners)
        delta = tl.load(DELTA + partners, mask=partners >= 0, other=0.0)
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E) + bias[:, None]
        if HAS_BITS:
            bits = tl.load(BITS + entry, mask=entry < end, other=0)
            logits = tl.where(paired(bits, own_group), logits, float("-inf"))
        if CAUSAL:
            logits = tl.where(partners[None, :] < rows[:, None], float("-inf"), logits)
        probability = tl.exp2(logits - lse[None, :])
        if q.dtype == tl.float32:  # beyond the precision of the others
            probability *= rest[None, :]
        change = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        dropped = probability
        if HAS_DROPOUT:
            key_rows = rows + keys if PARTIAL else rows
            factor = dropout_factor(SEED, level, batch, head, heads, partners[None, :], key_rows[:, None], dropout_p)
            change *= factor
            dropped = probability * factor
        grad_v += tl.dot(dropped.to(grad_out.dtype), grad_out, input_precision=PRECISION)
        change = probability * (change - delta[None, :])
        grad_k += tl.dot(change.to(q.dtype), q, input_precision=PRECISION)

    if PARTIAL:
        place = tl.where(slot < slots, item * slots + slot, -1)
        store_rows(GRAD_K + here * partials * DIM, place, DIM, grad_k * scale, DIM, BLOCK_DIM)
        store_rows(GRAD_V + here * partials * DIM, place, DIM, grad_v, DIM, BLOCK_DIM)
    else:
        store_rows(GRAD_K + sequence * keys * DIM, rows, DIM, grad_k * scale, DIM, BLOCK_DIM)
        store_rows(GRAD_V + sequence * keys * DIM, rows, DIM, grad_v, DIM, BLOCK_DIM)


@triton.jit(do_not_specialize=SIZES)
def sum_partials(
    PARTIAL_K, PARTIAL_V, GRAD_K, GRAD_V, FIRST, ENTRIES,
    slices, rows, partials, first_sequence,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """One slice of rows: the sums of their partial gradients, in the order of the table."""
    program = tl.program_id(0)
    index, here = program % slices, (program // slices).to(tl.int64)
    PARTIAL_K += here * partials * DIM
    PARTIAL_V += here * partials * DIM
    lane = tl.arange(0, WIDTH)
    grad_k = tl.zeros([WIDTH, BLOCK_DIM], tl.float32)
    grad_v = tl.zeros([WIDTH, BLOCK_DIM], tl.float32)
    begin, end = tl.load(FIRST + index), tl.load(FIRST + index + 1)
    for step in range(begin, end):
        place = tl.load(ENTRIES + step * WIDTH + lane)
        grad_k += load_rows(PARTIAL_K, place, DIM, DIM, BLOCK_DIM)
        grad_v += load_rows(PARTIAL_V, place, DIM, DIM, BLOCK_DIM)
    row = index * WIDTH + lane
    row = tl.where(row < rows, row, -1)
    base = (here + first_sequence) * rows * DIM
    store_rows(GRAD_K + base, row, DIM, grad_k, DIM, BLOCK_DIM)
    store_rows(GRAD_V + base, row, DIM, grad_v, DIM, BLOCK_DIM)


@triton.jit(do_not_specialize=[*SIZES, "most", "blocks"])
def attend_backward_carry(
    CARRY, CARRY_LSE, LSE, DELTA, GRAD_OUT, GRAD_CARRY, GRAD_CARRY_LSE, MEMBERS,
    blocks, heads, queries, carries, most, g_b, g_h, g_n,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """A block of carried results: their gradients, summed over the queries that took each."""
    block, batch, head = locate(blocks, heads)
    sequence = batch * heads + head
    GRAD_OUT += batch * g_b + head * g_h
    row = block * WIDTH + tl.arange(0, WIDTH)
    row = tl.where(row < carries, row, -1)
    carry_lse = tl.load(CARRY_LSE + sequence * carries + row, mask=row >= 0, other=float("-inf"))
    grad = tl.zeros([WIDTH, BLOCK_DIM], tl.float32)
    shift = tl.zeros([WIDTH], tl.float32)
    for i in range(most):
        query = tl.load(MEMBERS + row * most + i, mask=row >= 0, other=-1)
        lse = tl.load(LSE + sequence * queries + query, mask=query >= 0, other=float("inf"))
        lse = tl.where(lse == float("-inf"), float("inf"), lse)
        delta = tl.load(DELTA + sequence * queries + query, mask=query >= 0, other=0.0)
        weight = tl.exp2((carry_lse - lse) * LOG2_E)
        grad += weight[:, None] * load_rows(GRAD_OUT, query, g_n, DIM, BLOCK_DIM).to(tl.float32)
        shift += weight * delta
    store_rows(GRAD_CARRY + sequence * carries * DIM, row, DIM, grad, DIM, BLOCK_DIM)
    carry = load_rows(CARRY + sequence * carries * DIM, row, DIM, DIM, BLOCK_DIM)
    tl.store(GRAD_CARRY_LSE + sequence * carries + row, tl.sum(grad * carry, 1) - shift, mask=row >= 0)
