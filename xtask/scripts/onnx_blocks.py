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


def main():
    plain, quantized, bits, block, kind = sys.argv[1:6]
    bits, block = int(bits), int(block)
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=kind == "symmetric", bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(plain), algo_config=config)
    quantizer.process()
    want = {t.name: numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    got = arrays(onnx.load(quantized, load_external_data=False), quantized.rpartition("/")[0])
    compared, wrong = 0, []
    for name, array in want.items():
        if not name.endswith((f"_Q{bits}", "_scales", "_zero_points")):
            continue
        compared += 1
        if name not in got:
            wrong.append(f"{name}: missing")
        elif got[name].tobytes() != array.tobytes():
            wrong.append(f"{name}: {got[name].shape} and {array.shape} differ")
    print(f"{compared} tensors compared, {len(wrong)} differ")
    if wrong or not compared:
        sys.exit("\n".join(wrong[:10]) or "there is nothing to compare")


main()
