//! A Llama of random weights with an adapter, for measuring whole conversions: 61 million values in a layer.

use super::inputs;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

const HIDDEN: usize = 2048;
const FFN: usize = 8192;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const RANK: usize = 16;
/// Projections of a layer with their rows and columns.
const PROJECTIONS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", HIDDEN, HIDDEN),
    ("self_attn.k_proj", HIDDEN / HEADS * KV_HEADS, HIDDEN),
    ("self_attn.v_proj", HIDDEN / HEADS * KV_HEADS, HIDDEN),
    ("self_attn.o_proj", HIDDEN, HIDDEN),
    ("mlp.gate_proj", FFN, HIDDEN),
    ("mlp.up_proj", FFN, HIDDEN),
    ("mlp.down_proj", HIDDEN, FFN),
];
/// Of the tokenizer that comes with the folder.
const VOCAB: usize = 2048;

/// Writes `base` and `lora` under `dir`, with the tokenizer of another model.
pub fn write(dir: &Path, layers: usize, tokenizer: &Path) -> io::Result<()> {
    let (base, lora) = (dir.join("base"), dir.join("lora"));
    std::fs::create_dir_all(&base)?;
    std::fs::create_dir_all(&lora)?;
    for name in ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"] {
        std::fs::copy(tokenizer.join(name), base.join(name))?;
    }
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    let mut factors = Vec::new();
    for layer in 0..layers {
        for (name, rows, columns) in PROJECTIONS {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), vec![rows, columns]));
            let key = format!("base_model.model.model.layers.{layer}.{name}");
            factors.push((format!("{key}.lora_A.weight"), vec![RANK, columns]));
            factors.push((format!("{key}.lora_B.weight"), vec![rows, RANK]));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![HIDDEN]));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    // Magnitudes between 2^-7 and 2^-5, of factors 2^-6.
    write_tensors(&base.join("model.safetensors"), "BF16", 2, &tensors, |word| {
        word & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00
    })?;
    write_tensors(&lora.join("adapter_model.safetensors"), "F32", 4, &factors, |word| {
        word & 0x807f_ffff_807f_ffff | 0x3c00_0000_3c00_0000
    })?;
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
"hidden_act": "silu", "hidden_size": {HIDDEN}, "intermediate_size": {FFN}, "max_position_embeddings": 8192,
"model_type": "llama", "num_attention_heads": {HEADS}, "num_hidden_layers": {layers}, "num_key_value_heads": {KV_HEADS},
"rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": {VOCAB}}}
"#
    );
    std::fs::write(base.join("config.json"), config)?;
    let adapter = format!(
        r#"{{"base_model_name_or_path": "base", "bias": "none", "fan_in_fan_out": false, "lora_alpha": 32, "lora_dropout": 0.0,
"peft_type": "LORA", "r": {RANK}, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
"task_type": "CAUSAL_LM", "use_rslora": false, "use_dora": false}}
"#
    );
    std::fs::write(lora.join("adapter_config.json"), adapter)
}

/// Writes a safetensors file with values of a counter.
fn write_tensors(
    path: &Path,
    dtype: &str,
    width: usize,
    tensors: &[(String, Vec<usize>)],
    values: impl Fn(u64) -> u64,
) -> io::Result<()> {
    let (mut entries, mut offset) = (Vec::new(), 0);
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * width;
        entries.push(format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#));
        offset = end;
    }
    let header = format!("{{{}}}", entries.join(","));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    // Every length is a multiple of eight.
    for i in 0..offset as u64 / 8 {
        out.write_all(&values(inputs::word(11, i)).to_le_bytes())?;
    }
    out.flush()
}
