// The fused CPU kernels of Fast Multipole Attention, without headers of PyTorch: pointers, strides and index tables.
// One translation unit; the functions below are called through ctypes.
#include "attention.h"
#include "pooling.h"
#include <sys/mman.h>

extern "C" {
int fma_panel() { return PANEL; }

// Asks for pages of 2 MiB within a block of memory; where there are none, nothing changes.
void fma_use_huge_pages(uintptr_t block, size_t bytes) {
    const uintptr_t page = 1 << 21, first = (block + page - 1) / page * page, end = (block + bytes) / page * page;
    if (first < end) madvise((void*)first, end - first, MADV_HUGEPAGE);
}

void fma_forward(const Pass* pass, const Inputs* inputs, float* out, const Strides* out_at, float* lse, int threads) {
    forward(*pass, *inputs, out, *out_at, lse, threads);
}

void fma_backward(const Pass* pass, const Inputs* inputs, const Gradients* gradients, int threads) {
    backward(*pass, *inputs, *gradients, threads);
}

void fma_backward_carry(
    const Pass* pass, const Inputs* inputs, const Gradients* gradients, const int32_t* members, int most, int threads
) {
    backward_carry(*pass, *inputs, *gradients, members, most, threads);
}

void fma_pool(const Pyramid* pyramid, const PoolInputs* inputs, float* sums, float* out, int threads) {
    pool(*pyramid, *inputs, sums, out, threads);
}

void fma_pool_backward(const Pyramid* pyramid, const PoolInputs* inputs, const PoolGradients* gradients, int threads) {
    pool_backward(*pyramid, *inputs, *gradients, threads);
}
}
