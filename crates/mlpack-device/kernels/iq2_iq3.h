// Super-blocks of 256 values whose codes are points of a grid: mlpack-quant's src/reference/iq2.rs and iq3.rs, which have the
// pictures of the bytes. Lanes and phases are as in super_blocks.h:
//
//   0  the mean square that weights need   lane 0
//   1  search: scale, indices and signs    each lane its group
//   2  the scale of the super-block        lane 0
//   3  packing                             each lane its part of the bytes
#ifndef MLPACK_IQ2_IQ3_H
#define MLPACK_IQ2_IQ3_H

#include "grids.h"

// A group that is not searched.
DUAL void skip_group(int lane, int cells, int eights, struct grid_block *s) {
    s->scales[lane] = 0.0f;
    s->searched[lane] = 0;
    for (int i = 0; i < cells; i++) {
        s->indices[cells * lane + i] = 0;
    }
    for (int i = 0; i < eights; i++) {
        s->signs[eights * lane + i] = 0;
    }
}

// Searches the group of a lane, unless all of it is small.
DUAL void search_group(int n, int eights, int tries, float step, int refit, int even, float factor, float eps, int lane,
                       const struct grid *g, const float *x, const struct weighing *all, struct grid_block *s) {
    const int cells = 8 / n * eights;
    const float *values = x + 8 * eights * lane;
    struct weighing w = *all;
    w.sigma2 = factor * s->sigma2 / 256.0f;
    w.importance = all->importance ? all->importance + 8 * eights * lane : 0;
    const struct reach r = reach_of(eights, values, &w, even);
    if (eps > 0.0f ? r.max < eps : r.max == 0.0f) {
        skip_group(lane, cells, eights, s);
        return;
    }
    s->searched[lane] = 1;
    s->scales[lane] = fit_cells(n, eights, tries, step, refit, even, g, values, &w, r.max, r.magnitude,
                                r.max / (n == 8 ? 5.0f : 15.0f), s->indices + cells * lane, s->signs + eights * lane);
}

// The scale of the super-block, for the largest of its groups.
DUAL void grid_scale(int groups, float fudge, struct grid_block *s) {
    float max = 0.0f;
    for (int g = 0; g < groups; g++) {
        max = max > s->scales[g] ? max : s->scales[g];
    }
    const float d = max / 31.0f;
    s->empty = max == 0.0f;
    s->id = 1.0f / d;
    store_scale(s->out, s->empty ? 0.0f : d * fudge);
}

// Four bits of a group's scale relative to the super-block's.
DUAL uint32_t scale_code(const struct grid_block *s, int group) {
    return s->empty ? 0u : (uint32_t)clamp(nearest_int(0.5f * (s->id * s->scales[group] - 1.0f)), 0, 15);
}

DUAL void store32(uint8_t *at, uint32_t v) {
    store16(at, (uint16_t)v);
    store16(at + 2, (uint16_t)(v >> 16));
}

// Four times seven signs, and the scale on top.
DUAL uint32_t signs_and_scale(int group, const struct grid_block *s) {
    uint32_t word = scale_code(s, group) << 28;
    for (int k = 0; k < 4; k++) {
        word |= (uint32_t)s->signs[4 * group + k] << 7 * k;
    }
    return word;
}

// The scales of a lane's group and the next one.
DUAL uint8_t scale_pair(int lane, const struct grid_block *s) {
    return (uint8_t)(scale_code(s, lane) | scale_code(s, lane + 1) << 4);
}

// IQ2_XXS: d, then for each group of 32 four index bytes and u32. The search is around the scale of a fit to all codes, and
// one more.
DUAL void iq2_xxs(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                  struct grid_block *s) {
    (void)weighted;
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        const struct weighing w = {importance + 32 * lane, 1.0f * s->sigma2 / 256.0f, 0.0f};
        float magnitudes[32], weights[32], magnitude = 0.0f;
        KEEP_LOOP
        for (int k = 0; k < 4; k++) {
            struct eight e;
            load_eight(x + 32 * lane, &w, 8 * k, 1, &e);
            UNROLL
            for (int i = 0; i < 8; i++) {
                magnitudes[8 * k + i] = e.x[i];
                weights[8 * k + i] = e.weights[i];
                magnitude = fabsf(e.x[i]) > magnitude ? fabsf(e.x[i]) : magnitude;
            }
        }
        uint8_t codes[32];
        const float first = fit_positive(4, 32, magnitudes, codes, weights);
        const float max = first * 3.0f;
        if (max <= 0.0f) {
            skip_group(lane, 4, 4, s);
        } else {
            s->scales[lane] = fit_cells(8, 4, 6, 0.1f, REFIT_ALWAYS, 1, g, x + 32 * lane, &w, max, magnitude, first,
                                        s->indices + 4 * lane, s->signs + 4 * lane);
        }
    } else if (phase == 2 && lane == 0) {
        grid_scale(8, 1.0f, s);
    } else if (phase == 3) {
        uint8_t *out = s->out + 2 + 8 * lane;
        for (int k = 0; k < 4; k++) {
            out[k] = s->empty ? 0 : (uint8_t)s->indices[4 * lane + k];
        }
        store32(out + 4, s->empty ? 0 : signs_and_scale(lane, s));
    }
}

// IQ2_XS: d qs[32] u16 sc[8]
DUAL void iq2_xs(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                 struct grid_block *s) {
    (void)weighted;
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        const struct weighing w = {importance, 0.0f, 0.0f};
        search_group(8, 2, 9, 0.1f, REFIT_UNINDEXED, 1, 1.0f, GROUP_MAX_EPS, lane, g, x, &w, s);
    } else if (phase == 2 && lane == 0) {
        grid_scale(16, 1.0f, s);
    } else if (phase == 3) {
        for (int cell = 2 * lane; cell < 2 * lane + 2; cell++) {
            store16(s->out + 2 + 2 * cell, s->empty ? 0 : (uint16_t)(s->indices[cell] | s->signs[cell] << 9));
        }
        if (lane % 2 == 0) {
            s->out[66 + lane / 2] = scale_pair(lane, s);
        }
    }
}

// IQ2_S: d qs[32] signs[32] qh[8] sc[8]
DUAL void iq2_s(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                struct grid_block *s) {
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        const struct weighing w = {weighted ? importance : 0, 0.0f, 0.25f};
        search_group(8, 2, 9, 0.1f, REFIT_UNINDEXED, 0, 2.0f, 1e-8f, lane, g, x, &w, s);
    } else if (phase == 2 && lane == 0) {
        grid_scale(16, 0.9875f, s);
    } else if (phase == 3) {
        uint32_t high = 0;
        for (int k = 0; k < 4; k++) {
            if (k < 2) {
                s->out[2 + 2 * lane + k] = (uint8_t)s->indices[2 * lane + k];
                s->out[34 + 2 * lane + k] = s->signs[2 * lane + k];
            }
            if (lane % 2 == 0) {
                high |= (uint32_t)(s->indices[2 * lane + k] >> 8) << 2 * k;
            }
        }
        if (lane % 2 == 0) {
            s->out[66 + lane / 2] = (uint8_t)high;
            s->out[74 + lane / 2] = scale_pair(lane, s);
        }
    }
}

// IQ3_XXS: d qs[64] sw[8] u32
DUAL void iq3_xxs(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                  struct grid_block *s) {
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        const struct weighing w = {weighted ? importance : 0, 0.0f, 0.0f};
        search_group(4, 4, 15, 0.2f, REFIT_UNINDEXED, 1, 2.0f, 1e-8f, lane, g, x, &w, s);
    } else if (phase == 2 && lane == 0) {
        grid_scale(8, 1.0125f, s);
    } else if (phase == 3) {
        for (int k = 0; k < 8; k++) {
            s->out[2 + 8 * lane + k] = s->empty ? 0 : (uint8_t)s->indices[8 * lane + k];
        }
        store32(s->out + 66 + 4 * lane, s->empty ? 0 : signs_and_scale(lane, s));
    }
}

// IQ3_S: d qs[64] qh[8] signs[32] sc[4]. Index bytes and signs of groups that are zeros are left out, and come last as zeros.
DUAL void iq3_s(int phase, int lane, int weighted, const float *x, const float *importance, const struct grid *g,
                struct grid_block *s) {
    if (phase == 0 && lane == 0) {
        sum_squares(x, s);
    } else if (phase == 1) {
        const struct weighing w = {weighted ? importance : 0, 0.0f, 0.0f};
        search_group(4, 4, 9, 0.2f, REFIT_GROUP, 0, 2.0f, 0.0f, lane, g, x, &w, s);
    } else if (phase == 2 && lane == 0) {
        grid_scale(8, 1.033f, s);
    } else if (phase == 3) {
        int before = 0, searched = 0;
        for (int group = 0; group < 8; group++) {
            before += group < lane ? s->searched[group] : 0;
            searched += s->searched[group];
        }
        const int place = s->searched[lane] ? before : searched + lane - before;
        uint32_t high = 0;
        for (int k = 0; k < 8; k++) {
            const uint32_t index = s->indices[8 * lane + k];
            s->out[2 + 8 * place + k] = (uint8_t)index;
            high |= (index >> 8) << k;
        }
        for (int k = 0; k < 4; k++) {
            s->out[74 + 4 * place + k] = s->signs[4 * lane + k];
        }
        s->out[66 + lane] = (uint8_t)high;
        if (lane % 2 == 0) {
            s->out[106 + lane / 2] = scale_pair(lane, s);
        }
    }
}

#endif
