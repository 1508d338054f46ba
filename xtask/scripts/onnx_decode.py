#!/usr/bin/env python3
"""Time how long two graphs of one decoder take for a token in ONNX Runtime, side by side.

usage: onnx_decode.py ROUNDS FILE OTHER_FILE        needs: pip install onnxruntime numpy

The first file tells the sizes of the cache; the other may have names for them. Each round gives both graphs the same 64 tokens and
then 32 more one by one, in turns, with two threads; the time of a token is the median of its rounds' means. Prints as JSON the
milliseconds of each graph, and how fast the first one is as a part of the other: the median of the rounds' ratios, as a machine may be
slower from one round to the next.
"""
import json
import statistics
import sys
import time

import numpy

from onnx_session import opened

PREFILL, DECODE = 64, 32


def shapes(session):
    return {i.name: (i.shape[1], i.shape[3]) for i in session.get_inputs() if i.name.startswith("past_key_values.")}


def decode(session, sizes):
    names = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    past = {name: numpy.zeros([1, heads, 0, width], numpy.float32) for name, (heads, width) in sizes.items()}
    ids = numpy.random.default_rng(1).integers(3, 1000, (1, PREFILL))
    seen, times = 0, []
    for step in range(DECODE + 1):
        total = seen + ids.shape[1]
        feed = {"input_ids": ids, "attention_mask": numpy.ones([1, total], numpy.int64),
                "position_ids": numpy.arange(seen, total)[None]}
        feed = {name: value for name, value in feed.items() if name in names} | past
        start = time.perf_counter()
        out = dict(zip(outputs, session.run(outputs, feed)))
        if step:
            times.append(time.perf_counter() - start)
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        ids, seen = out["logits"][:, -1:].argmax(-1).astype(numpy.int64), total
    return statistics.mean(times)


def main():
    rounds, files = int(sys.argv[1]), sys.argv[2:]
    sessions = [opened(file, threads=2) for file in files]
    sizes = shapes(sessions[0])
    times = [[] for _ in sessions]
    for session in sessions:
        decode(session, sizes)
    for i in range(rounds):
        for j in range(len(sessions)):
            j = (i + j) % len(sessions)
            times[j].append(decode(sessions[j], sizes))
    medians = [1000 * statistics.median(t) for t in times]
    print(json.dumps({"ms": medians, "speed": statistics.median(other / own for own, other in zip(*times))}))


main()
