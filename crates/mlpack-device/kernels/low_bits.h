// Blocks that are not searched for, one for each thread: mlpack-quant's src/reference/low_bits.rs and fp4.rs, which have the
// pictures of the bytes.
#ifndef MLPACK_LOW_BITS_H
#define MLPACK_LOW_BITS_H

#include "blocks32.h"

// Q1_0: 128 values, d qs[16]
DUAL void encode_q1_0(const struct block *b, int weighted) {
    (void)weighted;
    float sum = 0.0f;
    for (int i = 0; i < 128; i++) {
        sum += fabsf(b->x[i]);
    }
    store_scale(b->out, sum / 128.0f);
    for (int byte = 0; byte < 16; byte++) {
        uint32_t bits = 0;
        for (int i = 0; i < 8; i++) {
            bits |= b->x[8 * byte + i] >= 0.0f ? 1u << i : 0u;
        }
        b->out[2 + byte] = (uint8_t)bits;
    }
}

DUAL float largest_magnitude(int n, const float *x) {
    float amax = 0.0f;
    for (int i = 0; i < n; i++) {
        amax = amax > fabsf(x[i]) ? amax : fabsf(x[i]);
    }
    return amax;
}

// Q2_0: 64 values, d qs[16]
DUAL void encode_q2_0(const struct block *b, int weighted) {
    (void)weighted;
    const float d = largest_magnitude(64, b->x);
    const float id = inverse(d);
    store_scale(b->out, d);
    for (int byte = 0; byte < 16; byte++) {
        uint32_t bits = 0;
        for (int i = 0; i < 4; i++) {
            const int rounded = truncate(roundf(b->x[4 * byte + i] * id));
            // The least integer is what does not fit; more by one it is below zero still.
            bits |= (uint32_t)clamp(rounded + 1, 0, 3) << 2 * i;
        }
        b->out[2 + byte] = (uint8_t)bits;
    }
}

// The ternary digit of a value: 0, 1 or 2 for -1, 0 or 1. What does not fit in 64 bits has no low bits.
DUAL uint8_t ternary_digit(float v, float id) {
    const float scaled = v * id;
    return (uint8_t)((fabsf(scaled) < 9.0e18f ? (uint32_t)(int64_t)roundf(scaled) : 0u) + 1u);
}

// TQ1_0: 256 values, qs[48] qh[4] d
DUAL void encode_tq1_0(const struct block *b, int weighted) {
    (void)weighted;
    const float d = largest_magnitude(256, b->x);
    const float id = inverse(d);
    for (int byte = 0; byte < 52; byte++) {
        const int first = byte < 32 ? byte : byte < 48 ? 128 + byte : 192 + byte;
        const int stride = byte < 32 ? 32 : byte < 48 ? 16 : 4;
        uint8_t number = 0;
        for (int n = 0; n < 5; n++) {
            const uint8_t digit = byte < 48 || n < 4 ? ternary_digit(b->x[first + n * stride], id) : 0;
            number = (uint8_t)(number * 3 + digit);
        }
        b->out[byte] = (uint8_t)((number * 256 + 242) % 65536 / 243);
    }
    store_scale(b->out + 52, d);
}

// TQ2_0: 256 values, qs[64] d
DUAL void encode_tq2_0(const struct block *b, int weighted) {
    (void)weighted;
    const float d = largest_magnitude(256, b->x);
    const float id = inverse(d);
    for (int byte = 0; byte < 64; byte++) {
        uint32_t bits = 0;
        for (int n = 0; n < 4; n++) {
            bits |= (uint32_t)(ternary_digit(b->x[byte / 32 * 128 + byte % 32 + 32 * n], id) & 3) << 2 * n;
        }
        b->out[byte] = (uint8_t)bits;
    }
    store_scale(b->out + 64, d);
}

// The nearest unsigned E4M3 byte: one bit below the mantissa decides.
DUAL uint8_t e4m3_bits(float v) {
    if (!(v > 0.0f)) {
        return 0;
    }
    v = v < 448.0f ? v : 448.0f;
    const int exponent = (int)(bits_of(v) >> 23) - 120;
    if (exponent <= 0) {
        const uint32_t code = (uint32_t)(v * 512.0f + 0.5f);
        return (uint8_t)(code < 7 ? code : 7);
    }
    const uint32_t rounded = ((uint32_t)exponent << 3 | (bits_of(v) >> 20 & 7u)) + (bits_of(v) >> 19 & 1u);
    return (uint8_t)(rounded >> 3 >= 15 ? 0x7eu : rounded);
}

// Half the value of one that `e4m3_bits` gives.
DUAL float half_e4m3(uint8_t byte) {
    const uint32_t exponent = byte >> 3, mantissa = byte & 7;
    return exponent == 0 ? (float)mantissa * float_of((127u - 10u) << 23) : float_of((exponent + 119u) << 23 | mantissa << 20);
}

// NVFP4: 64 values, d[4] qs[32]
DUAL void encode_nvfp4(const struct block *b, int weighted) {
    (void)weighted;
    for (int group = 0; group < 4; group++) {
        const float *x = b->x + 16 * group;
        b->out[group] = e4m3_bits(largest_magnitude(16, x) / 6.0f);
        const float d = half_e4m3(b->out[group]);
        for (int i = 0; i < 8; i++) {
            b->out[4 + 8 * group + i] = (uint8_t)(fp4_code(x[i], d) | fp4_code(x[i + 8], d) << 4);
        }
    }
}

#endif
