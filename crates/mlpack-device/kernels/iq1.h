// Super-blocks of 256 values of three levels on a grid, shifted up or down by an eighth: mlpack-quant's src/reference/iq1.rs,
// which has the pictures of the bytes. Lanes and phases are those of iq2_iq3.h. A group's values are sorted, and all splits of
// them into three runs are tried.
#ifndef MLPACK_IQ1_H
#define MLPACK_IQ1_H

#include "grids.h"

// A group of up to 32 values: their weights, each one's rank among them, and the value of each rank. Equal values rank as
// they come.
struct ranked {
    float weights[32];
    uint8_t rank[32];
    uint8_t at[32];
    float magnitude;
};

DUAL void rank_values(int n, const float *x, const float *importance, float sigma2, struct ranked *r) {
    r->magnitude = fabsf(x[0]);
    KEEP_LOOP
    for (int i = 0; i < n; i++) {
        const float v = x[i];
        r->weights[i] = importance ? importance[i] * sqrtf(sigma2 + v * v) : v * v;
        r->magnitude = r->magnitude > fabsf(v) ? r->magnitude : fabsf(v);
        int rank = 0;
        for (int j = 0; j < n; j++) {
            rank += x[j] < v || (x[j] == v && j < i) ? 1 : 0;
        }
        r->rank[i] = (uint8_t)rank;
        r->at[rank] = (uint8_t)i;
    }
}

// A scale, the boundaries of the runs, and which shifts it is for; `found` where any has an error.
struct split {
    float scale;
    int first, second;
    int shifts;
    int found;
};

// The lowest level; the others are one and two above.
DUAL float lowest_level(int down) {
    return down ? -1.125f : -0.875f;
}

// Takes a split in place of the best so far, where its sums explain more of the values.
DUAL void keep_better(float sumqx, float sumq2, int first, int second, int shifts, float *best_score, struct split *best) {
    if (sumq2 > 0.0f && sumqx * sumqx > *best_score * sumq2) {
        const float scale = sumqx / sumq2;
        *best_score = scale * sumqx;
        best->scale = scale;
        best->first = first;
        best->second = second;
        best->shifts = shifts;
        best->found = 1;
    }
}

// The best split of 32 values, all shifted alike.
DUAL struct split split_alike(const float *x, const struct ranked *r) {
    float sumx[33], sumw[33];
    sumx[0] = 0.0f;
    sumw[0] = 0.0f;
    KEEP_LOOP
    for (int j = 0; j < 32; j++) {
        const int i = r->at[j];
        sumx[j + 1] = sumx[j] + r->weights[i] * x[i];
        sumw[j + 1] = sumw[j] + r->weights[i];
    }
    struct split best = {0.0f, 0, 0, 0, 0};
    float best_score = -float_of(0x7f7fffffu);
    const float all_x = sumx[32], all_w = sumw[32];
    KEEP_LOOP
    for (int i1 = 0; i1 <= 32; i1++) {
        const float x1 = sumx[i1], w1 = sumw[i1];
        KEEP_LOOP
        for (int i2 = i1; i2 <= 32; i2++) {
            const float x2 = sumx[i2], w2 = sumw[i2];
            UNROLL
            for (int down = 0; down < 2; down++) {
                const float v0 = lowest_level(down), v1 = v0 + 1.0f, v2 = v0 + 2.0f;
                const float sumqx = (x1 - 0.0f) * v0 + (x2 - x1) * v1 + (all_x - x2) * v2;
                const float sumq2 = (w1 - 0.0f) * v0 * v0 + (w2 - w1) * v1 * v1 + (all_w - w2) * v2 * v2;
                keep_better(sumqx, sumq2, i1, i2, down, &best_score, &best);
            }
        }
    }
    return best;
}

// The best split of 16 values whose halves are shifted each for itself: bit 1 of the shifts is the first half's, bit 0 the
// second's.
DUAL struct split split_halves(const float *x, const struct ranked *r) {
    float px[2][17], pw[2][17];
    UNROLL
    for (int h = 0; h < 2; h++) {
        px[h][0] = 0.0f;
        pw[h][0] = 0.0f;
        KEEP_LOOP
        for (int j = 0; j < 16; j++) {
            const int i = r->at[j], mine = i / 8 == h;
            px[h][j + 1] = mine ? px[h][j] + r->weights[i] * x[i] : px[h][j];
            pw[h][j + 1] = mine ? pw[h][j] + r->weights[i] : pw[h][j];
        }
    }
    struct split best = {0.0f, 0, 0, 0, 0};
    float best_score = -float_of(0x7f7fffffu);
    KEEP_LOOP
    for (int i1 = 0; i1 <= 16; i1++) {
        KEEP_LOOP
        for (int i2 = i1; i2 <= 16; i2++) {
            // By shift, then by half.
            float qx[2][2], q2[2][2];
            UNROLL
            for (int h = 0; h < 2; h++) {
                const float sx = px[h][i1] + px[h][i2];
                UNROLL
                for (int down = 0; down < 2; down++) {
                    const float v0 = lowest_level(down), v1 = v0 + 1.0f, v2 = v0 + 2.0f;
                    qx[down][h] = px[h][16] * v2 - sx;
                    q2[down][h] = pw[h][16] * v2 * v2 + pw[h][i1] * (v0 * v0 - v1 * v1) + pw[h][i2] * (v1 * v1 - v2 * v2);
                }
            }
            UNROLL
            for (int shifts = 0; shifts < 4; shifts++) {
                const float sumqx = qx[shifts >> 1][0] + qx[shifts & 1][1];
                const float sumq2 = q2[shifts >> 1][0] + q2[shifts & 1][1];
                keep_better(sumqx, sumq2, i1, i2, shifts, &best_score, &best);
            }
        }
    }
    return best;
}

// Adds the sums of a cell: weighted products with its values, and weighted squares.
DUAL void add_shifted(const float *x, const float *weights, uint32_t packed, float lowest, float by, float *sumqx,
                      float *sumq2) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        const float q = (lowest + (float)(packed >> 2 * i & 3u)) * by;
        *sumqx += weights[i] * q * x[i];
        *sumq2 += weights[i] * q * q;
    }
}

// Which of the cells of a group is shifted down.
DUAL int is_down(int cells, int cell, int shifts) {
    return cells == 2 ? shifts >> (1 - cell) & 1 : shifts;
}

// The packed codes of a group's cells for a split, on the grid; its scale.
DUAL float snap_split(int cells, const struct grid *g, const float *x, const struct ranked *r, struct split *s,
                      uint16_t *codes) {
    const int mirrored = s->scale < 0.0f;
    if (mirrored) {
        s->scale = -s->scale;
        s->shifts = (cells == 2 ? 3 : 1) - s->shifts;
    }
    int all_indexed = 1;
    KEEP_LOOP
    for (int k = 0; k < cells; k++) {
        float values[8], weights[8];
        uint32_t packed = 0;
        UNROLL
        for (int i = 0; i < 8; i++) {
            values[i] = x[8 * k + i];
            weights[i] = r->weights[8 * k + i];
            const int rank = r->rank[8 * k + i];
            const int code = (rank >= s->first) + (rank >= s->second);
            packed |= (uint32_t)(mirrored ? 2 - code : code) << 2 * i;
        }
        const struct combination c = g->combinations[number_of(8, packed)];
        if (c.neighbours != 0) {
            all_indexed = 0;
            packed = best_of(8, g->list + c.start, c.neighbours, values, weights, s->scale,
                             lowest_level(is_down(cells, k, s->shifts)), 1.0f);
        }
        codes[k] = (uint16_t)packed;
    }
    if (!all_indexed) {
        float sumqx = 0.0f, sumq2 = 0.0f;
        KEEP_LOOP
        for (int k = 0; k < cells; k++) {
            add_shifted(x + 8 * k, r->weights + 8 * k, codes[k], lowest_level(is_down(cells, k, s->shifts)), 1.0f, &sumqx,
                        &sumq2);
        }
        if (sumqx > 0.0f && sumq2 > 0.0f) {
            return sumqx / sumq2;
        }
    }
    return s->scale;
}

// Searches the group of a lane, in cells of eight, unless all of it is small. The first code of the grid has all zeros, and
// so have the cells of a group that is not searched.
DUAL void search_splits(int cells, float eps, int lane, const struct grid *g, const float *x, const float *importance,
                        struct grid_block *s) {
    const float *values = x + 8 * cells * lane;
    struct ranked r;
    rank_values(8 * cells, values, importance ? importance + 8 * cells * lane : 0, 2.0f * s->sigma2 / 256.0f, &r);
    struct split split = {0.0f, 0, 0, 0, 0};
    if (!(r.magnitude < eps)) {
        split = cells == 2 ? split_halves(values, &r) : split_alike(values, &r);
    }
    s->scales[lane] = 0.0f;
    s->searched[lane] = 0;
    uint16_t *codes = s->indices + cells * lane;
    if (split.found) {
        s->scales[lane] = snap_split(cells, g, values, &r, &split, codes);
        s->searched[lane] = (uint8_t)split.shifts;
    } else {
        for (int k = 0; k < cells; k++) {
            codes[k] = 0;
        }
    }
}

// A fifteenth of the largest scale.
DUAL float split_scale(int groups, struct grid_block *s) {
    float max = 0.0f;
    for (int g = 0; g < groups; g++) {
        max = max > s->scales[g] ? max : s->scales[g];
    }
    s->empty = max == 0.0f;
    const float d = max / 15.0f;
    s->id = 1.0f / d;
    return d;
}

// Three bits of a group's scale.
DUAL uint32_t split_code(const struct grid_block *s, int group) {
    return s->empty ? 0u : (uint32_t)clamp(nearest_int(0.5f * (s->id * s->scales[group] - 1.0f)), 0, 7);
}

DUAL uint32_t index_of(const struct grid *g, const struct grid_block *s, int cell) {
    return g->combinations[number_of(8, s->indices[cell])].index;
}

// IQ1_S: d qs[32] qh[8] u16
DUAL void iq1_s(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                struct grid_block *s) {
    (void)weighted;
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        search_splits(4, 1e-12f, lane, g, x, importance, s);
    } else if (phase == 2 && lane == 0) {
        const float d = split_scale(8, s);
        store_scale(s->out, s->empty ? 0.0f : d * 1.125f);
    } else if (phase == 3) {
        uint32_t high = s->empty ? 0u : split_code(s, lane) << 12 | (uint32_t)s->searched[lane] << 15;
        for (int k = 0; k < 4; k++) {
            const uint32_t index = index_of(g, s, 4 * lane + k);
            s->out[2 + 4 * lane + k] = (uint8_t)index;
            high |= (index >> 8) << 3 * k;
        }
        store16(s->out + 34 + 2 * lane, (uint16_t)high);
    }
}

// IQ1_M: qs[32] qh[16] sc[4] u16. The scale of the super-block is fitted to all codes and the scales of their groups.
DUAL void iq1_m(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                struct grid_block *s) {
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        search_splits(2, 1e-7f, lane, g, x, weighted ? importance : 0, s);
    } else if (phase == 2 && lane == 0) {
        float d = split_scale(16, s), sumqx = 0.0f, sumq2 = 0.0f;
        const float sigma2 = 2.0f * s->sigma2 / 256.0f;
        KEEP_LOOP
        for (int cell = 0; cell < 32 && !s->empty; cell++) {
            const float by = (float)(2u * split_code(s, cell / 2) + 1u);
            float values[8], weights[8];
            UNROLL
            for (int i = 0; i < 8; i++) {
                const float v = x[8 * cell + i];
                values[i] = v;
                weights[i] = weighted ? importance[8 * cell + i] * sqrtf(sigma2 + v * v) : v * v;
            }
            const float lowest = lowest_level(is_down(2, cell % 2, s->searched[cell / 2]));
            add_shifted(values, weights, s->indices[cell], lowest, by, &sumqx, &sumq2);
        }
        if (sumq2 > 0.0f) {
            d = sumqx / sumq2;
        }
        const uint32_t half = s->empty ? 0u : scale_bits(d * 1.1125f);
        for (int k = 0; k < 4; k++) {
            uint32_t packed = (half >> 4 * k & 0xfu) << 12;
            for (int i = 0; i < 4; i++) {
                packed |= split_code(s, 4 * k + i) << 3 * i;
            }
            store16(s->out + 48 + 2 * k, (uint16_t)packed);
        }
    } else if (phase == 3) {
        const uint32_t first = index_of(g, s, 2 * lane), second = index_of(g, s, 2 * lane + 1);
        s->out[2 * lane] = (uint8_t)first;
        s->out[2 * lane + 1] = (uint8_t)second;
        const uint32_t down = s->empty ? 0u : (uint32_t)(s->searched[lane] & 1) << 7 | (uint32_t)(s->searched[lane] >> 1) << 3;
        s->out[32 + lane] = (uint8_t)(first >> 8 | (second >> 8) << 4 | down);
    }
}

#endif
