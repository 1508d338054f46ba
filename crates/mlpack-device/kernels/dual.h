// What every kernel source shares: the same C is compiled for a device by nvcc and for the host by a C compiler, so that
// its logic is tested where there is no device. Both compilers are told not to fuse multiplications with additions.
//
// Inputs are finite floats; whoever copies them looks for others (rows.h).
#ifndef MLPACK_DUAL_H
#define MLPACK_DUAL_H

#include <stdint.h>
#include <string.h>
#include <math.h>

#ifdef __CUDACC__
#define DUAL static __device__ __forceinline__
#define TABLE static __constant__ const
#define UNROLL _Pragma("unroll")
#define KEEP_LOOP _Pragma("unroll 1")
#else
#define DUAL static inline
#define TABLE static const
#define UNROLL
#define KEEP_LOOP
#endif

// Threads of a CUDA block, for all kernels.
#define THREADS 128

DUAL uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

DUAL float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

DUAL uint64_t bits_of_double(double v) {
    uint64_t bits;
    memcpy(&bits, &v, 8);
    return bits;
}

DUAL double double_of(uint64_t bits) {
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

DUAL int clamp(int v, int low, int high) {
    return v < low ? low : v > high ? high : v;
}

// The nearest integer, ties to even, by adding 1.5 * 2^23; beyond 2^22 low bits without meaning, but the same ones
// everywhere. A NaN, which only sums beyond the range make, is 0 as the bits of x86's own NaN give it: CUDA has another.
DUAL int nearest_int(float v) {
    if (!(v == v)) {
        return 0;
    }
    return (int)(bits_of(v + 12582912.0f) & 0x007fffffu) - 0x00400000;
}

// Towards zero; what does not fit is the least integer, as on x86.
DUAL int truncate(float v) {
    return fabsf(v) < 2147483648.0f ? (int)v : (int)0x80000000u;
}

// binary16: to nearest, ties to even; magnitudes from 65520 on are infinite.
DUAL uint16_t half_bits(float v) {
    const uint32_t sign = bits_of(v) >> 16 & 0x8000u;
    const uint32_t magnitude = bits_of(v) & 0x7fffffffu;
    uint32_t bits;
    if (magnitude > 0x7f800000u) {
        bits = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {
        bits = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {
        bits = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    } else {
        bits = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    }
    return (uint16_t)(sign | bits);
}

DUAL float half_value(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 0x1fu, mantissa = half & 0x3ffu;
    uint32_t magnitude;
    if (exponent == 0) {
        magnitude = bits_of((float)mantissa * float_of(0x33800000u));
    } else if (exponent == 31) {
        magnitude = mantissa != 0 ? 0x7fc00000u | mantissa << 13 : 0x7f800000u;
    } else {
        magnitude = (exponent + 112u) << 23 | mantissa << 13;
    }
    return float_of(sign | magnitude);
}

// bfloat16: to nearest, ties to even; NaNs become quiet.
DUAL uint16_t bfloat_bits(float v) {
    const uint32_t bits = bits_of(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DUAL uint16_t load16(const uint8_t *at) {
    return (uint16_t)(at[0] | at[1] << 8);
}

DUAL void store16(uint8_t *at, uint16_t v) {
    at[0] = (uint8_t)v;
    at[1] = (uint8_t)(v >> 8);
}

DUAL float load_half(const uint8_t *at) {
    return half_value(load16(at));
}

// The scale of a block. One that is not a number is always the NaN of x86 arithmetic.
DUAL uint16_t scale_bits(float v) {
    return v == v ? half_bits(v) : 0xfe00u;
}

DUAL void store_scale(uint8_t *at, float v) {
    store16(at, scale_bits(v));
}

#endif
