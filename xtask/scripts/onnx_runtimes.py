#!/usr/bin/env python3
"""Greedy tokens of a decoder in transformers, and the same in onnxruntime-genai.

usage: onnx_runtimes.py reference MODEL_DIR COUNT OUT.json     needs: pip install torch transformers
       onnx_runtimes.py genai DIR KNOWN.json                   needs: pip install onnxruntime-genai
       onnx_runtimes.py genai-own DIR KNOWN.json OUT.json      the same without comparing: what it generates becomes known

KNOWN has `prompt`, `prompt_ids`, `greedy_ids` (the prompt and what follows) and `last_logits_first8`, as onnx_greedy.py reads it.
"""
import json
import sys

PROMPT = "The sun rose over the quiet harbour, and the old fisherman began to tell the children"


def reference(folder, count, out):
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
        found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=int(count), max_new_tokens=int(count))
    known = {"prompt": PROMPT, "prompt_ids": ids[0].tolist(), "greedy_ids": found[0].tolist(), "last_logits_first8": logits[:8].tolist()}
    json.dump(known, open(out, "w"))


def generated(folder, known):
    import onnxruntime_genai as og

    model = og.Model(folder)
    tokenizer = og.Tokenizer(model)
    prompt = [int(token) for token in tokenizer.encode(known["prompt"])]
    if prompt != known["prompt_ids"]:
        sys.exit(f"the tokenizer gives {prompt}, expected {known['prompt_ids']}")
    length = len(known["greedy_ids"])
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def main():
    mode, folder, *rest = sys.argv[1:]
    if mode == "reference":
        return reference(folder, *rest)
    known = json.load(open(rest[0]))
    found, wanted = generated(folder, known), known["greedy_ids"]
    if mode == "genai-own":
        return json.dump(known | {"greedy_ids": found}, open(rest[1], "w"))
    if found != wanted:
        at = next((i for i, (a, b) in enumerate(zip(found, wanted)) if a != b), min(len(found), len(wanted)))
        sys.exit(f"{len(found)} tokens for {len(wanted)}; token {at} is the first that differs")
    print(f"{len(found) - len(known['prompt_ids'])} tokens equal")


main()
