// Super-blocks of 256 values, eight or sixteen lanes for each: mlpack-quant's src/reference/k2_k3.rs, k4_k5.rs, k6.rs and
// iq4.rs, which have the pictures of the bytes.
//
// A block is encoded in phases. In one phase every lane does its group, and none reads what another writes in that phase;
// between phases lanes wait for each other. On the host a loop over phases and lanes does the same.
//
//   0  sums that all groups need           lane 0
//   1  search: scale, minimum, codes       each lane its group
//   2  scales relative to each other       lane 0
//   3  codes for the scales as stored      each lane its group
//   4  packing                             each lane its part of the bytes
#ifndef MLPACK_SUPER_BLOCKS_H
#define MLPACK_SUPER_BLOCKS_H

#include "blocks32.h"

#define PHASES 5
#define MAX_LANES 16
#define MAX_SUPER_BLOCK_BYTES 210

// What lanes of a block share.
struct super_block {
    float sigma2;
    float scales[MAX_LANES];
    float mins[MAX_LANES];
    // Of the weights of each group.
    float sums[MAX_LANES];
    uint8_t codes[256];
    uint8_t out[MAX_SUPER_BLOCK_BYTES];
    // All values are zeros, and so are all bytes.
    int empty;
};

DUAL float sum_of_squares(const float *x) {
    float sum = 0.0f;
    for (int i = 0; i < 256; i++) {
        sum += x[i] * x[i];
    }
    return sum;
}

DUAL float sum_of(int n, const float *v) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < n; i++) {
        sum += v[i];
    }
    return sum;
}

DUAL float largest(int n, const float *v) {
    float max = 0.0f;
    for (int i = 0; i < n; i++) {
        max = v[i] > max ? v[i] : max;
    }
    return max;
}

// Two bits of each value: `part` of 16, four bytes each.
DUAL void pack_pairs(int part, const uint8_t *codes, uint8_t *out) {
    for (int b = 4 * part; b < 4 * part + 4; b++) {
        const uint8_t *of = codes + 128 * (b / 32) + b % 32;
        out[b] = (uint8_t)((of[0] & 3) | (of[32] & 3) << 2 | (of[64] & 3) << 4 | (of[96] & 3) << 6);
    }
}

DUAL void group16(const float *x, int lane, float *group) {
    UNROLL
    for (int i = 0; i < 16; i++) {
        group[i] = x[16 * lane + i];
    }
}

DUAL void group32(const float *x, int lane, float *group) {
    load32(x + 32 * lane, group);
}

// Codes of a group from `low` to `high`, stored from 0 on, where the scale is not zero.
DUAL void requantize(int n, const float *x, float d, float dm, int low, int high, uint8_t *codes) {
    if (d != 0.0f) {
        UNROLL
        for (int i = 0; i < n; i++) {
            codes[i] = (uint8_t)(clamp(nearest_int((x[i] + dm) / d), low, high) - low);
        }
    }
}

// Q2_K: scales[16] qs[64] d dmin

DUAL void q2_k(int phase, int lane, int weighted, const float *x, const float *importance, struct super_block *s) {
    float group[16], weights[16];
    if (phase == 0 && weighted && lane == 0) {
        s->sigma2 = sum_of_squares(x) / 256.0f;
    } else if (phase == 1) {
        group16(x, lane, group);
        if (weighted) {
            root_weights(16, s->sigma2, group, importance + 16 * lane, weights);
            s->sums[lane] = sum_of(16, weights);
            s->scales[lane] = fit_line_guarded(3, 16, group, weights, s->codes + 16 * lane, &s->mins[lane]);
        } else {
            UNROLL
            for (int i = 0; i < 16; i++) {
                weights[i] = fabsf(group[i]);
            }
            s->scales[lane] =
                fit_line(3, 16, group, weights, -0.5f, 0.1f, 15, LOSS_ABSOLUTE, s->codes + 16 * lane, &s->mins[lane]);
        }
    } else if (phase == 2 && lane == 0) {
        float d, dmin;
        if (weighted) {
            uint8_t scales[16], mins[16];
            d = fit_positive(15, 16, s->scales, scales, s->sums);
            dmin = fit_positive(15, 16, s->mins, mins, s->sums);
            for (int j = 0; j < 16; j++) {
                s->out[j] = (uint8_t)(scales[j] | mins[j] << 4);
            }
        } else {
            const float max_scale = largest(16, s->scales), max_min = largest(16, s->mins);
            d = max_scale > 0.0f ? max_scale / 15.0f : 0.0f;
            dmin = max_min > 0.0f ? max_min / 15.0f : 0.0f;
            const float by_scale = max_scale > 0.0f ? 15.0f / max_scale : 0.0f;
            const float by_min = max_min > 0.0f ? 15.0f / max_min : 0.0f;
            for (int j = 0; j < 16; j++) {
                const int scale = max_scale > 0.0f ? nearest_int(by_scale * s->scales[j]) : 0;
                const int min = max_min > 0.0f ? nearest_int(by_min * s->mins[j]) : 0;
                s->out[j] = (uint8_t)(scale | min << 4);
            }
        }
        store_scale(s->out + 80, d);
        store_scale(s->out + 82, dmin);
    } else if (phase == 3) {
        const float d = load_half(s->out + 80) * (float)(s->out[lane] & 0xf);
        const float dm = load_half(s->out + 82) * (float)(s->out[lane] >> 4);
        group16(x, lane, group);
        requantize(16, group, d, dm, 0, 3, s->codes + 16 * lane);
    } else if (phase == 4) {
        pack_pairs(lane, s->codes, s->out + 16);
    }
}

// Q3_K: hmask[32] qs[64] scales[12] d

DUAL void q3_k_pack_scales(const uint8_t *codes, uint8_t *packed) {
    for (int j = 0; j < 12; j++) {
        packed[j] = 0;
    }
    for (int j = 0; j < 16; j++) {
        packed[j % 8] |= (uint8_t)((codes[j] & 0xf) << (4 * (j / 8)));
        packed[8 + j % 4] |= (uint8_t)(codes[j] >> 4 << (2 * (j / 4)));
    }
}

DUAL void q3_k(int phase, int lane, int weighted, const float *x, const float *importance, struct super_block *s) {
    float group[16];
    if (phase == 0 && weighted && lane == 0) {
        s->sigma2 = 2.0f * sum_of_squares(x) / 256.0f;
    } else if (phase == 1) {
        group16(x, lane, group);
        if (weighted) {
            float weights[16];
            root_weights(16, s->sigma2, group, importance + 16 * lane, weights);
            s->sums[lane] = sum_of(16, weights);
            s->scales[lane] = fit_symmetric(4, 16, group, BY_WEIGHT, weights, s->codes + 16 * lane);
        } else {
            s->scales[lane] = fit_by_moves(4, group, s->codes + 16 * lane);
        }
    } else if (phase == 2 && lane == 0) {
        uint8_t codes[16];
        if (weighted) {
            const float d = fit_symmetric(32, 16, s->scales, BY_WEIGHT, s->sums, codes);
            q3_k_pack_scales(codes, s->out + 96);
            store_scale(s->out + 108, d);
        } else {
            float amax;
            const float max = signed_max(16, s->scales, &amax);
            if (max == 0.0f) {
                for (int j = 96; j < 110; j++) {
                    s->out[j] = 0;
                }
            } else {
                const float iscale = -32.0f / max;
                for (int j = 0; j < 16; j++) {
                    codes[j] = (uint8_t)(clamp((int8_t)nearest_int(iscale * s->scales[j]), -32, 31) + 32);
                }
                q3_k_pack_scales(codes, s->out + 96);
                store_scale(s->out + 108, 1.0f / iscale);
            }
        }
    } else if (phase == 3) {
        const uint8_t *packed = s->out + 96;
        const int low = packed[lane % 8] >> (4 * (lane / 8)) & 0xf;
        const int high = packed[8 + lane % 4] >> (2 * (lane / 4)) & 3;
        const float d = load_half(s->out + 108) * (float)((low | high << 4) - 32);
        group16(x, lane, group);
        if (d != 0.0f) {
            UNROLL
            for (int i = 0; i < 16; i++) {
                s->codes[16 * lane + i] = (uint8_t)(clamp(nearest_int(group[i] / d), -4, 3) + 4);
            }
        }
    } else if (phase == 4) {
        for (int l = 2 * lane; l < 2 * lane + 2; l++) {
            uint8_t mask = 0;
            UNROLL
            for (int k = 0; k < 8; k++) {
                mask |= (uint8_t)((s->codes[l + 32 * k] >> 2 & 1) << k);
            }
            s->out[l] = mask;
        }
        pack_pairs(lane, s->codes, s->out + 32);
    }
}

// Q4_K: d dmin scales[12] qs[128]; Q5_K: d dmin scales[12] qh[32] qs[128]

DUAL void k4_k5_header(int weighted, int limit, struct super_block *s) {
    uint8_t scales[8], mins[8];
    float d, dmin;
    if (weighted) {
        d = fit_positive(63, 8, s->scales, scales, s->sums);
        dmin = fit_positive(63, 8, s->mins, mins, s->sums);
        for (int j = 0; j < 8; j++) {
            scales[j] = scales[j] < limit ? scales[j] : (uint8_t)limit;
            mins[j] = mins[j] < limit ? mins[j] : (uint8_t)limit;
        }
    } else {
        const float max_scale = largest(8, s->scales), max_min = largest(8, s->mins);
        const float by_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f;
        const float by_min = max_min > 0.0f ? 63.0f / max_min : 0.0f;
        for (int j = 0; j < 8; j++) {
            const uint8_t scale = (uint8_t)nearest_int(by_scale * s->scales[j]);
            const uint8_t min = (uint8_t)nearest_int(by_min * s->mins[j]);
            scales[j] = scale < 63 ? scale : 63;
            mins[j] = min < 63 ? min : 63;
        }
        d = max_scale / 63.0f;
        dmin = max_min / 63.0f;
    }
    store_scale(s->out, d);
    store_scale(s->out + 2, dmin);
    uint8_t *packed = s->out + 4;
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scales[j] | scales[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(mins[j] | mins[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((scales[j + 4] & 0xf) | mins[j + 4] << 4);
    }
}

DUAL void k4_k5(int phase, int lane, int weighted, int nmax, float start, int steps, int limit, const float *x,
                const float *importance, struct super_block *s) {
    float group[32], weights[32];
    if (phase == 0 && weighted && lane == 0) {
        s->sigma2 = 2.0f * sum_of_squares(x) / 256.0f;
    } else if (phase == 1) {
        group32(x, lane, group);
        uint8_t *codes = s->codes + 32 * lane;
        if (weighted) {
            root_weights(32, s->sigma2, group, importance + 32 * lane, weights);
            s->sums[lane] = sum_of(32, weights);
            s->scales[lane] = fit_line_guarded(nmax, 32, group, weights, codes, &s->mins[lane]);
        } else {
            float squares = 0.0f;
            UNROLL
            for (int i = 0; i < 32; i++) {
                squares += group[i] * group[i];
            }
            const float rms = sqrtf(squares / 32.0f);
            UNROLL
            for (int i = 0; i < 32; i++) {
                weights[i] = rms + fabsf(group[i]);
            }
            s->scales[lane] =
                fit_line(nmax, 32, group, weights, start, 0.1f, steps, LOSS_SQUARE, codes, &s->mins[lane]);
        }
    } else if (phase == 2 && lane == 0) {
        k4_k5_header(weighted, limit, s);
    } else if (phase == 3) {
        const uint8_t *packed = s->out + 4;
        int scale, min;
        if (lane < 4) {
            scale = packed[lane] & 63;
            min = packed[lane + 4] & 63;
        } else {
            scale = (packed[lane + 4] & 0xf) | packed[lane - 4] >> 6 << 4;
            min = packed[lane + 4] >> 4 | packed[lane] >> 6 << 4;
        }
        group32(x, lane, group);
        requantize(32, group, load_half(s->out) * (float)scale, load_half(s->out + 2) * (float)min, 0, nmax,
                   s->codes + 32 * lane);
    } else if (phase == 4) {
        uint8_t *qs = s->out + 16;
        if (nmax == 31) {
            for (int l = 4 * lane; l < 4 * lane + 4; l++) {
                uint8_t bits = 0;
                UNROLL
                for (int g = 0; g < 8; g++) {
                    bits |= (uint8_t)(s->codes[32 * g + l] >> 4 << g);
                }
                qs[l] = bits;
            }
            qs += 32;
        }
        for (int b = 16 * lane; b < 16 * lane + 16; b++) {
            const uint8_t *of = s->codes + 64 * (b / 32) + b % 32;
            qs[b] = (uint8_t)((of[0] & 0xf) | of[32] << 4);
        }
    }
}

DUAL void q4_k(int phase, int lane, int weighted, const float *x, const float *importance, struct super_block *s) {
    k4_k5(phase, lane, weighted, 15, -1.0f, 20, 255, x, importance, s);
}

DUAL void q5_k(int phase, int lane, int weighted, const float *x, const float *importance, struct super_block *s) {
    k4_k5(phase, lane, weighted, 31, -0.5f, 15, 63, x, importance, s);
}

// Q6_K: ql[128] qh[64] scales[16] d. Importance counts as it is.

DUAL void q6_k(int phase, int lane, int weighted, const float *x, const float *importance, struct super_block *s) {
    float group[16];
    if (phase == 1) {
        group16(x, lane, group);
        if (weighted) {
            float weights[16];
            group16(importance, lane, weights);
            s->scales[lane] = fit_symmetric(32, 16, group, BY_WEIGHT, weights, s->codes + 16 * lane);
        } else {
            s->scales[lane] = fit_symmetric(32, 16, group, BY_SQUARE, group, s->codes + 16 * lane);
        }
    } else if (phase == 2 && lane == 0) {
        float amax;
        const float max = signed_max(16, s->scales, &amax);
        s->empty = amax < GROUP_MAX_EPS;
        const float iscale = -128.0f / max;
        for (int j = 0; j < 16; j++) {
            const int scale = s->empty ? 0 : nearest_int(iscale * s->scales[j]);
            s->out[192 + j] = (uint8_t)(scale < 127 ? scale : 127);
        }
        store_scale(s->out + 208, s->empty ? 0.0f : 1.0f / iscale);
    } else if (phase == 3) {
        const float d = load_half(s->out + 208) * (float)(int8_t)s->out[192 + lane];
        group16(x, lane, group);
        if (d != 0.0f) {
            UNROLL
            for (int i = 0; i < 16; i++) {
                s->codes[16 * lane + i] = (uint8_t)(clamp(nearest_int(group[i] / d), -32, 31) + 32);
            }
        }
    } else if (phase == 4) {
        for (int i = 4 * lane; i < 4 * lane + 4; i++) {
            const int half = i / 32, l = i % 32;
            const uint8_t *q = s->codes + 128 * half + l;
            uint8_t *out = s->out;
            out[64 * half + l] = s->empty ? 0 : (uint8_t)((q[0] & 0xf) | q[64] << 4);
            out[64 * half + l + 32] = s->empty ? 0 : (uint8_t)((q[32] & 0xf) | q[96] << 4);
            out[128 + 32 * half + l] =
                s->empty ? 0 : (uint8_t)(q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6);
        }
    }
}

// IQ4_XS: d sh sl[4] qs[128]

DUAL void iq4_xs(int phase, int lane, int weighted, const float *x, const float *importance, struct super_block *s) {
    float group[32];
    if (phase == 0 && weighted && lane == 0) {
        s->sigma2 = sum_of_squares(x) * (2.0f / 256.0f);
    } else if (phase == 1) {
        float weights[32];
        group32(x, lane, group);
        if (weighted) {
            root_weights(32, s->sigma2, group, importance + 32 * lane, weights);
        } else {
            UNROLL
            for (int i = 0; i < 32; i++) {
                weights[i] = group[i] * group[i];
            }
        }
        s->scales[lane] = iq4_fit(group, weights);
    } else if (phase == 2 && lane == 0) {
        float amax;
        const float d = -signed_max(8, s->scales, &amax) / 32.0f;
        const float id = inverse(d);
        uint32_t low = 0, high = 0;
        for (int g = 0; g < 8; g++) {
            const int l = clamp(nearest_int(id * s->scales[g]), -32, 31);
            // Where the search left it: the scale that codes are for.
            s->mins[g] = d * (float)l;
            low |= (uint32_t)((l + 32) & 0xf) << (4 * g);
            high |= (uint32_t)(l + 32) >> 4 << (2 * g);
        }
        store_scale(s->out, d);
        store16(s->out + 2, (uint16_t)high);
        store16(s->out + 4, (uint16_t)low);
        store16(s->out + 6, (uint16_t)(low >> 16));
    } else if (phase == 3) {
        group32(x, lane, group);
        iq4_pack(group, inverse(s->mins[lane]), s->out + 8 + 16 * lane);
    }
}

#endif
