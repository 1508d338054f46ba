#!/usr/bin/env python3
"""Compare quantized matrices of an ONNX file with what ONNX Runtime's own tools make of the float one.

usage: onnx_integers.py dynamic FLOAT_FILE QUANTIZED_FILE
       onnx_integers.py columns FLOAT_FILE QUANTIZED_FILE
       onnx_integers.py qdq FLOAT_FILE QUANTIZED_FILE BLOCK_SIZE symmetric|asymmetric
       needs: pip install onnx onnxruntime onnx_ir

dynamic: every matrix and table that quantize_dynamic (per_channel, QInt8) quantizes has to have the same bytes, and both graphs
have to compute the same as they are written, and nearly so at ONNX Runtime's other levels of optimization. columns: the same bytes
and scales, with the products in floats, as ONNX Runtime has no tool for; the outputs of all levels have to be near the float graph's. qdq:
codes, scales and zero points of MatMulNBitsQuantizer in QDQ form; the outputs of all levels have to be near each other. Values are compared, as
the order and the names of the others' tensors are their own.
"""
import collections
import pathlib
import sys
import tempfile

import numpy
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from onnx_session import LEVELS, opened

TYPES = {"tensor(int64)": numpy.int64, "tensor(float)": numpy.float32}


def contents(tensor):
    """Type, shape and bytes; four bits one in a byte."""
    array = numpy_helper.to_array(tensor)
    return tensor.data_type, array.shape, array.tobytes()


def tensors(model, types):
    return [(t.name, contents(t)) for t in model.graph.initializer if t.data_type in types]


def compare(wanted, got):
    """Everything that the other tool has, we have as often."""
    have = collections.Counter(content for _, content in got)
    missing = []
    for name, content in wanted:
        if have[content] == 0:
            missing.append(f"{name}: no tensor of ours has type {content[0]}, shape {content[1]} and these bytes")
        have[content] -= content[1] != ()
    return missing


def feed(session):
    rng = numpy.random.default_rng(1)
    sizes = {"batch_size": 2, "sequence_length": 9, "past_sequence_length": 0, "total_sequence_length": 9}
    values = {}
    for value in session.get_inputs():
        shape = [sizes.get(size, size) for size in value.shape]
        ids = rng.integers(1, 30, shape) if value.name == "input_ids" else numpy.ones(shape)
        values[value.name] = ids.astype(TYPES[value.type])
    if "position_ids" in values:
        values["position_ids"] = numpy.arange(9)[None].repeat(2, 0)
    return {name: value * (name != "token_type_ids") for name, value in values.items()}


def outputs(file, level="ENABLE_ALL"):
    session = opened(file, level)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed(session))))


def distance(a, b):
    """The largest difference of two sets of outputs, and the largest value."""
    names = [name for name in a if a[name].size]
    return max(float(abs(a[name] - b[name]).max()) for name in names), max(float(abs(a[name]).max()) for name in names)


def untied(plain):
    """The float graph with a matrix of its own where it multiplies by the embedding: quantize_dynamic turns the table
    itself around there, and what is looked up in it is something else then."""
    model = onnx.load(plain)
    tables = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute) and node.input[1] in tables:
            own = numpy_helper.from_array(numpy.ascontiguousarray(numpy_helper.to_array(tables[node.input[1]]).T), "own_matrix")
            model.graph.initializer.append(own)
            node.op_type, node.input[1] = "MatMul", own.name
            del node.attribute[:]
    return model


def columns(plain, quantized):
    with tempfile.TemporaryDirectory() as folder:
        theirs = pathlib.Path(folder) / "theirs.onnx"
        quantize_dynamic(untied(plain), theirs, per_channel=True, weight_type=QuantType.QInt8)
        reference = onnx.load(theirs)
    wanted = [w for w in tensors(reference, (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)) if w[1][1] != ()]
    wanted += [(t.name, contents(t)) for t in reference.graph.initializer if t.name.endswith("_scale")]
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)
    missing = compare(wanted, tensors(onnx.load(quantized), kinds))
    wanted_outputs = outputs(plain)
    error, largest = max(distance(wanted_outputs, outputs(quantized, level)) for level in LEVELS)
    if not error <= 0.1 * largest:
        missing.append(f"outputs differ from the float graph's by {error:.2e} of {largest:.3g}")
    return len(wanted), missing, f"; outputs within {error:.1e} of {largest:.3g} of the float graph's"


def dynamic(plain, quantized):
    with tempfile.TemporaryDirectory() as folder:
        theirs = pathlib.Path(folder) / "theirs.onnx"
        quantize_dynamic(untied(plain), theirs, per_channel=True, weight_type=QuantType.QInt8)
        integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        reference = onnx.load(theirs)
        wanted = tensors(reference, integers)
        # The scales of what is quantized; other constants are not compared.
        floats = [(t.name, contents(t)) for t in reference.graph.initializer if t.name.endswith("_scale")]
        ours = onnx.load(quantized)
        got = tensors(ours, integers + (onnx.TensorProto.FLOAT,))
        missing = compare([w for w in wanted if w[1][1] != ()], got) + compare(floats, got)
        of_levels = [distance(outputs(theirs, level), outputs(quantized, level)) for level in LEVELS]
    error, largest = of_levels[0]
    fused = max(error for error, _ in of_levels[1:])
    # As they are written, both graphs do the same. ONNX Runtime joins their operators differently, which may change the last
    # bit of an activation, and that its byte, which is a step of 1/255 of its range.
    for what, found, limit in (("as written", error, 1e-4), ("optimized", fused, 0.05)):
        if not found <= limit * largest:
            missing.append(f"{what}, outputs differ by {found:.2e} of {largest:.3g}")
    return len(wanted) + len(floats), missing, f"; outputs within {error:.1e} of {largest:.3g}, optimized {fused:.1e}"


def qdq(plain, quantized, block, kind):
    config = DefaultWeightOnlyQuantConfig(
        block_size=int(block), is_symmetric=kind == "symmetric", bits=4, quant_format=QuantFormat.QDQ,
        op_types_to_quantize=("MatMul",))
    quantizer = MatMulNBitsQuantizer(onnx.load(plain), algo_config=config)
    quantizer.process()
    reference = quantizer.model.model
    codes = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    wanted = tensors(reference, codes) + [(t.name, contents(t)) for t in reference.graph.initializer if "_scales" in t.name]
    # Rows of odd length would share a byte with the next, so that such matrices stay in float32.
    wanted = [w for w in wanted if w[1][1][-1] % 2 == 0]
    got = tensors(onnx.load(quantized), codes + (onnx.TensorProto.FLOAT,))
    missing = compare(wanted, got)
    # ONNX Runtime multiplies by such matrices in integers where it may, so that only a float graph has the same numbers.
    exact, *fused = (outputs(quantized, level)["logits"] for level in LEVELS)
    largest = float(abs(exact).max())
    error = max(float(abs(exact - other).max()) for other in fused)
    if not error <= 0.1 * largest:
        missing.append(f"optimized and not, outputs differ by {error:.2e} of {largest:.3g}")
    return len(wanted), missing, f"; optimized and not, outputs within {error:.1e} of {largest:.3g}"


def main():
    mode, *rest = sys.argv[1:]
    onnx.checker.check_model(rest[1], full_check=True)
    compared, wrong, more = {"columns": columns, "dynamic": dynamic, "qdq": qdq}[mode](*rest)
    print(f"{compared} tensors compared, {len(wrong)} differ{more}")
    if wrong or not compared:
        sys.exit("\n".join(wrong[:10]) or "there is nothing to compare")


main()
