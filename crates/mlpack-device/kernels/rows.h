// Rows as they are stored, as floats, and merged: mlpack-lora's src/round.rs and src/merge/narrow.rs.
#ifndef MLPACK_ROWS_H
#define MLPACK_ROWS_H

#include "dual.h"

// How values are stored.
#define F32 0
#define F16 1
#define BF16 2

DUAL float load_value(uint32_t dtype, const uint8_t *bytes, uint64_t i) {
    if (dtype == F16) {
        return half_value(((const uint16_t *)bytes)[i]);
    }
    if (dtype == BF16) {
        return float_of((uint32_t)((const uint16_t *)bytes)[i] << 16);
    }
    return ((const float *)bytes)[i];
}

// A value rounded to float32 towards odd: what is cut off sets the last bit, so that a second rounding is the only one.
DUAL uint32_t odd_bits(double v) {
    const float nearest = (float)v;
    const uint32_t bits = bits_of(nearest);
    const double back = (double)nearest;
    if (back == v || v != v) {
        return bits;
    }
    return (bits - (fabs(back) > fabs(v) ? 1u : 0u)) | 1u;
}

// Stores a merged value, rounded once. Returns whether it is finite there.
DUAL int store_rounded(uint32_t dtype, double v, uint8_t *bytes, uint64_t i) {
    if (dtype == F32) {
        const float rounded = (float)v;
        ((float *)bytes)[i] = rounded;
        return (bits_of(rounded) & 0x7f800000u) != 0x7f800000u;
    }
    const float odd = float_of(odd_bits(v));
    const uint16_t rounded = dtype == F16 ? half_bits(odd) : bfloat_bits(odd);
    ((uint16_t *)bytes)[i] = rounded;
    const uint16_t exponent = dtype == F16 ? 0x7c00u : 0x7f80u;
    return (rounded & exponent) != exponent;
}

// A low-rank difference: factor * left * right.
struct delta {
    // rows * rank
    const float *left;
    // rank * cols
    const float *right;
    // Of the narrow sum: what a row's error is at most, for each unit of a column's norm; and those norms, rounded up.
    const float *spreads;
    const float *norms;
    double factor;
    uint32_t rank;
    uint32_t reserved;
};

#define MAX_DELTAS 4

// Sums of so many terms are taken together, as the matrix product on the CPU takes them.
#define MAX_DEPTH 512u

struct merge_args {
    const uint8_t *base;
    uint8_t *out;
    // Set where a merged value is not finite.
    uint32_t *not_finite;
    uint64_t rows;
    uint64_t cols;
    uint32_t dtype;
    uint32_t deltas;
    // Sums of bfloat16 with one delta in float32 where that cannot change a bit: for devices whose float64 is slow.
    uint32_t narrow;
    uint32_t reserved;
    struct delta delta[MAX_DELTAS];
};

// Rows that a thread computes, so that it reads the right factor once for all of them.
#define MERGE_ROWS 8

// One element in float64: products of float32 are exact, so fused additions round no other way.
DUAL double exact_product(const struct delta *d, uint64_t cols, uint64_t row, uint64_t col) {
    double total = 0.0;
    for (uint32_t from = 0; from < d->rank; from += MAX_DEPTH) {
        const uint32_t end = d->rank - from < MAX_DEPTH ? d->rank : from + MAX_DEPTH;
        double sum = 0.0;
        for (uint32_t k = from; k < end; k++) {
            sum = fma((double)d->left[row * d->rank + k], (double)d->right[k * cols + col], sum);
        }
        total = from == 0 ? sum : total + sum;
    }
    return total;
}

DUAL uint32_t round_to_bfloat(float v) {
    return (bits_of(v) + 0x7fffu + (bits_of(v) >> 16 & 1u)) >> 16;
}

// Whether an error of the addend within the bound could change the sum rounded to bfloat16; that sum.
DUAL int narrow_sum(float base, float addend, float bound, uint32_t *rounded) {
    const float sum = base + addend;
    const float error = fabsf(sum) * (1.0f / 2097152.0f) + (bound + 1e-36f);
    const uint32_t low = round_to_bfloat(sum - error), high = round_to_bfloat(sum + error);
    const int infinite = (bits_of(sum) & 0x7f800000u) == 0x7f800000u || (high & 0x7f80u) == 0x7f80u;
    *rounded = high;
    return infinite || low != high;
}

// The rows from MERGE_ROWS * group on, in one column.
DUAL void merge_unit(const struct merge_args *a, uint64_t group, uint64_t col) {
    const uint64_t first = group * MERGE_ROWS;
    const uint32_t count = a->rows - first < MERGE_ROWS ? (uint32_t)(a->rows - first) : MERGE_ROWS;
    int finite = 1;
    if (a->narrow) {
        const struct delta *d = &a->delta[0];
        float sums[MERGE_ROWS];
        UNROLL
        for (uint32_t i = 0; i < MERGE_ROWS; i++) {
            sums[i] = 0.0f;
        }
        for (uint32_t k = 0; k < d->rank; k++) {
            const float right = d->right[k * a->cols + col];
            UNROLL
            for (uint32_t i = 0; i < MERGE_ROWS; i++) {
                sums[i] = i < count ? fmaf(d->left[(first + i) * d->rank + k], right, sums[i]) : 0.0f;
            }
        }
        UNROLL
        for (uint32_t i = 0; i < MERGE_ROWS; i++) {
            if (i < count) {
                const uint64_t at = (first + i) * a->cols + col;
                const float base = load_value(BF16, a->base, at);
                const float factor = (float)d->factor;
                uint32_t rounded;
                if (narrow_sum(base, factor * sums[i], d->spreads[first + i] * d->norms[col], &rounded)) {
                    const double change = 0.0 + d->factor * exact_product(d, a->cols, first + i, col);
                    finite &= store_rounded(BF16, (double)base + change, a->out, at);
                } else {
                    ((uint16_t *)a->out)[at] = (uint16_t)rounded;
                }
            }
        }
    } else {
        double changes[MERGE_ROWS];
        UNROLL
        for (uint32_t i = 0; i < MERGE_ROWS; i++) {
            changes[i] = 0.0;
        }
        for (uint32_t n = 0; n < a->deltas; n++) {
            const struct delta *d = &a->delta[n];
            double totals[MERGE_ROWS], sums[MERGE_ROWS];
            for (uint32_t from = 0; from < d->rank; from += MAX_DEPTH) {
                const uint32_t end = d->rank - from < MAX_DEPTH ? d->rank : from + MAX_DEPTH;
                UNROLL
                for (uint32_t i = 0; i < MERGE_ROWS; i++) {
                    sums[i] = 0.0;
                }
                for (uint32_t k = from; k < end; k++) {
                    const double right = (double)d->right[k * a->cols + col];
                    UNROLL
                    for (uint32_t i = 0; i < MERGE_ROWS; i++) {
                        sums[i] = i < count ? fma((double)d->left[(first + i) * d->rank + k], right, sums[i]) : 0.0;
                    }
                }
                UNROLL
                for (uint32_t i = 0; i < MERGE_ROWS; i++) {
                    totals[i] = from == 0 ? sums[i] : totals[i] + sums[i];
                }
            }
            UNROLL
            for (uint32_t i = 0; i < MERGE_ROWS; i++) {
                changes[i] += d->factor * totals[i];
            }
        }
        UNROLL
        for (uint32_t i = 0; i < MERGE_ROWS; i++) {
            if (i < count) {
                const uint64_t at = (first + i) * a->cols + col;
                const double value = (double)load_value(a->dtype, a->base, at) + changes[i];
                finite &= store_rounded(a->dtype, value, a->out, at);
            }
        }
    }
    if (!finite) {
        *a->not_finite = 1;
    }
}

// Stored values as floats.
struct widen_args {
    const uint8_t *from;
    float *to;
    // Set where a value is not finite.
    uint32_t *not_finite;
    uint64_t count;
    uint32_t dtype;
    uint32_t reserved;
};

DUAL void widen_unit(const struct widen_args *a, uint64_t i) {
    const float v = load_value(a->dtype, a->from, i);
    a->to[i] = v;
    if ((bits_of(v) & 0x7f800000u) == 0x7f800000u) {
        *a->not_finite = 1;
    }
}

// Floats as stored values.
struct narrow_args {
    const float *from;
    uint8_t *to;
    uint64_t count;
    uint32_t dtype;
    uint32_t reserved;
};

DUAL void narrow_unit(const struct narrow_args *a, uint64_t i) {
    if (a->dtype == F32) {
        ((float *)a->to)[i] = a->from[i];
    } else {
        ((uint16_t *)a->to)[i] = a->dtype == F16 ? half_bits(a->from[i]) : bfloat_bits(a->from[i]);
    }
}

// The mean square of each row, summed left to right.
struct mean_args {
    const float *x;
    float *to;
    uint64_t rows;
    uint64_t row_len;
};

DUAL void mean_unit(const struct mean_args *a, uint64_t row) {
    const float *x = a->x + row * a->row_len;
    float sum = 0.0f;
    for (uint64_t i = 0; i < a->row_len; i++) {
        sum += x[i] * x[i];
    }
    a->to[row] = sum / (float)a->row_len;
}

#endif
