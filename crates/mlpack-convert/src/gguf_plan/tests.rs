//! Every architecture: a small checkpoint whose files the converter's are known, byte for byte. `xtask parity archs` makes
//! the goldens; the weights come from a generator that both sides have.

use super::*;
use crate::{Resources, Source, execute, open_model};
use mlpack_arch::Families;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

const VARIANTS: &[(&str, FileType)] = &[("F16", FileType::F16), ("BF16", FileType::BF16), ("Q8_0", FileType::Q8_0)];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

#[allow(clippy::disallowed_methods, reason = "a test reads its own files")]
fn golden(name: &str) -> Value {
    let text = std::fs::read_to_string(folder().join("archs").join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The names of all goldens, sorted.
#[allow(clippy::disallowed_methods, reason = "a test reads its own files")]
fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder().join("archs")).unwrap();
    let mut names: Vec<String> = files
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().strip_suffix(".json").unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// The generator of `arch_models.py`: SplitMix64, seeded with FNV-1a of the name, its upper 24 bits as numbers from
/// -0.0625 to 0.0625.
fn values(name: &str, count: u64) -> impl Iterator<Item = f32> {
    let fnv = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1..=count).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        ((z >> 40) as f32 * (1.0 / (1 << 24) as f32) - 0.5) / 8.0
    })
}

/// The upper bits of a number of the generator.
fn byte(value: f32) -> u8 {
    ((value * 8.0 + 0.5) * 256.0) as u8
}

fn stored(dtype: &str, value: f32) -> Vec<u8> {
    match dtype {
        "BF16" => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        "F16" => half::f16::from_f32(value).to_le_bytes().to_vec(),
        "F32" => value.to_le_bytes().to_vec(),
        other => panic!("{other}"),
    }
}

/// Writes the tensors into shards of about the same number of tensors.
fn write_weights(dir: &Path, golden: &Value, shards: usize) {
    let dtype = golden["dtype"].as_str().unwrap();
    let tensors: Vec<(&String, &Value)> = golden["tensors"].as_object().unwrap().iter().collect();
    let mut index = Map::new();
    for (i, tensors) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", i + 1),
        };
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, shape) in tensors {
            let count = shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
            let start = data.len();
            let is_scaled = golden["tensors"].get(format!("{name}_scale_inv")).is_some();
            let dtype = match &name[name.rfind('_').unwrap_or(0)..] {
                "_blocks" | "_scales" => "U8",
                "_inv" => "F32",
                _ if is_scaled => "F8_E4M3",
                _ => dtype,
            };
            values(name, count).for_each(|v| match dtype {
                "U8" if name.ends_with("_scales") => data.push(118 + byte(v) % 8),
                "U8" => data.push(byte(v)),
                // No NaN.
                "F8_E4M3" => data.push(byte(v) - u8::from(byte(v) % 128 == 127)),
                _ => data.extend(stored(dtype, v)),
            });
            header
                .insert((*name).clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
            index.insert((*name).clone(), file.clone().into());
        }
        let header = Value::from(header).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(dir.join(&file), bytes).unwrap();
    }
    if shards > 1 {
        let index = json!({"metadata": {}, "weight_map": index});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

fn checkpoint(dir: &Path, golden: &Value, shards: usize) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), golden["config"].to_string()).unwrap();
    write_weights(dir, golden, shards);
    let from = match golden["tokenizer"].as_str().unwrap() {
        "bpe" => folder().join("bpe"),
        // All of them are in the golden.
        "files" => dir.join("none"),
        _ => folder().join("../../../fixtures/legal-qa/kjv-llama"),
    };
    let only_model = golden["tokenizer"] == "model";
    for file in ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"] {
        if from.join(file).is_file() && (!only_model || file == "tokenizer.model") {
            std::fs::copy(from.join(file), dir.join(file)).unwrap();
        }
    }
    if golden["tokenizer"] == "gemma" {
        use std::io::Write as _;
        let mut file = std::fs::File::options().append(true).open(dir.join("tokenizer.model")).unwrap();
        // Another part of the normalizer's description: no space before a text.
        file.write_all(b"\x1a\x02\x18\x00").unwrap();
    }
    change_tokenizer(dir, golden);
}

/// What a case changes about the tokenizer's files.
#[allow(clippy::disallowed_methods, reason = "a test reads its own files")]
fn change_tokenizer(dir: &Path, golden: &Value) {
    if let Some(added) = golden["added_tokens"].as_array() {
        let path = dir.join("tokenizer.json");
        let mut content: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let first = content["model"]["vocab"].as_object().unwrap().len();
        for (i, token) in added.iter().enumerate() {
            content["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": first + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": token.as_str().unwrap().starts_with('<'),
            }));
        }
        std::fs::write(&path, content.to_string()).unwrap();
    }
    for (name, text) in golden["files"].as_object().into_iter().flatten() {
        std::fs::write(dir.join(name), text.as_str().unwrap()).unwrap();
    }
}

/// The digests of the files that a checkpoint becomes, by their type.
fn converted(dir: &Path, name: &str, kinds: &[&str], resources: &Resources) -> Result<Map<String, Value>, Error> {
    let source = Source::open(dir, &[], &Default::default())?;
    let model = open_model(&source, None, &Families::builtin())?;
    let variants = kinds.iter().map(|kind| FileType::parse(kind)).collect::<Result<Vec<_>, _>>()?;
    let options = QuantizeOptions { allow_requantize: true, ..QuantizeOptions::default() };
    let plan = plan_gguf(
        &source,
        &model,
        &GgufRequest { name, variants: &variants, pre: None, options: &options, split: Split::default() },
    )?;
    let done = execute(&source, &plan, dir, resources, &|_| {})?;
    let digests = done.outputs.iter().map(|file| file.sha256.to_string().into());
    Ok(kinds.iter().map(|kind| (*kind).to_owned()).zip(digests).collect())
}

/// The types whose digests a golden has.
fn kinds(golden: &Value) -> Vec<&str> {
    golden["sha256"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn every_architecture_is_converted_to_the_golden_bytes() {
    let mut wrong = Vec::new();
    for name in names() {
        let golden = golden(&name);
        let dir = tempfile::tempdir().unwrap();
        checkpoint(&dir.path().join(&name), &golden, 1);
        match converted(&dir.path().join(&name), &name, &kinds(&golden), &Resources::default()) {
            Err(e) => wrong.push(format!("{name}: {e}")),
            Ok(digests) => {
                let other = digests.iter().filter(|(kind, digest)| golden["sha256"][*kind] != **digest);
                wrong.extend(other.map(|(kind, _)| format!("{name} {kind}: other bytes")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A LoRA adapter of rank 2 for the named modules of every layer that has them.
fn adapter(dir: &Path, golden: &Value, modules: &[&str]) {
    std::fs::create_dir_all(dir).unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": modules});
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in golden["tensors"].as_object().unwrap() {
        let Some(stem) = name.strip_suffix(".weight").filter(|s| modules.iter().any(|m| s.ends_with(m))) else {
            continue;
        };
        let (rows, columns) = (shape[0].as_u64().unwrap(), shape[1].as_u64().unwrap());
        for (part, shape) in [("lora_A", [2, columns]), ("lora_B", [rows, 2])] {
            let name = format!("base_model.model.{stem}.{part}.weight");
            let start = data.len();
            values(&name, shape[0] * shape[1]).for_each(|v| data.extend(v.to_le_bytes()));
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
        }
    }
    assert!(!header.is_empty(), "{modules:?}");
    let header = Value::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
}

/// The GGUF tensors of a plan's outputs: everything behind the metadata, which names the model.
fn tensor_bytes(dir: &Path, adapters: &[(PathBuf, f64)], resources: &Resources) -> Vec<Vec<u8>> {
    let source = Source::open(dir, adapters, &Default::default()).unwrap();
    let model = open_model(&source, None, &Families::builtin()).unwrap();
    let variants: Vec<FileType> = VARIANTS.iter().map(|(_, variant)| *variant).collect();
    let options = QuantizeOptions::default();
    let request = GgufRequest { name: "m", variants: &variants, pre: None, options: &options, split: Split::default() };
    let plan = plan_gguf(&source, &model, &request).unwrap();
    let out = tempfile::tempdir().unwrap();
    let done = execute(&source, &plan, out.path(), resources, &|_| {}).unwrap();
    let files = done.outputs.iter().zip(&plan.outputs);
    #[allow(clippy::disallowed_methods, reason = "a test reads its own files")]
    let bytes = files.map(|(file, output)| std::fs::read(&file.path).unwrap()[output.preamble.len()..].to_vec());
    bytes.collect()
}

#[test]
fn deltas_are_added_before_the_transforms() {
    for (name, modules) in [
        ("Mixtral-tiny-8x", &["q_proj", "w1", "w2"][..]),
        ("Mixtral-tiny-f16", &["experts.1.w3", "k_proj"]),
        ("DeepseekV2-tiny", &["kv_b_proj", "experts.2.down_proj"]),
        ("Falcon-tiny-40b", &["query_key_value"]),
        ("Glm4-tiny", &["gate_up_proj"]),
    ] {
        let golden = golden(name);
        let dir = tempfile::tempdir().unwrap();
        let (base, lora, merged) = (dir.path().join("base"), dir.path().join("lora"), dir.path().join("merged"));
        checkpoint(&base, &golden, 1);
        adapter(&lora, &golden, modules);
        let adapters = [(lora, 1.0)];
        let source = Source::open(&base, &adapters, &Default::default()).unwrap();
        let plan = crate::plan_merge(&source, &Default::default()).unwrap();
        let out = mlpack_fs::AtomicDir::create(&merged).unwrap();
        crate::merge(&source, &plan, out, &Resources::default(), &|_| {}).unwrap();
        let plain = tensor_bytes(&base, &[], &Resources::default());
        let expected = tensor_bytes(&merged, &[], &Resources::default());
        assert_ne!(plain, expected, "{name}: the adapter changes something");
        for resources in [Resources::default(), Resources { memory: 3 << 20, threads: 3, ..Resources::default() }] {
            assert!(tensor_bytes(&base, &adapters, &resources) == expected, "{name}, {resources:?}");
        }
    }
}

#[test]
fn stacks_of_several_shards_are_written_where_their_last_member_is() {
    let golden = golden("Mixtral-tiny-8x");
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &golden, 5);
    let source = Source::open(dir.path(), &[], &Default::default()).unwrap();
    let model = open_model(&source, None, &Families::builtin()).unwrap();
    let options = QuantizeOptions::default();
    let request =
        GgufRequest { name: "m", variants: &[FileType::F16], pre: None, options: &options, split: Split::default() };
    let plan = plan_gguf(&source, &model, &request).unwrap();
    let names: Vec<&str> = plan.outputs[0].tensors.iter().map(|t| t.name.as_str()).collect();
    let at = names.iter().position(|name| *name == "blk.0.ffn_gate_exps.weight").unwrap();
    assert_eq!(
        names[at..at + 3],
        ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.ffn_up_exps.weight"]
    );
    let done = execute(&source, &plan, dir.path(), &Resources::default(), &|_| {}).unwrap();
    for input in &done.inputs {
        assert_eq!(mlpack_fs::hash_file(&input.path).unwrap().0, input.sha256, "every byte is hashed once");
    }
}

#[test]
fn a_stack_without_all_members_is_refused() {
    let mut golden = golden("Mixtral-tiny-8x");
    golden["tensors"].as_object_mut().unwrap().remove("model.layers.1.block_sparse_moe.experts.2.w2.weight");
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &golden, 1);
    let error = converted(dir.path(), "m", &["F16"], &Resources::default()).unwrap_err().to_string();
    let expected =
        "  tensor `blk.1.ffn_down_exps.weight`\n  expected: 4 tensors to make it of (config.json)\n  found:    3";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn splits_are_the_converters() {
    let golden = golden("Qwen3-tiny");
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("Qwen3-tiny");
    checkpoint(&base, &golden, 1);
    let splits = [
        ("--split-max-tensors 7", Split { max_tensors: 7, max_byte_len: 0 }),
        ("--split-max-size 60K", Split { max_tensors: 0, max_byte_len: 60_000 }),
    ];
    for (option, split) in splits {
        let expected: Vec<&str> =
            golden["splits"][option].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let source = Source::open(&base, &[], &Default::default()).unwrap();
        let model = open_model(&source, None, &Families::builtin()).unwrap();
        let options = QuantizeOptions::default();
        let request =
            GgufRequest { name: "Qwen3-tiny", variants: &[FileType::F16], pre: None, options: &options, split };
        let plan = plan_gguf(&source, &model, &request).unwrap();
        let last = plan.outputs.last().unwrap();
        assert_eq!(last.file_name, format!("Qwen3-tiny-F16-{:05}-of-{:05}.gguf", expected.len(), expected.len()));
        let done = execute(&source, &plan, dir.path(), &Resources::default(), &|_| {}).unwrap();
        let digests: Vec<String> = done.outputs.iter().map(|file| file.sha256.to_string()).collect();
        assert_eq!(digests, expected, "{option}");
    }
}

#[test]
fn names_that_training_programs_wrap_are_unwrapped() {
    let wrapped = |prefix: &str| {
        let mut golden = golden("Qwen2-tiny-padded");
        let tensors = golden["tensors"].as_object().unwrap();
        golden["tensors"] = tensors.iter().map(|(name, shape)| (format!("{prefix}{name}"), shape.clone())).collect();
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), &golden, 1);
        let source = Source::open(dir.path(), &[], &Default::default()).unwrap();
        let model = open_model(&source, None, &Families::builtin()).unwrap();
        let options = QuantizeOptions::default();
        let variants = [FileType::F16];
        let request =
            GgufRequest { name: "m", variants: &variants, pre: None, options: &options, split: Split::default() };
        let plan = plan_gguf(&source, &model, &request).unwrap();
        plan.outputs[0].preamble.clone()
    };
    let plain = wrapped("");
    for prefix in ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."] {
        assert!(wrapped(prefix) == plain, "{prefix}");
    }
}

#[test]
fn an_embedding_without_a_row_for_each_token_is_refused() {
    for (rows, hint) in [(390, "set `vocab_size`"), (380, "use the tokenizer")] {
        let mut golden = golden("Qwen2-tiny-padded");
        golden["config"]["vocab_size"] = json!(384);
        for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
            golden["tensors"][tensor] = json!([rows, 64]);
        }
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), &golden, 1);
        let error = converted(dir.path(), "m", &["F16"], &Resources::default()).unwrap_err();
        let text = error.to_string();
        for tensor in ["lm_head.weight", "model.embed_tokens.weight"] {
            let expected = format!(
                "the tokenizer does not fit tensor `{tensor}`\n  expected: 384 rows, one for each token\n  found:    {rows}"
            );
            assert!(text.contains(&expected), "{text}");
        }
        assert!(error.hint().unwrap().starts_with(hint), "{error:?}");
    }
}

#[test]
fn every_built_in_family_has_a_golden() {
    let classes: Vec<Value> = names().iter().map(|name| golden(name)["config"]["architectures"][0].clone()).collect();
    // These two are compared with the converter on a real model and on configs.
    let elsewhere = ["qwen2"];
    for family in Families::builtin().iter().filter(|family| !elsewhere.contains(&family.arch())) {
        let mut of_family = family.classes();
        assert!(of_family.any(|class| classes.iter().any(|c| c == class)), "{}", family.arch());
    }
}
