// Blocks of 32 values, one for each thread: mlpack-quant's src/reference/plain.rs, iq4.rs and fp4.rs, which have the pictures
// of the bytes.
#ifndef MLPACK_BLOCKS32_H
#define MLPACK_BLOCKS32_H

#include "search.h"

// What a thread needs for its block. `importance` is of its columns, `mean_square` of its row; both only with weights.
struct block {
    const float *x;
    const float *importance;
    float mean_square;
    uint8_t *out;
};

DUAL float inverse(float d) {
    return d != 0.0f ? 1.0f / d : 0.0f;
}

DUAL void load32(const float *from, float *to) {
    UNROLL
    for (int i = 0; i < 32; i++) {
        to[i] = from[i];
    }
}

// importance * sqrt(sigma2 + x^2)
DUAL void root_weights(int n, float sigma2, const float *x, const float *importance, float *weights) {
    UNROLL
    for (int i = 0; i < n; i++) {
        weights[i] = importance[i] * sqrtf(sigma2 + x[i] * x[i]);
    }
}

DUAL void pack_nibbles(const uint8_t *codes, uint8_t *out) {
    UNROLL
    for (int i = 0; i < 16; i++) {
        out[i] = (uint8_t)((codes[i] & 0xf) | codes[i + 16] << 4);
    }
}

DUAL void pack_high_bits(const uint8_t *codes, uint8_t *out) {
    uint32_t bits = 0;
    UNROLL
    for (int i = 0; i < 32; i++) {
        bits |= (uint32_t)(codes[i] >> 4 & 1) << i;
    }
    store16(out, (uint16_t)bits);
    store16(out + 2, (uint16_t)(bits >> 16));
}

// The scale of the types around zero, with codes from 0 to 2 * nmax - 1.
DUAL void encode_symmetric(int nmax, const struct block *b, uint8_t *codes) {
    float x[32], amax;
    load32(b->x, x);
    const float d = signed_max(32, x, &amax) / -(float)nmax;
    const float id = inverse(d);
    store_scale(b->out, d);
    UNROLL
    for (int i = 0; i < 32; i++) {
        const int8_t code = (int8_t)truncate(x[i] * id + ((float)nmax + 0.5f));
        codes[i] = (uint8_t)(code < 2 * nmax - 1 ? code : 2 * nmax - 1);
    }
}

DUAL void encode_symmetric_weighted(int nmax, const struct block *b, uint8_t *codes) {
    float x[32], weights[32];
    load32(b->x, x);
    root_weights(32, b->mean_square, x, b->importance, weights);
    store_scale(b->out, fit_symmetric(nmax, 32, x, BY_WEIGHT, weights, codes));
}

// Scale and minimum of the types that have both. The codes of five bits are not limited, as in ggml.
DUAL void encode_line(int nmax, const struct block *b, uint8_t *codes) {
    float x[32];
    load32(b->x, x);
    float min = float_of(0x7f7fffffu), max = -float_of(0x7f7fffffu);
    UNROLL
    for (int i = 0; i < 32; i++) {
        if (x[i] < min) {
            min = x[i];
        }
        if (x[i] > max) {
            max = x[i];
        }
    }
    const float d = (max - min) / (float)nmax;
    const float id = inverse(d);
    store_scale(b->out, d);
    store_scale(b->out + 2, min);
    UNROLL
    for (int i = 0; i < 32; i++) {
        const int code = truncate((x[i] - min) * id + 0.5f);
        codes[i] = nmax == 15 && (int8_t)code > 15 ? 15 : (uint8_t)code;
    }
}

DUAL void encode_line_weighted(int nmax, const struct block *b, uint8_t *codes) {
    float x[32], weights[32], min;
    load32(b->x, x);
    root_weights(32, b->mean_square, x, b->importance, weights);
    store_scale(b->out, fit_line_guarded(nmax, 32, x, weights, codes, &min));
    store_scale(b->out + 2, -min);
}

DUAL void encode_q4_0(const struct block *b, int weighted) {
    uint8_t codes[32];
    weighted ? encode_symmetric_weighted(8, b, codes) : encode_symmetric(8, b, codes);
    pack_nibbles(codes, b->out + 2);
}

DUAL void encode_q4_1(const struct block *b, int weighted) {
    uint8_t codes[32];
    weighted ? encode_line_weighted(15, b, codes) : encode_line(15, b, codes);
    pack_nibbles(codes, b->out + 4);
}

DUAL void encode_q5_0(const struct block *b, int weighted) {
    uint8_t codes[32];
    weighted ? encode_symmetric_weighted(16, b, codes) : encode_symmetric(16, b, codes);
    pack_high_bits(codes, b->out + 2);
    pack_nibbles(codes, b->out + 6);
}

DUAL void encode_q5_1(const struct block *b, int weighted) {
    uint8_t codes[32];
    weighted ? encode_line_weighted(31, b, codes) : encode_line(31, b, codes);
    pack_high_bits(codes, b->out + 4);
    pack_nibbles(codes, b->out + 8);
}

DUAL void encode_q8_0(const struct block *b, int weighted) {
    (void)weighted;
    float x[32], amax = 0.0f;
    load32(b->x, x);
    UNROLL
    for (int i = 0; i < 32; i++) {
        amax = amax > fabsf(x[i]) ? amax : fabsf(x[i]);
    }
    const float d = amax / 127.0f;
    const float id = inverse(d);
    store_scale(b->out, d);
    UNROLL
    for (int i = 0; i < 32; i++) {
        b->out[2 + i] = (uint8_t)truncate(roundf(x[i] * id));
    }
}

// The uneven scale of IQ4: its values, and halfway between neighbours.
TABLE float IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
TABLE float IQ4_MIDPOINTS[15] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101};

DUAL uint8_t iq4_code(float x) {
    int code = 0;
    UNROLL
    for (int i = 0; i < 15; i++) {
        code += x < IQ4_MIDPOINTS[i] ? 0 : 1;
    }
    return (uint8_t)code;
}

// The value of the nearest code: sums of steps, all of them small integers and so exact.
DUAL float iq4_value(float x) {
    float value = IQ4_VALUES[0];
    UNROLL
    for (int i = 0; i < 15; i++) {
        value += x < IQ4_MIDPOINTS[i] ? 0.0f : IQ4_VALUES[i + 1] - IQ4_VALUES[i];
    }
    return value;
}

DUAL void iq4_sums(const float *x, const float *weights, float id, float *qx, float *q2) {
    float sumqx = 0.0f, sumq2 = 0.0f;
    UNROLL
    for (int i = 0; i < 32; i++) {
        const float q = iq4_value(id * x[i]);
        sumqx += weights[i] * q * x[i];
        sumq2 += weights[i] * q * q;
    }
    *qx = sumqx;
    *q2 = sumq2;
}

// The scale of a group of 32, from 16 candidates; 0 for a group of zeros.
DUAL float iq4_fit(const float *x, const float *weights) {
    float amax, sumqx, sumq2;
    const float max = signed_max(32, x, &amax);
    if (amax < GROUP_MAX_EPS) {
        return 0.0f;
    }
    const float first = -max / IQ4_VALUES[0];
    iq4_sums(x, weights, 1.0f / first, &sumqx, &sumq2);
    float d = sumq2 > 0.0f ? sumqx / sumq2 : 0.0f;
    float best = d * sumqx;
    KEEP_LOOP
    for (int step = -7; step <= 7; step++) {
        const float id = (float)(step - 127) / max;
        iq4_sums(x, weights, id, &sumqx, &sumq2);
        if (sumq2 > 0.0f && sumqx * sumqx > best * sumq2) {
            d = sumqx / sumq2;
            best = d * sumqx;
        }
    }
    return d;
}

// Codes of a group for an inverse scale, packed.
DUAL void iq4_pack(const float *x, float id, uint8_t *out) {
    UNROLL
    for (int i = 0; i < 16; i++) {
        out[i] = (uint8_t)(iq4_code(id * x[i]) | iq4_code(id * x[i + 16]) << 4);
    }
}

DUAL void encode_iq4_nl(const struct block *b, int weighted) {
    float x[32], weights[32];
    load32(b->x, x);
    if (weighted) {
        float sigma2 = 0.0f;
        UNROLL
        for (int i = 0; i < 32; i++) {
            sigma2 += x[i] * x[i];
        }
        root_weights(32, sigma2 * (2.0f / 32.0f), x, b->importance, weights);
    } else {
        UNROLL
        for (int i = 0; i < 32; i++) {
            weights[i] = x[i] * x[i];
        }
    }
    const float d = iq4_fit(x, weights);
    store_scale(b->out, d);
    iq4_pack(x, inverse(d), b->out + 2);
}

// The floor of the logarithm as glibc's log2f gives it: rounded to float32 before the floor is taken.
DUAL int floor_log2(float x) {
    const uint32_t exponent_bits = bits_of(x) >> 23, mantissa = bits_of(x) & 0x007fffffu;
    if (exponent_bits >= 1 && exponent_bits < 255 && mantissa < 0x007fff00u) {
        return (int)exponent_bits - 127;
    }
    const double exact = (double)x;
    const int exponent = (int)(bits_of_double(exact) >> 52) - 1023;
    const int next = exponent + 1;
    if (next == 0) {
        return exponent;
    }
    // Half the distance between neighbouring floats where the logarithm lies, as a power of two.
    int half_step = -25;
    if (next != 1) {
        uint32_t magnitude = (uint32_t)(next > 0 ? next - 1 : -next);
        half_step = -24;
        while (magnitude > 1) {
            magnitude >>= 1;
            half_step++;
        }
    }
    const double power = double_of((uint64_t)(next + 1023) << 52);
    const double below = 1.0 - exact / power;
    return below * 1.4426950408889634 <= double_of((uint64_t)(half_step + 1023) << 52) ? next : exponent;
}

TABLE float FP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The first code whose value is nearest.
DUAL uint8_t fp4_code(float x, float scale) {
    int best = 0;
    float best_error = fabsf(FP4_VALUES[0] * scale - x);
    UNROLL
    for (int code = 1; code < 16; code++) {
        const float error = fabsf(FP4_VALUES[code] * scale - x);
        if (error < best_error) {
            best = code;
            best_error = error;
        }
    }
    return (uint8_t)best;
}

DUAL void encode_mxfp4(const struct block *b, int weighted) {
    (void)weighted;
    float x[32], amax = 0.0f;
    load32(b->x, x);
    UNROLL
    for (int i = 0; i < 32; i++) {
        amax = amax < fabsf(x[i]) ? fabsf(x[i]) : amax;
    }
    const uint8_t e = amax > 0.0f ? (uint8_t)(floor_log2(amax) + 125) : 0;
    const float d = float_of(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
    b->out[0] = e;
    UNROLL
    for (int i = 0; i < 16; i++) {
        b->out[1 + i] = (uint8_t)(fp4_code(x[i], d) | fp4_code(x[i + 16], d) << 4);
    }
}

#endif
