// What the types whose codes are points of a grid share: mlpack-quant's src/reference/cells.rs and lattice.rs.
//
// A search takes eight values after another, so that they and their weights stay in registers, and keeps the sums of all
// candidates; the codes of the best one are computed again.
#ifndef MLPACK_GRIDS_H
#define MLPACK_GRIDS_H

#include "blocks32.h"

// What is known of a combination of codes. The neighbours of one without an index, nearest first, and behind them those of
// them that can win where every value is nearest to its code, are packed codes in a list.
struct combination {
    uint32_t start;
    uint16_t neighbours;
    uint16_t contenders;
    // Of a point, which has no neighbours.
    uint16_t index;
    uint16_t reserved;
};

#define GRID_PHASES 4

struct grid {
    const struct combination *combinations;
    const uint16_t *list;
};

// What lanes of a block share.
struct grid_block {
    float sigma2;
    // The inverse of the scale of the super-block.
    float id;
    // All scales are zeros.
    int empty;
    float scales[16];
    // Of IQ1, packed codes.
    uint16_t indices[64];
    uint8_t signs[32];
    // Whether a group was searched; of IQ1, which of its cells are shifted down.
    uint8_t searched[16];
    uint8_t out[110];
};

DUAL void sum_squares(const float *x, struct grid_block *s) {
    float sum = 0.0f;
    for (int i = 0; i < 256; i++) {
        sum += x[i] * x[i];
    }
    s->sigma2 = sum;
}

// How weights are made of values and importance: importance * sqrt(sigma2 + x^2), or share * sigma2 + x^2.
struct weighing {
    const float *importance;
    float sigma2;
    float share;
};

// Eight values of a group, without their signs.
struct eight {
    float x[8];
    float weights[8];
    // A bit for each negative value; seven where the eighth makes their number even.
    uint32_t signs;
};

DUAL uint32_t is_odd(uint32_t bits) {
    bits ^= bits >> 4;
    bits ^= bits >> 2;
    bits ^= bits >> 1;
    return bits & 1u;
}

// Loads eight values from `at` on. With `even` the value that matters least changes its sign where their number is odd, and its
// magnitude becomes negative.
DUAL void load_eight(const float *values, const struct weighing *w, int at, int even, struct eight *e) {
    e->signs = 0;
    UNROLL
    for (int i = 0; i < 8; i++) {
        const float v = values[at + i];
        if (w->importance) {
            e->weights[i] = w->importance[at + i] * sqrtf(w->sigma2 + v * v);
        } else {
            e->weights[i] = w->share > 0.0f ? w->share * w->sigma2 + v * v : v * v;
        }
        e->signs |= v >= 0.0f ? 0u : 1u << i;
        e->x[i] = v >= 0.0f ? v : -v;
    }
    if (even) {
        if (is_odd(e->signs)) {
            int least = 0;
            float least_loss = e->weights[0] * e->x[0] * e->x[0];
            UNROLL
            for (int i = 1; i < 8; i++) {
                const float loss = e->weights[i] * e->x[i] * e->x[i];
                if (loss < least_loss) {
                    least = i;
                    least_loss = loss;
                }
            }
            UNROLL
            for (int i = 0; i < 8; i++) {
                e->x[i] = i == least ? -e->x[i] : e->x[i];
            }
            e->signs ^= 1u << least;
        }
        e->signs &= 127u;
    }
}

// What a code stands for while its scale is searched: an odd number, exact.
DUAL float level_of(uint32_t code) {
    return float_of(0x4b000000u | (2u * code + 1u)) - 8388608.0f;
}

// The neighbour of a list whose values scale * (base + step * code) have the smallest weighted squared error: the first of
// equals, and of those that are no number below the largest float. base + step * code is exact.
DUAL uint32_t best_of(int n, const uint16_t *list, int len, const float *x, const float *weights, float scale, float base,
                      float step) {
    float errors[8][3];
    if (n == 8) {
        UNROLL
        for (int i = 0; i < 8; i++) {
            UNROLL
            for (int code = 0; code < 3; code++) {
                const float diff = scale * (base + step * (float)code) - x[i];
                errors[i][code] = weights[i] * diff * diff;
            }
        }
    }
    uint32_t packed = list[0];
    float best = float_of(0x7f7fffffu);
    KEEP_LOOP
    for (int j = 0; j < len; j++) {
        const uint32_t candidate = list[j];
        float sum = 0.0f;
        UNROLL
        for (int i = 0; i < n; i++) {
            if (n == 8) {
                const uint32_t code = candidate >> 2 * i & 3u;
                sum += code == 0 ? errors[i][0] : code == 1 ? errors[i][1] : errors[i][2];
            } else {
                const float diff = scale * level_of(candidate >> 3 * i & 7u) - x[i];
                sum += weights[i] * diff * diff;
            }
        }
        if (sum < best) {
            packed = candidate;
            best = sum;
        }
    }
    return packed;
}

// The largest value of a group and its largest magnitude. Some of the values may be negative.
struct reach {
    float max, magnitude;
};

DUAL struct reach reach_of(int eights, const float *values, const struct weighing *w, int even) {
    struct reach r = {0.0f, 0.0f};
    KEEP_LOOP
    for (int k = 0; k < eights; k++) {
        struct eight e;
        load_eight(values, w, 8 * k, even, &e);
        UNROLL
        for (int i = 0; i < 8; i++) {
            r.max = k + i > 0 && r.max > e.x[i] ? r.max : e.x[i];
            r.magnitude = fabsf(e.x[i]) > r.magnitude ? fabsf(e.x[i]) : r.magnitude;
        }
    }
    return r;
}

// A value this near to the middle of two levels may be nearer to the one that it is not rounded to, as the inverse of the scale
// is rounded.
#define TIE (0.5f - 1.0f / 65536.0f)

// The codes of a cell of `n` values for a scale, packed: those of the best neighbour where they have no index. `usual` says
// that rounding errors are so small that `TIE` allows for them.
DUAL uint32_t snap(int n, const struct grid *g, const float *x, const float *weights, float id, float scale, int usual,
                   int *has_index) {
    const uint32_t levels = n == 8 ? 3 : 8, bits = n == 8 ? 2 : 3;
    const float top = (float)(levels - 1);
    uint32_t packed = 0, number = 0;
    int tie = !usual;
    UNROLL
    for (int i = n - 1; i >= 0; i--) {
        const float place = 0.5f * (id * x[i] - 1.0f);
        const uint32_t code = (uint32_t)clamp(nearest_int(place), 0, (int)levels - 1);
        const float within = place > 0.0f ? (place < top ? place : top) : 0.0f;
        tie |= !(fabsf(within - (float)code) <= TIE);
        number = number * levels + code;
        packed = packed << bits | code;
    }
    const struct combination c = g->combinations[number];
    *has_index = c.neighbours == 0;
    if (c.neighbours == 0) {
        return packed;
    }
    return best_of(n, g->list + c.start + (tie ? 0 : c.neighbours), tie ? c.neighbours : c.contenders, x, weights, scale,
                   1.0f, 2.0f);
}

// Adds the sums of a cell.
DUAL void add_sums(int n, const float *x, const float *weights, uint32_t packed, float *sumqx, float *sumq2) {
    UNROLL
    for (int i = 0; i < n; i++) {
        const float q = level_of(n == 8 ? packed >> 2 * i & 3u : packed >> 3 * i & 7u);
        *sumqx += weights[i] * x[i] * q;
        *sumq2 += weights[i] * q * q;
    }
}

// The number of a combination: its digits, the first code lowest.
DUAL uint32_t number_of(int n, uint32_t packed) {
    uint32_t number = packed;
    if (n == 8) {
        number = 0;
        UNROLL
        for (int i = 7; i >= 0; i--) {
            number = number * 3 + (packed >> 2 * i & 3u);
        }
    }
    return number;
}

// Which cells are rounded again for the scale that was found: those that had no index; all where one had none or no
// candidate was found; all.
#define REFIT_UNINDEXED 0
#define REFIT_GROUP 1
#define REFIT_ALWAYS 2

#define MAX_CANDIDATES 31

// Fits a group of `8 * eights` values in cells of `n`: its scale, and the indices and signs of its cells. `max` is its largest
// value or stands for it; `first` is the scale where no candidate explains anything, and then the codes are zeros.
DUAL float fit_cells(int n, int eights, int tries, float step, int refit, int even, const struct grid *g,
                     const float *values, const struct weighing *w, float max, float magnitude, float first,
                     uint16_t *indices, uint8_t *signs) {
    const int cells = 8 / n, count = 2 * tries + 1;
    const float top = n == 8 ? 5.0f : 15.0f;
    float sumqx[MAX_CANDIDATES], sumq2[MAX_CANDIDATES];
    struct eight e;
    int usual = max > 1e-25f && max < 1e25f && magnitude < 1e4f * max;
    KEEP_LOOP
    for (int k = 0; k < eights; k++) {
        load_eight(values, w, 8 * k, even, &e);
        float roots[8];
        UNROLL
        for (int i = 0; i < 8; i++) {
            roots[i] = sqrtf(e.weights[i]);
        }
        KEEP_LOOP
        for (int c = 0; c < count; c++) {
            const float id = (top + (float)(c - tries) * step) / max;
            float qx = k == 0 ? 0.0f : sumqx[c], q2 = k == 0 ? 0.0f : sumq2[c];
            UNROLL
            for (int cell = 0; cell < cells; cell++) {
                int has_index;
                const float *x = e.x + n * cell;
                const uint32_t packed = snap(n, g, x, roots + n * cell, id, 1.0f / id, usual, &has_index);
                add_sums(n, x, e.weights + n * cell, packed, &qx, &q2);
            }
            sumqx[c] = qx;
            sumq2[c] = q2;
        }
    }
    float scale = first, best = 0.0f;
    int winner = -1;
    KEEP_LOOP
    for (int c = 0; c < count; c++) {
        if (sumq2[c] > 0.0f && sumqx[c] * sumqx[c] > best * sumq2[c]) {
            scale = sumqx[c] / sumq2[c];
            best = scale * sumqx[c];
            winner = c;
        }
    }
    // The codes of the winner, and which of its cells had an index.
    uint32_t without = 0;
    const float of_winner = (top + (float)(winner - tries) * step) / max;
    KEEP_LOOP
    for (int k = 0; k < eights; k++) {
        load_eight(values, w, 8 * k, even, &e);
        signs[k] = (uint8_t)e.signs;
        UNROLL
        for (int i = 0; i < 8; i++) {
            e.weights[i] = sqrtf(e.weights[i]);
        }
        UNROLL
        for (int cell = 0; cell < cells; cell++) {
            int has_index = refit != REFIT_GROUP;
            uint32_t packed = 0;
            if (winner >= 0) {
                packed = snap(n, g, e.x + n * cell, e.weights + n * cell, of_winner, 1.0f / of_winner, usual, &has_index);
            }
            indices[cells * k + cell] = (uint16_t)packed;
            without |= has_index ? 0u : 1u << (cells * k + cell);
        }
    }
    if (refit == REFIT_ALWAYS || (refit == REFIT_GROUP && without != 0)) {
        without = 0xffffffffu;
    }
    if (scale > 0.0f && without != 0) {
        const float id = 1.0f / scale, for_scale = scale;
        float qx = 0.0f, q2 = 0.0f;
        usual = scale > 1e-30f && scale < 1e30f && magnitude < 1e5f * scale;
        KEEP_LOOP
        for (int k = 0; k < eights; k++) {
            load_eight(values, w, 8 * k, even, &e);
            UNROLL
            for (int cell = 0; cell < cells; cell++) {
                const float *x = e.x + n * cell, *weights = e.weights + n * cell;
                uint32_t packed = indices[cells * k + cell];
                if (without >> (cells * k + cell) & 1u) {
                    float roots[8];
                    int has_index;
                    UNROLL
                    for (int i = 0; i < n; i++) {
                        roots[i] = sqrtf(weights[i]);
                    }
                    packed = snap(n, g, x, roots, id, for_scale, usual, &has_index);
                }
                add_sums(n, x, weights, packed, &qx, &q2);
                indices[cells * k + cell] = (uint16_t)packed;
            }
        }
        if (q2 > 0.0f) {
            scale = qx / q2;
        }
    }
    for (int cell = 0; cell < cells * eights; cell++) {
        indices[cell] = g->combinations[number_of(n, indices[cell])].index;
    }
    if (scale < 0.0f) {
        for (int k = 0; k < eights; k++) {
            signs[k] = (uint8_t)(~signs[k] & (even ? 127 : 255));
        }
        return -scale;
    }
    return scale;
}

#endif
