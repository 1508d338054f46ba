#!/usr/bin/env python3
"""Write a small checkpoint for every architecture, and what convert_hf_to_gguf.py makes of it.

usage: arch_models.py LLAMA_SOURCE LLAMA_QUANTIZE SPM_TOKENIZER_DIR BPE_TOKENIZER_DIR REAL_TOKENIZERS_DIR OUT_DIR [CASE...]
       needs: pip install torch transformers gguf sentencepiece

Names and shapes of the tensors are those that transformers saves; the values come from a generator that is easy to
write again (`values`), so that a test can make the same checkpoint without transformers. config.json holds only what is
given here: every other field is a default that the converter finds through transformers.

OUT_DIR/NAME holds the checkpoint, OUT_DIR/reference the converter's files, OUT_DIR/golden/NAME.json how to make the
checkpoint again and the digests of those files. The cases of `REAL` have the tokenizers of real models, folders of
REAL_TOKENIZERS_DIR; they have no goldens, because a test would need those files.

The small tokenizers are ones that the converter has no name for: they are called by the names of `PRES` here, as mlpack
finds by their structure. Real ones are called as the converter finds itself.
"""
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers

# The converter's class -> pre-tokenizer.
PRES = {"BertModel": "jina-v2-en", "NomicBertModel": "jina-v2-en", "Qwen2Model": "qwen2"}
PRE = "gpt-2"
TYPES = ("F16", "BF16", "Q8_0")
# What llama-quantize makes of checkpoints that are quantized already, and the converter's type that it starts from.
QUANTIZED = {
    "Qwen3-tiny-fp8": ("F32", ("Q4_K_M", "Q5_1")), "DeepseekV3-tiny-fp8": ("F32", ("Q4_K_M",)),
    "GptOss-tiny-mxfp4": ("BF16", ("MXFP4_MOE", "Q4_K_M")),
}
# The case that is converted to several files, too.
SPLIT = "Qwen3-tiny"
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
SPM_VOCAB, SPM_PIECES, BPE_VOCAB = 2048, 2000, 384
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "tekken.json")

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}
MOE = SMALL | {"num_experts_per_tok": 2}
NO_KV = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 128}

ENCODER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def words(model_type):
    """A small tokenizer.json of words, and its config."""
    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]}[model_type]
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    tokens = special + letters + [f"##{letter}" for letter in letters] + ["the", "##ing", "##er", "model"]
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in enumerate(special)]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
             "vocab": {token: i for i, token in enumerate(tokens)}}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                  "lowercase": True}
    files = {
        "tokenizer.json": {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                           "normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
                           "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}, "model": model},
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "unk_token": "[UNK]",
                                  "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
                                  "mask_token": "[MASK]"},
    }
    return len(tokens), {name: json.dumps(content) for name, content in files.items()}


# A few replacements of Unicode characters, compiled by SentencePiece.
CHARSMAP = (
    "AAQAAAAgAAAJCQAACgUAAAAAAICAnAIApg0AAAIAAICAPAIAgC0AAKwIAgCBBQAACgAAgKEFAAAGAACACAAAgKIFAAARAAAAEAAA"
    "ABMAAAASAAAAFQAAABQAAAAXAAAAFgAAABkAAAC80AIAGwAAABoAAAAdAAAAHAAAAB8AAAAeAAAAIQAAACAAAAAjAAAAIgAAACUA"
    "AAAkAAAAJwAAACYAAAApAAAAKAAAACsAAAAqAAAALQAAACwAAAAvAAAALgAAADEAAAAwAAAAMwAAADIAAAA1AAAANAAAADcAAAA2"
    "AAAAOQAAADgAAAA7AAAAOgAAAD0AAAA8AAAAPwAAAD4AAABBAAAAQAAAAEMAAABCAAAARQAAAEQAAABHAAAARgAAAEkAAABIAAAA"
    "SwAAAEoAAABNAAAATAAAAE8AAABOAAAAUQAAAFAAAABTAAAAUgAAAFUAAABUAAAAVwAAAFYAAABZAAAAWAAAAFsAAABaAAAAXQAA"
    "AFwAAABfAAAAXgAAAGEAAABgAAAAYwAAAGIAAABlAAAAZAAAAGcAAABmAAAAaQAAAGgAAABrAAAAagAAAG0AAABsAAAAbwAAAG4A"
    "AABxAAAAcAAAAHMAAAByAAAAdQAAAHQAAAB3AAAAdgAAAHkAAAB4AAAAewAAAHoAAAB9AAAAfAAAAH8AAAB+AAAAgQAAAIAAAACD"
    "AAAAggAAAIUAAACEAAAAhwAAAIYAAACJAAAAiAAAAIsAAACKAAAAjQAAAIwAAACPAAAAjgAAAJEAAACQAAAAkwAAAJIAAACVAAAA"
    "lAAAAJcAAACWAAAAmQAAAJgAAACbAAAAmgAAAJ0AAACcAAAAnwAAAJ4AAAChAAAAoAAAAKMAAACiAAAApQAAAKQAAACnAAAApgAA"
    "AKkAAACoAAAAqwAAAKoAAACtAAAArAAAAK8AAACuAAAAsQAAALAAAACzAAAAsgAAALUAAAC0AAAAtwAAALYAAAC5AAAAuAAAALsA"
    "AAC6AAAAvQAAALwAAAC/AAAAvgAAAMEAAADAAAAAwwAAAMIAAADFAAAAxAAAAMcAAADGAAAAyQAAAMgAAADLAAAAygAAAM0AAADM"
    "AAAAzwAAAM4AAADRAAAA0AAAANMAAADSAAAA1QAAANQAAADXAAAA1gAAANkAAADYAAAA2wAAANoAAADdAAAA3AAAAN8AAADeAAAA"
    "4QAAAOAAAADjAAAA4gAAAOUAAADkAAAA5wAAAO8IAQDpAAAA6AAAAOK4AQDjsAEA7QAAAOwAAADvAAAA7gAAAPEAAADwAAAA8wAA"
    "APIAAAD1AAAA9AAAAPcAAAD2AAAA+QAAAPgAAAD7AAAA+gAAAP0AAAD8AAAA/wAAAP4AAAAgAC4uLgBBAEIAZmkA"
)


def pieces():
    """A small tokenizer.json of pieces with scores, as XLM-RoBERTa has it, and its config."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [chr(c) for c in range(33, 127)]
    tokens = [[token, 0.0] for token in special] + [["\u2581", -2.0], ["\u2581the", -2.5], ["ing", -2.75], ["er", -2.875]]
    tokens += [[letter, -3.0 - i / 16] for i, letter in enumerate(letters)] + [["<mask>", 0.0]]
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in [*enumerate(special), (len(tokens) - 1, "<mask>")]]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    files = {
        "tokenizer.json": {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                           "normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
                           "pre_tokenizer": metaspace, "post_processor": None, "decoder": metaspace,
                           "model": {"type": "Unigram", "unk_id": 3, "vocab": tokens, "byte_fallback": False}},
        "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                                  "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>",
                                  "mask_token": "<mask>"},
    }
    return len(tokens), {name: json.dumps(content) for name, content in files.items()}


WORDS, WORD_FILES = words("bert")
PIECES, PIECE_FILES = pieces()


def of_layers(layers, per_layer, others):
    """Shapes of models that transformers has no class for."""
    tensors = {name.replace("*", str(i)): shape for i in range(layers) for name, shape in per_layer.items()}
    return {"shapes": tensors | others}


# name -> (class, model type, dtype, tokenizer, fields[, changes]); the tokenizer "model" is tokenizer.model alone, "gemma"
# one that puts no space before a text. Changes
# are files with their text, tokens that are added to tokenizer.json, tensors that transformers would not save, and all
# shapes where transformers has no such class.
CASES = {
    "Llama-tiny-padded": ("LlamaForCausalLM", "llama", "BF16", "spm", SMALL | {"vocab_size": SPM_VOCAB + 64}),
    "Llama-tiny-added": ("LlamaForCausalLM", "llama", "BF16", "spm", SMALL | {"vocab_size": SPM_VOCAB + 2}, {
        "files": {"added_tokens.json": '{"<|tool|>": 2048, "<|pad|>": 2049}',
                  "chat_template.jinja": "{% for m in messages %}<|tool|>{{ m.content }}{% endfor %}"}}),
    "Llama-tiny-tied": ("LlamaForCausalLM", "llama", "F16", "spm", SMALL | {"tie_word_embeddings": True}),
    "Llama-tiny-untied": ("LlamaForCausalLM", "llama", "F16", "spm", SMALL | {"tie_word_embeddings": True}, {
        "tensors": {"lm_head.weight": [SPM_VOCAB, 64]}}),
    "Qwen2-tiny-padded": ("Qwen2ForCausalLM", "qwen2", "BF16", "bpe", SMALL | {"vocab_size": BPE_VOCAB + 64}),
    "Qwen2-tiny-added": ("Qwen2ForCausalLM", "qwen2", "F32", "bpe", SMALL | {"vocab_size": BPE_VOCAB + 8}, {
        "added_tokens": ["<|tool|>", "<|think|>", "plain addition"]}),
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
    "Gemma-tiny": ("GemmaForCausalLM", "gemma", "BF16", "gemma", SMALL | {"head_dim": 32}),
    "Gemma2-tiny": ("Gemma2ForCausalLM", "gemma2", "F16", "gemma", SMALL | {"head_dim": 32}),
    "Gemma3-tiny": ("Gemma3ForCausalLM", "gemma3_text", "BF16", "gemma", SMALL | {"head_dim": 32, "sliding_window": 64}),
    "Phi2-tiny": ("PhiForCausalLM", "phi", "F16", "bpe", NO_KV),
    "Phi3-tiny": ("Phi3ForCausalLM", "phi3", "BF16", "spm", SMALL | {"pad_token_id": 0, "eos_token_id": 2}),
    "Phi3-tiny-128k": ("Phi3ForCausalLM", "phi3", "BF16", "spm", SMALL | {
        "pad_token_id": 0, "eos_token_id": 2, "sliding_window": 64, "original_max_position_embeddings": 128,
        "rope_scaling": {"type": "longrope", "long_factor": [1.0, 1.25, 1.5, 2, 3.1, 4.7, 5.5, 6.3],
                         "short_factor": [1.0, 1.0, 1.05, 1.1, 1.1, 1.2, 1.3, 1.4]}}),
    "Phi4-tiny": ("Phi3ForCausalLM", "phi3", "BF16", "bpe", SMALL | {
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "original_max_position_embeddings": 512,
        "rope_theta": 250000}, {"files": {"tokenizer_config.json": json.dumps({
            "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "add_prefix_space": False})}}),
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
    "Bert-tiny": ("BertModel", "bert", "F32", "files", ENCODER | {"vocab_size": WORDS}, {"files": WORD_FILES}),
    "Bert-tiny-labels": ("BertForSequenceClassification", "bert", "F16", "files", ENCODER | {
        "vocab_size": WORDS, "id2label": {"0": "no", "1": "yes", "2": "perhaps"}}, {"files": WORD_FILES}),
    "Roberta-tiny": ("RobertaModel", "roberta", "F32", "bpe", ENCODER | {
        "max_position_embeddings": 130, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
    "XlmRoberta-tiny": ("XLMRobertaModel", "xlm-roberta", "F16", "files", ENCODER | {
        "vocab_size": PIECES, "max_position_embeddings": 130}, {"files": PIECE_FILES}),
    "XlmRoberta-tiny-reranker": ("XLMRobertaForSequenceClassification", "xlm-roberta", "F32", "files", ENCODER | {
        "vocab_size": PIECES, "max_position_embeddings": 130, "id2label": {"0": "LABEL_0"}}, {"files": PIECE_FILES}),
    "NomicBert-tiny": ("NomicBertModel", "nomic_bert", "F32", "files", {
        "vocab_size": WORDS, "n_positions": 8192, "n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4,
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
        "activation_function": "swiglu", "causal": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
        "mlp_fc2_bias": False, "prenorm": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None, "rotary_emb_base": 1000, "type_vocab_size": 2, "layer_norm_epsilon": 1e-12,
    }, {"files": WORD_FILES} | of_layers(2, {
        "encoder.layers.*.attn.Wqkv.weight": [192, 64], "encoder.layers.*.attn.out_proj.weight": [64, 64],
        "encoder.layers.*.mlp.fc11.weight": [96, 64], "encoder.layers.*.mlp.fc12.weight": [96, 64],
        "encoder.layers.*.mlp.fc2.weight": [64, 96],
        "encoder.layers.*.norm1.weight": [64], "encoder.layers.*.norm1.bias": [64],
        "encoder.layers.*.norm2.weight": [64], "encoder.layers.*.norm2.bias": [64],
    }, {"emb_ln.weight": [64], "emb_ln.bias": [64], "embeddings.word_embeddings.weight": [WORDS, 64],
        "embeddings.token_type_embeddings.weight": [2, 64]})),
    "ModernBert-tiny": ("ModernBertModel", "modernbert", "F32", "bpe", ENCODER | {
        "num_hidden_layers": 4, "cls_token_id": 0, "sep_token_id": 2, "pad_token_id": 0, "bos_token_id": 0,
        "eos_token_id": 2, "global_attn_every_n_layers": 3, "global_rope_theta": 80000.0}),
    "T5-tiny": ("T5ForConditionalGeneration", "t5", "F32", "model", {
        "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "n_positions": 512,
        "decoder_start_token_id": 0}),
    "T5-tiny-gated": ("T5ForConditionalGeneration", "t5", "BF16", "model", {
        "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0, "tie_word_embeddings": False}),
    "T5Encoder-tiny": ("T5EncoderModel", "t5", "F16", "model", {
        "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}),
    "Mamba-tiny": ("MambaForCausalLM", "mamba", "F16", "bpe", {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "state_size": 16, "conv_kernel": 4,
        "time_step_rank": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}),
    "Baichuan-tiny": ("BaichuanForCausalLM", "baichuan", "BF16", "model", NO_KV | {"rms_norm_eps": 1e-6}, of_layers(2, {
        "model.layers.*.self_attn.W_pack.weight": [192, 64], "model.layers.*.self_attn.o_proj.weight": [64, 64],
        "model.layers.*.mlp.gate_proj.weight": [96, 64], "model.layers.*.mlp.up_proj.weight": [96, 64],
        "model.layers.*.mlp.down_proj.weight": [64, 96], "model.layers.*.input_layernorm.weight": [64],
        "model.layers.*.post_attention_layernorm.weight": [64],
    }, {"model.embed_tokens.weight": [SPM_VOCAB, 64], "model.norm.weight": [64], "lm_head.weight": [SPM_VOCAB, 64]})),
    "InternLM2-tiny": ("InternLM2ForCausalLM", "internlm2", "F16", "model", SMALL | {
        "vocab_size": SPM_PIECES, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 1000000}, of_layers(2, {
            "model.layers.*.attention.wqkv.weight": [128, 64], "model.layers.*.attention.wo.weight": [64, 64],
            "model.layers.*.feed_forward.w1.weight": [96, 64], "model.layers.*.feed_forward.w3.weight": [96, 64],
            "model.layers.*.feed_forward.w2.weight": [64, 96], "model.layers.*.attention_norm.weight": [64],
            "model.layers.*.ffn_norm.weight": [64],
        }, {"model.tok_embeddings.weight": [SPM_PIECES, 64], "model.norm.weight": [64],
            "output.weight": [SPM_PIECES, 64]})),
    "Deepseek-tiny": ("DeepseekForCausalLM", "deepseek", "BF16", "bpe", SMALL | {
        "n_routed_experts": 3, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "rms_norm_eps": 1e-6, "rope_theta": 10000, "scoring_func": "softmax",
    }, of_layers(2, {
        "model.layers.*.self_attn.q_proj.weight": [64, 64], "model.layers.*.self_attn.k_proj.weight": [32, 64],
        "model.layers.*.self_attn.v_proj.weight": [32, 64], "model.layers.*.self_attn.o_proj.weight": [64, 64],
        "model.layers.*.input_layernorm.weight": [64], "model.layers.*.post_attention_layernorm.weight": [64],
    }, {"model.embed_tokens.weight": [BPE_VOCAB, 64], "model.norm.weight": [64], "lm_head.weight": [BPE_VOCAB, 64],
        "model.layers.0.mlp.gate_proj.weight": [96, 64], "model.layers.0.mlp.up_proj.weight": [96, 64],
        "model.layers.0.mlp.down_proj.weight": [64, 96], "model.layers.1.mlp.gate.weight": [3, 64],
        "model.layers.1.mlp.shared_experts.gate_proj.weight": [64, 64],
        "model.layers.1.mlp.shared_experts.up_proj.weight": [64, 64],
        "model.layers.1.mlp.shared_experts.down_proj.weight": [64, 64],
    } | {f"model.layers.1.mlp.experts.{i}.{part}_proj.weight": [64, 32] if part == "down" else [32, 64]
         for i in range(3) for part in ("gate", "up", "down")})),
    "GptOss-tiny": ("GptOssForCausalLM", "gpt_oss", "BF16", "bpe", MOE | {"num_local_experts": 3, "head_dim": 16}),
    "GptOss-tiny-mxfp4": ("GptOssForCausalLM", "gpt_oss", "BF16", "bpe", MOE | {
        "num_local_experts": 3, "head_dim": 16, "rope_scaling": YARN, "quantization_config": {"quant_method": "mxfp4"},
    }, of_layers(2, {
        "model.layers.*.self_attn.q_proj.weight": [64, 64], "model.layers.*.self_attn.q_proj.bias": [64],
        "model.layers.*.self_attn.k_proj.weight": [32, 64], "model.layers.*.self_attn.k_proj.bias": [32],
        "model.layers.*.self_attn.v_proj.weight": [32, 64], "model.layers.*.self_attn.v_proj.bias": [32],
        "model.layers.*.self_attn.o_proj.weight": [64, 64], "model.layers.*.self_attn.o_proj.bias": [64],
        "model.layers.*.self_attn.sinks": [4], "model.layers.*.input_layernorm.weight": [64],
        "model.layers.*.post_attention_layernorm.weight": [64], "model.layers.*.mlp.router.weight": [3, 64],
        "model.layers.*.mlp.router.bias": [3], "model.layers.*.mlp.experts.gate_up_proj_blocks": [3, 192, 2, 16],
        "model.layers.*.mlp.experts.gate_up_proj_scales": [3, 192, 2],
        "model.layers.*.mlp.experts.gate_up_proj_bias": [3, 192],
        "model.layers.*.mlp.experts.down_proj_blocks": [3, 64, 3, 16],
        "model.layers.*.mlp.experts.down_proj_scales": [3, 64, 3], "model.layers.*.mlp.experts.down_proj_bias": [3, 64],
    }, {"model.embed_tokens.weight": [BPE_VOCAB, 64], "model.norm.weight": [64], "lm_head.weight": [BPE_VOCAB, 64]})),
    "DeepseekV3-tiny-fp8": ("DeepseekV3ForCausalLM", "deepseek_v3", "BF16", "bpe", SMALL | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}, {
            "scaled": [16, 24]}),
    "Qwen3-tiny-fp8": ("Qwen3ForCausalLM", "qwen3", "F16", "bpe", SMALL | {"head_dim": 32}, {"scaled": [32, 32]}),
    "Llama-tiny-fp8-tensors": ("LlamaForCausalLM", "llama", "BF16", "spm", SMALL, {"scaled": "tensor"}),
    "Llama-tiny-fp8-rows": ("LlamaForCausalLM", "llama", "F16", "spm", SMALL, {"scaled": "row"}),
    "MiniMaxM2-tiny": ("MiniMaxM2ForCausalLM", "minimax_m2", "BF16", "bpe", MOE | {
        "num_local_experts": 4, "head_dim": 32, "rotary_dim": 16}),
}

# With tokenizers of real models, as the packages of that name have them.
REAL = {
    "Llama-real-2": ("LlamaForCausalLM", "llama", "BF16", "llama2", SMALL),
    "Llama-real-3.2": ("LlamaForCausalLM", "llama", "BF16", "llama3_2", SMALL | {
        "rope_parameters": LLAMA3, "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128009}),
    "Mistral-real-nemo": ("MistralForCausalLM", "mistral", "BF16", "mistral_nemo", SMALL | {
        "head_dim": 32, "bos_token_id": 1, "eos_token_id": 2}),
    "Mistral-real-tekken": ("MistralForCausalLM", "mistral", "BF16", "tekken", SMALL | {
        "head_dim": 32, "bos_token_id": 1, "eos_token_id": 2}),
    "Qwen2-real-2.5": ("Qwen2ForCausalLM", "qwen2", "BF16", "qwen2_5", SMALL | {
        "bos_token_id": 151643, "eos_token_id": 151645, "tie_word_embeddings": True}),
    "Qwen3-real": ("Qwen3ForCausalLM", "qwen3", "BF16", "qwen3", SMALL | {
        "head_dim": 32, "bos_token_id": 151643, "eos_token_id": 151645}),
    "DeepseekV3-real": ("DeepseekV3ForCausalLM", "deepseek_v3", "BF16", "deepseek_v3", CASES["DeepseekV3-tiny"][4] | {
        "bos_token_id": 0, "eos_token_id": 1}),
    "GptOss-real": ("GptOssForCausalLM", "gpt_oss", "BF16", "gptoss", MOE | {
        "num_local_experts": 3, "head_dim": 16, "bos_token_id": 199998, "eos_token_id": 200002}),
    "Gpt2-real": ("GPT2LMHeadModel", "gpt2", "F32", "gpt2", CASES["Gpt2-tiny"][4] | {
        "bos_token_id": 50256, "eos_token_id": 50256}),
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


def stored(tensors, name, dtype, numbers):
    """The tensor: quantized where it has scales beside it."""
    data = torch.from_numpy(numbers)
    numbers = ((data * 8 + 0.5) * 256).to(torch.uint8)
    if name.endswith("_blocks"):
        return numbers
    if name.endswith("_scales"):
        return 118 + numbers % 8
    if f"{name}_scale_inv" in tensors:
        # No NaN.
        return torch.where(numbers % 128 == 127, numbers - 1, numbers).view(torch.float8_e4m3fn)
    return data.to(torch.float32 if name.endswith("_scale_inv") else DTYPES[dtype])


def real_vocab(folder):
    """How many tokens a real tokenizer has; nothing for the small ones, whose cases say it."""
    if folder.name == "tekken":
        config = json.loads((folder / "tekken.json").read_text())["config"]
        return {"vocab_size": config["default_vocab_size"]}
    if folder.name not in {case[3] for case in REAL.values()}:
        return {}
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = list(content["model"]["vocab"].values()) + [token["id"] for token in content["added_tokens"]]
    return {"vocab_size": max(ids) + 1}


def shapes(hf_class, config):
    """Names and shapes as transformers saves them."""
    model = getattr(transformers, hf_class)(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with open(pathlib.Path(folder) / "model.safetensors", "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in sorted(header.items()) if name != "__metadata__"}


def make(folder, case, tokenizers):
    hf_class, model_type, dtype, tokenizer, fields, *changes = case
    changes = changes[0] if changes else {}
    folder.mkdir(parents=True)
    fields = {"vocab_size": BPE_VOCAB if tokenizer == "bpe" else SPM_VOCAB} | real_vocab(tokenizers[tokenizer]) | fields
    config = {"architectures": [hf_class], "torch_dtype": "bfloat16", "model_type": model_type} | fields
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    tensors = changes.get("shapes") or shapes(hf_class, transformers.AutoConfig.from_pretrained(folder))
    tensors = dict(sorted((tensors | changes.get("tensors", {})).items()))
    if block := changes.pop("scaled", None):
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3"}
        if isinstance(block, list):
            config["quantization_config"]["weight_block_size"] = block
        scale = {"tensor": lambda shape: [], "row": lambda shape: [shape[0], 1]}.get(
            str(block), lambda shape: [-(-n // b) for n, b in zip(shape, block)])
        scaled = [name for name in tensors if "_proj" in name and name.endswith(".weight")]
        tensors |= {f"{name}_scale_inv": scale(tensors[name]) for name in scaled}
        tensors = dict(sorted(tensors.items()))
    # Some configs are converted only where transformers does not read them: without a model type.
    config = {key: value for key, value in config.items() if key != "model_type" or value}
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file
    data = {
        name: stored(tensors, name, dtype, values(name, int(numpy.prod(shape)))).reshape(shape)
        for name, shape in tensors.items()
    }
    save_file(data, folder / "model.safetensors")
    for file in {"model": TOKENIZER_FILES[1:2], "files": ()}.get(tokenizer, TOKENIZER_FILES):
        if (tokenizers[tokenizer] / file).is_file():
            shutil.copy(tokenizers[tokenizer] / file, folder / file)
    if tokenizer == "gemma":
        # Another part of the normalizer's description: no space before a text.
        with open(folder / "tokenizer.model", "ab") as file:
            file.write(b"\x1a\x02\x18\x00")
    if added := changes.get("added_tokens"):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        content["added_tokens"] += [
            {"id": BPE_VOCAB + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": token.startswith("<")} for i, token in enumerate(added)
        ]
        path.write_text(json.dumps(content))
    for name, text in changes.get("files", {}).items():
        (folder / name).write_text(text)
    changes = {key: value for key, value in changes.items() if key not in ("tensors", "shapes")}
    return {"config": config, "dtype": dtype, "tokenizer": tokenizer} | changes | {"tensors": tensors}


def lines(golden):
    """The golden as JSON, one tensor a line."""
    tensors = ",\n".join(f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in golden["tensors"].items())
    rest = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items() if key != "tensors")
    return f'{{\n{rest},\n "tensors": {{\n{tensors}\n }}\n}}\n'


def main():
    llama, quantize, spm, bpe, real, out = map(pathlib.Path, sys.argv[1:7])
    cases = CASES | REAL
    names = sys.argv[7:] or list(cases)
    tokenizers = {"spm": spm, "model": spm, "gemma": spm, "bpe": bpe, "files": out / "none"}
    tokenizers |= {case[3]: real / case[3] for case in REAL.values()}
    sys.path.insert(0, str(llama))
    import convert_hf_to_gguf
    from conversion.baichuan import BaichuanModel
    from conversion.base import TextModel

    of_its_own = TextModel.get_vocab_base_pre
    TextModel.get_vocab_base_pre = lambda self, tokenizer: (
        PRES.get(type(self).__name__, PRE) if len(tokenizer) < BPE_VOCAB + 8 else of_its_own(self, tokenizer)
    )
    # At b11434 this class calls itself without end for every tensor but the fused one; it is mended here.
    def of_baichuan(self, data, name, bid):
        if name.endswith(".self_attn.W_pack.weight"):
            return unpack(self, data, name, bid)
        return TextModel.modify_tensors(self, data, name, bid)

    unpack = BaichuanModel.modify_tensors
    BaichuanModel.modify_tensors = of_baichuan
    for part in ("reference", "golden"):
        (out / part).mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        if (out / name).exists():
            shutil.rmtree(out / name)
        try:
            golden = make(out / name, cases[name], tokenizers)
            golden["sha256"] = {}
            for kind in TYPES:
                file = out / "reference" / f"{name}-{kind}.gguf"
                sys.argv = ["convert_hf_to_gguf.py", str(out / name), "--outtype", kind.lower(), "--outfile", str(file)]
                convert_hf_to_gguf.main()
                golden["sha256"][kind] = hashlib.sha256(file.read_bytes()).hexdigest()
            source, kinds = QUANTIZED.get(name, ("F32", ()))
            if kinds:
                file = out / f"{name}-{source}.gguf"
                sys.argv = ["convert_hf_to_gguf.py", str(out / name), "--outtype", source.lower(), "--outfile", str(file)]
                convert_hf_to_gguf.main()
            for kind in kinds:
                made = out / "reference" / f"{name}-{kind}.gguf"
                subprocess.run([quantize, "--allow-requantize", file, made, kind, "2"], check=True, stdout=subprocess.DEVNULL)
                golden["sha256"][kind] = hashlib.sha256(made.read_bytes()).hexdigest()
            if name == SPLIT:
                golden["splits"] = {}
                for option in ("--split-max-tensors 7", "--split-max-size 60K"):
                    folder = out / "reference" / option.strip("-").replace(" ", "-")
                    folder.mkdir(exist_ok=True)
                    sys.argv = ["convert_hf_to_gguf.py", str(out / name), "--outtype", "f16", *option.split(),
                                "--outfile", str(folder / f"{name}-F16.gguf")]
                    convert_hf_to_gguf.main()
                    parts = sorted(folder.iterdir())
                    golden["splits"][option] = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
            if name in CASES:
                (out / "golden" / f"{name}.json").write_text(lines(golden))
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        sys.exit("the converter fails on\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    main()
