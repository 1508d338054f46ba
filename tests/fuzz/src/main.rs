//! Every reader of untrusted bytes, as a fuzz target: whatever the bytes are, the answer is a value or an error, in
//! bounded memory. A panic, a stack overflow or an input that takes longer than a second is a finding.
//!
//! `cargo xtask fuzz` builds this with coverage and runs it; `MLPACK_FUZZ_TARGET` names the reader.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mlpack_arch::tokenizer::{self, TokenizerRequest, VocabReader};
use mlpack_arch::{Families, Model};
use mlpack_convert::{Importance, Source, TensorType, parse_override};
use mlpack_lora::AdapterConfig;
use mlpack_oci::{ChatTemplate, Layout, Modelfile, Reference};
use mlpack_provenance::{RunSource, Statement, TraceOptions, find_run, trace};
use mlpack_safetensors::{Checkpoint, SafetensorsFile};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A reader: takes a folder of its own, with the bytes in a file of the name that it looks for.
type Reader = fn(&Path, &[u8]);

/// Each reader with the name of its file.
const READERS: &[(&str, &str, Reader)] = &[
    ("safetensors", "model.safetensors", safetensors),
    ("safetensors-index", "model.safetensors.index.json", checkpoint),
    ("gguf", "in.gguf", gguf),
    ("imatrix", "imatrix", imatrix),
    ("adapter-config", "adapter_config.json", adapter_config),
    ("adapter", "adapter_model.safetensors", adapter),
    ("adapter-torch", "adapter_model.bin", adapter),
    ("config", "config.json", config),
    ("architecture", "arch.toml", architecture),
    ("tokenizer-json", "tokenizer.json", tokenizer),
    ("tokenizer-config", "tokenizer_config.json", tokenizer),
    ("sentencepiece", "tokenizer.model", sentencepiece),
    ("tekken", "tekken.json", tokenizer),
    ("model-card", "README.md", config),
    ("options", "options", options),
    ("modelfile", "Modelfile", modelfile),
    ("chat-template", "chat_template", chat_template),
    ("oci-layout", "index.json", oci_layout),
    ("statement", "statement.json", statement),
    ("claims", "file.claims.jsonl", claims),
    ("trainer-state", "trainer_state.json", run),
    ("mlflow", "mlflow.db", mlflow),
];

struct Target {
    reader: Reader,
    file: PathBuf,
    dir: tempfile::TempDir,
}

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let wanted = std::env::var("MLPACK_FUZZ_TARGET").unwrap_or_default();
    let found = READERS.iter().find(|(name, ..)| *name == wanted);
    let (_, file, reader) = found.unwrap_or_else(|| panic!("MLPACK_FUZZ_TARGET: `{wanted}` is no reader"));
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa/kjv-llama");
    // What a reader needs beside its own file; a tokenizer.json would be read in place of the other forms.
    for beside in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        if beside == "tokenizer.json" && matches!(*file, "tokenizer.model" | "tekken.json") {
            continue;
        }
        std::fs::copy(model.join(beside), dir.path().join(beside)).expect("the fixture is there");
    }
    std::fs::write(dir.path().join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).expect("it can be written");
    std::fs::write(dir.path().join("file"), b"traced").expect("it can be written");
    // The tokenizers crate panics on some files; the reader turns that into an error, so the hook of libFuzzer, which
    // aborts, must not see it. A panic that nobody catches still ends the run.
    if file.starts_with("tok") || file.starts_with("tek") {
        drop(std::panic::take_hook());
    }
    Target { reader: *reader, file: dir.path().join(file), dir }
});

static FAMILIES: LazyLock<Families> = LazyLock::new(Families::builtin);

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&TARGET.file, bytes).expect("the temporary folder can be written");
    (TARGET.reader)(TARGET.dir.path(), bytes);
});

/// An error is an answer; its message and hint have to hold for any bytes too.
fn shown<T, E: std::fmt::Display>(result: Result<T, E>) -> Option<T> {
    result.map_err(|error| drop(error.to_string())).ok()
}

fn safetensors(dir: &Path, _: &[u8]) {
    if let Some(file) = shown(SafetensorsFile::open(&dir.join("model.safetensors"))) {
        file.entries().iter().for_each(|entry| {
            std::hint::black_box(file.bytes(entry).first());
        });
    }
}

fn checkpoint(dir: &Path, _: &[u8]) {
    shown(Checkpoint::open(dir));
}

fn gguf(dir: &Path, _: &[u8]) {
    if let Some(source) = shown(Source::open_gguf(&dir.join("in.gguf"))) {
        source.tensors().iter().for_each(|tensor| {
            std::hint::black_box(source.bytes(tensor).first());
        });
    }
}

fn imatrix(dir: &Path, _: &[u8]) {
    shown(Importance::open(&dir.join("imatrix")));
}

fn adapter_config(dir: &Path, _: &[u8]) {
    shown(AdapterConfig::open(&dir.join("adapter_config.json")));
}

fn adapter(dir: &Path, _: &[u8]) {
    let config = br#"{"peft_type":"LORA","r":8,"lora_alpha":16,"base_model_name_or_path":"x"}"#;
    std::fs::write(dir.join("adapter_config.json"), config).expect("the temporary folder can be written");
    shown(mlpack_lora::Adapter::open(dir));
}

fn config(dir: &Path, _: &[u8]) {
    if let Some(model) = shown(Model::open(dir, &FAMILIES)) {
        shown(model.extra_tensors());
    }
}

fn architecture(dir: &Path, _: &[u8]) {
    shown(Families::builtin().with_file(&dir.join("arch.toml")));
}

fn tokenizer(dir: &Path, _: &[u8]) {
    read_tokenizer(dir, VocabReader::Llama);
}

fn sentencepiece(dir: &Path, _: &[u8]) {
    read_tokenizer(dir, VocabReader::Llama);
    read_tokenizer(dir, VocabReader::T5);
}

fn read_tokenizer(dir: &Path, reader: VocabReader) {
    let config = serde_json::json!({"vocab_size": 1024, "model_type": "llama"});
    shown(tokenizer::read(&TokenizerRequest { dir, config: &config, reader, pre: None }));
}

fn options(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    shown(TensorType::parse(text));
    shown(parse_override(text));
    shown(text.parse::<Reference>());
}

fn modelfile(dir: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    shown(Modelfile::parse(&dir.join("Modelfile"), text));
}

fn chat_template(_: &Path, bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let special_tokens = &[("bos_token", "<s>"), ("eos_token", "</s>")];
    shown(mlpack_oci::translate(&ChatTemplate { source, special_tokens, runtime_adds_bos: true }));
}

fn oci_layout(dir: &Path, _: &[u8]) {
    if let Some(layout) = shown(Layout::open(dir)) {
        shown(layout.verify());
    }
}

fn statement(_: &Path, bytes: &[u8]) {
    shown(Statement::parse(bytes));
}

fn claims(dir: &Path, _: &[u8]) {
    shown(trace(&dir.join("file"), &TraceOptions::default()));
}

fn run(dir: &Path, _: &[u8]) {
    shown(find_run(dir, None, None));
}

fn mlflow(dir: &Path, _: &[u8]) {
    let source = shown(RunSource::parse("mlflow.db#4c421e9ce91a40368c786c2f89e8fc82", dir));
    shown(find_run(dir, source.as_ref(), None));
}
