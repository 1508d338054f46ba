#!/usr/bin/env python3
"""Compare the logits of ONNX decoders with those of transformers.

usage: onnx_logits.py JOB...        where JOB is MODEL_DIR=ONNX_FILE=TOLERANCE[=BITS:BLOCK:symmetric|asymmetric]
       needs: pip install torch transformers onnx onnxruntime

A batch of two with left padding: 65 tokens at once, then 8 tokens one by one, in ONNX Runtime at each of its four levels of
optimization; the same tokens in two pieces, so that the cache is not empty at the second. transformers sees the same
pieces. onnx.checker reads each file too. The largest difference of a logit of a token that is not padding has to be within
the tolerance, which is a part of the largest logit where it ends in %. With bits, transformers computes with the matrices
that blocks of integers stand for; they are made here anew.

GroupQueryAttention takes a batch of one where there are several tokens and a cache: there the two texts go one by one.
"""
import sys

import ml_dtypes
import numpy
import onnx
import onnxruntime as ort
import torch
import transformers

from onnx_rounding import rounded
from onnx_session import LEVELS, opened

PREFILL, DECODE, PADDING = 65, 8, 9
KINDS = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16, "tensor(bfloat16)": ml_dtypes.bfloat16}


def texts(vocabulary):
    ids = numpy.random.default_rng(1).integers(3, vocabulary, (2, PREFILL + DECODE))
    mask = numpy.ones_like(ids)
    mask[0, :PADDING] = 0
    ids[0, :PADDING] = 0
    return ids, mask, (mask.cumsum(1) - 1).clip(0)


def cuts():
    total = PREFILL + DECODE
    return [[(0, PREFILL)] + [(i, i + 1) for i in range(PREFILL, total)], [(0, 20), (20, total)]]


def computed(model, texts, cut):
    ids, mask, positions = texts
    steps, past = [], None
    for start, end in cut:
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(ids[:, start:end]), attention_mask=torch.from_numpy(mask[:, :end]),
                        position_ids=torch.from_numpy(positions[:, start:end]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        steps.append(out.logits.float().numpy())
    return numpy.concatenate(steps, 1)


def one_by_one(texts):
    return [[part[i:i + 1] for part in texts] for i in range(len(texts[0]))]


def reference(folder, blocks):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if blocks:
        for parameter in {p.data_ptr(): p for p in model.parameters() if p.ndim == 2}.values():
            parameter.data.copy_(torch.from_numpy(rounded(parameter.detach().numpy(), blocks)))
    both = texts(model.config.vocab_size)
    together = [computed(model, both, cut) for cut in cuts()]
    apart = [numpy.concatenate([computed(model, one, cut) for one in one_by_one(both)]) for cut in cuts()]
    return both, together, apart


def feedable(array, kind):
    """ONNX Runtime takes no NumPy array of bfloat16."""
    if kind != "tensor(bfloat16)":
        return array
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(numpy.uint16), onnx.TensorProto.BFLOAT16)


def run(session, texts, cut):
    ids, mask, positions = texts
    inputs = {i.name: i for i in session.get_inputs()}
    past = {
        name: feedable(numpy.zeros([ids.shape[0], i.shape[1], 0, i.shape[3]], KINDS[i.type]), i.type)
        for name, i in inputs.items() if name.startswith("past_key_values.")
    }
    narrow = any(i.type == "tensor(bfloat16)" for i in inputs.values())
    names = [o.name for o in session.get_outputs()]
    steps = []
    for start, end in cut:
        feed = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        feed = {name: value for name, value in (feed | past).items() if name in inputs}
        if narrow:
            values = {name: v if isinstance(v, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(v) for name, v in feed.items()}
            out = dict(zip(names, session.run_with_ort_values(names, values)))
            logits = out["logits"].numpy().view(ml_dtypes.bfloat16)
        else:
            out = dict(zip(names, session.run(names, feed)))
            logits = out["logits"]
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        steps.append(logits.astype(numpy.float32))
    return numpy.concatenate(steps, 1)


def check(file, reference, tolerance):
    onnx.checker.check_model(file, full_check=True)
    nodes = onnx.load(file, load_external_data=False).graph.node
    together = all(node.op_type != "GroupQueryAttention" for node in nodes)
    texts, wanted, apart = reference
    real = texts[1].astype(bool)
    largest = max(float(abs(want[real]).max()) for want in wanted)
    limit = float(tolerance.rstrip("%")) * (largest / 100 if tolerance.endswith("%") else 1)
    worst = 0.0
    for level in LEVELS:
        session = opened(file, level)
        for cut, want, want_apart in zip(cuts(), wanted, apart):
            if together or all(end - start == 1 for start, end in cut[1:]):
                got = run(session, texts, cut)
            else:
                got, want = numpy.concatenate([run(session, one, cut) for one in one_by_one(texts)]), want_apart
            error = abs(got - want)[real].max()
            if not numpy.isfinite(error):
                return f"{level}: logits are not finite"
            worst = max(worst, float(error))
    said = f"{worst:.2e} of {largest:.3g}"
    return f"{said}, above {limit:.2e}" if worst > limit else (said,)


def main():
    known, failed = {}, 0
    for job in sys.argv[1:]:
        folder, file, tolerance, *blocks = job.split("=")
        key = (folder, *blocks)
        if key not in known:
            known = {key: reference(folder, *(blocks or [None]))}
        try:
            result = check(file, known[key], tolerance)
        except Exception as error:  # a graph that does not load is one result among others
            result = str(error).strip().splitlines()[0]
        failed += isinstance(result, str)
        label = "/".join(file.split("/")[-4:])
        print(f"{label:60} {result[0] if isinstance(result, tuple) else 'WRONG: ' + result}", flush=True)
    if failed:
        sys.exit(f"{failed} graphs differ")


main()
