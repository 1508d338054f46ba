"""Encodes random rows with ggml's own `ggml_quantize_chunk` and writes rows and blocks for another program to compare with.

usage: ggml_rows.py LIBGGML_BASE OUT SEED TYPE...      TYPE is a number of `enum ggml_type`

OUT is a sequence of records, little-endian, one for each type, row length and use of importance values:

    type: u32 | weighted: u32 | rows: u32 | row_len: u32 | values: f32 x rows x row_len |
    importance: f32 x row_len, if weighted | blocks of ggml: bytes
"""

import ctypes
import pathlib
import struct
import sys

import numpy as np

ROWS = 160


def ggml_base(path):
    ggml = ctypes.CDLL(path)
    for name, result, arguments in (
        ("ggml_blck_size", ctypes.c_int64, [ctypes.c_int]),
        ("ggml_row_size", ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
        ("ggml_quantize_requires_imatrix", ctypes.c_bool, [ctypes.c_int]),
        (
            "ggml_quantize_chunk",
            ctypes.c_size_t,
            [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p],
        ),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def row(kind, n, random):
    """One row; the kinds are what weights look like, and what is hard to encode."""
    normal = random.normal(0, 0.02, n)
    match kind:
        case 0:
            x = normal
        case 1:  # weights of a bfloat16 model
            bits = normal.astype(np.float32).view(np.uint32)
            x = (bits & np.uint32(0xFFFF0000)).view(np.float32)
        case 2:  # few large values
            x = random.standard_t(2, n) * 0.02
        case 3:  # mostly zeros
            x = np.where(random.random(n) < 0.7, 0, normal)
        case 4:  # each group on its own scale
            x = normal * np.repeat(np.exp2(random.uniform(-14, 6, -(-n // 16))), 16)[:n]
        case 5:  # ties
            x = random.integers(-24, 25, n) * 0.125
        case 6:  # scales that are subnormal as float16
            x = normal * 1e-5
        case 7:  # scales near the end of float16
            x = normal * 1e6
        case 8:  # one sign, far from zero
            x = 1 + normal
    return x.astype(np.float32)


def main(library, out, seed, numbers):
    ggml = ggml_base(library)
    with out.open("wb") as file:
        for number in numbers:
            random = np.random.default_rng([seed, number])
            block = ggml.ggml_blck_size(number)
            for row_len in (block, 5 * max(block, 64), max(block, 4096)):
                values = np.stack([row(i % 9, row_len, random) for i in range(ROWS)])
                importance = (random.gamma(0.5, 2.0, row_len) * (random.random(row_len) > 0.05)).astype(np.float32)
                for weighted in (False, True):
                    if not weighted and ggml.ggml_quantize_requires_imatrix(number):
                        continue
                    blocks = np.zeros(ROWS * ggml.ggml_row_size(number, row_len), np.uint8)
                    pointer = importance.ctypes.data if weighted else None
                    ggml.ggml_quantize_chunk(number, values.ctypes.data, blocks.ctypes.data, 0, ROWS, row_len, pointer)
                    file.write(struct.pack("<4I", number, weighted, ROWS, row_len))
                    file.write(values.tobytes())
                    if weighted:
                        file.write(importance.tobytes())
                    file.write(blocks.tobytes())


main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), [int(number) for number in sys.argv[4:]])
