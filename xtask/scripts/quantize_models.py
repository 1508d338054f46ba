"""Writes small models with random weights for the rules of llama-quantize that SmolLM2 does not ask: experts, many query heads
for one key-value head, 80 layers, fused projections, rows that are not whole blocks.

usage: quantize_models.py TOKENIZER_DIR OUT

`mixtral` is a checkpoint that llama.cpp converts and runs, so that it can make an importance matrix for it. `gqa8.gguf`,
`layers80.gguf`, `falcon.gguf` and `qwen2moe.gguf` have the keys and tensors that a quantizer looks at, and no vocabulary; beside
each is an importance matrix of random positive values, `NAME.imatrix.gguf`. `unvisited.imatrix.gguf` is one for `mixtral` in which
no token went to expert 3.
"""

import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

HIDDEN, FFN, VOCAB, CHUNKS, TOKENS = 256, 512, 512, 3, 1536


def mixtral(tokenizer, out):
    # Eight experts are a case of their own in the mixtures, and so is the first eighth of the layers.
    torch.manual_seed(5)
    config = MixtralConfig(
        vocab_size=2048, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model = MixtralForCausalLM(config)
    # Tokens that differ much are sent to different experts, so that a short text visits all of them.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=2.0)
    model.to(torch.bfloat16).save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / file, out)


def model(layers, parts):
    """Every tensor's shape. The parts of a layer may depend on its number."""
    tensors = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(layers):
        tensors |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts(layer).items()}
    return tensors


def attention(kv_width):
    return {
        "attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (kv_width, HIDDEN), "attn_v": (kv_width, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN), "ffn_norm": (HIDDEN,),
    }


def gated(suffix, experts, ffn):
    return {
        f"ffn_gate{suffix}": (*experts, ffn, HIDDEN), f"ffn_up{suffix}": (*experts, ffn, HIDDEN),
        f"ffn_down{suffix}": (*experts, HIDDEN, ffn),
    }


def llama(layers, kv_width):
    return model(layers, lambda _: attention(kv_width) | gated("", (), FFN)) | {"output.weight": (VOCAB, HIDDEN)}


def qwen2moe(layers, experts):
    router = {"ffn_gate_inp": (experts, HIDDEN), "ffn_gate_inp_shexp": (HIDDEN,)}
    parts = attention(128) | router | gated("_exps", (experts,), 256) | gated("_shexp", (), FFN)
    return model(layers, lambda _: parts) | {"output.weight": (VOCAB, HIDDEN)}


def falcon(layers):
    # Rows of whole blocks, of whole small blocks, and of no whole block.
    ffn = (FFN, FFN + 32, FFN + 8)
    return model(layers, lambda layer: {
        "attn_norm": (HIDDEN,), "attn_qkv": (HIDDEN + 64, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, ffn[layer % 3]),
    })


def write_model(path, arch, layers, heads, kv_heads, tensors, random):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(path.stem)
    writer.add_block_count(layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    experts = [shape[0] for shape in tensors.values() if len(shape) == 3]
    if experts:
        writer.add_expert_count(experts[0])
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(256)
        writer.add_expert_shared_feed_forward_length(FFN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, shape in tensors.items():
        writer.add_tensor(name, random.normal(0, 0.02, shape).astype(np.float32))
    finish(writer)


def write_importance(path, tensors, random, unvisited=()):
    """What llama-imatrix would write after CHUNKS chunks: for each expert, sums of squares and the tokens that they are of."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", TOKENS // CHUNKS)
    for name, shape in tensors.items():
        if len(shape) > 1 and name.startswith("blk."):
            experts = shape[0] if len(shape) == 3 else 1
            counts = random.integers(1, TOKENS, (experts, 1)).astype(np.float32)
            if experts > 1:
                counts[list(unvisited)] = 0
            means = random.gamma(0.5, 2.0, (experts, shape[-1])) + 1e-3
            writer.add_tensor(f"{name}.in_sum2", (means * counts).astype(np.float32))
            writer.add_tensor(f"{name}.counts", counts)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(tokenizer, out):
    out.mkdir(parents=True, exist_ok=True)
    mixtral(tokenizer, out / "mixtral")
    random = np.random.default_rng(7)
    for name, arch, layers, heads, kv_heads, tensors in (
        ("gqa8", "llama", 8, 8, 1, llama(8, 32)),
        ("layers80", "llama", 80, 4, 2, llama(80, 128)),
        ("falcon", "falcon", 16, 4, 1, falcon(16)),
        ("qwen2moe", "qwen2moe", 4, 8, 4, qwen2moe(4, 4)),
    ):
        write_model(out / f"{name}.gguf", arch, layers, heads, kv_heads, tensors, random)
        write_importance(out / f"{name}.imatrix.gguf", tensors, random)
    parts = attention(64) | gated("_exps", (8,), 256)
    write_importance(out / "unvisited.imatrix.gguf", model(8, lambda _: parts), random, unvisited=(3,))


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
