#!/usr/bin/env python3
"""Writes golden.txt: digests of what ggml itself encodes and decodes, and the random blocks that it finds invalid.

    python3 make_golden.py path/to/libggml-base.so > golden.txt

Needs numpy and a ggml of llama.cpp b11434 built for baseline x86-64 (no -march, no -ffast-math). The inputs are those
of ../inputs/mod.rs: both sides compute them with the same single-precision operations.
"""

import ctypes
import hashlib
import struct
import sys

import numpy as np

TYPES = {  # name: (number, elements of a block, bytes of a block, uses importance, needs importance)
    "F32": (0, 1, 4, 0, 0), "F16": (1, 1, 2, 0, 0), "BF16": (30, 1, 2, 0, 0),
    "Q1_0": (41, 128, 18, 0, 0), "Q2_0": (42, 64, 18, 0, 0),
    "Q4_0": (2, 32, 18, 1, 0), "Q4_1": (3, 32, 20, 1, 0), "Q5_0": (6, 32, 22, 1, 0), "Q5_1": (7, 32, 24, 1, 0),
    "Q8_0": (8, 32, 34, 0, 0), "MXFP4": (39, 32, 17, 0, 0), "NVFP4": (40, 64, 36, 0, 0),
    "Q2_K": (10, 256, 84, 1, 0), "Q3_K": (11, 256, 110, 1, 0), "Q4_K": (12, 256, 144, 1, 0),
    "Q5_K": (13, 256, 176, 1, 0), "Q6_K": (14, 256, 210, 1, 0),
    "TQ1_0": (34, 256, 54, 0, 0), "TQ2_0": (35, 256, 66, 0, 0),
    "IQ4_NL": (20, 32, 18, 1, 0), "IQ4_XS": (23, 256, 136, 1, 0),
    "IQ3_XXS": (18, 256, 98, 1, 0), "IQ3_S": (21, 256, 110, 1, 0),
    "IQ2_XXS": (16, 256, 66, 1, 1), "IQ2_XS": (17, 256, 74, 1, 1), "IQ2_S": (22, 256, 82, 1, 0),
    "IQ1_S": (19, 256, 50, 1, 1), "IQ1_M": (29, 256, 56, 1, 0),
}
CASES = [
    "gauss", "bf16", "heavy", "sparse", "positive", "negative", "zeros", "negzero", "constant", "negconst", "outlier",
    "subnormal", "tiny", "small16", "f16edge", "huge", "ties", "alternating", "mixed", "flat", "onehot", "ternary",
]
ROWS = 3
f32 = np.float32


def row_lens(block):
    return {256: (256, 1024), 128: (128, 640), 64: (64, 576)}.get(block, (32, 576))


def words(seed, start, count):
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(w):
    return (w >> np.uint64(40)).astype(f32) * f32(2.0**-24)


def seed_of(case, row_len):
    return int.from_bytes(case.encode()[:8].ljust(8, b"\0"), "little") ^ row_len


def values(case, row_len):
    n = ROWS * row_len
    seed = seed_of(case, row_len)
    w = words(seed, 0, 4 * n).reshape(n, 4)
    r = w[:, 0]
    u = uniform(w)
    g = ((u[:, 0] + u[:, 1]) + u[:, 2]) + u[:, 3] - f32(2)
    i = np.arange(n)
    odd = (r & np.uint64(1)) == 1
    match case:
        case "gauss":
            x = g * f32(0.02)
        case "bf16":
            x = ((g * f32(0.05)).view(np.uint32) & np.uint32(0xFFFF0000)).view(f32)
        case "heavy":
            x = g * g * g
        case "sparse":
            x = np.where(u[:, 0] < f32(0.9), f32(0), u[:, 2] - f32(0.5))
        case "positive":
            x = u[:, 0] + f32(0.25)
        case "negative":
            x = -(u[:, 0] + f32(0.25))
        case "zeros":
            x = np.zeros(n, f32)
        case "negzero":
            x = np.full(n, -0.0, f32)
        case "constant":
            x = np.full(n, 0.7, f32)
        case "negconst":
            x = np.full(n, -0.3, f32)
        case "outlier":
            at = i % 256 == (i // 256 * 37 + 5) % 256
            x = np.where(at, np.where(i // 256 % 2 == 0, f32(30), f32(-30)), g * f32(0.01))
        case "subnormal":
            x = ((r >> np.uint64(32)).astype(np.uint32) & np.uint32(0x807FFFFF)).view(f32)
        case "tiny":
            x = g * f32(1e-30)
        case "small16":
            x = g * f32(3e-6)
        case "f16edge":
            magnitude = np.where((r >> np.uint64(1) & np.uint64(3)) != 0, f32(65504), f32(70000))
            x = np.where(odd, magnitude, -magnitude)
        case "huge":
            x = g * f32(1e10)
        case "ties":
            x = ((r % np.uint64(65)).astype(f32) - f32(32)) * f32(0.5)
        case "alternating":
            x = np.where(i % 2 == 0, f32(1), f32(-1))
        case "mixed":
            exponent = (words(seed ^ 99, 0, n)[i // 16] % np.uint64(40)).astype(np.int32) - 20
            x = g * np.ldexp(f32(1), exponent)
        case "flat":
            x = f32(1) + u[:, 0] * f32(1e-6)
        case "onehot":
            x = np.where(i % 32 == i // 32 % 32, f32(1), f32(0))
        case "ternary":
            x = ((r % np.uint64(3)).astype(f32) - f32(1)) * f32(0.04)
    return np.ascontiguousarray(x, f32)


def importance(kind, case, row_len):
    u = uniform(words(seed_of(case, row_len) ^ 0xFFFFFFFF, 0, row_len))
    if kind == "even":
        return u + f32(0.01)
    return np.where(u < f32(0.1), f32(0), u * u * u * u * f32(100)).astype(f32)


def digest(parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    quantize = ggml.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    traits = ggml.ggml_get_type_traits
    traits.restype = ctypes.c_void_p
    validate = ggml.ggml_validate_row_data
    validate.restype = ctypes.c_bool
    validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    np.seterr(all="ignore")
    only = sys.argv[2:]
    for name, (number, block, size, uses, needs) in TYPES.items():
        if only and name not in only:
            continue
        for case in CASES:
            fields = []
            for kind in ("none", "even", "wide") if uses else ("none",):
                if kind == "none" and needs:
                    continue
                parts = []
                for row_len in row_lens(block):
                    x = values(case, row_len)
                    out = np.zeros(x.size // block * size, np.uint8)
                    weights = None if kind == "none" else importance(kind, case, row_len)
                    pointer = None if weights is None else weights.ctypes.data
                    quantize(number, x.ctypes.data, out.ctypes.data, 0, ROWS, row_len, pointer)
                    parts.append(out.tobytes())
                fields.append(f"{kind}={digest(parts)}")
            print("encode", name, case, *fields, flush=True)
        blocks = 256
        data = words(number, 0, (blocks * size + 7) // 8).view(np.uint8)[: blocks * size].copy()
        if name == "F32":
            y = data.view(f32).copy()
        else:
            to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
                struct.unpack("P", ctypes.string_at(traits(number) + 40, 8))[0]
            )
            y = np.zeros(blocks * block, f32)
            to_float(data.ctypes.data, y.ctypes.data, y.size)
        y[np.isnan(y)] = np.nan
        print("decode", name, digest([y.tobytes()]), flush=True)
        valid = [validate(number, data[k * size :].ctypes.data, size) for k in range(blocks)]
        invalid = [k for k in range(blocks) if not valid[k]]
        print("invalid", name, *invalid, flush=True)


main()
