//! Adapters beyond a plain LoRA, and bad ones: made here, laid over the legal-qa base.

use crate::support::{TestDir, base, fixture, mlpack, refused, sha256};
use mlpack_safetensors::Checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;

const LORA: &str = r#"{"peft_type":"LORA","r":2,"lora_alpha":4}"#;
const Q_PROJ: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// A float32 tensor whose values rise by `step` from `-step`.
fn tensor(name: &str, shape: &[usize], step: f32) -> (String, Vec<usize>, Vec<u8>) {
    let count: usize = shape.iter().product();
    let value = |i: usize| (i % 17) as f32 * step - step;
    (name.to_owned(), shape.to_vec(), (0..count).flat_map(|i| value(i).to_le_bytes()).collect())
}

fn factors(module: &str, out: usize, inputs: usize, step: f32) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    vec![
        tensor(&format!("{module}.lora_A.weight"), &[2, inputs], 0.01),
        tensor(&format!("{module}.lora_B.weight"), &[out, 2], step),
    ]
}

/// Writes an adapter directory.
fn adapter(dir: &TestDir, name: &str, config: &str, tensors: &[(String, Vec<usize>, Vec<u8>)]) -> String {
    let path = dir.path(name);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("adapter_config.json"), config).unwrap();
    let view = |(name, shape, data): &(String, Vec<usize>, Vec<u8>)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap().data().to_vec(), shape.clone())
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views = owned
        .iter()
        .map(|(name, data, shape)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    std::fs::write(path.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    name.to_owned()
}

fn legal_qa() -> String {
    fixture("legal-qa/legal-qa-lora").display().to_string()
}

#[track_caller]
fn refuses(name: &str, dir: &TestDir, args: &[&str], code: i32) {
    let stderr = refused(dir, args, code);
    insta::assert_snapshot!(name, stderr);
}

#[test]
fn an_adapter_that_changes_nothing_is_an_error_unless_that_is_meant() {
    let dir = TestDir::new();
    adapter(&dir, "untrained", LORA, &factors(Q_PROJ, 256, 256, 0.0));
    refuses("unchanged", &dir, &["merge", &base(), "-a", "untrained", "-o", "out"], 3);
    mlpack(&dir).args(["merge", &base(), "-a", "untrained", "-o", "out", "--allow-empty"]).succeed();
    let same = sha256(&fixture("legal-qa/kjv-llama").join("model.safetensors"));
    assert_eq!(sha256(&dir.path("out/model.safetensors")), same);
}

#[test]
fn a_head_that_is_adapted_alone_is_no_longer_the_embedding() {
    let dir = TestDir::new();
    adapter(&dir, "head", LORA, &factors("base_model.model.lm_head", 2048, 256, 0.02));
    let (_, stderr) = mlpack(&dir).args(["merge", &base(), "-a", "head", "-o", "merged/head"]).expect(0);
    insta::assert_snapshot!("untied", stderr);
    let merged = Checkpoint::open(&dir.path("merged/head")).unwrap();
    let head = merged.tensor("lm_head.weight").unwrap();
    assert_eq!(head.shape.dims(), [2048, 256]);
    let original = Checkpoint::open(&fixture("legal-qa/kjv-llama")).unwrap();
    let embedding = |c: &Checkpoint| c.bytes(c.tensor("model.embed_tokens.weight").unwrap()).to_vec();
    assert!(embedding(&merged) == embedding(&original), "the embedding stays");
    assert!(merged.bytes(head) != embedding(&original), "the head does not");
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path("merged/head/config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    // Laying the adapter over the base while converting gives the same file as converting the merged directory.
    mlpack(&dir).args(["convert", &base(), "-a", "head", "--quant", "F16", "-o", "one"]).succeed();
    mlpack(&dir).args(["convert", "merged/head", "--quant", "F16", "-o", "two"]).succeed();
    assert_eq!(sha256(&dir.path("one/head-F16.gguf")), sha256(&dir.path("two/head-F16.gguf")));
}

#[test]
fn shards_are_cut_as_asked_and_hold_the_same_values() {
    let dir = TestDir::new();
    mlpack(&dir).args(["merge", &base(), "-a", &legal_qa(), "-o", "whole"]).succeed();
    mlpack(&dir).args(["merge", &base(), "-a", &legal_qa(), "-o", "cut", "--max-shard-size", "1MB"]).succeed();
    let (whole, cut) = (Checkpoint::open(&dir.path("whole")).unwrap(), Checkpoint::open(&dir.path("cut")).unwrap());
    assert!(cut.shards().len() > 3 && cut.index().is_some());
    assert_eq!(whole.tensors().len(), cut.tensors().len());
    for tensor in whole.tensors() {
        let other = cut.tensor(&tensor.name).unwrap();
        assert!((&tensor.shape, whole.bytes(tensor)) == (&other.shape, cut.bytes(other)), "{}", tensor.name);
    }
}

#[test]
fn the_report_says_how_much_each_tensor_changes() {
    let dir = TestDir::new();
    let args = ["merge", &base(), "-a", &legal_qa(), "-o", "out", "--report", "report.json"];
    let text = mlpack(&dir).args(args).succeed();
    assert!(text.contains("|change| / |base|"), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(dir.path("report.json")).unwrap()).unwrap();
    assert_eq!((&report["adapters"][0]["tensors"], &report["adapters"][0]["used"]), (&json!(24), &json!(24)));
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 12);
    // The norms again, from the two checkpoints; what was rounded away is small.
    let (merged, original) =
        (Checkpoint::open(&dir.path("out")).unwrap(), Checkpoint::open(Path::new(&base())).unwrap());
    for reported in tensors {
        let values = |c: &Checkpoint| -> Vec<f64> {
            let bytes = c.bytes(c.tensor(reported["tensor"].as_str().unwrap()).unwrap());
            bytes.as_chunks::<2>().0.iter().map(|b| f64::from(half_to_f32(u16::from_le_bytes(*b)))).collect()
        };
        let (after, before) = (values(&merged), values(&original));
        let change = after.iter().zip(&before).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        let relative = change / before.iter().map(|b| b * b).sum::<f64>().sqrt();
        let told = reported["relative"].as_f64().unwrap();
        assert!((told / relative - 1.0).abs() < 0.02, "{reported}: {relative}");
    }
}

/// bfloat16 to float32.
fn half_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[test]
fn combined_adapters_are_the_same_bytes_with_any_number_of_threads() {
    let dir = TestDir::new();
    adapter(&dir, "other", LORA, &factors(Q_PROJ, 256, 256, 0.03));
    let merge = |out: &str, how: &[&str], threads: &str| {
        let base = base();
        let legal_qa = format!("{}=0.7", legal_qa());
        let args = [&["merge", &base, "-a", &legal_qa, "-a", "other=0.3", "-o", out, "--threads", threads][..], how];
        mlpack(&dir).args(args.concat()).succeed();
        sha256(&dir.path(out).join("model.safetensors"))
    };
    let sum = merge("sum", &[], "1");
    for how in ["ties", "dare", "magnitude-prune"] {
        let options = ["--combine", how, "--density", "0.4", "--seed", "5"];
        let one = merge(&format!("{how}-1"), &options, "1");
        assert_eq!(one, merge(&format!("{how}-3"), &options, "3"), "{how}");
        assert_ne!(one, sum, "{how}");
    }
    let all = ["--combine", "magnitude-prune", "--density", "1"];
    assert_eq!(merge("all", &all, "2"), sum, "nothing is pruned");
}

#[test]
fn a_base_of_another_name_or_revision_than_the_adapters_is_told() {
    let dir = TestDir::new();
    let (ours, theirs) = ("a".repeat(40), "b".repeat(40));
    let cached = format!("models--owner--kjv-llama/snapshots/{ours}");
    dir.copy("legal-qa/kjv-llama", &cached);
    dir.copy("legal-qa/kjv-llama", "other-llama");
    let said = |base: &str, revision: &str| {
        let path = dir.copy("legal-qa/legal-qa-lora", "tuned");
        let file = path.join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config["revision"] = revision.into();
        std::fs::write(&file, config.to_string()).unwrap();
        let (_, stderr) = mlpack(&dir).args(["check", base, "-a", "tuned", "--quant", "F16", "-o", "out"]).expect(0);
        stderr.lines().filter(|line| line.contains("adapter `tuned`")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(&cached, &ours), "");
    assert_eq!(said(&cached, "main"), "", "a branch may be any commit");
    let expected = format!(
        "warning: adapter `tuned` was trained on revision {theirs} of `kjv-llama`; it is merged into revision {ours}"
    );
    assert_eq!(said(&cached, &theirs), expected);
    let expected =
        "warning: adapter `tuned` says that its base is `kjv-llama`, revision main; it is merged into `other-llama`";
    assert_eq!(said("other-llama", "main"), expected);
}

#[test]
fn files_that_training_changed_come_from_the_adapter() {
    let dir = TestDir::new();
    let path = dir.copy("legal-qa/legal-qa-lora", "tuned");
    std::fs::write(path.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let (_, stderr) = mlpack(&dir).args(["merge", &base(), "-a", "tuned", "-o", "merged"]).expect(0);
    assert!(stderr.contains("the chat template of adapter `tuned` is used"), "{stderr}");
    assert_eq!(std::fs::read_to_string(dir.path("merged/chat_template.jinja")).unwrap(), "{{ messages[0].content }}");
    // A token more, which the embedding has no row for: the base's tokenizer stays, and that is said.
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(path.join("tokenizer.json")).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    token["content"] = "<|new|>".into();
    token["id"] = 5000.into();
    added.push(token);
    std::fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let (_, stderr) = mlpack(&dir).args(["merge", &base(), "-a", "tuned", "-o", "again"]).expect(0);
    assert!(stderr.contains("the embedding has 2048 rows"), "{stderr}");
    let tokenizer = |path: &Path| std::fs::read(path.join("tokenizer.json")).unwrap();
    assert!(tokenizer(&dir.path("again")) == tokenizer(Path::new(&base())));
}

#[test]
fn adapters_that_cannot_be_merged() {
    let dir = TestDir::new();
    let mut bad = factors(Q_PROJ, 256, 256, 0.1);
    bad[1].2[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    adapter(&dir, "nan", LORA, &bad);
    let mut bad = factors(Q_PROJ, 256, 256, 0.1);
    bad.push(tensor("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", &[2, 256], 0.1));
    bad.extend(factors("base_model.model.model.layers.0.mlp.up_proj", 256, 512, 0.1));
    bad.extend(factors("base_model.model.model.layers.1.self_attn.v_proj", 128, 256, 0.0));
    adapter(&dir, "all-at-once", LORA, &bad);
    adapter(&dir, "rank", r#"{"peft_type":"LORA","r":3,"lora_alpha":4}"#, &factors(Q_PROJ, 256, 256, 0.1));
    let pissa = r#"{"peft_type":"LORA","r":2,"lora_alpha":4,"init_lora_weights":"pissa"}"#;
    adapter(&dir, "pissa", pissa, &factors(Q_PROJ, 256, 256, 0.1));
    let twice = [factors(Q_PROJ, 256, 256, 0.1), factors("model.layers.0.self_attn.q_proj", 256, 256, 0.2)].concat();
    adapter(&dir, "twice", LORA, &twice);
    let mut bad = factors(Q_PROJ, 256, 256, 0.1);
    bad[0].2[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    adapter(&dir, "infinity", LORA, &bad);
    // Each factor is a number, and the product more than bfloat16 holds.
    adapter(&dir, "overflow", LORA, &[factors(Q_PROJ, 256, 256, 1e37)[1..].to_vec(), far()].concat());
    let other = [
        factors("base_model.model.transformer.h.0.attn.c_attn", 768, 256, 0.1),
        factors("base_model.model.transformer.h.0.mlp.c_fc", 1024, 256, 0.1),
    ];
    adapter(&dir, "architecture", LORA, &other.concat());
    for name in ["nan", "infinity", "overflow", "all-at-once", "rank", "pissa", "twice", "architecture"] {
        refuses(&format!("adapter-{name}"), &dir, &["merge", &base(), "-a", name, "-o", "out"], 3);
    }
    let args = ["merge", &base(), "-a", "nan", "-o", "out", "--combine", "slerp"];
    refuses("combine-unknown", &dir, &args, 2);
}

/// A factor A of layer 0's q_proj whose values are large.
fn far() -> Vec<(String, Vec<usize>, Vec<u8>)> {
    vec![tensor(&format!("{Q_PROJ}.lora_A.weight"), &[2, 256], 1e3)]
}

#[test]
fn kinds_of_adapters_that_are_not_merged_are_named() {
    let dir = TestDir::new();
    let mut said = String::new();
    for kind in
        ["VERA", "ADALORA", "OFT", "BOFT", "HRA", "FOURIERFT", "POLY", "XLORA", "PROMPT_TUNING", "new\u{1b}[31m"]
    {
        let config = json!({"peft_type": kind, "r": 2, "lora_alpha": 4}).to_string();
        adapter(&dir, "kind", &config, &factors(Q_PROJ, 256, 256, 0.1));
        said.push_str(&refused(&dir, &["merge", &base(), "-a", "kind", "-o", "out"], 3));
        said.push('\n');
    }
    let nothing = json!({"r": 2, "lora_alpha": 4}).to_string();
    adapter(&dir, "kind", &nothing, &factors(Q_PROJ, 256, 256, 0.1));
    said.push_str(&refused(&dir, &["merge", &base(), "-a", "kind", "-o", "out"], 3));
    insta::assert_snapshot!(said);
}

/// How a key is written otherwise.
type Spelling<'a> = &'a dyn Fn(&str) -> String;

#[test]
fn every_spelling_of_an_adapters_keys_gives_the_same_bytes() {
    let dir = TestDir::new();
    let adapted = |name: &str, base: &str, spelling: Spelling<'_>| {
        let path = dir.copy("legal-qa/legal-qa-lora", name);
        respell(&path.join("adapter_model.safetensors"), spelling);
        let out = format!("{name}-merged");
        mlpack(&dir).args(["merge", base, "-a", name, "-o", &out]).succeed();
        Checkpoint::open(&dir.path(&out)).unwrap()
    };
    let values = |merged: &Checkpoint| -> Vec<String> {
        merged.tensors().iter().map(|t| mlpack_fs::Sha256::of(merged.bytes(t)).to_string()).collect()
    };
    let peft = values(&adapted("peft", &base(), &|key| key.to_owned()));
    let module = |key: &str| key.strip_prefix("base_model.model.").unwrap().to_owned();
    let spellings: [(&str, Spelling<'_>); 8] = [
        ("bare", &module),
        ("state-dict", &|key| key.replace(".weight", ".default.weight")),
        ("compiled", &|key| format!("_orig_mod.{key}")),
        ("distributed", &|key| format!("module.{key}")),
        ("sharded", &|key| format!("_fsdp_wrapped_module.{}", key.replace(".mlp.", "._fsdp_wrapped_module.mlp."))),
        ("checkpointed", &|key| key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn.")),
        ("vision", &|key| key.replace("model.model.layers", "model.model.language_model.layers")),
        ("older-vision", &|key| key.replace("model.model.layers", "model.language_model.model.layers")),
    ];
    for (name, spelling) in spellings {
        assert_eq!(values(&adapted(name, &base(), spelling)), peft, "{name}");
    }
    // And where it is the base whose names have the other prefix.
    let other = dir.copy("legal-qa/kjv-llama", "other");
    respell(&other.join("model.safetensors"), |key| key.replace("model.", "language_model.model."));
    assert_eq!(values(&adapted("same", "other", &|key| key.to_owned())), peft);
}

/// Gives the tensors of a file other names.
fn respell(path: &Path, spelling: impl Fn(&str) -> String) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = file.tensors().into_iter().map(|(name, tensor)| (spelling(&name), tensor)).collect();
    let written = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(path, written).unwrap();
}

#[test]
fn a_pickle_that_calls_something_is_refused_and_nothing_runs() {
    let dir = TestDir::new();
    let path = dir.path("evil");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("adapter_config.json"), LORA).unwrap();
    // What `pickle.dumps` makes of an object whose `__reduce__` is `(os.system, ("touch ran",))`.
    let pickle = b"\x80\x02cposix\nsystem\nX\x09\x00\x00\x00touch ran\x85R.";
    std::fs::write(path.join("adapter_model.bin"), pickle).unwrap();
    refuses("adapter-evil-pickle", &dir, &["merge", &base(), "-a", "evil", "-o", "out"], 3);
    // The same in the archive that PyTorch writes today, made by PyTorch itself.
    std::fs::copy(fixture("lora/torch/evil.bin"), path.join("adapter_model.bin")).unwrap();
    refuses("adapter-evil-archive", &dir, &["merge", &base(), "-a", "evil", "-o", "out"], 3);
}

#[test]
fn folders_and_bases_that_have_to_be_made_readable_first() {
    let dir = TestDir::new();
    std::fs::create_dir_all(dir.path("zero/global_step10")).unwrap();
    std::fs::write(dir.path("zero/global_step10/mp_rank_00_model_states.pt"), b"").unwrap();
    std::fs::write(dir.path("zero/zero_to_fp32.py"), b"").unwrap();
    refuses("adapter-deepspeed", &dir, &["merge", &base(), "-a", "zero", "-o", "out"], 3);
    // The folder of a training run, whose steps are inside.
    std::fs::create_dir_all(dir.path("stage2/global_step4")).unwrap();
    std::fs::write(dir.path("stage2/global_step4/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), b"").unwrap();
    std::fs::write(dir.path("stage2/latest"), b"global_step4").unwrap();
    refuses("adapter-deepspeed-stage2", &dir, &["merge", &base(), "-a", "stage2", "-o", "out"], 3);
    let model = dir.copy("legal-qa/kjv-llama", "quantized");
    let mut config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    for method in ["gptq", "awq", "compressed-tensors", "bitsandbytes"] {
        config["quantization_config"] = json!({"quant_method": method, "bits": 4});
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
        let stderr = refused(&dir, &["merge", "quantized", "-a", &legal_qa(), "-o", "out"], 3);
        assert!(stderr.contains(&format!("found:    {method}\n")) && stderr.contains("hint: merge into"), "{stderr}");
    }
    refuses("base-quantized", &dir, &["merge", "quantized", "-a", &legal_qa(), "-o", "out"], 3);
}
