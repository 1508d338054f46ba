#!/usr/bin/env python3
"""Generate greedily with an ONNX decoder in ONNX Runtime and compare with what is known.

usage: onnx_greedy.py ONNX_FILE KNOWN.json        needs: pip install onnx onnxruntime numpy

KNOWN has `prompt_ids`, `greedy_ids` (the prompt and what follows) and `last_logits_first8` (the first logits of the token after the prompt).
onnx.checker reads the file too. Prints the largest difference of a logit.
"""
import json
import sys

import numpy
import onnx
import onnxruntime as ort


def main():
    file, known = sys.argv[1], json.load(open(sys.argv[2]))
    onnx.checker.check_model(file, full_check=True)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    past = {name: numpy.zeros([1, i.shape[1], 0, i.shape[3]], numpy.float32) for name, i in inputs.items() if "past" in name}
    ids, wanted = list(known["prompt_ids"]), known["greedy_ids"]
    new, error = ids, None
    while len(ids) < len(wanted):
        feed = {
            "input_ids": numpy.array([new], numpy.int64),
            "attention_mask": numpy.ones([1, len(ids)], numpy.int64),
            "position_ids": numpy.arange(len(ids) - len(new), len(ids), dtype=numpy.int64)[None],
        }
        out = dict(zip(outputs, session.run(outputs, feed | past)))
        logits = out["logits"][0, -1]
        if error is None:
            first = numpy.array(known["last_logits_first8"], numpy.float32)
            error = float(abs(logits[: len(first)] - first).max())
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        new = [int(logits.argmax())]
        ids += new
    if ids != wanted:
        at = next(i for i, (a, b) in enumerate(zip(ids, wanted)) if a != b)
        sys.exit(f"token {at} differs: expected {wanted[at]}, found {ids[at]}")
    print(f"{error:.2e}")
    if error > 1e-4:
        sys.exit("the first logits differ by more than 1e-4")


main()
