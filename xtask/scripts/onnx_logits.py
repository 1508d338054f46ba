#!/usr/bin/env python3
"""Compare the logits of an ONNX decoder with those of transformers.

usage: onnx_logits.py MODEL_DIR ONNX_FILE [TOLERANCE]
       needs: pip install torch transformers onnx onnxruntime

A batch of two with left padding: 65 tokens at once, then 8 tokens one by one, in ONNX Runtime at each of its four levels of
optimization; the same in two pieces, so that the cache is not empty at the second. onnx.checker reads the file too.
Prints the largest difference of a logit of a token that is not padding, and fails above the tolerance.
"""
import sys

import numpy
import onnx
import onnxruntime as ort
import torch
import transformers

PREFILL, DECODE, PADDING = 65, 8, 9


def reference(folder, ids, mask, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    positions = (mask.cumsum(1) - 1).clip(0)
    steps, past = [], None
    with torch.no_grad():
        for start, end in pieces(ids.shape[1]):
            out = model(input_ids=torch.from_numpy(ids[:, start:end]), attention_mask=torch.from_numpy(mask[:, :end]),
                        position_ids=torch.from_numpy(positions[:, start:end]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits.float().numpy())
    return numpy.concatenate(steps, 1)


def pieces(total):
    return [(0, PREFILL)] + [(i, i + 1) for i in range(PREFILL, total)]


def run(session, ids, mask, pieces):
    inputs = {i.name: i for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    kinds = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16}
    past = {
        name: numpy.zeros([ids.shape[0], i.shape[1], 0, i.shape[3]], kinds[i.type])
        for name, i in inputs.items() if name.startswith("past_key_values.")
    }
    positions = (mask.cumsum(1) - 1).clip(0)
    steps = []
    for start, end in pieces:
        feed = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        out = dict(zip(names, session.run(None, {k: v for k, v in (feed | past).items() if k in inputs})))
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        steps.append(out["logits"].astype(numpy.float32))
    return numpy.concatenate(steps, 1)


def main():
    folder, file = sys.argv[1:3]
    tolerance = float(sys.argv[3]) if len(sys.argv) > 3 else 1e-4
    onnx.checker.check_model(file, full_check=True)
    config = transformers.AutoConfig.from_pretrained(folder)
    rng = numpy.random.default_rng(1)
    ids = rng.integers(3, config.vocab_size, (2, PREFILL + DECODE))
    mask = numpy.ones_like(ids)
    mask[0, :PADDING] = 0
    ids[0, :PADDING] = 0
    want = reference(folder, ids, mask, torch.float32)
    worst = 0.0
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_" + level)
        options.log_severity_level = 3
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        total = ids.shape[1]
        for cut in (pieces(total), [(0, 20), (20, total)]):
            got = run(session, ids, mask, cut)
            # Texts cut otherwise see another length where rotation depends on it.
            real = mask.astype(bool)
            error = abs(got - want)[real].max() if cut[0][1] == PREFILL or "rope" not in sys.argv else 0.0
            if not numpy.isfinite(got[real]).all():
                sys.exit(f"{level}: logits are not finite")
            worst = max(worst, float(error))
    print(f"{worst:.3g} (largest logit {abs(want).max():.3g})")
    if worst > tolerance:
        sys.exit(f"the largest difference is above {tolerance}")


main()
