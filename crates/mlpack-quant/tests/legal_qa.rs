//! A real checkpoint against files that llama-quantize b11434 made of it: every tensor that conversion does not permute,
//! in every type, with and without an importance matrix.

use mlpack_fs::{MappedFile, Sha256, read_to_string_bounded};
use mlpack_quant::{can_encode, encode, widen};
use mlpack_tensor::{Dtype, GgmlType};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa").join(path)
}

/// The checkpoint's tensors as f32, by their GGUF names; those that the rope permutation reorders are left out.
fn checkpoint() -> BTreeMap<String, Vec<f32>> {
    let file = MappedFile::open(&fixture("kjv-llama/model.safetensors")).unwrap();
    let bytes = file.bytes();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let data = &bytes[8 + header_len..];
    let mut tensors = BTreeMap::new();
    for (name, about) in header.as_object().unwrap() {
        let Some(name) = gguf_name(name) else { continue };
        assert_eq!(about["dtype"], "BF16");
        let offset = |i: usize| about["data_offsets"][i].as_u64().unwrap() as usize;
        let raw = &data[offset(0)..offset(1)];
        let mut values = vec![0.0; raw.len() / 2];
        widen(Dtype::BF16, raw, &mut values).unwrap();
        tensors.insert(name, values);
    }
    tensors
}

fn gguf_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.")?;
    if name == "embed_tokens.weight" {
        return Some("token_embd.weight".to_owned());
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let rest = match rest {
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{rest}.weight"))
}

/// A little-endian reader for the importance matrix file.
struct Gguf<'a>(&'a [u8]);

impl<'a> Gguf<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn string(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }
    fn skip_value(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => drop(self.string()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                (0..len).for_each(|_| self.skip_value(kind));
            }
            10..=12 => drop(self.take(8)),
            _ => panic!("value type {kind}"),
        }
    }
}

/// Mean squares of each tensor's inputs: `in_sum2 / counts`, as llama-quantize reads them.
fn importance() -> BTreeMap<String, Vec<f32>> {
    let file = MappedFile::open(&fixture("golden/llama.cpp-b11434/imatrix.gguf")).unwrap();
    let bytes = file.bytes();
    let mut reader = Gguf(bytes);
    assert_eq!(reader.take(4), b"GGUF");
    assert_eq!(reader.u32(), 3);
    let (tensor_count, kv_count) = (reader.u64(), reader.u64());
    for _ in 0..kv_count {
        reader.string();
        let kind = reader.u32();
        reader.skip_value(kind);
    }
    let table: Vec<(String, usize, usize)> = (0..tensor_count)
        .map(|_| {
            let name = reader.string();
            let dimensions = reader.u32();
            let len = (0..dimensions).map(|_| reader.u64() as usize).product();
            assert_eq!(reader.u32(), 0, "F32");
            (name, len, reader.u64() as usize)
        })
        .collect();
    let data = (bytes.len() - reader.0.len()).next_multiple_of(32);
    let mut sums = BTreeMap::new();
    for (name, len, offset) in &table {
        let mut values = vec![0.0; *len];
        widen(Dtype::F32, &bytes[data + offset..][..len * 4], &mut values).unwrap();
        sums.insert(name.clone(), values);
    }
    sums.iter()
        .filter_map(|(name, values)| {
            let tensor = name.strip_suffix(".in_sum2")?;
            let count = sums[&format!("{tensor}.counts")][0];
            Some((tensor.to_owned(), values.iter().map(|v| v / count).collect()))
        })
        .collect()
}

fn compare(prefix: &str, importance: &BTreeMap<String, Vec<f32>>) -> BTreeSet<GgmlType> {
    let tensors = checkpoint();
    assert_eq!(tensors.len(), 1 + 3 * 5);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let mut digests: BTreeMap<(String, GgmlType), String> = BTreeMap::new();
    let folder = std::fs::read_dir(fixture("golden/llama.cpp-b11434")).unwrap();
    for path in folder.map(|entry| entry.unwrap().path()) {
        let file = path.file_name().unwrap().to_str().unwrap();
        if !file.starts_with(prefix) {
            continue;
        }
        let golden: Value = serde_json::from_str(&read_to_string_bounded(&path, 1 << 20).unwrap()).unwrap();
        for tensor in golden["tensors"].as_array().unwrap() {
            let name = tensor["name"].as_str().unwrap();
            let ty = GgmlType::from_name(tensor["type"].as_str().unwrap()).unwrap();
            let Some(values) = tensors.get(name).filter(|_| can_encode(ty)) else { continue };
            let digest = digests.entry((name.to_owned(), ty)).or_insert_with(|| {
                let row_len = tensor["shape"][0].as_u64().unwrap() as usize;
                let mut out = vec![0; ty.row_byte_len(values.len() as u64).unwrap() as usize];
                encode(ty, values, row_len, importance.get(name).map(Vec::as_slice), &mut out).unwrap();
                Sha256::of(&out).to_string()
            });
            if *digest != tensor["sha256"] {
                wrong.push(format!("{file} {name} {ty}"));
            }
            seen.insert(ty);
        }
    }
    assert!(wrong.is_empty(), "these differ from llama-quantize:\n{}", wrong.join("\n"));
    seen
}

#[test]
fn tensors_equal_llama_quantize() {
    let mut seen = compare("q-", &BTreeMap::new());
    seen.extend(compare("qp-", &BTreeMap::new()));
    seen.extend(compare("hf-", &BTreeMap::new()));
    let expected = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 IQ4_NL IQ4_XS IQ3_S";
    assert_covers(&seen, expected);
}

#[test]
fn tensors_with_importance_equal_llama_quantize() {
    let importance = importance();
    assert_eq!(importance.len(), 3 * 7);
    let seen = compare("qi-", &importance);
    let expected =
        "Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ3_XXS IQ3_S IQ2_XXS IQ2_XS IQ2_S IQ1_S IQ1_M";
    assert_covers(&seen, expected);
}

fn assert_covers(seen: &BTreeSet<GgmlType>, names: &str) {
    for ty in names.split(' ').map(|name| GgmlType::from_name(name).unwrap()) {
        assert!(seen.contains(&ty), "no golden tensor of {ty} was compared");
    }
}
