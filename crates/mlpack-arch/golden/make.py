"""Makes reference.json: what llama.cpp b11434's converter writes for small model directories.

    python make.py --llama-cpp DIR --output reference.json

DIR is a llama.cpp source tree; torch 2.15, transformers 5.23.0 and PyYAML must be importable. For each case a directory
with the case's name and files is made, the converter's own model class is run on it without tensors, and every
key-value pair that it would write before the tokenizer's is recorded with its type, as are generated tensors.
FLOAT32 values are recorded as the bits of the float, in hexadecimal. A case that the converter fails on has "fails".
Some completed config fields of the cases with a config of their own are recorded as "config".
The parameter counts are given, not measured: they steer the heuristics. To keep the file small, a config.json that is
the one at the top ("plain") is left out, and then only the keys under "general." are recorded.
"""

import argparse
import json
import logging
import struct
import sys
import tempfile
from pathlib import Path

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": 2048,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MEASURED = (2_300_000, 2_300_000, 0, 0)


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


def llama3(**rope):
    return {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192} | rope


def config_cases():
    minimal = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    yield "llama-minimal", minimal
    yield "mistral-minimal", minimal | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    yield "qwen2-minimal", minimal | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    for family, config in (("llama", LLAMA), ("mistral", MISTRAL), ("qwen2", QWEN2)):
        yield f"{family}-plain", config
        yield f"{family}-null-heads", config | {"num_key_value_heads": None, "head_dim": None}
        yield f"{family}-no-kv-heads", without(config, "num_key_value_heads")
        yield f"{family}-head-dim", config | {"head_dim": 128}
        yield f"{family}-old-theta", config | {"rope_theta": 500000.0, "rope_scaling": None}
        yield f"{family}-int-theta", config | {"rope_theta": 1000000}
        yield f"{family}-linear", config | {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 10000.0}
        yield f"{family}-yarn", config | {"rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, "max_position_embeddings": 131072}
        yield f"{family}-yarn-default-original", config | {"rope_parameters": {
            "rope_type": "yarn", "factor": 2, "beta_fast": 32.0, "beta_slow": 1, "attention_factor": 0.5,
            "extrapolation_factor": 1.0}}
        yield f"{family}-yarn-attn-factor", config | {"rope_parameters": {
            "rope_type": "yarn", "factor": 2.5, "attn_factor": 1.25, "rope_theta": 1e6,
            "original_max_position_embeddings": 4096}}
        yield f"{family}-no-model-type", without(config, "model_type")
        yield f"{family}-int-eps", config | {"rms_norm_eps": 1}
        yield f"{family}-bad-heads", config | {"num_attention_heads": 5}
        yield f"{family}-odd-head-dim", config | {"head_dim": 65}
        yield f"{family}-float-layers", config | {"num_hidden_layers": 3.0}
        yield f"{family}-string-layers", config | {"num_hidden_layers": "3"}
        yield f"{family}-max-length", config | {"max_length": 77, "n_ctx": 99, "temperature": 0.5}
        yield f"{family}-dynamic", config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
        yield f"{family}-unknown-rope", config | {"rope_scaling": {"rope_type": "mystery", "factor": 2.0}}
        yield f"{family}-linear-without-factor", config | {"rope_scaling": {"type": "linear"}}
        yield f"{family}-nested-rope", config | {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"], "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 10000.0}}}
        yield f"{family}-layer-types-too-short", config | {"layer_types": ["full_attention"]}
        yield f"{family}-experts", config | {
            "num_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid"}
        yield f"{family}-other-names", config | {
            "n_layers": 2, "norm_eps": 1e-4, "layer_norm_eps": 1e-3, "is_causal": False, "dim": 9,
            "dense_intermediate_size": 64, "local_rope_theta": 5000.0}
        yield f"{family}-partial", config | {"partial_rotary_factor": 0.5, "rope_theta": 123456.789}
        yield f"{family}-sliding", config | {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}
        yield f"{family}-dtype", config | {"torch_dtype": "auto"}
        yield f"{family}-mrope", config | {"rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 24, 24]}}
        yield f"{family}-rope-null-theta", config | {"rope_theta": None}
        yield f"{family}-no-vocab", without(config, "vocab_size", "model_type")
        yield f"{family}-no-layers", without(config, "num_hidden_layers", "model_type")
    yield "llama-3-1", LLAMA | {"rope_scaling": llama3(), "rope_theta": 500000.0, "max_position_embeddings": 131072}
    yield "llama-3-2", LLAMA | {"head_dim": 128, "rope_theta": 500000.0, "rope_scaling": llama3(factor=32.0)}
    yield "llama-3-legacy-raw", without(LLAMA, "model_type") | {
        "rope_theta": 500000, "rope_scaling": llama3(), "original_max_position_embeddings": 4096}
    yield "llama-3-incomplete", LLAMA | {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    for dim in (32, 64, 80, 96, 128, 256):
        for theta, rope in (
            (10000.0, {"original_max_position_embeddings": 64}), (500000.0, {"factor": 32.0}), (1000000, {"factor": 2}),
            (777777.77, {"low_freq_factor": 1.5, "high_freq_factor": 7.25, "factor": 3.3,
                         "original_max_position_embeddings": 1000}),
        ):
            yield f"llama3-rope-{dim}-{theta}", LLAMA | {
                "head_dim": dim, "rope_theta": theta, "rope_scaling": llama3(**rope)}


NAMES = [
    ("Llama-3.2-1B-Instruct", 1_235_814_400), ("DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
    ("my_model-v2-7b-chat", 7_000_000_000), ("mistral-7b-instruct-v0.2", 7_241_732_096), ("checkpoint-500", 134_515_008),
    ("legal-qa-lora", 2_300_000), ("SmolLM2-135M-Instruct", 134_515_008), ("bloom-7b1", 7_069_016_064),
    ("qwen2.5-0.5b", 494_032_768), ("Qwen2.5-1.5B-Instruct", 1_543_714_304), ("kjv-llama", 2_300_000), ("model", 5_000),
    ("merged", 999_999), ("final-model-v1.2.3", 1_000_000), ("Mixtral-8x7B-v0.1", 46_702_792_704),
    ("Phi-3-mini-4k-instruct", 3_821_079_552), ("Phi-3-mini-128k-instruct", 3_821_079_552),
    ("llama-2-13b-hf-q4_0", 13_015_864_320), ("mymodel-fp16", 1_000_001), ("a-bf16-1b", 1_100_000_000),
    ("gpt2-medium", 354_823_168), ("gpt2-xl", 1_557_611_200), ("t5-small-30m", 30_000_000), ("bert-large-340M", 340_000_000),
    ("Qwen3-30B-A3B", 30_532_122_624), ("7b", 7_000_000_000), ("v1", 10), ("1.5", 10), ("-", 10), ("--a--b--", 10),
    ("hello world 7b chat", 7_000_000_000), ("ünïcode-modèle-7b", 7_000_000_000), ("straße-3b-chat", 3_000_000_000),
    ("it's-mine", 9_999_999), ("ALLCAPS-7B-CHAT", 7_000_000_000), ("model-7B-7b-7B", 7_000_000_000),
    ("model-1_5b-chat", 1_500_000_000), ("vision-lora-chat", 12_345), ("iter3-alpha-8b-v2", 8_030_261_248),
    ("Yi-34B-200K", 34_388_917_248), ("x-2x", 1_000), ("x-a3b-instruct", 3_000_000_000), ("big-4T", 4_000_000_000_000),
    ("big-2.5k", 2_500), ("model-0.25-1.75b", 1_750_000_000), ("a.b.c-1b", 1_000_000_000), ("run_2024-06-01", 65_000_000),
    ("tiny-random-LlamaForCausalLM", 1_032_272), ("e5-mistral-7b-instruct", 7_110_660_096), ("x-123b4-y", 123_400_000_000),
    ("日本語-モデル-7b", 7_000_000_000), ("i\u0307stanbul-1b", 1_000_000_000), ("llama-iter-2-vision", 2_000_000_000),
]
SIZES = [1, 499, 500, 999, 1_000, 1_499, 1_500, 9_949, 9_950, 9_951, 9_500, 10_500, 99_499, 99_500, 1_000_000, 1_000_001,
         1_050_000, 1_150_000, 1_250_000, 1_350_000, 2_250_000, 2_350_000, 9_950_000, 9_949_999, 10_500_000, 11_500_000,
         999_500_000, 999_999_999, 1_000_000_000, 1_000_000_001, 1_050_000_000, 1_250_000_000, 1_750_000_000,
         9_999_999_999, 123_456_789_012, 999_999_999_999, 1_000_000_000_000, 1_500_000_000_001, 25_000_000_000_000]
CARDS = {
    "empty": "", "no-front-matter": "# Title\n", "unterminated": "---\nlicense: mit\n", "list": "---\n- a\n---\n",
    "plain": "---\nlicense: apache-2.0\nlanguage:\n- en\n- no\ntags:\n- text\n- chat\npipeline_tag: text-generation\n---\n# X\n",
    "lora": "---\nbase_model: meta-llama/Llama-3.2-1B-Instruct\nlibrary_name: peft\ntags:\n- base_model:adapter:meta-llama/Llama-3.2-1B-Instruct\n- lora\n- transformers\n---\n",
    "bases": "---\nbase_model:\n- mistralai/Mistral-7B-v0.1\n- https://huggingface.co/org-x/some-model-3b-v2\n- http://example.org/x/y/z\n- local\n- ./here\n- {name: N, author: A, version: '1', organization: O, description: D, url: U, doi: I, uuid: V, repo_url: R}\n- 5\n---\n",
    "base-null": "---\nbase_model:\ndatasets:\n---\n", "base-map": "---\nbase_model: {a: b}\ndataset: {a: b}\n---\n",
    "bases-plural": "---\nbase_models: [a/b-1b-v3]\nbase_model_sources: [c/d]\n---\n",
    "datasets": "---\ndatasets:\n- HuggingFaceH4/ultrachat_200k\n- https://huggingface.co/datasets/a/b\n- https://huggingface.co/a/b-v2\n- name: X\n  url: Y\n- my set\n---\n",
    "dataset-one": "---\ndataset_sources: tatsu-lab/alpaca\n---\n",
    "names": "---\nname: The Name\nauthor: Me\nversion: v9\norganization: Org\ndescription: A 'thing'\nfinetune: ft\nbasename: bn\nsize_label: 3B\nurl: u\ndoi: d\nuuid: i\nrepo_url: r\nmodel_name: ignored\n---\n",
    "model-names": "---\nmodel_name: Mine\nmodel_author: Me\nmodel_version: '2'\nmodel_organization: O\nmodel_description: D\nmodel_finetune: f\nmodel_basename: b\nmodel_size_label: 9B\nmodel_url: u\nmodel_doi: d\nmodel_uuid: i\nmodel_repo_url: r\nmodel_creator: C\nmodel_type: llama\n---\n",
    "creator": "---\nmodel_creator: C\nmodel_type: mistral\nlicense_name: ln\nlicense_link: LICENSE\nlicense: [mit, other]\n---\n",
    "norway": "---\nlanguage: no\nlicense: no\ntags: yes\n---\n", "quoted-norway": "---\nlanguage: 'no'\n---\n",
    "languages-both": "---\nlanguages: [de, fr]\nlanguage: en\ntags: solo\npipeline_tag: [a, b]\n---\n",
    "tabs": "---\ntags:\n\t- a\n\t- b\n---\n", "crlf": "---\r\nlicense: mit\r\ntags:\r\n- x\r\n---\r\n# y\r\n",
    "duplicate-key": "---\nlicense: mit\nlicense: gpl\n---\n", "empty-strings": "---\nname: ''\nauthor: ''\ntags: []\nlanguage: []\n---\n",
    "anchors": "---\na: &x [p, q]\ntags: *x\nb: &m {license: bsd}\n<<: *m\n---\n",
    "block": "---\ndescription: |\n  two\n  lines\nauthor: >-\n  folded\n  text\n---\n",
    "number-version": "---\nversion: 1.0\n---\n", "number-author": "---\nauthor: 0\n---\n", "date": "---\nversion: 2024-01-01\n---\n",
    "bad-yaml": "---\na: [\n---\n", "bad-indent": "---\na: b: c\n---\n", "int-tags": "---\ntags: [a, 1]\n---\n",
    "tagged": "---\nversion: !!str 1.0\nauthor: ~\nname: null\n---\n", "octal": "---\nauthor: 0o7\nversion: 1e3\nname: 1_0\n---\n",
    "widget": "---\nwidget:\n- text: 'hi: there'\n  parameters:\n    temperature: 0.7\nmodel-index:\n- name: x\n  results: []\nlicense: mit\n---\n",
    "bom": "\ufeff---\nlicense: mit\n---\n", "comment": "---\n# a comment\nlicense: mit # another\n...\n---\n",
    "unknown-tag": "---\nlicense: !thing mit\n---\n", "two-documents": "---\nlicense: mit\n--- \nlicense: gpl\n---\n",
}
GENERATION = {
    "all": {"sequence": "abc", "top_k": 40, "top_p": 0.9, "min_p": 0.05, "xtc_probability": 0.1, "xtc_threshold": 0.2,
            "temperature": 0.6, "penalty_last_n": 64, "penalty_repeat": 1.1, "repetition_penalty": 1.3, "mirostat": 2,
            "mirostat_tau": 5, "mirostat_eta": 0.1},
    "usual": {"bos_token_id": 1, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    "ints": {"temperature": 1, "top_p": 1}, "nulls": {"temperature": None, "top_k": None, "repetition_penalty": None},
    "float-top-k": {"top_k": 40.0}, "string-temperature": {"temperature": "hot"}, "empty": {}, "negative": {"top_k": -1},
}


def cases():
    for name, config in config_cases():
        yield name, {"config.json": json.dumps(config)}, MEASURED
    plain = json.dumps(LLAMA)
    for name, total in NAMES:
        yield name, {"config.json": plain}, (total, total, 0, 0)
        yield name, {"config.json": plain}, (3_000_000_000, 3_000_000_000, 0, 0)
    for size in SIZES:
        yield "sizes", {"config.json": plain}, (size, size, 0, 0)
    for experts in ((46_702_792_704, 1_605_639_168, 5_637_144_576, 8), (30_000_000_000, 1_000_000_000, 250_000_000, 128)):
        yield "experts", {"config.json": plain}, experts
    for card in CARDS:
        yield f"card-{card}", {"config.json": plain, "README.md": CARDS[card]}, MEASURED
    for generation in GENERATION:
        files = {"config.json": plain, "generation_config.json": json.dumps(GENERATION[generation])}
        yield f"generation-{generation}", files, MEASURED
    yield "generation-broken", {"config.json": plain, "generation_config.json": "{"}, MEASURED
    for path in ("meta-llama/Llama-2-7b-hf", "local-model-3b", "/srv/models/x", "./x-7b-chat", "", "a/b/c", None, 5):
        files = {"config.json": json.dumps(LLAMA | {"_name_or_path": path})}
        yield "named-in-config", files, (6_738_415_616, 6_738_415_616, 0, 0)
    yield "everything-7b-chat-v2", {
        "config.json": json.dumps(MISTRAL | {"_name_or_path": "org-y/base-2-7b"}), "README.md": CARDS["lora"],
        "generation_config.json": json.dumps(GENERATION["usual"])}, (7_000_000_000, 7_000_000_000, 0, 0)
    for mode in ({"pooling_mode_mean_tokens": True}, {"pooling_mode_cls_token": True}, {"pooling_mode_lasttoken": True},
                 {"pooling_mode": "lasttoken"}, {"pooling_mode": "odd"}):
        modules = [{"path": "", "type": "sentence_transformers.models.Transformer"},
                   {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
        yield "pooled", {"config.json": json.dumps(QWEN2), "modules.json": json.dumps(modules),
                         "1_Pooling/config.json": json.dumps(mode)}, MEASURED
    yield "classifier", {"config.json": json.dumps(QWEN2 | {"classifier_pooling": "mean"})}, MEASURED


def value_of(value, kind, types):
    if kind == types.FLOAT32:
        return struct.pack(">f", value).hex()
    if kind == types.UINT32:
        return struct.unpack("<I", struct.pack("<I", value))[0]
    if kind == types.INT32:
        return struct.unpack("<i", struct.pack("<i", value))[0]
    if kind == types.STRING:
        value.encode("utf-8")
    return value


def completed(directory, conversion):
    hparams = conversion.ModelBase.load_hparams(directory, False)
    fields = "rope_parameters", "head_dim", "num_key_value_heads", "sliding_window", "layer_types", "eos_token_id", "max_length"
    return {field: hparams[field] for field in fields if field in hparams}


def convert(directory, counts, conversion, gguf):
    hparams = conversion.ModelBase.load_hparams(directory, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    model_class = conversion.get_model_class(architecture)
    model = model_class(directory, gguf.LlamaFileType.MOSTLY_F16, directory / "out.gguf")
    extra = [[name, list(data.shape), data.numpy().astype(">f4").tobytes().hex(" ", 4)]
             for name, data in model.generate_extra_tensors()]
    model.gguf_writer.get_total_parameter_count = lambda: counts
    conversion.ModelBase.prepare_metadata(model, vocab_only=False)
    pairs = []
    for key, entry in model.gguf_writer.kv_data[0].items():
        # What the writer itself refuses is a failure of the case.
        model.gguf_writer._pack_val(entry.value, entry.type, add_vtype=True, sub_type=entry.sub_type)
        if entry.type == gguf.GGUFValueType.ARRAY:
            kind = gguf.GGUFValueType.get_type(entry.value[0])
            pairs.append([key, f"ARRAY {kind.name}", [value_of(v, kind, gguf.GGUFValueType) for v in entry.value]])
        else:
            pairs.append([key, entry.type.name, value_of(entry.value, entry.type, gguf.GGUFValueType)])
    return pairs, extra


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.llama_cpp), str(arguments.llama_cpp / "gguf-py")]
    import conversion
    import gguf
    logging.disable(logging.CRITICAL)
    plain = json.dumps(LLAMA)
    lines = []
    for name, files, counts in cases():
        case = {"name": name, "files": files, "parameters": list(counts)}
        with tempfile.TemporaryDirectory() as root:
            directory = Path(root) / name
            for path, text in files.items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_bytes(text.encode("utf-8"))
            try:
                case["kv"], case["extra"] = convert(directory, counts, conversion, gguf)
                if files["config.json"] == plain:
                    case["kv"] = [pair for pair in case["kv"] if pair[0].startswith("general.")]
                elif not case["extra"]:
                    case["config"] = completed(directory, conversion)
            except Exception as error:
                case["fails"] = f"{type(error).__name__}: {error}".replace(root, "").splitlines()[0]
        case["files"] = {path: text for path, text in files.items() if text != plain}
        lines.append(json.dumps(case, ensure_ascii=False))
    arguments.output.write_text(f'{{"plain": {plain},\n"cases": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
