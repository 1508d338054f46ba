#!/usr/bin/env python3
"""Compare the quantized matrices of an ONNX file with what ONNX Runtime's own quantizer makes of the float one.

usage: onnx_blocks.py FLOAT_FILE QUANTIZED_FILE BITS BLOCK_SIZE symmetric|asymmetric
       needs: pip install onnx onnxruntime onnx_ir

Codes, scales and zero points of every matrix have to be the same bytes. Where the second file has one matrix for several of the
first, their bytes have to follow one another in it.
"""
import sys

import onnx
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer


def arrays(model, folder):
    onnx.load_external_data_for_model(model, folder)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def ours(got, wanted, name):
    """The bytes of a tensor, which may be a part of a joined one."""
    if name in got:
        return got[name]
    for whole, parts in JOINED.items():
        for i, part in enumerate(parts):
            joined = name.replace(f".{part}.", f".{whole}.")
            if joined != name and joined in got:
                start = sum(len(wanted[name.replace(f".{part}.", f".{before}.")]) for before in parts[:i])
                return got[joined][start:start + len(wanted[name])]
    return None


def defined(codes, bits, length):
    """Without the half byte after a row of odd length: ONNX Runtime reads past its input there."""
    if bits == 4 and length % 2:
        codes = codes.copy()
        codes.reshape(len(codes), -1)[:, length // 2] &= 0x0F
    return codes


def lengths_of(model):
    """How long the rows of each matrix of codes are."""
    nodes = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    return {n.input[1]: next(a.i for a in n.attribute if a.name == "K") for n in nodes}


def main():
    plain, quantized, bits, block, kind = sys.argv[1:6]
    bits, block = int(bits), int(block)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=kind == "symmetric", bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(plain), algo_config=config)
    quantizer.process()
    want = {t.name: numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    got = arrays(onnx.load(quantized, load_external_data=False), quantized.rpartition("/")[0])
    lengths = lengths_of(quantizer.model.model)
    got.update({i: defined(got[i], bits, k) for i, k in lengths_of(onnx.load(quantized, load_external_data=False)).items()})
    want = {i: defined(array, bits, lengths.get(i, 0)).tobytes() for i, array in want.items()
            if i.endswith((f"_Q{bits}", "_scales", "_zero_points"))}
    got = {name: array.tobytes() for name, array in got.items()}
    wrong = []
    for name, wanted in want.items():
        found = ours(got, want, name)
        if found != wanted:
            wrong.append(f"{name}: " + ("missing" if found is None else f"{len(found)} and {len(wanted)} bytes differ"))
    print(f"{len(want)} tensors compared, {len(wrong)} differ")
    if wrong or not want:
        sys.exit("\n".join(wrong[:10]) or "there is nothing to compare")


main()
