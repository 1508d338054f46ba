// The kernels as a device runs them: an index for each thread, and what the headers say about it.
#include "list.h"

#define THREAD ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x)

#define BLOCK(NAME, FUNCTION, VALUES, BYTES, WEIGHTED) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ encode_args a) { \
        const uint64_t i = THREAD; \
        if (i < a.blocks) { \
            const block b = block_at(&a, i, VALUES, BYTES, WEIGHTED); \
            FUNCTION(&b, WEIGHTED); \
        } \
    }
BLOCK_KERNELS(BLOCK)

// Lanes of a block are in one warp, so waiting for the warp is waiting for the block.
#define LANES_OF_BLOCKS(NAME, SHARED, STEPS, STEP, LANES, BYTES, WEIGHTED) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ encode_args a) { \
        __shared__ SHARED shared[THREADS / LANES]; \
        const uint64_t i = THREAD / LANES; \
        const int lane = threadIdx.x % LANES; \
        SHARED *s = &shared[threadIdx.x / LANES]; \
        const bool mine = i < a.blocks; \
        const float *x = a.x + 256 * i; \
        const float *importance = mine ? importance_at(&a, i, WEIGHTED) : nullptr; \
        _Pragma("unroll") for (int phase = 0; phase < STEPS; phase++) { \
            if (mine) { \
                STEP; \
            } \
            __syncwarp(); \
        } \
        if (mine) { \
            for (int at = lane; at < BYTES; at += LANES) { \
                a.out[(uint64_t)BYTES * i + at] = s->out[at]; \
            } \
        } \
    }
#define SUPER_BLOCK(NAME, FUNCTION, LANES, BYTES, WEIGHTED) \
    LANES_OF_BLOCKS(NAME, super_block, PHASES, FUNCTION(phase, lane, WEIGHTED, x, importance, s), LANES, BYTES, WEIGHTED)
SUPER_BLOCK_KERNELS(SUPER_BLOCK)

#define GRID_BLOCK(NAME, FUNCTION, LANES, BYTES, WEIGHTED) \
    LANES_OF_BLOCKS( \
        NAME, grid_block, GRID_PHASES, FUNCTION(phase, lane, WEIGHTED, x, importance, &a.grid, s), LANES, BYTES, WEIGHTED)
GRID_KERNELS(GRID_BLOCK)

extern "C" __global__ void __launch_bounds__(THREADS) widen(const __grid_constant__ widen_args a) {
    if (THREAD < a.count) {
        widen_unit(&a, THREAD);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) narrow(const __grid_constant__ narrow_args a) {
    if (THREAD < a.count) {
        narrow_unit(&a, THREAD);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) mean_squares(const __grid_constant__ mean_args a) {
    if (THREAD < a.rows) {
        mean_unit(&a, THREAD);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) merge(const __grid_constant__ merge_args a) {
    if (THREAD < (a.rows + MERGE_ROWS - 1) / MERGE_ROWS * a.cols) {
        merge_unit(&a, THREAD / a.cols, THREAD % a.cols);
    }
}
