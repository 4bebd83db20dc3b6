// Attention of one pass over one level: forward, gradients of queries and keys, gradient of the carry.
//
// An item of work is a query cell of one head. Queries lie on the lanes: the logits are made transposed, keys times
// queries, so that keys are broadcast from wherever they lie, the softmax runs vertically, and the probabilities are
// the operand of the product with the values as they stand. In the backward pass one thread walks through the cells of
// a head and adds to the gradients of its keys: there are no atomics, and sums have one order.
#pragma once
#include "lanes.h"

// Rows of queries and keys by cell, and the key cells that each query cell reads; -1 = none.
struct Pass {
    int32_t cells, slots, causal;  // causal: slot 0 is the own cell, of which no later row is read
    int32_t queries, keys, far;    // rows of each tensor; row r >= keys is summary r - keys
    const int32_t *query_first, *query_rows;
    const int32_t* key_cells;  // (cells, slots)
    const int32_t *key_first, *key_rows;
    const float* bias;  // (batch or 1, keys + far), added to logits, in units of log 2; -inf = does not exist
    int64_t bias_stride;
    const int32_t* carry_rows;  // (queries,) row of the carry that a query starts from, or null
    int32_t carries;
};

struct Inputs {
    int32_t batch, heads, dim;
    float scale;
    const float *query, *key, *value, *far_key, *far_value;
    Strides query_at, key_at, value_at, far_key_at, far_value_at;
    const float *carry, *carry_lse;  // (batch, heads, carries, dim) and (batch, heads, carries), or null
};

struct Gradients {
    const float *grad_out, *grad_lse, *out, *lse;
    Strides grad_out_at, out_at;
    float* query;                       // (batch, heads, queries, dim)
    float *key, *value;                 // (ranges, batch, heads, keys, padded dim), zeros at first
    float *far_key, *far_value;         // the same for summaries
    float *carry, *carry_lse;           // gradients of the carry
    int32_t ranges;
};

constexpr int QUERIES = 64;        // queries in flight
constexpr int FORWARD_KEYS = 192;  // keys in flight
constexpr int BACKWARD_KEYS = 96;

// The keys that a query cell reads and that exist; those of the own cell come last.
struct KeyList {
    int32_t *row, *place;  // place in its cell
    float* bias;
    int count, own;

    void make(const Pass& pass, int batch, int cell) {
        const float* bias_of = pass.bias + batch * pass.bias_stride;
        count = 0;
        for (int i = 1; i <= pass.slots; i++) {
            const int slot = i % pass.slots, key_cell = pass.key_cells[(long)cell * pass.slots + slot];
            if (slot == 0) own = count;
            if (key_cell < 0) continue;
            const int first = pass.key_first[key_cell];
            for (int k = first; k < pass.key_first[key_cell + 1]; k++) {
                const int r = pass.key_rows[k];
                if (bias_of[r] == -INF) continue;
                row[count] = r, place[count] = k - first, bias[count] = bias_of[r] * LN_2, count++;
            }
        }
        if (!pass.causal) own = count;  // no key has to be compared with the query
    }

    // Number of keys that queries before ``query`` of the cell read any of.
    int before(int query) const {
        int n = count;
        while (n > own && place[n - 1] >= query) n--;
        return n;
    }
};

struct Sizes {
    int keys = 0, queries = 0;  // most keys of a list, most queries of a tile
    int lanes, stride, padded;  // queries as lanes, row stride of logits, channels as lanes

    Sizes(const Pass& pass, int dim) {
        for (int cell = 0; cell < pass.cells; cell++) {
            int n = 0;
            for (int i = 0; i < pass.slots; i++) {
                const int key_cell = pass.key_cells[(long)cell * pass.slots + i];
                if (key_cell >= 0) n += pass.key_first[key_cell + 1] - pass.key_first[key_cell];
            }
            keys = n > keys ? n : keys;
            const int q = pass.query_first[cell + 1] - pass.query_first[cell];
            queries = q > queries ? q : queries;
        }
        queries = smaller(queries, QUERIES);
        lanes = round_up(queries, PANEL), stride = lanes + PANEL, padded = round_up(dim, PANEL);
    }
};

// Rows to panels of channels: panels[c / PANEL][i][c % PANEL], zeros beyond the channels
template <typename Row>
INLINE void pack_channels(Row row, int n, int dim, float* panels) {
    for (int i = 0; i < n; i++) {
        const float* x = row(i);
        float* y = panels + (long)i * PANEL;
        int c = 0;
        for (; c + PANEL <= dim; c += PANEL, y += (long)n * PANEL) {
            store(y, load(x + c));
            store(y + W, load(x + c + W));
        }
        if (c < dim)
            for (int j = 0; j < PANEL; j++) y[j] = c + j < dim ? x[c + j] : 0;
    }
}

// A row that may be read as whole panels: itself, or a copy with zeros beyond the channels.
INLINE const float* whole_panels(const float* row, int dim, int padded, float* copy) {
    if (dim == padded) return row;
    memcpy(copy, row, sizeof(float) * dim);
    memset(copy + dim, 0, sizeof(float) * (padded - dim));
    return copy;
}

// Rows to panels of rows: panels[i / PANEL][c][i % PANEL], zeros beyond the rows
template <typename Row>
INLINE void pack_rows(Row row, int n, int dim, float* panels) {
    for (int first = 0; first < n; first += PANEL) {
        float* panel = panels + (long)first * dim;
        const int width = smaller(n - first, PANEL);
        if (width < PANEL) memset(panel, 0, sizeof(float) * dim * PANEL);
        int j = 0;
        for (; j + 8 <= width; j += 8) {
            const float* x[8];
            for (int r = 0; r < 8; r++) x[r] = row(first + j + r);
            int c = 0;
            for (; c + 8 <= dim; c += 8) {  // a transposed block of 8 x 8
                __m256 a[8], b[8];
                for (int r = 0; r < 8; r++) a[r] = _mm256_loadu_ps(x[r] + c);
                for (int r = 0; r < 8; r += 2)
                    b[r] = _mm256_unpacklo_ps(a[r], a[r + 1]), b[r + 1] = _mm256_unpackhi_ps(a[r], a[r + 1]);
                for (int r = 0; r < 8; r += 4) {
                    a[r] = _mm256_shuffle_ps(b[r], b[r + 2], 0x44), a[r + 1] = _mm256_shuffle_ps(b[r], b[r + 2], 0xee);
                    a[r + 2] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0x44);
                    a[r + 3] = _mm256_shuffle_ps(b[r + 1], b[r + 3], 0xee);
                }
                for (int r = 0; r < 4; r++) {
                    float* y = panel + (long)(c + r) * PANEL + j;
                    _mm256_storeu_ps(y, _mm256_permute2f128_ps(a[r], a[r + 4], 0x20));
                    _mm256_storeu_ps(y + 4 * PANEL, _mm256_permute2f128_ps(a[r], a[r + 4], 0x31));
                }
            }
            for (; c < dim; c++)
                for (int r = 0; r < 8; r++) panel[(long)c * PANEL + j + r] = x[r][c];
        }
        for (; j < width; j++) {
            const float* x = row(first + j);
            for (int c = 0; c < dim; c++) panel[(long)c * PANEL + j] = x[c];
        }
    }
}

// ---------------------------------------------------------------- forward

template <int N, int VECTORS>
NOINLINE void logits_tile(
    const float* const* keys, const float* queries, int dim, float scale, const float* bias, float* logits, int stride,
    float* peak
) {
    Vec sums[N][VECTORS] = {};
    multiply_rows<N, VECTORS>(keys, queries, dim, sums);
    for (int j = 0; j < VECTORS; j++) {
        Vec most = load(peak + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) {
            sums[r][j] = sums[r][j] * broadcast(scale) + broadcast(bias[r]);
            store(logits + (long)r * stride + j * W, sums[r][j]);
            most = maximum(most, sums[r][j]);
        }
        store(peak + j * W, most);
    }
}

// out[r] += sum_k columns[k][r] * rows[k][at : at + PANEL]
template <int N>
NOINLINE void output_tile(
    const float* columns, int stride, const float* const* rows, int at, int n, float* out, int out_stride
) {
    Vec sums[N][2] = {};  // from zero: small terms would lose their last bits to what is large already, such as a carry
    multiply_columns<N>(columns, stride, rows, at, n, sums);
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
        for (int j = 0; j < 2; j++) {
            float* y = out + r * out_stride + j * W;
            store(y, load(y) + sums[r][j]);
        }
}

// Rows of one head.
struct Head {
    const float *query, *key, *value, *far_key, *far_value;
    const Inputs& in;
    const Pass& pass;

    Head(const Inputs& in, const Pass& pass, long b, long h) : in(in), pass(pass) {
        query = in.query + b * in.query_at.batch + h * in.query_at.head;
        key = in.key + b * in.key_at.batch + h * in.key_at.head;
        value = in.value + b * in.value_at.batch + h * in.value_at.head;
        far_key = in.far_key + b * in.far_key_at.batch + h * in.far_key_at.head;
        far_value = in.far_value + b * in.far_value_at.batch + h * in.far_value_at.head;
    }
    const float* query_row(int r) const { return query + r * in.query_at.row; }
    const float* key_row(int r) const {
        return r < pass.keys ? key + r * in.key_at.row : far_key + (r - pass.keys) * in.far_key_at.row;
    }
    const float* value_row(int r) const {
        return r < pass.keys ? value + r * in.value_at.row : far_value + (r - pass.keys) * in.far_value_at.row;
    }
};

// The first panel of a tile of queries that reads a key, or one that follows it in the list.
INLINE int first_query(const KeyList& list, int key, int tile) {
    if (key < list.own) return 0;
    const int ahead = list.place[key] - tile;
    return ahead > 0 ? ahead / PANEL * PANEL : 0;
}

static void forward(const Pass& pass, const Inputs& in, float* out, Strides out_at, float* lse, int threads) {
    const Sizes size(pass, in.dim);
    const int dim = in.dim, chunk = smaller(FORWARD_KEYS, size.keys), stride = size.stride, padded = size.padded;
    const long heads = (long)in.batch * in.heads, items = heads * pass.cells;
    const size_t scratch = 3ul * size.keys + 2ul * size.lanes * padded + (size_t)chunk * (stride + padded + 8) + 4ul * size.lanes;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Scratch memory(scratch);
        KeyList list;
        list.row = memory.take<int32_t>(size.keys), list.place = memory.take<int32_t>(size.keys);
        list.bias = memory.take<float>(size.keys);
        float* queries = memory.take<float>((long)size.lanes * padded);
        float* result = memory.take<float>((long)size.lanes * padded);
        float* weights = memory.take<float>((long)chunk * stride);
        float* spare = memory.take<float>((long)chunk * padded);
        float *peak = memory.take<float>(size.lanes), *total = memory.take<float>(size.lanes);
        float* before = memory.take<float>(size.lanes);
        const float **keys = memory.take<const float*>(chunk), **values = memory.take<const float*>(chunk);
#pragma omp for schedule(dynamic, 4)
        for (long item = 0; item < items; item++) {
            const int cell = item % pass.cells;
            const long head = item / pass.cells, b = head / in.heads;
            const Head rows(in, pass, b, head % in.heads);
            float* head_out = out + b * out_at.batch + head % in.heads * out_at.head;
            list.make(pass, b, cell);
            const int32_t* own = pass.query_rows + pass.query_first[cell];
            const int all = pass.query_first[cell + 1] - pass.query_first[cell];
            for (int tile = 0; tile < all; tile += QUERIES) {
                const int n = smaller(all - tile, QUERIES);
                pack_rows([&](int i) { return rows.query_row(own[tile + i]); }, n, dim, queries);
                memset(result, 0, sizeof(float) * size.lanes * padded);
                for (int t = 0; t < size.lanes; t++) peak[t] = -INF, total[t] = 0;
                if (in.carry)
                    for (int t = 0; t < n; t++) {
                        const long from = head * pass.carries + pass.carry_rows[own[tile + t]];
                        if (in.carry_lse[from] == -INF) continue;
                        peak[t] = in.carry_lse[from], total[t] = 1;
                        memcpy(result + (long)t * padded, in.carry + from * dim, sizeof(float) * dim);
                    }
                const int readable = list.before(tile + n);
                for (int first = 0; first < readable; first += chunk) {
                    const int m = smaller(readable - first, chunk);
                    for (int i = 0; i < m; i++) keys[i] = rows.key_row(list.row[first + i]);
                    memcpy(before, peak, sizeof(float) * size.lanes);
                    for (int i = 0; i < m; i += ROWS) {
                        const int height = smaller(m - i, ROWS), last = first + i + height - 1;
                        const int from = first_query(list, first + i, tile);
                        for (int t = 0; t < from; t += W)  // earlier queries do not read these keys
                            for (int r = 0; r < height; r++) store(weights + (long)(i + r) * stride + t, broadcast(-INF));
                        const bool masked = last >= list.own;
                        float unused[PANEL];
                        for (int t = from; t < n; t += PANEL) {
                            float* at = weights + (long)i * stride + t;
                            float* most = masked ? unused : peak + t;
                            if (masked) memcpy(unused, peak + t, sizeof(unused));
                            const float* q = queries + (long)t * dim;
                            if (n - t <= W) {
#define CALL(N) logits_tile<N, 1>(keys + i, q, dim, in.scale, list.bias + first + i, at, stride, most)
                                FOR_ROWS(height, CALL)
#undef CALL
                            } else {
#define CALL(N) logits_tile<N, 2>(keys + i, q, dim, in.scale, list.bias + first + i, at, stride, most)
                                FOR_ROWS(height, CALL)
#undef CALL
                            }
                        }
                        if (masked)
                            for (int r = 0; r < height; r++) {
                                float* at = weights + (long)(i + r) * stride;
                                if (first + i + r >= list.own)
                                    for (int t = 0; t < smaller(list.place[first + i + r] - tile, n); t++) at[t] = -INF;
                                for (int t = from; t < n; t += W) store(peak + t, maximum(load(peak + t), load(at + t)));
                            }
                    }
                    // The sums so far are those of the peak before.
                    for (int t = 0; t < n; t += W) {
                        Vec most = load(peak + t), finite = maximum(most, broadcast(-1e30f));  // -inf - -inf is no number
                        Vec shrink = exp(load(before + t) - finite), sum = {};
                        for (int i = 0; i < m; i++) {
                            float* at = weights + (long)i * stride + t;
                            Vec p = exp(load(at) - finite);
                            store(at, p);
                            sum += p;
                        }
                        store(total + t, load(total + t) * shrink + sum);
                        float factors[W];
                        store(factors, shrink);
                        if (first || in.carry)
                            for (int j = 0; j < smaller(n - t, W); j++) {
                                if (factors[j] == 1) continue;
                                float* y = result + (long)(t + j) * padded;
                                for (int c = 0; c < padded; c += W) store(y + c, load(y + c) * broadcast(factors[j]));
                            }
                    }
                    for (int i = 0; i < m; i++)
                        values[i] = whole_panels(rows.value_row(list.row[first + i]), dim, padded, spare + (long)i * padded);
                    for (int c = 0; c < padded; c += PANEL)
                        for (int t = 0; t < n; t += ROWS) {
                            const int height = smaller(n - t, ROWS);
                            int last = m;  // later keys weigh nothing
                            while (last > 0 && first + last > list.own && list.place[first + last - 1] >= tile + t + height) last--;
                            float* y = result + (long)t * padded + c;
#define CALL(N) output_tile<N>(weights + t, stride, values, c, last, y, padded)
                            FOR_ROWS(height, CALL)
#undef CALL
                        }
                }
                for (int t = 0; t < n; t++) {
                    const int r = own[tile + t];
                    const bool reads = total[t] > 0;
                    // Rounded once: the backward pass finds the weights of these logits by it.
                    lse[head * pass.queries + r] = reads ? float(std::log((double)total[t]) + peak[t]) : -INF;
                    const Vec share = broadcast(reads ? 1 / total[t] : 0);
                    float *y = head_out + r * out_at.row, *x = result + (long)t * padded;
                    int c = 0;
                    for (; c + W <= dim; c += W) store(y + c, load(x + c) * share);
                    if (c < dim) store_lanes<true>(y + c, load(x + c) * share, dim - c);
                }
            }
        }
    }
}

// ---------------------------------------------------------------- backward

// Weights p of keys and queries from their logits, and the gradients p * (value . grad_out - delta) of the logits.
template <int N, int VECTORS>
NOINLINE void gradient_tile(
    const float* const* keys, const float* const* values, const float* queries, const float* grads, int dim, float scale,
    const float* bias, const float* lse, const float* delta, float* weights, float* slopes, int stride
) {
    Vec sums[N][VECTORS] = {};
    multiply_rows<N, VECTORS>(keys, queries, dim, sums);
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
        for (int j = 0; j < VECTORS; j++) {
            Vec logit = sums[r][j] * broadcast(scale) + broadcast(bias[r]);
            store(weights + (long)r * stride + j * W, exp(logit - load(lse + j * W)));
            sums[r][j] = Vec{};
        }
    multiply_rows<N, VECTORS>(values, grads, dim, sums);
#pragma GCC unroll 8
    for (int r = 0; r < N; r++)
        for (int j = 0; j < VECTORS; j++) {
            Vec p = load(weights + (long)r * stride + j * W);
            store(slopes + (long)r * stride + j * W, p * (sums[r][j] - load(delta + j * W)));
        }
}

// out[r][0 : PANEL] += scale * sum_t rows[r][t] * panel[t]
template <int N>
NOINLINE void add_tile(const float* const* rows, const float* panel, int n, float scale, float* const* out, int at) {
    Vec sums[N][2] = {};
    multiply_rows<N, 2>(rows, panel, n, sums);
#pragma GCC unroll 8
    for (int r = 0; r < N; r++) {
        float* y = out[r] + at;
        store(y, load(y) + sums[r][0] * broadcast(scale));
        store(y + W, load(y + W) + sums[r][1] * broadcast(scale));
    }
}

INLINE float dot(const float* x, const float* y, int n) {
    Vec sums = {};
    int c = 0;
    for (; c + W <= n; c += W) sums += load(x + c) * load(y + c);
    if (c < n) sums += load_lanes<true>(x + c, n - c) * load_lanes<true>(y + c, n - c);
    float total = 0;
    for (int j = 0; j < W; j++) total += sums[j];
    return total;
}

static void backward(const Pass& pass, const Inputs& in, const Gradients& grad, int threads) {
    const Sizes size(pass, in.dim);
    const int dim = in.dim, chunk = smaller(BACKWARD_KEYS, size.keys), stride = size.stride, padded = size.padded;
    const long heads = (long)in.batch * in.heads, items = heads * grad.ranges;
    const size_t scratch = 3ul * size.keys + 5ul * size.lanes * padded + (size_t)chunk * (2 * stride + padded + 16) + 4ul * size.lanes;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Scratch memory(scratch);
        KeyList list;
        list.row = memory.take<int32_t>(size.keys), list.place = memory.take<int32_t>(size.keys);
        list.bias = memory.take<float>(size.keys);
        float* queries = memory.take<float>((long)size.lanes * padded);  // lanes are rows
        float* grads = memory.take<float>((long)size.lanes * padded);
        float* query_panels = memory.take<float>((long)size.lanes * padded);  // lanes are channels
        float* grad_panels = memory.take<float>((long)size.lanes * padded);
        float* result = memory.take<float>((long)size.lanes * padded);
        float* weights = memory.take<float>((long)chunk * stride);
        float* slopes = memory.take<float>((long)chunk * stride);
        float* spare = memory.take<float>((long)chunk * padded);
        float* lse = memory.take<float>(size.lanes);
        float* delta = memory.take<float>(size.lanes);
        const float **keys = memory.take<const float*>(chunk), **values = memory.take<const float*>(chunk);
        const float** padded_keys = memory.take<const float*>(chunk);
        float **grad_keys = memory.take<float*>(chunk), **grad_values = memory.take<float*>(chunk);
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < items; item++) {
            const int range = item % grad.ranges;
            const long head = item / grad.ranges, b = head / in.heads, h = head % in.heads;
            const Head rows(in, pass, b, h);
            const float* head_grad = grad.grad_out + b * grad.grad_out_at.batch + h * grad.grad_out_at.head;
            const float* head_out = grad.out + b * grad.out_at.batch + h * grad.out_at.head;
            const long slot = (long)range * heads + head;
            float *key = grad.key + slot * pass.keys * padded, *value = grad.value + slot * pass.keys * padded;
            float *far_key = grad.far_key + slot * pass.far * padded, *far_value = grad.far_value + slot * pass.far * padded;
            const int end = (long)pass.cells * (range + 1) / grad.ranges;
            for (int cell = (long)pass.cells * range / grad.ranges; cell < end; cell++) {
                list.make(pass, b, cell);
                const int32_t* own = pass.query_rows + pass.query_first[cell];
                const int all = pass.query_first[cell + 1] - pass.query_first[cell];
                for (int tile = 0; tile < all; tile += QUERIES) {
                    const int n = smaller(all - tile, QUERIES);
                    auto query_row = [&](int i) { return rows.query_row(own[tile + i]); };
                    auto grad_row = [&](int i) { return head_grad + own[tile + i] * grad.grad_out_at.row; };
                    pack_rows(query_row, n, dim, queries);
                    pack_rows(grad_row, n, dim, grads);
                    pack_channels(query_row, n, dim, query_panels);
                    pack_channels(grad_row, n, dim, grad_panels);
                    memset(result, 0, sizeof(float) * size.lanes * padded);
                    for (int t = 0; t < size.lanes; t++) {
                        lse[t] = INF, delta[t] = 0;  // weights of 0
                        if (t >= n) continue;
                        const int r = own[tile + t];
                        const long at = head * pass.queries + r;
                        if (grad.lse[at] != -INF) lse[t] = grad.lse[at];
                        delta[t] = dot(grad_row(t), head_out + r * grad.out_at.row, dim) - grad.grad_lse[at];
                    }
                    const int readable = list.before(tile + n);
                    for (int first = 0; first < readable; first += chunk) {
                        const int m = smaller(readable - first, chunk);
                        for (int i = 0; i < m; i++) {
                            const int r = list.row[first + i];
                            keys[i] = rows.key_row(r), values[i] = rows.value_row(r);
                            padded_keys[i] = whole_panels(keys[i], dim, padded, spare + (long)i * padded);
                            const bool near = r < pass.keys;
                            const long at = (long)(near ? r : r - pass.keys) * padded;
                            grad_keys[i] = (near ? key : far_key) + at, grad_values[i] = (near ? value : far_value) + at;
                        }
                        for (int i = 0; i < m; i += ROWS) {
                            const int height = smaller(m - i, ROWS), from = first_query(list, first + i, tile);
                            for (int t = 0; t < from; t += W)
                                for (int r = 0; r < height; r++) store(slopes + (long)(i + r) * stride + t, Vec{});
                            for (int t = from; t < n; t += PANEL) {
                                float *p = weights + (long)i * stride + t, *s = slopes + (long)i * stride + t;
                                const float *q = queries + (long)t * dim, *g = grads + (long)t * dim;
                                if (n - t <= W) {
#define CALL(N)                                                                                                         \
    gradient_tile<N, 1>(keys + i, values + i, q, g, dim, in.scale, list.bias + first + i, lse + t, delta + t, p, s, stride)
                                    FOR_ROWS(height, CALL)
#undef CALL
                                } else {
#define CALL(N)                                                                                                         \
    gradient_tile<N, 2>(keys + i, values + i, q, g, dim, in.scale, list.bias + first + i, lse + t, delta + t, p, s, stride)
                                    FOR_ROWS(height, CALL)
#undef CALL
                                }
                            }
                            for (int r = 0; r < height; r++)
                                if (first + i + r >= list.own)
                                    for (int t = 0; t < smaller(list.place[first + i + r] - tile, n); t++) {
                                        const long at = (long)(i + r) * stride + t;
                                        weights[at] = slopes[at] = 0;
                                    }
                            const float *p[ROWS], *s[ROWS];
                            for (int r = 0; r < height; r++) {
                                p[r] = weights + (long)(i + r) * stride + from;
                                s[r] = slopes + (long)(i + r) * stride + from;
                            }
                            for (int c = 0; c < padded; c += PANEL) {
                                const long at = (long)c * n + (long)from * PANEL;
#define CALL(N)                                                                  \
    add_tile<N>(p, grad_panels + at, n - from, 1, grad_values + i, c);           \
    add_tile<N>(s, query_panels + at, n - from, in.scale, grad_keys + i, c)
                                FOR_ROWS(height, CALL)
#undef CALL
                            }
                        }
                        for (int c = 0; c < padded; c += PANEL)
                            for (int t = 0; t < n; t += ROWS) {
                                const int height = smaller(n - t, ROWS);
                                int last = m;
                                while (last > 0 && first + last > list.own && list.place[first + last - 1] >= tile + t + height) last--;
                                float* y = result + (long)t * padded + c;
#define CALL(N) output_tile<N>(slopes + t, stride, padded_keys, c, last, y, padded)
                                FOR_ROWS(height, CALL)
#undef CALL
                            }
                    }
                    for (int t = 0; t < n; t++) {
                        float *y = grad.query + (head * pass.queries + own[tile + t]) * dim, *x = result + (long)t * padded;
                        for (int c = 0; c < dim; c++) y[c] = x[c] * in.scale;
                    }
                }
            }
        }
    }
}

// Gradients of the carry: a query gives it the weight exp(carry_lse - lse). ``members`` (carries, most): the queries.
static void backward_carry(
    const Pass& pass, const Inputs& in, const Gradients& grad, const int32_t* members, int most, int threads
) {
    const long heads = (long)in.batch * in.heads, items = heads * pass.carries;
    const int dim = in.dim;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long item = 0; item < items; item++) {
        const long head = item / pass.carries, b = head / in.heads, h = head % in.heads;
        const float *carry = in.carry + item * dim, carry_lse = in.carry_lse[item];
        float *y = grad.carry + item * dim, total = 0;
        memset(y, 0, sizeof(float) * dim);
        for (int i = 0; i < most; i++) {
            const int r = members[item % pass.carries * most + i];
            if (r < 0) continue;
            const float lse = grad.lse[head * pass.queries + r];
            if (lse == -INF || carry_lse == -INF) continue;
            const float weight = std::exp(carry_lse - lse);
            const float* g = grad.grad_out + b * grad.grad_out_at.batch + h * grad.grad_out_at.head + r * grad.grad_out_at.row;
            const float* out = grad.out + b * grad.out_at.batch + h * grad.out_at.head + r * grad.out_at.row;
            const float delta = dot(g, out, dim) - grad.grad_lse[head * pass.queries + r];
            total += weight * (dot(g, carry, dim) - delta);
            for (int c = 0; c < dim; c++) y[c] += weight * g[c];
        }
        grad.carry_lse[item] = total;
    }
}
