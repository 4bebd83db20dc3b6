// Summaries of all levels: sums over cells with a weight for every input, summary and channel, and their gradients.
#pragma once
#include "lanes.h"
#include <vector>

// Inputs and summaries of cells as rows, -1 = none. Cells are numbered level after level, finest first.
struct Pyramid {
    int32_t levels, summaries, taps, fanout;  // summaries of a cell, tokens of a level-1 cell, children of a cell
    const int32_t* num_cells;                 // (levels,)
    const int32_t* tokens;                    // (cells of level 1, taps)
    const int32_t* children;                  // (cells above, fanout * summaries) summaries that they join
    const int32_t* rows;                      // (cells, summaries) rows of their summaries
    int32_t num_tokens, num_summaries;        // rows of the input and of the output
};

struct PoolInputs {
    int32_t batch, heads, dim;
    const float* x;
    Strides x_at;
    const float* weight;  // (heads or 1, summaries, taps, dim)
    const float* upper;   // (upper_levels, heads or 1, summaries, fanout * summaries, dim)
    int32_t weight_heads, upper_levels;
    const uint8_t* mask;  // (batch, num_tokens), 1 = the token counts as zero, or null
    const float* scale;   // (batch or 1, num_summaries) factor of every sum, or null
    int64_t scale_stride;
};

constexpr int CELLS = 8;      // level-1 cells of an item
constexpr int SUMMARIES = 4;  // rows of a register tile

// One level of a pyramid: where its cells lie, what they join and with which weights.
struct Level {
    int first, cells, inputs, number;  // number of the weights among those of the levels above
    const int32_t* input_rows;

    Level(const Pyramid& p, int level, int upper_levels) {
        first = 0;
        for (int l = 0; l < level; l++) first += p.num_cells[l];
        cells = p.num_cells[level], inputs = level ? p.fanout * p.summaries : p.taps;
        input_rows = level ? p.children + (long)(first - p.num_cells[0]) * inputs : p.tokens;
        number = smaller(level - 1, upper_levels - 1);
    }
    const float* weights(const Pyramid& p, const PoolInputs& in, long head) const {
        const long size = (long)p.summaries * inputs * in.dim, h = in.weight_heads > 1 ? head : 0;
        return first ? in.upper + (number * (long)in.weight_heads + h) * size : in.weight + h * size;
    }
};

// sums[s] = sum_j weight[s][j] * x[j] for two cells at once: a weight that is loaded serves both.
template <int N, int M, bool TAIL>
INLINE void pool_tile(const float* const* const* inputs, const float* weight, int count, int dim, int c, float* const* sums) {
    Vec total[N][M] = {};
    const int lanes = dim - c;
    for (int j = 0; j < count; j++) {
        Vec w[M];
#pragma GCC unroll 4
        for (int s = 0; s < M; s++) w[s] = load_lanes<TAIL>(weight + ((long)s * count + j) * dim + c, lanes);
#pragma GCC unroll 2
        for (int a = 0; a < N; a++) {
            const Vec x = load_lanes<TAIL>(inputs[a][j] + c, lanes);
#pragma GCC unroll 4
            for (int s = 0; s < M; s++) total[a][s] += x * w[s];
        }
    }
    for (int a = 0; a < N; a++)
        for (int s = 0; s < M; s++) store_lanes<TAIL>(sums[a * SUMMARIES + s] + c, total[a][s], lanes);
}

template <int N, int M>
NOINLINE void pool_rows(const float* const* const* inputs, const float* weight, int count, int dim, float* const* sums) {
    int c = 0;
    for (; c + W <= dim; c += W) pool_tile<N, M, false>(inputs, weight, count, dim, c, sums);
    if (c < dim) pool_tile<N, M, true>(inputs, weight, count, dim, c, sums);
}

// Sums of N cells of a level into the rows of their summaries.
template <int N>
INLINE void pool_cells(
    const Pyramid& p, const Level& level, int cell, const float* const* const* inputs, const float* weight, int dim, float* sums
) {
    for (int s = 0; s < p.summaries; s += SUMMARIES) {
        const int m = smaller(p.summaries - s, SUMMARIES);
        float* rows[N * SUMMARIES];
        for (int a = 0; a < N; a++)
            for (int i = 0; i < m; i++)
                rows[a * SUMMARIES + i] = sums + (long)p.rows[(long)(level.first + cell + a) * p.summaries + s + i] * dim;
        const float* w = weight + (long)s * level.inputs * dim;
        if (m == 4) pool_rows<N, 4>(inputs, w, level.inputs, dim, rows);
        else if (m == 3) pool_rows<N, 3>(inputs, w, level.inputs, dim, rows);
        else if (m == 2) pool_rows<N, 2>(inputs, w, level.inputs, dim, rows);
        else pool_rows<N, 1>(inputs, w, level.inputs, dim, rows);
    }
}

// The tokens of a head; one that does not exist is a row of zeros.
struct Tokens {
    const float* x;
    int64_t stride;
    const uint8_t* mask;
    const float* zeros;

    Tokens(const Pyramid& p, const PoolInputs& in, long head, const float* zeros) : zeros(zeros) {
        const long b = head / in.heads;
        x = in.x + b * in.x_at.batch + head % in.heads * in.x_at.head, stride = in.x_at.row;
        mask = in.mask ? in.mask + b * p.num_tokens : nullptr;
    }
    const float* row(int r) const { return r < 0 || (mask && mask[r]) ? zeros : x + r * stride; }
};

// Sums of all levels (batch, heads, num_summaries, dim), and the summaries: sums times their factors.
static void pool(const Pyramid& p, const PoolInputs& in, float* sums, float* out, int threads) {
    const long heads = (long)in.batch * in.heads;
    const int dim = in.dim;
    const std::vector<float> zeros(dim, 0.f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int l = 0; l < p.levels; l++) {
        const Level level(p, l, in.upper_levels);
        const int blocks = (level.cells + CELLS - 1) / CELLS;
        std::vector<const float*> rows(2 * level.inputs);
#pragma omp for schedule(static)
        for (long item = 0; item < heads * blocks; item++) {
            const long head = item / blocks;
            const int first = item % blocks * CELLS, end = smaller(first + CELLS, level.cells);
            const float* weight = level.weights(p, in, head % in.heads);
            float* to = sums + head * p.num_summaries * dim;
            const Tokens tokens(p, in, head, zeros.data());
            auto gather = [&](int cell, const float** into) {
                for (int j = 0; j < level.inputs; j++) {
                    const int r = level.input_rows[(long)cell * level.inputs + j];
                    into[j] = l ? (r < 0 ? zeros.data() : to + (long)r * dim) : tokens.row(r);
                    // The sums go through the channels first, in strides that the processor does not foresee.
                    for (int c = 0; c < dim; c += 16) __builtin_prefetch(into[j] + c);
                }
            };
            const float* const* pair[2] = {rows.data(), rows.data() + level.inputs};
            int cell = first;
            for (; cell + 2 <= end; cell += 2) {
                gather(cell, rows.data()), gather(cell + 1, rows.data() + level.inputs);
                pool_cells<2>(p, level, cell, pair, weight, dim, to);
            }
            if (cell < end) {
                gather(cell, rows.data());
                pool_cells<1>(p, level, cell, pair, weight, dim, to);
            }
        }
    }
    const long rows = heads * p.num_summaries;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long row = 0; row < rows; row++) {
        const long head = row / p.num_summaries;
        const float factor = in.scale ? in.scale[head / in.heads * in.scale_stride + row % p.num_summaries] : 1;
        for (int c = 0; c < dim; c++) out[row * dim + c] = sums[row * dim + c] * factor;
    }
}

// y += sum_s weight[s][j] * grads[s]
template <bool SET>
INLINE void spread_row(const float* weight, const float* const* grads, int summaries, long stride, int dim, float* y) {
    int c = 0;
    for (; c + W <= dim; c += W) {
        Vec total = SET ? Vec{} : load(y + c);
        for (int s = 0; s < summaries; s++) total += load(weight + s * stride + c) * load(grads[s] + c);
        store(y + c, total);
    }
    if (c < dim) {
        Vec total = SET ? Vec{} : load_lanes<true>(y + c, dim - c);
        for (int s = 0; s < summaries; s++)
            total += load_lanes<true>(weight + s * stride + c, dim - c) * load_lanes<true>(grads[s] + c, dim - c);
        store_lanes<true>(y + c, total, dim - c);
    }
}

// grad_weight[s][j] += grads[s] * inputs[j] over the cells of a head, for M summaries, K inputs and one vector of channels.
template <int M, int K, bool TAIL>
NOINLINE void weight_tile(
    const float* const* grads, int grad_count, const float* const* inputs, int count, int cells, int dim, int c, float* to
) {
    Vec total[M][K] = {};
    const int lanes = dim - c;
    for (int cell = 0; cell < cells; cell++, grads += grad_count, inputs += count) {
        Vec g[M];
#pragma GCC unroll 4
        for (int s = 0; s < M; s++) g[s] = load_lanes<TAIL>(grads[s] + c, lanes);
#pragma GCC unroll 4
        for (int j = 0; j < K; j++) {
            const Vec x = load_lanes<TAIL>(inputs[j] + c, lanes);
#pragma GCC unroll 4
            for (int s = 0; s < M; s++) total[s][j] += g[s] * x;
        }
    }
    for (int s = 0; s < M; s++)
        for (int j = 0; j < K; j++) {
            float* y = to + ((long)s * count + j) * dim + c;
            store_lanes<TAIL>(y, load_lanes<TAIL>(y, lanes) + total[s][j], lanes);
        }
}

template <int M, bool TAIL>
INLINE void weight_inputs(
    const float* const* grads, int grad_count, const float* const* inputs, int count, int cells, int dim, int c, float* to
) {
    int j = 0;
    for (; j + 4 <= count; j += 4) weight_tile<M, 4, TAIL>(grads, grad_count, inputs + j, count, cells, dim, c, to + (long)j * dim);
    for (; j < count; j++) weight_tile<M, 1, TAIL>(grads, grad_count, inputs + j, count, cells, dim, c, to + (long)j * dim);
}

template <bool TAIL>
INLINE void weight_gradient(
    int summaries, const float* const* grads, const float* const* inputs, int count, int cells, int dim, int c, float* to
) {
    int s = 0;
    for (; s + 4 <= summaries; s += 4)
        weight_inputs<4, TAIL>(grads + s, summaries, inputs, count, cells, dim, c, to + (long)s * count * dim);
    for (; s < summaries; s++)
        weight_inputs<1, TAIL>(grads + s, summaries, inputs, count, cells, dim, c, to + (long)s * count * dim);
}

struct PoolGradients {
    const float *grad, *sums;  // (batch, heads, num_summaries, dim): of the summaries; sums of the forward pass
    float* grad_sums;          // the same shape: room for the gradients of the sums
    float* x;                  // (batch, heads, num_tokens, dim), zeros where no cell reads a token
    float *weight, *upper;     // zeros at first
    int32_t add;               // add to what x holds
};

static void pool_backward(const Pyramid& p, const PoolInputs& in, const PoolGradients& grad, int threads) {
    const long heads = (long)in.batch * in.heads, rows = heads * p.num_summaries;
    const int dim = in.dim;
    const std::vector<float> zeros(dim, 0.f);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const long head = row / p.num_summaries;
            const float factor = in.scale ? in.scale[head / in.heads * in.scale_stride + row % p.num_summaries] : 1;
            for (int c = 0; c < dim; c++) grad.grad_sums[row * dim + c] = grad.grad[row * dim + c] * factor;
        }
        // From the highest level down: every input belongs to one cell.
        for (int l = p.levels - 1; l >= 0; l--) {
            const Level level(p, l, in.upper_levels);
#pragma omp for schedule(static)
            for (long item = 0; item < heads * level.cells; item++) {
                const long head = item / level.cells;
                const int cell = item % level.cells;
                const Tokens tokens(p, in, head, zeros.data());
                const float* weight = level.weights(p, in, head % in.heads);
                float* sums = grad.grad_sums + head * p.num_summaries * dim;
                std::vector<const float*> grads(p.summaries);
                for (int s = 0; s < p.summaries; s++) grads[s] = sums + (long)p.rows[(long)(level.first + cell) * p.summaries + s] * dim;
                for (int j = 0; j < level.inputs; j++) {
                    const int r = level.input_rows[(long)cell * level.inputs + j];
                    if (r < 0) continue;
                    const float* w = weight + (long)j * dim;
                    const long stride = (long)level.inputs * dim;
                    if (l) spread_row<false>(w, grads.data(), p.summaries, stride, dim, sums + (long)r * dim);
                    else {
                        float* y = grad.x + (head * p.num_tokens + r) * dim;
                        const bool exists = tokens.row(r) != zeros.data();
                        if (exists && grad.add) spread_row<false>(w, grads.data(), p.summaries, stride, dim, y);
                        else if (exists) spread_row<true>(w, grads.data(), p.summaries, stride, dim, y);
                        else if (!grad.add) memset(y, 0, sizeof(float) * dim);
                    }
                }
            }
        }
        // Weights: an item is a vector of channels of one head's weights. It adds the sequences one after the other.
        const int vectors = (dim + W - 1) / W, own = in.weight_heads;
#pragma omp for schedule(dynamic, 1)
        for (int item = 0; item < own * vectors; item++) {
            const int h = item / vectors, c = item % vectors * W;
            std::vector<const float*> inputs, grads;
            for (long head = h; head < heads; head += own)
                for (int l = 0; l < p.levels; l++) {
                    const Level level(p, l, in.upper_levels);
                    const Tokens tokens(p, in, head, zeros.data());
                    const float *sums = grad.sums + head * p.num_summaries * dim, *from = grad.grad_sums + head * p.num_summaries * dim;
                    inputs.resize((size_t)level.cells * level.inputs), grads.resize((size_t)level.cells * p.summaries);
                    for (size_t i = 0; i < inputs.size(); i++) {
                        const int r = level.input_rows[i];
                        inputs[i] = l ? (r < 0 ? zeros.data() : sums + (long)r * dim) : tokens.row(r);
                    }
                    for (size_t i = 0; i < grads.size(); i++)
                        grads[i] = from + (long)p.rows[(long)level.first * p.summaries + i] * dim;
                    const long size = (long)p.summaries * level.inputs * dim;
                    float* to = l ? grad.upper + (level.number * (long)own + h) * size : grad.weight + h * size;
                    if (c + W <= dim)
                        weight_gradient<false>(p.summaries, grads.data(), inputs.data(), level.inputs, level.cells, dim, c, to);
                    else weight_gradient<true>(p.summaries, grads.data(), inputs.data(), level.inputs, level.cells, dim, c, to);
                }
        }
    }
}
