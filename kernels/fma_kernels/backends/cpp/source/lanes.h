// Vectors of the machine, and the register tiles that all products are made of.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <limits>
#include <omp.h>

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

#if defined(__AVX512F__)
constexpr int W = 16;  // lanes of a vector
#else
constexpr int W = 8;
#endif
constexpr int ROWS = 6;       // rows of a register tile: with two vectors each, twelve sums keep the units busy
constexpr int PANEL = 2 * W;  // lanes of a panel: two vectors
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LOG2_E = 1.44269504088896341f, LN_2 = 0.693147180559945309f;

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));
typedef float UnalignedVec __attribute__((vector_size(4 * W), aligned(4), may_alias));

INLINE Vec load(const float* p) { return *(const UnalignedVec*)p; }
INLINE void store(float* p, Vec x) { *(UnalignedVec*)p = x; }
INLINE Vec broadcast(float x) { return x - Vec{}; }  // x + 0 would turn -0 into 0, so it stays an addition

// Loads and stores of the first n lanes; the others are 0.
template <bool TAIL>
INLINE Vec load_lanes(const float* p, int n) {
    if (!TAIL) return load(p);
    float lanes[W] = {};
    memcpy(lanes, p, sizeof(float) * n);
    return load(lanes);
}
template <bool TAIL>
INLINE void store_lanes(float* p, Vec x, int n) {
    if (!TAIL) return store(p, x);
    float lanes[W];
    store(lanes, x);
    memcpy(p, lanes, sizeof(float) * n);
}

INLINE Vec maximum(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}

// e**x for x <= 88; exactly 0 for x < -110. The polynomial is within 3e-9 of e**f for |f| <= ln(2) / 2, so rounding
// decides.
INLINE Vec exp(Vec x) {
#if defined(__AVX512F__)
    x = maximum(x, broadcast(-110.f));
    const Vec whole = (Vec)_mm512_roundscale_ps((__m512)(x * LOG2_E), 0), f = x - whole * LN_2;
#else
    const Vec magic = broadcast(12582912.f);  // 1.5 * 2**23: adding it rounds to an integer
    const IntVec keep = x >= broadcast(-87.f);
    x = maximum(x, broadcast(-87.f));
    const Vec whole = x * LOG2_E + magic, f = x - (whole - magic) * LN_2;
#endif
    Vec p = broadcast(0.00139411084f);
    p = p * f + 0.00837512641f;
    p = p * f + 0.0416663529f;
    p = p * f + 0.166664155f;
    p = p * f + 0.500000004f;
    p = p * f + 1.00000004f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    const IntVec bits = (IntVec)p + ((IntVec)whole << 23);
    return (Vec)(bits & keep);
#endif
}

// sums[r] += sum_c rows[r][c] * panel[c], where a row of the panel has PANEL lanes
template <int N, int VECTORS>
INLINE void multiply_rows(const float* const* rows, const float* panel, int n, Vec (&sums)[N][VECTORS]) {
#pragma GCC unroll 4
    for (int c = 0; c < n; c++) {
        Vec x[VECTORS];
        for (int j = 0; j < VECTORS; j++) x[j] = load(panel + (long)c * PANEL + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) {
            Vec a = broadcast(rows[r][c]);
            for (int j = 0; j < VECTORS; j++) sums[r][j] += a * x[j];
        }
    }
}

// sums[r] += sum_k columns[k * stride + r] * rows[k][at : at + PANEL]
template <int N>
INLINE void multiply_columns(const float* columns, int stride, const float* const* rows, int at, int n, Vec (&sums)[N][2]) {
#pragma GCC unroll 4
    for (int k = 0; k < n; k++) {
        Vec x0 = load(rows[k] + at), x1 = load(rows[k] + at + W);
#pragma GCC unroll 8
        for (int r = 0; r < N; r++) {
            Vec a = broadcast(columns[(long)k * stride + r]);
            sums[r][0] += a * x0;
            sums[r][1] += a * x1;
        }
    }
}

// Calls CALL(N) for N = n, 1 to ROWS: the number of rows of a tile is a constant inside.
#define FOR_ROWS(n, CALL)           \
    switch (n) {                    \
        case 1: CALL(1); break;     \
        case 2: CALL(2); break;     \
        case 3: CALL(3); break;     \
        case 4: CALL(4); break;     \
        case 5: CALL(5); break;     \
        default: CALL(ROWS); break; \
    }

INLINE long round_up(long n, long m) { return (n + m - 1) / m * m; }
INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Where a tensor (B, H, n, d) lies: elements between sequences, heads and rows. Channels lie next to each other.
struct Strides {
    int64_t batch, head, row;
};

// Scratch memory of one thread, cut into pieces.
class Scratch {
  public:
    explicit Scratch(size_t floats) { base = (char*)aligned_alloc(4096, round_up(floats * 4 + 65536, 4096)); }
    ~Scratch() { free(base); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <typename T>
    T* take(size_t n) {
        T* piece = (T*)(base + used);
        used += round_up(n * sizeof(T), 64) + 64;
        return piece;
    }

  private:
    char* base;
    size_t used = 0;
};
