#!/usr/bin/env python3
"""Compare a graph of static shapes with the one whose sizes are open.

usage: onnx_static.py STATIC_FILE OPEN_FILE        needs: pip install onnx onnxruntime numpy

Every input and output of the first has to have numbers for sizes, onnx.checker has to accept it, and both have to compute the same.
"""
import sys

import numpy
import onnx
import onnxruntime as ort


def main():
    static, open_file = sys.argv[1:3]
    onnx.checker.check_model(static, full_check=True)
    fixed, free = (ort.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (static, open_file))
    for value in fixed.get_inputs() + fixed.get_outputs():
        if not all(isinstance(size, int) for size in value.shape):
            sys.exit(f"{value.name} has the shape {value.shape}")
    rng = numpy.random.default_rng(1)
    feed = {}
    for value in fixed.get_inputs():
        if value.type == "tensor(int64)":
            ones = numpy.ones(value.shape, numpy.int64)
            ids = rng.integers(0, 30, value.shape)
            feed[value.name] = {"attention_mask": ones, "token_type_ids": ones * 0}.get(value.name, ids)
        else:
            feed[value.name] = (rng.standard_normal(value.shape) * 0.1).astype(numpy.float32)
    if "position_ids" in feed:
        past = next(value.shape[2] for name, value in ((v.name, v) for v in fixed.get_inputs()) if "past" in name)
        feed["position_ids"] = numpy.arange(past, past + feed["input_ids"].shape[1])[None].repeat(len(feed["input_ids"]), 0)
    names = [value.name for value in free.get_outputs()]
    error = max(float(abs(a - b).max()) for a, b in zip(fixed.run(names, feed), free.run(names, feed)) if a.size)
    print(f"within {error:.2e}")
    if not error <= 1e-5:
        sys.exit("the graphs compute different things")


main()
