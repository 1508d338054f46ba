#!/usr/bin/env python3
"""Write small random checkpoints of every family that becomes an ONNX decoder.

usage: onnx_models.py OUT_DIR [CASE...]
       needs: pip install torch transformers
"""
import json
import pathlib
import sys

import torch
import transformers

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [1.0, 1.25, 1.5, 2, 3.1, 4.7, 5.5, 6.3],
        "short_factor": [1.0, 1.0, 1.05, 1.1, 1.1, 1.2, 1.3, 1.4], "original_max_position_embeddings": 66}

# name -> (class, model type, fields)
CASES = {
    "llama": ("LlamaForCausalLM", "llama", {}),
    "llama-tied": ("LlamaForCausalLM", "llama", {"tie_word_embeddings": True}),
    "llama-bias": ("LlamaForCausalLM", "llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama3": ("LlamaForCausalLM", "llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaForCausalLM", "llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("LlamaForCausalLM", "llama", {"rope_parameters": YARN}),
    "llama-odd": ("LlamaForCausalLM", "llama", {"vocab_size": 321, "intermediate_size": 99}),
    "mistral": ("MistralForCausalLM", "mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {}),
    "qwen2-sliding": ("Qwen2ForCausalLM", "qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", "gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text", {
        "head_dim": 32, "sliding_window": 16, "num_hidden_layers": 7, "query_pre_attn_scalar": 24}),
    "phi3": ("Phi3ForCausalLM", "phi3", {"sliding_window": 16}),
    "phi3-long": ("Phi3ForCausalLM", "phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 66}),
    "phi4-mini": ("Phi3ForCausalLM", "phi3", {"partial_rotary_factor": 0.75, "head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3", {"num_hidden_layers": 5}),
    "granite": ("GraniteForCausalLM", "granite", {
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.15}),
    "olmo2": ("Olmo2ForCausalLM", "olmo2", {}),
    "olmo3": ("Olmo3ForCausalLM", "olmo3", {"sliding_window": 16, "num_hidden_layers": 5}),
}


def main():
    out = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:] or CASES:
        cls, model_type, fields = CASES[name]
        config = transformers.AutoConfig.for_model(model_type, **(SMALL | fields))
        config.architectures = [cls]
        torch.manual_seed(7)
        model = getattr(transformers, cls)(config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                # Large enough that a wrong scale shows, small enough that float32 is not what shows; norms that are not alike.
                value.copy_(torch.randn_like(value) * (0.15 if value.ndim > 1 else 0.5) + (1.0 if "norm" in key and "gemma" not in name else 0.0))
        model.save_pretrained(out / name)
        path = out / name / "config.json"
        saved = json.loads(path.read_text())
        path.write_text(json.dumps(saved, indent=1))


main()
