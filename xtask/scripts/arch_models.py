#!/usr/bin/env python3
"""Write a small checkpoint for every architecture, and what convert_hf_to_gguf.py makes of it.

usage: arch_models.py LLAMA_SOURCE SPM_TOKENIZER_DIR BPE_TOKENIZER_DIR OUT_DIR [CASE...]
       needs: pip install torch transformers gguf sentencepiece

Names and shapes of the tensors are those that transformers saves; the values come from a generator that is easy to
write again (`values`), so that a test can make the same checkpoint without transformers. config.json holds only what is
given here: every other field is a default that the converter finds through transformers.

OUT_DIR/NAME holds the checkpoint, OUT_DIR/reference the converter's files, OUT_DIR/golden/NAME.json how to make the
checkpoint again and the digests of those files.

The byte-level tokenizer is a small one, which llama.cpp has no name for: it is called by the name `PRE` here, and mlpack
is told the same with --pre.
"""
import hashlib
import json
import pathlib
import shutil
import sys
import tempfile

import numpy
import torch
import transformers

PRE = "qwen2"
TYPES = ("F16", "BF16", "Q8_0")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
SPM_VOCAB, BPE_VOCAB = 2048, 384
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}
MOE = SMALL | {"num_experts_per_tok": 2}
NO_KV = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 128}

# name -> (class, model type, dtype, tokenizer, fields); the tokenizer "model" is tokenizer.model alone
CASES = {
    "Mixtral-tiny-8x": ("MixtralForCausalLM", "mixtral", "BF16", "spm", MOE | {"num_local_experts": 4}),
    "Mixtral-tiny-f16": ("MixtralForCausalLM", "mixtral", "F16", "spm", MOE | {"num_local_experts": 3, "head_dim": 32}),
    "Qwen2Moe-tiny": ("Qwen2MoeForCausalLM", "qwen2_moe", "BF16", "bpe", MOE | {
        "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}),
    "Qwen2Moe-tiny-12x": ("Qwen2MoeForCausalLM", "qwen2_moe", "F32", "bpe", MOE | {
        "num_experts": 12, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}),
    "Qwen3-tiny": ("Qwen3ForCausalLM", "qwen3", "BF16", "bpe", SMALL | {"head_dim": 32}),
    "Qwen3-tiny-tied": ("Qwen3ForCausalLM", "qwen3", "F16", "bpe", SMALL | {
        "head_dim": 32, "tie_word_embeddings": True, "attention_bias": True, "rope_parameters": YARN}),
    "Qwen3-tiny-embedding": ("Qwen3Model", "qwen3", "BF16", "bpe", SMALL | {"head_dim": 32}),
    "Qwen3Moe-tiny": ("Qwen3MoeForCausalLM", "qwen3_moe", "BF16", "bpe", MOE | {
        "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 32}),
    "Gemma-tiny": ("GemmaForCausalLM", "gemma", "BF16", "spm", SMALL | {"head_dim": 32}),
    "Gemma2-tiny": ("Gemma2ForCausalLM", "gemma2", "F16", "spm", SMALL | {"head_dim": 32}),
    "Gemma3-tiny": ("Gemma3ForCausalLM", "gemma3_text", "BF16", "spm", SMALL | {"head_dim": 32, "sliding_window": 64}),
    "Phi2-tiny": ("PhiForCausalLM", "phi", "F16", "bpe", NO_KV),
    "Phi3-tiny": ("Phi3ForCausalLM", "phi3", "BF16", "spm", SMALL | {"pad_token_id": 0, "eos_token_id": 2}),
    "Phi3-tiny-128k": ("Phi3ForCausalLM", "phi3", "BF16", "spm", SMALL | {
        "pad_token_id": 0, "eos_token_id": 2, "sliding_window": 64, "original_max_position_embeddings": 128,
        "rope_scaling": {"type": "longrope", "long_factor": [1.0, 1.25, 1.5, 2, 3.1, 4.7, 5.5, 6.3],
                         "short_factor": [1.0, 1.0, 1.05, 1.1, 1.1, 1.2, 1.3, 1.4]}}),
    "DeepseekV2-tiny": ("DeepseekV2ForCausalLM", "deepseek_v2", "BF16", "bpe", SMALL | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1, "routed_scaling_factor": 1.0,
        "n_group": 2, "topk_group": 1}),
    "DeepseekV3-tiny": ("DeepseekV3ForCausalLM", "deepseek_v3", "BF16", "bpe", SMALL | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}),
    "Granite-tiny": ("GraniteForCausalLM", "granite", "BF16", "spm", SMALL | {
        "embedding_multiplier": 12.0, "logits_scaling": 8, "residual_multiplier": 0.22, "attention_multiplier": 0.0}),
    "GraniteMoe-tiny": ("GraniteMoeForCausalLM", "granitemoe", "BF16", "spm", MOE | {
        "num_local_experts": 4, "embedding_multiplier": 12.0, "logits_scaling": 6.0}),
    "GraniteMoeShared-tiny": ("GraniteMoeSharedForCausalLM", "granitemoeshared", "F16", "spm", MOE | {
        "num_local_experts": 4, "shared_intermediate_size": 128}),
    "SmolLM3-tiny": ("SmolLM3ForCausalLM", "smollm3", "BF16", "spm", SMALL | {
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "SeedOss-tiny": ("SeedOssForCausalLM", "seed_oss", "BF16", "bpe", SMALL | {"head_dim": 32}),
    "Starcoder2-tiny": ("Starcoder2ForCausalLM", "starcoder2", "BF16", "bpe", SMALL | {
        "bos_token_id": 0, "eos_token_id": 0}),
    "Cohere-tiny": ("CohereForCausalLM", "cohere", "F16", "bpe", SMALL | {
        "bos_token_id": 1, "eos_token_id": 2, "use_qk_norm": True}),
    "Cohere2-tiny": ("Cohere2ForCausalLM", "cohere2", "BF16", "bpe", SMALL | {
        "bos_token_id": 1, "eos_token_id": 2, "rotary_pct": 1.0}),
    "Olmo-tiny": ("OlmoForCausalLM", "olmo", "BF16", "bpe", SMALL | {"eos_token_id": 2, "clip_qkv": 8.0}),
    "Olmo2-tiny": ("Olmo2ForCausalLM", "olmo2", "BF16", "bpe", SMALL | {"eos_token_id": 2}),
    "Olmo3-tiny": ("Olmo3ForCausalLM", "olmo3", "BF16", "bpe", SMALL | {
        "eos_token_id": 2, "num_hidden_layers": 5, "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 128}}),
    "Olmoe-tiny": ("OlmoeForCausalLM", "olmoe", "BF16", "bpe", MOE | {"eos_token_id": 2, "num_experts": 4}),
    "StableLm-tiny": ("StableLmForCausalLM", "stablelm", "BF16", "bpe", SMALL),
    "StableLm-tiny-1.6b": ("StableLmForCausalLM", "stablelm", "F16", "bpe", SMALL | {
        "use_parallel_residual": True, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "Gpt2-tiny": ("GPT2LMHeadModel", "gpt2", "F32", "bpe", {
        "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_ctx": 512, "bos_token_id": 0, "eos_token_id": 0}),
    "GptNeoX-tiny": ("GPTNeoXForCausalLM", "gpt_neox", "F16", "bpe", NO_KV | {
        "rotary_pct": 0.25, "layer_norm_eps": 1e-5, "model_type": None}),
    "Falcon-tiny-40b": ("FalconForCausalLM", "falcon", "BF16", "bpe", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2,
        "new_decoder_architecture": True, "bos_token_id": 0, "eos_token_id": 0}),
    "Exaone4-tiny": ("Exaone4ForCausalLM", "exaone4", "BF16", "bpe", SMALL | {
        "num_hidden_layers": 5, "sliding_window": 64, "rope_parameters": LLAMA3}),
    "Exaone4-tiny-full": ("Exaone4ForCausalLM", "exaone4", "BF16", "bpe", SMALL | {
        "sliding_window": None, "head_dim": 32, "layer_types": ["full_attention", "full_attention"]}),
    "Ernie45-tiny": ("Ernie4_5ForCausalLM", "ernie4_5", "BF16", "model", SMALL | {"head_dim": 32}),
    "Glm4-tiny": ("Glm4ForCausalLM", "glm4", "BF16", "bpe", SMALL | {"head_dim": 32, "eos_token_id": 2, "pad_token_id": 0}),
    "HunYuanDense-tiny": ("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", "BF16", "bpe", SMALL | {"head_dim": 32}),
    "Lfm2-tiny": ("Lfm2ForCausalLM", "lfm2", "BF16", "bpe", SMALL | {
        "layer_types": ["conv", "full_attention"], "block_multiple_of": 32, "eos_token_id": 2}),
    "MiniMaxM2-tiny": ("MiniMaxM2ForCausalLM", "minimax_m2", "BF16", "bpe", MOE | {
        "num_local_experts": 4, "head_dim": 32, "rotary_dim": 16}),
}


def values(name, count):
    """float32 numbers from -0.0625 to 0.0625: SplitMix64, seeded with FNV-1a of the name, its upper 24 bits."""
    seed = 0xcbf29ce484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001b3 % 2**64
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9e3779b97f4a7c15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94d049bb133111eb)
        z = z ^ (z >> numpy.uint64(31))
    return ((z >> numpy.uint64(40)).astype(numpy.float32) * numpy.float32(2**-24) - numpy.float32(0.5)) / numpy.float32(8)


def shapes(hf_class, config):
    """Names and shapes as transformers saves them."""
    model = getattr(transformers, hf_class)(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with open(pathlib.Path(folder) / "model.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in sorted(header.items()) if name != "__metadata__"}


def make(folder, case, tokenizers):
    hf_class, model_type, dtype, tokenizer, fields = case
    folder.mkdir(parents=True)
    fields = {"vocab_size": BPE_VOCAB if tokenizer == "bpe" else SPM_VOCAB} | fields
    config = {"architectures": [hf_class], "torch_dtype": "bfloat16", "model_type": model_type} | fields
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    tensors = shapes(hf_class, transformers.AutoConfig.from_pretrained(folder))
    # Some configs are converted only where transformers does not read them: without a model type.
    config = {key: value for key, value in config.items() if key != "model_type" or value}
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file
    data = {
        name: torch.from_numpy(values(name, int(numpy.prod(shape)))).reshape(shape).to(DTYPES[dtype])
        for name, shape in tensors.items()
    }
    save_file(data, folder / "model.safetensors")
    for file in TOKENIZER_FILES[1:2] if tokenizer == "model" else TOKENIZER_FILES:
        if (tokenizers[tokenizer] / file).is_file():
            shutil.copy(tokenizers[tokenizer] / file, folder / file)
    return {"config": config, "dtype": dtype, "tokenizer": tokenizer, "tensors": tensors}


def lines(golden):
    """The golden as JSON, one tensor a line."""
    tensors = ",\n".join(f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in golden["tensors"].items())
    rest = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items() if key != "tensors")
    return f'{{\n{rest},\n "tensors": {{\n{tensors}\n }}\n}}\n'


def main():
    llama, spm, bpe, out = map(pathlib.Path, sys.argv[1:5])
    names = sys.argv[5:] or list(CASES)
    sys.path.insert(0, str(llama))
    import convert_hf_to_gguf
    from conversion.base import TextModel

    of_its_own = TextModel.get_vocab_base_pre
    TextModel.get_vocab_base_pre = lambda self, tokenizer: (
        PRE if len(tokenizer) == BPE_VOCAB else of_its_own(self, tokenizer)
    )
    for part in ("reference", "golden"):
        (out / part).mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        if (out / name).exists():
            shutil.rmtree(out / name)
        try:
            golden = make(out / name, CASES[name], {"spm": spm, "model": spm, "bpe": bpe})
            golden["sha256"] = {}
            for kind in TYPES:
                file = out / "reference" / f"{name}-{kind}.gguf"
                sys.argv = ["convert_hf_to_gguf.py", str(out / name), "--outtype", kind.lower(), "--outfile", str(file)]
                convert_hf_to_gguf.main()
                golden["sha256"][kind] = hashlib.sha256(file.read_bytes()).hexdigest()
            (out / "golden" / f"{name}.json").write_text(lines(golden))
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        sys.exit("the converter fails on\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    main()
