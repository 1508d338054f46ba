// Every kernel by name: what the device module exports and what the host build calls are made from these lists.
#ifndef MLPACK_LIST_H
#define MLPACK_LIST_H

#include "rows.h"
#include "super_blocks.h"

// What encoding needs. Rows follow each other.
struct encode_args {
    const float *x;
    // A value for each column, or nothing.
    const float *importance;
    // A value for each row, of kernels that end in _weighted and are for blocks of 32.
    const float *mean_squares;
    uint8_t *out;
    uint64_t blocks;
    uint64_t blocks_per_row;
};

// name, function, bytes of a block, whether it uses importance
#define BLOCK32_KERNELS(K) \
    K(q4_0, encode_q4_0, 18, 0) K(q4_0_weighted, encode_q4_0, 18, 1) \
    K(q4_1, encode_q4_1, 20, 0) K(q4_1_weighted, encode_q4_1, 20, 1) \
    K(q5_0, encode_q5_0, 22, 0) K(q5_0_weighted, encode_q5_0, 22, 1) \
    K(q5_1, encode_q5_1, 24, 0) K(q5_1_weighted, encode_q5_1, 24, 1) \
    K(q8_0, encode_q8_0, 34, 0) \
    K(iq4_nl, encode_iq4_nl, 18, 0) K(iq4_nl_weighted, encode_iq4_nl, 18, 1) \
    K(mxfp4, encode_mxfp4, 17, 0)

// name, function, lanes, bytes of a block, whether it uses importance
#define SUPER_BLOCK_KERNELS(K) \
    K(q2_k, q2_k, 16, 84, 0) K(q2_k_weighted, q2_k, 16, 84, 1) \
    K(q3_k, q3_k, 16, 110, 0) K(q3_k_weighted, q3_k, 16, 110, 1) \
    K(q4_k, q4_k, 8, 144, 0) K(q4_k_weighted, q4_k, 8, 144, 1) \
    K(q5_k, q5_k, 8, 176, 0) K(q5_k_weighted, q5_k, 8, 176, 1) \
    K(q6_k, q6_k, 16, 210, 0) K(q6_k_weighted, q6_k, 16, 210, 1) \
    K(iq4_xs, iq4_xs, 8, 136, 0) K(iq4_xs_weighted, iq4_xs, 8, 136, 1)

// A thread's block of 32 values.
DUAL struct block32 block_at(const struct encode_args *a, uint64_t i, int bytes, int weighted) {
    struct block32 b;
    b.x = a->x + 32 * i;
    b.importance = weighted ? a->importance + 32 * (i % a->blocks_per_row) : 0;
    b.mean_square = weighted && a->mean_squares ? a->mean_squares[i / a->blocks_per_row] : 0.0f;
    b.out = a->out + (uint64_t)bytes * i;
    return b;
}

// A super-block's values and importance.
DUAL const float *importance_at(const struct encode_args *a, uint64_t i, int weighted) {
    return weighted ? a->importance + 256 * (i % a->blocks_per_row) : 0;
}

#endif
