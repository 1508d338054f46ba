#!/usr/bin/env python3
"""Compare the quantized matrices of an ONNX file with what ONNX Runtime's own quantizer makes of the float one.

usage: onnx_blocks.py FLOAT_FILE QUANTIZED_FILE BITS BLOCK_SIZE symmetric|asymmetric
       needs: pip install onnx onnxruntime onnx_ir

Codes, scales and zero points of every matrix have to be the same bytes.
"""
import sys

import onnx
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer


def arrays(model, folder):
    onnx.load_external_data_for_model(model, folder)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def defined(codes, bits, length):
    """Without the half byte after a row of odd length: ONNX Runtime reads past its input there."""
    if bits == 4 and length % 2:
        codes = codes.copy()
        codes.reshape(len(codes), -1)[:, length // 2] &= 0x0F
    return codes


def main():
    plain, quantized, bits, block, kind = sys.argv[1:6]
    bits, block = int(bits), int(block)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=kind == "symmetric", bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(plain), algo_config=config)
    quantizer.process()
    want = {t.name: numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    got = arrays(onnx.load(quantized, load_external_data=False), quantized.rpartition("/")[0])
    lengths = {n.input[1]: next(a.i for a in n.attribute if a.name == "K") for n in quantizer.model.model.graph.node if n.op_type == "MatMulNBits"}
    compared, wrong = 0, []
    for name, array in want.items():
        if not name.endswith((f"_Q{bits}", "_scales", "_zero_points")):
            continue
        compared += 1
        if name not in got:
            wrong.append(f"{name}: missing")
        elif defined(got[name], bits, lengths.get(name, 0)).tobytes() != defined(array, bits, lengths.get(name, 0)).tobytes():
            wrong.append(f"{name}: {got[name].shape} and {array.shape} differ")
    print(f"{compared} tensors compared, {len(wrong)} differ")
    if wrong or not compared:
        sys.exit("\n".join(wrong[:10]) or "there is nothing to compare")


main()
