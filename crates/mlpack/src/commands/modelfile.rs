//! The Modelfile beside a GGUF: what `ollama create -f` reads.

use crate::cli::ModelfileArgs;
use crate::lineage;
use crate::show::Show;
use anyhow::Context as _;
use mlpack_fs::{read_to_string_bounded, write_atomic};
use mlpack_gguf::GgufFile;
use mlpack_oci::{ChatTemplate, Instruction, Modelfile, Parameter, translate};
use mlpack_tensor::{Escaped, MetaArray, MetaValue, Metadata};
use std::path::{Path, PathBuf};

/// The largest template or licence that is read.
const MAX_TEXT_LEN: u64 = 1 << 20;

/// What Modelfiles say beyond the model.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub system: Option<String>,
    pub template: Option<String>,
    pub parameters: Vec<Parameter>,
    pub licenses: Vec<String>,
    /// Nothing is said, and what lies beside a model already stays as it is.
    pub keep: bool,
}

impl Settings {
    /// From the command line: parameters are checked, files are read. Where it says nothing, a Modelfile is kept that an
    /// earlier command or a person wrote.
    pub fn new(args: &ModelfileArgs) -> anyhow::Result<Settings> {
        let parameters = args.parameters.iter().map(|text| {
            let (name, value) = text.split_once('=').with_context(|| {
                format!("`{text}` is not a parameter\n  expected: NAME=VALUE\n  found:    `{text}`")
            })?;
            Ok(Parameter::new(name.trim(), value.trim())?)
        });
        let ModelfileArgs { system, template, parameters: texts, licenses } = args;
        let keep = system.is_none() && template.is_none() && texts.is_empty() && licenses.is_empty();
        Ok(Settings {
            keep,
            system: args.system.clone(),
            template: args.template.as_deref().map(text).transpose()?,
            parameters: parameters.collect::<anyhow::Result<_>>()?,
            licenses: args.licenses.iter().map(|path| text(path)).collect::<anyhow::Result<_>>()?,
        })
    }
}

/// A template or a licence.
pub fn text(path: &Path) -> anyhow::Result<String> {
    Ok(read_to_string_bounded(path, MAX_TEXT_LEN)?)
}

/// Where the Modelfile of a GGUF is: `NAME-Q4_K_M.Modelfile` beside `NAME-Q4_K_M.gguf`.
pub fn path_beside(gguf: &Path) -> PathBuf {
    gguf.with_extension("Modelfile")
}

/// Writes the Modelfile of a GGUF beside it, unless the one that is there is kept. The template is the one given, else the
/// model's own chat template in Ollama's language; where that cannot be expressed there is none, and a warning says why.
pub fn write_beside(gguf: &GgufFile, settings: &Settings, out: &Show) -> anyhow::Result<PathBuf> {
    let path = path_beside(gguf.path());
    if settings.keep && path.is_file() {
        out.step(&format!("taking `{}` as it is", path.display()));
        return Ok(path);
    }
    let file_name = gguf.path().file_name().unwrap_or_default().to_string_lossy();
    let mut modelfile = Modelfile::new(format!("./{file_name}"));
    // What the model says of where it comes from.
    for (key, text) in lineage::said(gguf.metadata()) {
        modelfile.comment(format!("{}: {}", Escaped(&key), Escaped(&text)));
    }
    let mut stops = Vec::new();
    match &settings.template {
        Some(template) => modelfile.set(Instruction::Template(template.clone())),
        None => stops = set_template(&mut modelfile, gguf, out),
    }
    if let Some(system) = &settings.system {
        modelfile.set(Instruction::System(system.clone()));
    }
    if !settings.parameters.iter().any(|p| p.name() == "stop") {
        for stop in stops {
            modelfile.set(Instruction::Parameter(Parameter::new("stop", &stop)?));
        }
    }
    for parameter in &settings.parameters {
        modelfile.set(Instruction::Parameter(parameter.clone()));
    }
    for license in &settings.licenses {
        modelfile.set(Instruction::License(license.clone()));
    }
    for name in modelfile.deprecated_parameters() {
        out.warnings(&[format!("parameter `{name}` is ignored by Ollama")]);
    }
    write_atomic(&path, modelfile.render()?.as_bytes())?;
    Ok(path)
}

/// Translates the chat template that the GGUF carries; returns the stop texts that belong to it.
fn set_template(modelfile: &mut Modelfile, gguf: &GgufFile, out: &Show) -> Vec<String> {
    let metadata = gguf.metadata();
    let Some(MetaValue::String(source)) = metadata.find("tokenizer.chat_template") else { return Vec::new() };
    let tokens = special_tokens(metadata);
    let special_tokens: Vec<(&str, &str)> = tokens.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let runtime_adds_bos = metadata.find("tokenizer.ggml.add_bos_token") == Some(&MetaValue::Bool(true));
    let name = gguf.path().display();
    match translate(&ChatTemplate { source, special_tokens: &special_tokens, runtime_adds_bos }) {
        Ok(translation) => {
            out.warnings(&translation.notes.iter().map(|note| format!("{name}: {note}")).collect::<Vec<_>>());
            modelfile.set(Instruction::Template(translation.go));
            translation.stops
        }
        Err(reason) => {
            let advice = "the Modelfile has no TEMPLATE; recent versions of Ollama use the GGUF's own";
            out.warnings(&[format!("{name}: {reason}; {advice}")]);
            Vec::new()
        }
    }
}

/// The special tokens that chat templates name, with their texts.
fn special_tokens(metadata: &Metadata) -> Vec<(&'static str, String)> {
    const TOKENS: [(&str, &str); 4] = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ];
    let Some(MetaValue::Array(MetaArray::String(vocabulary))) = metadata.find("tokenizer.ggml.tokens") else {
        return Vec::new();
    };
    let text = |key: &str| match metadata.find(key) {
        Some(MetaValue::U32(id)) => vocabulary.get(*id as usize).cloned(),
        _ => None,
    };
    TOKENS.into_iter().filter_map(|(name, key)| Some((name, text(key)?))).collect()
}
