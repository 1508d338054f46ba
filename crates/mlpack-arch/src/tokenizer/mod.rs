//! Tokenizers as GGUF metadata: the ordered `tokenizer.*` keys that llama.cpp b11434's `convert_hf_to_gguf.py` writes
//! for a model folder (`conversion/base.py`, `conversion/llama.py`, `conversion/qwen.py`, `gguf-py/gguf/vocab.py`).
//!
//! What is read, in the order in which a reader tries:
//! - `tokenizer.model`, a SentencePiece model: tokens, scores and types (`spm`);
//! - `tokenizer.json`, BPE with byte fallback: the same from the HF file (`llama_hf`);
//! - `tokenizer.json`, byte-level BPE: tokens, types, merges and the name of the pre-tokenizer (`bpe`).
//!
//! Special token ids, `add_*` flags, chat templates and normalizer flags come from `tokenizer.json`,
//! `tokenizer_config.json`, `config.json` and the chat template files in all three cases (`special`).
//!
//! Byte-level BPE needs the tokenizer at work: llama.cpp names a pre-tokenizer by the token ids of a fixed text, as
//! transformers 5.23.0 computes them. `auto` says which class transformers would load and rebuilds the tokenizer as
//! that class does; the HF `tokenizers` library runs it.
//!
//! **Known difference.** `tokenizer.chat_templates` is written sorted. llama.cpp writes it in the order of a Python set
//! (it depends on `PYTHONHASHSEED`), and the `tokenizer.chat_template.*` keys of `additional_chat_templates/` in the
//! order of the file system; here these are sorted too.

mod auto;
mod bpe;
mod chat;
mod error;
mod files;
mod llama_hf;
mod pre;
mod special;
mod spm;
#[cfg(test)]
mod tests;

pub use error::Error;

use crate::json::is_truthy;
use files::Files;
use mlpack_tensor::{MetaValue, Metadata};
use special::{SpecialVocab, Wanted};
use std::path::{Path, PathBuf};

/// How a model family reads its vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabReader {
    /// `LlamaModel.set_vocab`: SentencePiece, else BPE with byte fallback, else byte-level BPE; with the exceptions that
    /// it makes for CodeLlama and Granite by vocabulary size.
    Llama,
    /// `Qwen2Model.set_vocab`: SentencePiece, else byte-level BPE.
    Qwen,
    /// `TextModel.set_vocab`: byte-level BPE.
    Bpe,
}

/// Which tokenizer to read, and how.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerRequest<'a> {
    /// The model's folder.
    pub dir: &'a Path,
    /// `config.json` with the defaults of transformers and the keys of `text_config` merged in: `vocab_size`,
    /// `model_type`.
    pub config: &'a serde_json::Value,
    /// How the model's family reads its vocabulary.
    pub reader: VocabReader,
    /// The pre-tokenizer's name when the user gave one; it wins over what the files say, with a warning.
    pub pre: Option<&'a str>,
}

/// A tokenizer, ready to be written.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// The `tokenizer.*` keys in file order.
    pub metadata: Metadata,
    /// What the user should know, one sentence each.
    pub warnings: Vec<String>,
    /// Every file that was read, in the order of reading: the inputs that the keys come from.
    pub files: Vec<PathBuf>,
}

/// Reads the tokenizer of a model folder.
///
/// # Errors
/// Files that are missing, malformed or of a format that is not handled, and a pre-tokenizer that has no name in
/// llama.cpp b11434 when none is given.
pub fn read(request: &TokenizerRequest<'_>) -> Result<Tokenizer, Error> {
    let mut input = Input {
        files: Files::open(request.dir)?,
        config: request.config,
        pre: request.pre.map(pre::known_name).transpose()?,
        warnings: Vec::new(),
    };
    let mut metadata = Metadata::new();
    match request.reader {
        VocabReader::Llama => read_llama(&mut input, &mut metadata)?,
        VocabReader::Qwen => {
            if !spm::read(&mut input, &mut metadata)? {
                bpe::read(&mut input, &mut metadata)?;
            }
        }
        VocabReader::Bpe => bpe::read(&mut input, &mut metadata)?,
    }
    Ok(Tokenizer { metadata, warnings: input.warnings, files: input.files.read })
}

/// What the readers share.
struct Input<'a> {
    files: Files<'a>,
    config: &'a serde_json::Value,
    pre: Option<&'static str>,
    warnings: Vec<String>,
}

/// Tokens of the largest vocabulary that is read: eight times that of Gemma 3 (262 144), twice that of XLM-V.
const MAX_VOCABULARY: u64 = 1 << 21;

impl Input<'_> {
    /// A size from the configuration, checked against [`MAX_VOCABULARY`]; `None` when it is absent, null or zero.
    fn configured_size(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(value) = self.config.get(key).filter(|v| is_truthy(v)) else { return Ok(None) };
        let size = value.as_u64().ok_or_else(|| Error::WrongType {
            path: self.files.dir.join("config.json"),
            key: key.to_owned(),
            expected: "a positive integer",
            found: value.to_string(),
        })?;
        self.checked_size(size).map(Some)
    }

    fn checked_size(&self, size: u64) -> Result<u64, Error> {
        if size > MAX_VOCABULARY {
            return Err(Error::VocabularyTooLarge {
                dir: self.files.dir.to_owned(),
                limit: MAX_VOCABULARY,
                found: size,
            });
        }
        Ok(size)
    }

    fn warn_unused_pre(&mut self) {
        if let Some(name) = self.pre.filter(|name| *name != "default") {
            self.warnings.push(format!(
                "the pre-tokenizer name `{name}` is not used: this vocabulary is in the SentencePiece style, which has \
                 no pre-tokenizer"
            ));
        }
    }
}

/// `LlamaModel.set_vocab`.
fn read_llama(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    if input.files.tokenizer_json.is_none() && input.files.has("tekken.json") {
        return Err(Error::UnsupportedFormat {
            path: input.files.dir.join("tekken.json"),
            format: "a Tekken vocabulary of mistral-common",
        });
    }
    if let Some(config) = &input.files.tokenizer_config {
        if let Some(value) = config.get("add_prefix_space").filter(|v| !v.is_null()) {
            metadata.set("tokenizer.ggml.add_space_prefix", MetaValue::Bool(is_truthy(value)));
        }
        if config.get("tokenizer_class").and_then(|v| v.as_str()) == Some("HybridDNATokenizer") {
            return Err(Error::UnsupportedFormat {
                path: input.files.dir.join("tokenizer_config.json"),
                format: "a HybridDNATokenizer",
            });
        }
    }
    if !spm::read(input, metadata)? && !llama_hf::read(input, metadata)? {
        bpe::read(input, metadata)?;
    }
    const CODE_LLAMA: u64 = 32_016;
    const GRANITE_SMALL: u64 = 49_152;
    match input.configured_size("vocab_size")? {
        Some(CODE_LLAMA) => {
            let wanted = Wanted { merges: false, types: &["prefix", "suffix", "middle", "eot"], vocab_size: None };
            let mut vocab = SpecialVocab::load(input, &wanted)?;
            for (kind, id) in [("prefix", 32_007), ("suffix", 32_008), ("middle", 32_009), ("eot", 32_010)] {
                vocab.set_default_id(kind, id);
            }
            vocab.write(metadata, &mut input.warnings);
        }
        Some(GRANITE_SMALL) => metadata.set("tokenizer.ggml.add_bos_token", MetaValue::Bool(false)),
        _ => {}
    }
    Ok(())
}
