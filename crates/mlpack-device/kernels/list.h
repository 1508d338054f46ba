// Every kernel by name: what the device module exports and what the host build calls are made from these lists.
#ifndef MLPACK_LIST_H
#define MLPACK_LIST_H

#include "rows.h"
#include "iq1.h"
#include "iq2_iq3.h"
#include "low_bits.h"
#include "super_blocks.h"

// What encoding needs. Rows follow each other.
struct encode_args {
    const float *x;
    // A value for each column, or nothing.
    const float *importance;
    // A value for each row, of kernels that end in _weighted and are for blocks of 32.
    const float *mean_squares;
    uint8_t *out;
    // Of types on a grid.
    struct grid grid;
    uint64_t blocks;
    uint64_t blocks_per_row;
};

// name, function, values and bytes of a block, whether it uses importance
#define BLOCK_KERNELS(K) \
    K(q4_0, encode_q4_0, 32, 18, 0) K(q4_0_weighted, encode_q4_0, 32, 18, 1) \
    K(q4_1, encode_q4_1, 32, 20, 0) K(q4_1_weighted, encode_q4_1, 32, 20, 1) \
    K(q5_0, encode_q5_0, 32, 22, 0) K(q5_0_weighted, encode_q5_0, 32, 22, 1) \
    K(q5_1, encode_q5_1, 32, 24, 0) K(q5_1_weighted, encode_q5_1, 32, 24, 1) \
    K(q8_0, encode_q8_0, 32, 34, 0) \
    K(iq4_nl, encode_iq4_nl, 32, 18, 0) K(iq4_nl_weighted, encode_iq4_nl, 32, 18, 1) \
    K(mxfp4, encode_mxfp4, 32, 17, 0) K(nvfp4, encode_nvfp4, 64, 36, 0) \
    K(q1_0, encode_q1_0, 128, 18, 0) K(q2_0, encode_q2_0, 64, 18, 0) \
    K(tq1_0, encode_tq1_0, 256, 54, 0) K(tq2_0, encode_tq2_0, 256, 66, 0)

// name, function, lanes, bytes of a block, whether it uses importance
#define SUPER_BLOCK_KERNELS(K) \
    K(q2_k, q2_k, 16, 84, 0) K(q2_k_weighted, q2_k, 16, 84, 1) \
    K(q3_k, q3_k, 16, 110, 0) K(q3_k_weighted, q3_k, 16, 110, 1) \
    K(q4_k, q4_k, 8, 144, 0) K(q4_k_weighted, q4_k, 8, 144, 1) \
    K(q5_k, q5_k, 8, 176, 0) K(q5_k_weighted, q5_k, 8, 176, 1) \
    K(q6_k, q6_k, 16, 210, 0) K(q6_k_weighted, q6_k, 16, 210, 1) \
    K(iq4_xs, iq4_xs, 8, 136, 0) K(iq4_xs_weighted, iq4_xs, 8, 136, 1)

// name, function, lanes, bytes of a block, whether it uses importance
#define GRID_KERNELS(K) \
    K(iq1_s_weighted, iq1_s, 8, 50, 1) \
    K(iq1_m, iq1_m, 16, 56, 0) K(iq1_m_weighted, iq1_m, 16, 56, 1) \
    K(iq2_xxs_weighted, iq2_xxs, 8, 66, 1) K(iq2_xs_weighted, iq2_xs, 16, 74, 1) \
    K(iq2_s, iq2_s, 16, 82, 0) K(iq2_s_weighted, iq2_s, 16, 82, 1) \
    K(iq3_xxs, iq3_xxs, 8, 98, 0) K(iq3_xxs_weighted, iq3_xxs, 8, 98, 1) \
    K(iq3_s, iq3_s, 8, 110, 0) K(iq3_s_weighted, iq3_s, 8, 110, 1)

// A thread's block.
DUAL struct block block_at(const struct encode_args *a, uint64_t i, int values, int bytes, int weighted) {
    struct block b;
    b.x = a->x + values * i;
    b.importance = weighted ? a->importance + values * (i % a->blocks_per_row) : 0;
    b.mean_square = weighted && a->mean_squares ? a->mean_squares[i / a->blocks_per_row] : 0.0f;
    b.out = a->out + (uint64_t)bytes * i;
    return b;
}

// A super-block's values and importance.
DUAL const float *importance_at(const struct encode_args *a, uint64_t i, int weighted) {
    return weighted ? a->importance + 256 * (i % a->blocks_per_row) : 0;
}

#endif
