//! A synthetic checkpoint for the benchmark: 1.07 billion parameters, shaped like a small Llama, with its LoRA.
//!
//! The values are quantiles of a normal distribution drawn by a seeded generator, so that every machine measures the
//! same bytes and nothing but this program is needed to make them.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

const HIDDEN: usize = 2048;
const FFN: usize = 8192;
pub const LAYERS: usize = 16;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const VOCAB: usize = 49152;
const RANK: usize = 16;
/// The rank of an adapter whose factors are as large as adapters get.
pub const HIGH_RANK: usize = 256;
const DEVIATION: f64 = 0.02;

/// Each projection of a layer: its name in the checkpoint and in GGUF, its rows and columns.
pub const PROJECTIONS: [(&str, &str, usize, usize); 7] = [
    ("self_attn.q_proj", "attn_q", HIDDEN, HIDDEN),
    ("self_attn.k_proj", "attn_k", HIDDEN / HEADS * KV_HEADS, HIDDEN),
    ("self_attn.v_proj", "attn_v", HIDDEN / HEADS * KV_HEADS, HIDDEN),
    ("self_attn.o_proj", "attn_output", HIDDEN, HIDDEN),
    ("mlp.gate_proj", "ffn_gate", FFN, HIDDEN),
    ("mlp.up_proj", "ffn_up", FFN, HIDDEN),
    ("mlp.down_proj", "ffn_down", HIDDEN, FFN),
];

/// Writes `bench-1b` and `bench-1b-lora` under `dir`, unless they are there, and returns their paths.
pub fn write(dir: &Path, tokenizer: &Path) -> Result<(PathBuf, PathBuf)> {
    let (base, lora) = (dir.join("bench-1b"), dir.join("bench-1b-lora"));
    // Written last, so where it is, all is.
    let complete = lora.join("adapter_config.json");
    if complete.is_file() {
        return Ok((base, lora));
    }
    eprintln!("writing a synthetic checkpoint into {}", dir.display());
    for folder in [&base, &lora] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(tokenizer.join(file), base.join(file))
            .with_context(|| format!("cannot copy `{}`", tokenizer.join(file).display()))?;
    }
    let mut random = Normal::new(1);
    write_base(&base, &mut random)?;
    write_json(&base.join("config.json"), &config())?;
    write_adapter(&lora, RANK, &mut random)?;
    Ok((base, lora))
}

/// Writes `bench-1b-lora-r256` under `dir`, unless it is there, and returns its path.
pub fn write_high_rank(dir: &Path) -> Result<PathBuf> {
    let lora = dir.join("bench-1b-lora-r256");
    if !lora.join("adapter_config.json").is_file() {
        std::fs::create_dir_all(&lora).with_context(|| format!("cannot create `{}`", lora.display()))?;
        write_adapter(&lora, HIGH_RANK, &mut Normal::new(2))?;
    }
    Ok(lora)
}

fn write_adapter(dir: &Path, rank: usize, random: &mut Normal) -> Result<()> {
    write_file(&dir.join("adapter_model.safetensors"), &adapter(rank), random)?;
    write_json(&dir.join("adapter_config.json"), &adapter_config(rank))
}

/// One tensor to write.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

#[derive(Clone, Copy)]
enum Fill {
    NormalBf16,
    OneBf16,
    NormalF32,
}

impl Tensor {
    fn new(name: impl Into<String>, shape: &[usize], fill: Fill) -> Tensor {
        Tensor { name: name.into(), shape: shape.to_vec(), fill }
    }

    fn byte_len(&self) -> usize {
        let width = match self.fill {
            Fill::NormalBf16 | Fill::OneBf16 => 2,
            Fill::NormalF32 => 4,
        };
        self.shape.iter().product::<usize>() * width
    }
}

fn write_base(base: &Path, random: &mut Normal) -> Result<()> {
    let mut shards = [vec![Tensor::new("model.embed_tokens.weight", &[VOCAB, HIDDEN], Fill::NormalBf16)], Vec::new()];
    for layer in 0..LAYERS {
        let shard = &mut shards[layer * 2 / LAYERS];
        for (name, _, rows, columns) in PROJECTIONS {
            let name = format!("model.layers.{layer}.{name}.weight");
            shard.push(Tensor::new(name, &[rows, columns], Fill::NormalBf16));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shard.push(Tensor::new(format!("model.layers.{layer}.{norm}.weight"), &[HIDDEN], Fill::OneBf16));
        }
    }
    shards[1].push(Tensor::new("model.norm.weight", &[HIDDEN], Fill::OneBf16));
    let mut weight_map = Map::new();
    let mut total_size = 0;
    // As the safetensors library writes tensors of one type.
    shards.iter_mut().for_each(|shard| shard.sort_by(|a, b| a.name.cmp(&b.name)));
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_file(&base.join(&file), shard, random)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), Value::from(file.as_str()))));
        total_size += shard.iter().map(Tensor::byte_len).sum::<usize>();
    }
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    write_json(&base.join("model.safetensors.index.json"), &index)
}

fn adapter(rank: usize) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        for (name, _, rows, columns) in PROJECTIONS {
            let key = format!("base_model.model.model.layers.{layer}.{name}");
            tensors.push(Tensor::new(format!("{key}.lora_A.weight"), &[rank, columns], Fill::NormalF32));
            tensors.push(Tensor::new(format!("{key}.lora_B.weight"), &[rows, rank], Fill::NormalF32));
        }
    }
    tensors
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": FFN, "max_position_embeddings": 8192,
        "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS, "pad_token_id": 2, "rms_norm_eps": 1e-5, "rope_theta": 100000,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": VOCAB,
    })
}

fn adapter_config(rank: usize) -> Value {
    let modules: Vec<&str> = PROJECTIONS.iter().filter_map(|(name, ..)| name.split('.').nth(1)).collect();
    json!({
        "base_model_name_or_path": "bench-1b", "bias": "none", "fan_in_fan_out": false, "lora_alpha": 2 * rank,
        "lora_dropout": 0.0, "peft_type": "LORA", "r": rank, "target_modules": modules, "task_type": "CAUSAL_LM",
        "use_rslora": false, "use_dora": false,
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Writes a safetensors file: length of the header, header, tensors one after the other.
fn write_file(path: &Path, tensors: &[Tensor], random: &mut Normal) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let dtype = if matches!(tensor.fill, Fill::NormalF32) { "F32" } else { "BF16" };
        let end = offset + tensor.byte_len();
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut write = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for tensor in tensors {
            for _ in 0..tensor.shape.iter().product::<usize>() {
                match tensor.fill {
                    Fill::NormalBf16 => file.write_all(&random.next_bf16().to_le_bytes())?,
                    Fill::OneBf16 => file.write_all(&bf16(1.0).to_le_bytes())?,
                    Fill::NormalF32 => file.write_all(&random.next_f32().to_le_bytes())?,
                }
            }
        }
        file.flush()
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}

/// Draws from 65536 equally likely quantiles of a normal distribution.
pub struct Normal {
    quantiles: Vec<f32>,
    /// State of SplitMix64.
    state: u64,
    /// Bits drawn and not yet used, four draws of 16.
    bits: u64,
    left: u8,
}

impl Normal {
    pub fn new(seed: u64) -> Normal {
        Normal { quantiles: quantiles(DEVIATION), state: seed, bits: 0, left: 0 }
    }

    pub fn next_f32(&mut self) -> f32 {
        if self.left == 0 {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (self.bits, self.left) = (z ^ (z >> 31), 4);
        }
        let draw = self.quantiles[(self.bits & 0xffff) as usize];
        self.bits >>= 16;
        self.left -= 1;
        draw
    }

    fn next_bf16(&mut self) -> u16 {
        bf16(self.next_f32())
    }
}

/// Where the normal distribution's integral, summed by trapezoids, passes (i + 1/2) / 65536, times `deviation`.
fn quantiles(deviation: f64) -> Vec<f32> {
    const STEP: f64 = 1e-5;
    const COUNT: usize = 1 << 16;
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let mut quantiles = Vec::with_capacity(COUNT);
    let (mut x, mut integral) = (-6.0, 0.0);
    while quantiles.len() < COUNT {
        let next = integral + (density(x) + density(x + STEP)) / 2.0 * STEP;
        while quantiles.len() < COUNT && next >= (quantiles.len() as f64 + 0.5) / COUNT as f64 {
            quantiles.push((x * deviation) as f32);
        }
        (x, integral) = (x + STEP, next);
    }
    quantiles
}

/// The nearest bfloat16, ties to even. No value here is NaN.
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_normal_and_the_same_in_every_run() {
        let draws = |seed| {
            let mut random = Normal::new(seed);
            (0..200_000).map(|_| f64::from(random.next_f32())).collect::<Vec<_>>()
        };
        let values = draws(1);
        assert_eq!(values, draws(1));
        assert_ne!(values, draws(2));
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
        let inside = values.iter().filter(|x| x.abs() < DEVIATION).count() as f64 / count;
        assert!(mean.abs() < 2e-4 && (deviation - DEVIATION).abs() < 2e-4, "{mean} {deviation}");
        assert!((inside - 0.6827).abs() < 5e-3, "{inside}");
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        assert_eq!([1.0, -2.0, 0.0].map(bf16), [0x3f80, 0xc000, 0]);
        assert_eq!(bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
    }

    #[test]
    fn a_written_file_has_its_tensors_where_its_header_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = [Tensor::new("a", &[2], Fill::OneBf16), Tensor::new("b", &[3, 1], Fill::NormalF32)];
        write_file(&path, &tensors, &mut Normal::new(1)).unwrap();
        let bytes = mlpack_fs::read_bounded(&path, 1 << 20).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        assert_eq!(header["b"], json!({ "dtype": "F32", "shape": [3, 1], "data_offsets": [4, 16] }));
        assert_eq!(bytes[8 + len..8 + len + 4], [0x80, 0x3f, 0x80, 0x3f]);
        assert_eq!(bytes.len(), 8 + len + 16);
    }

    #[test]
    fn the_shapes_come_to_1_07_billion_parameters() {
        let layer: usize = PROJECTIONS.iter().map(|(_, _, rows, columns)| rows * columns).sum();
        assert_eq!(VOCAB * HIDDEN + LAYERS * (layer + 2 * HIDDEN) + HIDDEN, 1_073_809_408);
    }
}
