//! Comparison with the reference converter: `golden/reference.json` (made by `golden/make.py`) and the legal-qa fixture.

use super::*;
use crate::{TensorPart, TensorRule, View};
use mlpack_fs::ErrorKind;
use mlpack_tensor::{MetaArray, MetaValue, Shape};
use serde_json::json;
use std::fs;

const REFERENCE: &str = include_str!("../../golden/reference.json");

/// A metadata value as reference.json writes it.
fn recorded(value: &MetaValue) -> (String, Value) {
    let bits = |f: &f32| Value::from(format!("{:08x}", f.to_bits()));
    match value {
        MetaValue::U32(n) => ("UINT32".into(), json!(n)),
        MetaValue::I32(n) => ("INT32".into(), json!(n)),
        MetaValue::F32(f) => ("FLOAT32".into(), bits(f)),
        MetaValue::Bool(b) => ("BOOL".into(), json!(b)),
        MetaValue::String(s) => ("STRING".into(), json!(s)),
        MetaValue::Array(MetaArray::String(list)) => ("ARRAY STRING".into(), json!(list)),
        MetaValue::Array(MetaArray::I32(list)) => ("ARRAY INT32".into(), json!(list)),
        other => panic!("no reference case has {other:?}"),
    }
}

fn write_files(dir: &Path, files: &serde_json::Map<String, Value>, plain: &str) {
    fs::write(dir.join("config.json"), plain).unwrap();
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.as_str().unwrap()).unwrap();
    }
}

fn request<'a>(name: &'a str, file_type: u32, parameters: [u64; 4]) -> MetadataRequest<'a> {
    let [total, shared, expert, expert_count] = parameters;
    let parameters = ParameterCount { total, shared, expert, expert_count };
    MetadataRequest { name, file_type, parameters, pre: None, card: true }
}

#[test]
fn metadata_and_extra_tensors_equal_the_reference_converter() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let plain = reference["plain"].to_string();
    let families = Families::builtin();
    let mut differences = Vec::new();
    let cases = reference["cases"].as_array().unwrap();
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        let (name, files) = (case["name"].as_str().unwrap(), case["files"].as_object().unwrap());
        write_files(dir.path(), files, &plain);
        let counts: Vec<u64> = case["parameters"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        let request = request(name, 1, counts.try_into().unwrap());
        let found = Model::open(dir.path(), &families).and_then(|model| {
            let metadata = model.metadata_before_tokenizer(&request, &mut Vec::new())?;
            let extra = model.extra_tensors()?;
            Ok((metadata, extra, model))
        });
        let (metadata, extra, model) = match (found, case.get("fails")) {
            (Ok(_), Some(reason)) => {
                differences.push(format!("{name}: converted, but the reference says {reason}"));
                continue;
            }
            (Err(_), Some(_)) => continue,
            (Err(e), None) => {
                differences.push(format!("{name}: {e}"));
                continue;
            }
            (Ok(found), None) => found,
        };
        let ours: Vec<Value> = metadata
            .iter()
            .filter(|(key, _)| files.contains_key("config.json") || key.starts_with("general."))
            .map(|(key, value)| {
                let (kind, value) = recorded(value);
                json!([key, kind, value])
            })
            .collect();
        let theirs = case["kv"].as_array().unwrap();
        if ours != *theirs {
            let first = ours.iter().zip(theirs).find(|(a, b)| a != b);
            differences.push(match first {
                Some((a, b)) => format!("{name} {:?}: {a} for {b}", files.keys().collect::<Vec<_>>()),
                None => format!("{name}: {} keys for {}", ours.len(), theirs.len()),
            });
        }
        for (field, theirs) in case.get("config").and_then(Value::as_object).into_iter().flatten() {
            if model.config().field(field) != Some(theirs) {
                differences.push(format!("{name}: {field} {:?} for {theirs}", model.config().field(field)));
            }
        }
        let ours: Vec<Value> = extra
            .iter()
            .map(|t| {
                let bits: Vec<String> = t.data.iter().map(|f| format!("{:08x}", f.to_bits())).collect();
                json!([t.name, t.shape.dims(), bits.join(" ")])
            })
            .collect();
        if ours != *case["extra"].as_array().unwrap() {
            differences.push(format!("{name}: extra tensors\n  {ours:?}\n  {}", case["extra"]));
        }
    }
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), cases.len(), differences.join("\n"));
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa").join(path)
}

fn golden(name: &str) -> Value {
    let path = fixture("golden/llama.cpp-b11434").join(name);
    json::read(&path).unwrap()
}

/// The tensors of the fixture model in the order of the file: name, shape, rule.
fn fixture_tensors(model: &Model) -> Vec<(String, Shape, TensorPart)> {
    let bytes = mlpack_fs::read_bounded(&model.dir().join("model.safetensors"), 16 << 20).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let mut names: Vec<&String> = header.as_object().unwrap().keys().filter(|n| *n != "__metadata__").collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let dims = header[name]["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
            let shape = Shape::new(dims);
            match model.map_tensor(name, &shape).unwrap() {
                TensorRule::Mapped(mut parts) => {
                    let part = parts.remove(0);
                    (part.gguf_name.clone(), shape, part)
                }
                TensorRule::Dropped { reason } => panic!("{name}: {reason}"),
            }
        })
        .collect()
}

#[test]
fn the_fixture_model_has_the_golden_keys_and_tensors() {
    let model = Model::open(&fixture("kjv-llama"), &Families::builtin()).unwrap();
    let tensors = fixture_tensors(&model);
    let parameters = crate::parameter_count(tensors.iter().map(|(name, shape, _)| (name.as_str(), shape)));
    let file_types = [
        ("hf-f32.json", 0, "F32"),
        ("hf-f16.json", 1, "F16"),
        ("hf-q8_0.json", 7, "Q8_0"),
        ("hf-bf16.json", 32, "BF16"),
    ];
    for (file, file_type, weight_type) in file_types {
        let golden = golden(file);
        let request = MetadataRequest { name: "kjv-llama", file_type, parameters, pre: None, card: true };
        let mut files = Vec::new();
        let metadata = model.metadata_before_tokenizer(&request, &mut files).unwrap();
        let ours: Vec<Value> = metadata
            .iter()
            .map(|(key, value)| {
                let (kind, recorded) = recorded(value);
                let value = match value {
                    MetaValue::F32(f) => json!(f64::from(*f)),
                    _ => recorded,
                };
                json!({"key": key, "type": [kind], "value": value})
            })
            .collect();
        let theirs = golden["kv"].as_array().unwrap();
        let before = theirs.iter().take_while(|kv| !kv["key"].as_str().unwrap().starts_with("tokenizer.")).count();
        assert_eq!(ours.len(), before, "{file}");
        for (a, b) in ours.iter().zip(theirs) {
            assert_eq!((&a["key"], &a["type"]), (&b["key"], &b["type"]), "{file}");
            match (a["value"].as_f64(), b["value"].as_f64()) {
                (Some(x), Some(y)) => assert_eq!(x, y, "{file} {a}"),
                _ => assert_eq!(a["value"], b["value"], "{file}"),
            }
        }
        let ours: Vec<Value> = tensors
            .iter()
            .map(|(name, shape, rule)| {
                let reversed: Vec<u64> = shape.dims().iter().rev().copied().collect();
                json!([name, reversed, if rule.force_f32 { "F32" } else { weight_type }])
            })
            .collect();
        let theirs: Vec<Value> =
            golden["tensors"].as_array().unwrap().iter().map(|t| json!([t["name"], t["shape"], t["type"]])).collect();
        assert_eq!(Value::from(ours), Value::from(theirs), "{file}");
    }
}

#[test]
fn permuted_rows_have_the_golden_digest() {
    let model = Model::open(&fixture("kjv-llama"), &Families::builtin()).unwrap();
    let bytes = mlpack_fs::read_bounded(&model.dir().join("model.safetensors"), 16 << 20).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let golden = golden("hf-bf16.json");
    let mut permuted = 0;
    for (name, shape, rule) in fixture_tensors(&model) {
        let golden = golden["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name.as_str()).unwrap();
        if rule.force_f32 || shape.rank() != 2 {
            continue;
        }
        let rows = shape.dims()[0];
        permuted += usize::from(rule.view != View::copy(rows, shape.dims()[1]));
        let source = header
            .as_object()
            .unwrap()
            .iter()
            .find(|(n, _)| *n != "__metadata__" && matches!(model.map_tensor(n, &shape), Ok(TensorRule::Mapped(parts)) if parts[0].gguf_name == name))
            .unwrap()
            .1;
        let start = 8 + header_len + source["data_offsets"][0].as_u64().unwrap() as usize;
        let row_len = shape.dims()[1] as usize * 2;
        let data: Vec<u8> = (0..rows)
            .flat_map(|row| {
                let at = start + rule.view.source_piece(row) as usize * row_len;
                bytes[at..at + row_len].to_vec()
            })
            .collect();
        assert_eq!(mlpack_fs::Sha256::of(&data).to_string(), golden["sha256"].as_str().unwrap(), "{name}");
    }
    assert_eq!(permuted, 6, "q and k of three layers");
}

/// A directory with a config.json of the fixture's kind, changed.
fn directory(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let Value::Object(mut config) = json::read(&fixture("kjv-llama/config.json")).unwrap() else { panic!("an object") };
    change(&mut config);
    fs::write(dir.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    dir
}

/// The text of an error with the directory taken out, its kind, and its hint.
fn shown(dir: &Path, error: &Error) -> (String, ErrorKind, Option<String>) {
    (error.to_string().replace(&dir.display().to_string(), "DIR"), error.kind(), error.hint())
}

fn refusal(dir: &tempfile::TempDir) -> (String, ErrorKind, Option<String>) {
    shown(dir.path(), &Model::open(dir.path(), &Families::builtin()).unwrap_err())
}

#[test]
fn models_that_are_not_handled_are_refused_by_name() {
    let dir = directory(|c| drop(c.insert("architectures".into(), json!(["LlamaForCasualLM"]))));
    let (text, kind, hint) = refusal(&dir);
    let start = "cannot convert `DIR/config.json`\n  field `architectures`: `LlamaForCasualLM` is not a known architecture\n  \
                 nearest known: `LLaMAForCausalLM`, `LlamaForCausalLM`";
    assert!(text.starts_with(start), "{text}");
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(hint.unwrap().contains("--arch-file"));

    let dir = directory(|c| drop(c.insert("model_type".into(), json!("lama"))));
    let text = refusal(&dir).0;
    let start = "cannot convert `DIR/config.json`\n  field `model_type`: the defaults of `lama` are not known\n  nearest \
                 known: `llama`";
    assert!(text.starts_with(start), "{text}");

    let dir = directory(|c| drop(c.insert("quantization_config".into(), json!({"quant_method": "awq", "bits": 4}))));
    let (text, kind, _) = refusal(&dir);
    assert_eq!(text, "cannot convert `DIR/config.json`: the checkpoint is already quantized\n  quant_method: `awq`");
    assert_eq!(kind, ErrorKind::Unsupported);

    let dir = directory(|c| drop(c.insert("text_config".into(), json!({"hidden_size": 1}))));
    assert_eq!(
        refusal(&dir).0,
        "cannot convert `DIR/config.json`\n  field `text_config`: a model of several parts, such as a vision model, is \
         not handled"
    );

    for (file, text, kind) in [
        (
            "params.json",
            "cannot convert `DIR`: it has params.json and no config.json (Mistral's own layout)",
            ErrorKind::Unsupported,
        ),
        (
            "adapter_config.json",
            "cannot convert `DIR`: it is an adapter (adapter_config.json, no config.json), not a model",
            ErrorKind::Misuse,
        ),
        ("other.json", "cannot open `DIR/config.json`: no such file or directory", ErrorKind::Io),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(file), "{}").unwrap();
        let found = refusal(&dir);
        assert_eq!((found.0.as_str(), found.1), (text, kind));
    }
}

#[test]
fn unusable_files_are_named_with_field_and_value() {
    let dir = directory(|c| drop(c.remove("architectures")));
    assert_eq!(refusal(&dir).0, "cannot read `DIR/config.json`\n  missing field: `architectures`");

    let dir = directory(|_| {});
    fs::write(dir.path().join("config.json"), "{\"a\": 1,\n}").unwrap();
    let found = refusal(&dir);
    assert_eq!(found.0, "cannot read `DIR/config.json`: not valid JSON\n  line 2, column 1: trailing comma");
    assert_eq!(found.1, ErrorKind::Malformed);

    let dir = directory(|_| {});
    let model = Model::open(dir.path(), &Families::builtin()).unwrap();
    let request = request("x", 0, [1, 1, 0, 0]);
    let metadata_error = |file: &str, text: &str| {
        fs::write(dir.path().join(file), text).unwrap();
        let error = model.metadata_before_tokenizer(&request, &mut Vec::new()).unwrap_err();
        shown(dir.path(), &error)
    };
    assert_eq!(
        metadata_error("generation_config.json", "{\"top_k\": 1.5}").0,
        "cannot read `DIR/generation_config.json`\n  field `top_k`\n  expected: a 32-bit integer\n  found:    1.5"
    );
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    let (text, _, hint) = metadata_error("README.md", "---\nversion: 1.0\n---\n");
    assert_eq!(text, "cannot read `DIR/README.md`\n  field `version`\n  expected: a string\n  found:    a number");
    assert!(hint.unwrap().contains("quotes"));
    let (text, kind, _) = metadata_error("README.md", "---\na: 1\nb: [\n---\n");
    assert!(text.starts_with("cannot read `DIR/README.md`: its front matter is not valid YAML\n  line 4: "), "{text}");
    assert_eq!(kind, ErrorKind::Malformed);
}

#[test]
fn tensors_that_do_not_fit_are_named_with_the_nearest_known() {
    let dir = directory(|_| {});
    let model = Model::open(dir.path(), &Families::builtin()).unwrap();
    let error = |name: &str, dims: &[u64]| shown(dir.path(), &model.map_tensor(name, &Shape::from(dims)).unwrap_err());
    let (text, kind, _) = error("model.layers.1.self_attn.q_porj.weight", &[4, 4]);
    assert_eq!(
        text,
        "cannot convert `DIR`\n  tensor `model.layers.1.self_attn.q_porj.weight`: not a tensor of the architecture \
         `llama`\n  nearest known: `model.layers.1.self_attn.q_proj.weight`, `model.layers.1.self_attn.k_proj.weight`, \
         `model.layers.1.self_attn.v_proj.weight`"
    );
    assert_eq!(kind, ErrorKind::Unsupported);
    let (text, kind, _) = error("model.layers.3.mlp.up_proj.weight", &[4, 4]);
    assert_eq!(
        text,
        "cannot convert `DIR`\n  tensor `model.layers.3.mlp.up_proj.weight`\n  expected: a layer below 3 (config.json)\n  \
         found:    layer 3"
    );
    assert_eq!(kind, ErrorKind::Mismatch);
    assert_eq!(
        error("model.layers.0.self_attn.k_proj.weight", &[6, 256]).0,
        "cannot convert `DIR`\n  tensor `model.layers.0.self_attn.k_proj.weight`\n  expected: a number of rows that is a \
         multiple of 4 (2 heads of an even size)\n  found:    shape [6, 256]"
    );
}

#[test]
fn names_are_mapped_and_dropped_as_the_converter_does() {
    let dir = directory(|_| {});
    let model = Model::open(dir.path(), &Families::builtin()).unwrap();
    let mapped = |name: &str, dims: &[u64]| match model.map_tensor(name, &Shape::from(dims)).unwrap() {
        TensorRule::Mapped(mut parts) => {
            let TensorPart { gguf_name, view, force_f32, .. } = parts.remove(0);
            Ok((gguf_name, view, force_f32))
        }
        TensorRule::Dropped { reason } => Err(reason),
    };
    for (name, dims, expected) in [
        ("lm_head.weight", &[8, 4][..], Ok(("output.weight", View::copy(8, 4), false))),
        (
            "model.layers.2.self_attn.q_proj.bias",
            &[256],
            Ok(("blk.2.attn_q.bias", View::rope_permute(256, 1, 4), true)),
        ),
        (
            "model.layers.2.self_attn.k_proj.weight",
            &[128, 256],
            Ok(("blk.2.attn_k.weight", View::rope_permute(128, 256, 2), false)),
        ),
        ("model.norm.weight", &[256], Ok(("output_norm.weight", View::copy(1, 256), true))),
        ("model.norm", &[4, 256], Ok(("output_norm", View::copy(4, 256), true))),
        ("language_model.model.norm.weight", &[256], Ok(("output_norm.weight", View::copy(1, 256), true))),
        ("model.text_model.norm.weight", &[256], Ok(("output_norm.weight", View::copy(1, 256), true))),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[32], Err("a buffer that is computed, not stored")),
        ("vision_tower.x.weight", &[4, 4], Err("not part of the text model")),
        ("mlp1.0.weight", &[4], Err("not part of the text model")),
    ] {
        let expected = expected.map(|(name, view, f32)| (name.to_owned(), view, f32));
        assert_eq!(mapped(name, dims), expected, "{name}");
    }
}

#[test]
fn a_config_that_transformers_refuses_is_read_plainly_with_a_warning() {
    let dir = directory(|c| {
        c.insert("rms_norm_eps".into(), json!(1));
        c.remove("head_dim");
    });
    let model = Model::open(dir.path(), &Families::builtin()).unwrap();
    assert_eq!(model.config().field("head_dim"), None);
    let [warning] = model.config().warnings() else { panic!("one warning") };
    assert!(warning.contains("(field `rms_norm_eps`: expected a number with a decimal point, found 1)"), "{warning}");
}
