#!/usr/bin/env python3
"""Write small models with random weights for what the real checkpoints of the parity run do not have: float16 shards with an
index (Mistral), llama3 rope scaling, attention biases and an output matrix of its own (Llama), query biases (Qwen2).

usage: tiny_models.py TOKENIZER_DIR OUT_DIR        needs: pip install torch transformers
"""
import pathlib
import shutil
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

tokenizer, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
torch.manual_seed(3)
common = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}
llama3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
models = {
    "Mistral-tiny-v0.3": (MistralForCausalLM(MistralConfig(sliding_window=512, **common)), torch.float16),
    "Llama-3.2-tiny": (
        LlamaForCausalLM(LlamaConfig(attention_bias=True, rope_parameters=llama3, tie_word_embeddings=False, **common)),
        torch.float32,
    ),
    "Qwen2.5-tiny-chat": (Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **common)), torch.bfloat16),
}
for name, (model, dtype) in models.items():
    # A bias starts as zeros; zeros would hide a wrong permutation.
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    model.to(dtype).save_pretrained(out / name, max_shard_size="1MB")
    for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / file, out / name)
