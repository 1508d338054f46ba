#!/usr/bin/env python3
"""Compare ONNX encoders, their heads and their sentence embeddings with transformers.

usage: onnx_encoders.py models OUT_DIR                       writes small random checkpoints
       onnx_encoders.py compare JOB...     where JOB is MODEL_DIR=ONNX_FILE=TOLERANCE[=BITS:BLOCK:symmetric|asymmetric]
       onnx_encoders.py sentences MODEL_DIR ONNX_FILE COSINE  200 sentences through a real sentence embedder
       needs: pip install torch transformers onnx onnxruntime

Texts of several lengths in one batch, padded on the right, at each of ONNX Runtime's four levels of optimization. onnx.checker
reads each file too. With bits, transformers computes with the matrices that blocks of integers stand for.
"""
import json
import pathlib
import sys

import numpy
import onnx
import torch
import transformers

from onnx_rounding import rounded
from onnx_session import LEVELS, opened

SMALL = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "max_position_embeddings": 200, "num_labels": 5}
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
# name -> (start of the classes, model type, fields)
FAMILIES = {
    "bert": ("Bert", "bert", {}),
    "roberta": ("Roberta", "roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", "xlm-roberta", {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "distilbert": ("DistilBert", "distilbert", {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4}),
    "mpnet": ("MPNet", "mpnet", {"pad_token_id": 1}),
    "modernbert": ("ModernBert", "modernbert", {
        "num_hidden_layers": 5, "local_attention": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2}),
    "modernbert-mean": ("ModernBert", "modernbert", {
        "num_hidden_layers": 4, "local_attention": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2, "classifier_pooling": "mean"}),
}
POOLINGS = {"bert": {"pooling_mode_mean_tokens": True}, "mpnet": {"pooling_mode_cls_token": True}, "roberta": {"pooling_mode": "max"}}


def models(out):
    for name, (start, model_type, fields) in FAMILIES.items():
        for head in HEADS:
            labels = {"num_labels": 2} if head == "ForQuestionAnswering" else {}
            small = {key: value for key, value in SMALL.items() if not (model_type == "distilbert" and "_size" in key and key != "vocab_size")}
            config = transformers.AutoConfig.for_model(model_type, **(small | fields | labels))
            torch.manual_seed(7)
            model = getattr(transformers, start + head)(config)
            with torch.no_grad():
                for key, value in model.named_parameters():
                    noise = torch.randn_like(value) * 0.15
                    value.copy_(noise + 1 if "norm" in key.lower() and key.endswith("weight") else noise)
            folder = out / f"{name}-{head.lower()}"
            model.save_pretrained(folder)
            if head == "Model" and name in POOLINGS:
                normalize = [{"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
                modules = [
                    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                ] + (normalize if name != "roberta" else [])
                (folder / "modules.json").write_text(json.dumps(modules))
                (folder / "1_Pooling").mkdir()
                (folder / "1_Pooling/config.json").write_text(json.dumps(POOLINGS[name]))


def pooled(folder, hidden, mask):
    modules = pathlib.Path(folder, "modules.json")
    if not modules.is_file():
        return {}
    config = json.loads(pathlib.Path(folder, "1_Pooling/config.json").read_text())
    wide = mask[:, :, None].float()
    if config.get("pooling_mode_mean_tokens"):
        vectors = (hidden * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
    elif config.get("pooling_mode_cls_token"):
        vectors = hidden[:, 0]
    else:
        vectors = hidden.masked_fill(wide == 0, -1e9).max(1).values
    if "Normalize" in modules.read_text():
        vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
    return {"sentence_embedding": vectors}


def quantized(model, blocks):
    """Rounds the matrices and the table of words, but not a table that is the output matrix, too."""
    table = model.get_input_embeddings().weight
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    tied = any(matrix is table for matrix in matrices)
    for weight in [matrix for matrix in matrices if matrix is not table] + ([] if tied else [table]):
        weight.data.copy_(torch.from_numpy(rounded(weight.detach().numpy(), blocks)))


def reference(folder, feed, blocks=None):
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if blocks:
        quantized(model, blocks)
    inputs = {key: torch.from_numpy(value) for key, value in feed.items()}
    with torch.no_grad():
        out = model(**inputs)
    wanted = {key: value for key, value in out.items() if key in ("last_hidden_state", "logits", "start_logits", "end_logits")}
    if "last_hidden_state" in wanted:
        wanted |= pooled(folder, wanted["last_hidden_state"], inputs["attention_mask"])
    return {key: value.numpy() for key, value in wanted.items()}


def run(session, feed):
    names = [o.name for o in session.get_outputs()]
    inputs = [i.name for i in session.get_inputs()]
    return dict(zip(names, session.run(names, {name: feed[name] for name in inputs})))


def compare(folder, file, tolerance, blocks=None):
    onnx.checker.check_model(file, full_check=True)
    config = transformers.AutoConfig.from_pretrained(folder)
    rng = numpy.random.default_rng(1)
    lengths = [70, 41, 3]
    padding = config.pad_token_id or 0
    ids = numpy.full((len(lengths), max(lengths)), padding)
    mask, types = numpy.zeros_like(ids), numpy.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(5, config.vocab_size, length)
        mask[row, :length] = 1
        types[row, length // 2: length] = 1
    feed = {"input_ids": ids, "attention_mask": mask}
    if config.model_type == "bert":
        feed["token_type_ids"] = types
    wanted = reference(folder, feed, blocks)
    worst = largest = 0.0
    for level in LEVELS:
        got = run(opened(file, level), feed)
        if set(got) != set(wanted):
            return f"outputs are {sorted(got)}, expected {sorted(wanted)}"
        for name, want in wanted.items():
            if got[name].shape != want.shape:
                return f"{name} has the shape {got[name].shape}, expected {want.shape}"
            real = mask.astype(bool) if want.shape[:2] == mask.shape else slice(None)
            error = abs(got[name].astype(numpy.float32) - want)[real].max()
            if not numpy.isfinite(error):
                return f"{level}: {name} is not finite"
            worst, largest = max(worst, float(error)), max(largest, float(abs(want[real]).max()))
    limit = float(tolerance.rstrip("%")) * (largest / 100 if tolerance.endswith("%") else 1)
    said = f"{worst:.2e} of {largest:.3g} {'+'.join(sorted(wanted))}"
    return f"{said}, above {limit:.2e}" if worst > limit else (said,)


def sentences(folder, file, least):
    words = "the a small old river city house bank of in under by near a with sings grows sleeps runs falls bright slow green dark letter music winter garden market".split()
    rng = numpy.random.default_rng(2)
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) for _ in range(200)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours, lowest = opened(file), 1.0
    for start in range(0, len(texts), 20):
        feed = dict(tokenizer(texts[start:start + 20], padding=True, truncation=True, return_tensors="np"))
        feed = {key: value.astype(numpy.int64) for key, value in feed.items()}
        want, got = reference(folder, feed)["sentence_embedding"], run(ours, feed)["sentence_embedding"]
        cosines = (want * got).sum(1) / numpy.linalg.norm(want, axis=1) / numpy.linalg.norm(got, axis=1)
        lowest = min(lowest, float(cosines.min()))
    print(f"least cosine of {len(texts)} sentences: {lowest:.7f}")
    if lowest < float(least):
        sys.exit(f"expected at least {least}")


def main():
    if sys.argv[1] == "models":
        return models(pathlib.Path(sys.argv[2]))
    if sys.argv[1] == "sentences":
        return sentences(*sys.argv[2:])
    failed = 0
    for job in sys.argv[2:]:
        try:
            result = compare(*job.split("="))
        except Exception as error:  # a graph that does not load is one result among others
            result = str(error).strip().splitlines()[0]
        failed += isinstance(result, str)
        label = "/".join(job.split("=")[1].split("/")[-4:])
        print(f"{label:62} {result[0] if isinstance(result, tuple) else 'WRONG: ' + result}", flush=True)
    if failed:
        sys.exit(f"{failed} graphs differ")


main()
