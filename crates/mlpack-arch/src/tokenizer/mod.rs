//! Tokenizers as GGUF metadata: the ordered `tokenizer.*` keys that llama.cpp b11434's `convert_hf_to_gguf.py` writes
//! for a model folder (`conversion/base.py`, `conversion/llama.py`, `conversion/qwen.py`, `gguf-py/gguf/vocab.py`).
//!
//! [`VocabReader`] names the ways in which model classes read a vocabulary (`readers`). They are made of a few kinds:
//! - a SentencePiece model: tokens, scores and types (`spm`, `spm_variants`, and `unigram` for T5 and XLM-RoBERTa);
//! - `tokenizer.json` with BPE and byte fallback: the same from the HF file (`llama_hf`);
//! - `tokenizer.json` with byte-level BPE: tokens, types, merges and the name of the pre-tokenizer (`bpe`);
//! - `tokenizer.json` with WordPiece (`wordpiece`), and ranks of byte strings (`tekken`, `tiktoken`).
//!
//! Special token ids, `add_*` flags, chat templates and normalizer flags come from `tokenizer.json`,
//! `tokenizer_config.json`, `config.json` and the chat template files in all cases (`special`, `chat`).
//! [`check_tokenization`] compares what was written with the source's tokenizer at work.
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
mod check;
mod error;
mod files;
mod llama_hf;
mod pre;
mod ranks;
mod readers;
mod special;
mod spm;
mod spm_variants;
mod tekken;
#[cfg(test)]
mod tests;
mod tiktoken;
mod unigram;
mod wordpiece;

pub use check::{TokenizationCheck, check_tokenization};
pub use error::{Difference, Error};

use crate::json::is_truthy;
use files::Files;
use mlpack_tensor::{MetaArray, MetaValue, Metadata};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// How a model family reads its vocabulary: the `set_vocab` of its class in the converter. The names in architecture
/// descriptions are those of the variants in lower case, with `_` between words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VocabReader {
    /// `LlamaModel`: a lone tekken.json, else SentencePiece, else BPE with byte fallback, else byte-level BPE; with the
    /// exceptions that it makes for CodeLlama and Granite by vocabulary size.
    Llama,
    /// `Qwen2Model` and `DeepseekModel`: SentencePiece, else byte-level BPE.
    Qwen,
    /// `TextModel`, the rule for a class without one of its own: byte-level BPE.
    Bpe,
    /// `BaichuanModel`: SentencePiece.
    #[serde(rename = "sentencepiece")]
    SentencePiece,
    /// `GemmaModel`: SentencePiece without a leading space, with the end of turn of CodeGemma.
    Gemma,
    /// `Gemma2Model`: SentencePiece without a leading space.
    Gemma2,
    /// `Gemma3Model`: the same when there is a tokenizer.model, else byte-level BPE.
    Gemma3,
    /// `Phi3MiniModel`: byte-level BPE for a `GPT2Tokenizer`, else SentencePiece with the added tokens as they stand.
    Phi3,
    /// `Glm4Model`: byte-level BPE with GLM-4's special tokens.
    Glm4,
    /// `Glm4MoeModel` (`_set_vocab_glm`): byte-level BPE with the special tokens of GLM-4.5.
    Glm4Moe,
    /// `ChatGLMModel`, except ChatGLM 3: byte-level BPE with GLM's special tokens.
    #[serde(rename = "chatglm")]
    ChatGlm,
    /// `StableLMModel`: byte-level BPE, else `tiktoken`.
    #[serde(rename = "stablelm")]
    StableLm,
    /// `MambaModel`: byte-level BPE, else SentencePiece, else the vocabulary of GPT-NeoX; the vocabulary size is rounded
    /// up to a multiple of `pad_vocab_size_multiple` (8).
    Mamba,
    /// `InternLM2Model`: SentencePiece with the end of a chat turn as the end of a text.
    #[serde(rename = "internlm2")]
    InternLm2,
    /// `HunYuanModel`: byte-level BPE with `eod_token_id` as the end of a text.
    HunyuanDense,
    /// `Ernie4_5Model`: SentencePiece with `add_prefix_space`.
    #[serde(rename = "ernie4_5")]
    Ernie45,
    /// `BertModel`: WordPiece.
    Bert,
    /// `RobertaModel`: byte-level BPE when there is a tokenizer.json, else WordPiece.
    Roberta,
    /// `XLMRobertaModel`: Unigram, from sentencepiece.bpe.model or tokenizer.json.
    XlmRoberta,
    /// `QwenModel` (Qwen 1): the ranks of `qwen.tiktoken`.
    Tiktoken,
    /// `NomicBertModel`: Unigram or WordPiece, as tokenizer.json says.
    NomicBert,
    /// `ModernBertModel`: byte-level BPE with start, end and separator.
    ModernBert,
    /// `T5Model` and `T5EncoderModel`: Unigram from tokenizer.model or spiece.model.
    T5,
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
    /// The value of `{arch}.vocab_size` when the tokenizer decides it (tekken).
    pub vocab_size: Option<u64>,
    /// The name of the pre-tokenizer when it was found by structure and not by the converter's hash.
    pub pre_by_structure: Option<&'static str>,
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
    read_with(request, &mut Input::new(request, Files::open(request.dir)?)?)
}

/// [`read`], then [`check_tokenization`] of what it gives; the files are read and the tokenizer is made once for both.
///
/// # Errors
/// Those of both.
pub fn read_checked(request: &TokenizerRequest<'_>) -> Result<(Tokenizer, TokenizationCheck), Error> {
    let mut input = Input::new(request, Files::open(request.dir)?)?;
    let tokenizer = read_with(request, &mut input)?;
    let check = check::check(&mut input, request.dir, &tokenizer.metadata)?;
    Ok((tokenizer, check))
}

fn read_with(request: &TokenizerRequest<'_>, input: &mut Input<'_>) -> Result<Tokenizer, Error> {
    let mut metadata = Metadata::new();
    readers::read(request.reader, input, &mut metadata)?;
    check_special_ids(request.dir, &metadata)?;
    chat::check(&metadata, &mut input.warnings);
    Ok(Tokenizer {
        metadata,
        vocab_size: input.vocab_size,
        pre_by_structure: input.pre_by_structure,
        warnings: std::mem::take(&mut input.warnings),
        files: input.files.read.clone(),
    })
}

/// Checks that every special token is a token.
fn check_special_ids(dir: &Path, metadata: &Metadata) -> Result<(), Error> {
    let Some(MetaValue::Array(MetaArray::String(tokens))) = metadata.find("tokenizer.ggml.tokens") else {
        return Ok(());
    };
    let vocab_size = tokens.len() as u64;
    for (key, value) in metadata.iter().filter(|(key, _)| key.ends_with("_token_id")) {
        if let MetaValue::U32(id) = value
            && u64::from(*id) >= vocab_size
        {
            let (dir, key) = (dir.to_owned(), key.to_owned());
            return Err(Error::SpecialBeyondVocabulary { dir, key, vocab_size, id: u64::from(*id) });
        }
    }
    Ok(())
}

/// What the readers share.
struct Input<'a> {
    files: Files<'a>,
    config: &'a serde_json::Value,
    pre: Option<&'static str>,
    pre_by_structure: Option<&'static str>,
    vocab_size: Option<u64>,
    /// A vocabulary size that a reader uses instead of the configured one.
    size_override: Option<u64>,
    /// The tokenizer of tokenizer.json, once it is made.
    loaded: Option<(auto::ModelKind, Rc<auto::Loaded>)>,
    warnings: Vec<String>,
}

/// Tokens of the largest vocabulary that is read: eight times that of Gemma 3 (262 144), twice that of XLM-V.
const MAX_VOCABULARY: u64 = 1 << 21;

impl<'a> Input<'a> {
    fn new(request: &TokenizerRequest<'a>, files: Files<'a>) -> Result<Input<'a>, Error> {
        Ok(Input {
            files,
            config: request.config,
            pre: request.pre.map(pre::known_name).transpose()?,
            pre_by_structure: None,
            vocab_size: None,
            size_override: None,
            loaded: None,
            warnings: Vec::new(),
        })
    }

    /// The vocabulary size of the model: that of the reader, else `vocab_size`.
    fn model_size(&self) -> Result<Option<u64>, Error> {
        match self.size_override {
            Some(size) => self.checked_size(size).map(Some),
            None => self.configured_size("vocab_size"),
        }
    }

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

    /// `tokenizer.ggml.token_type_count`, the rows of the token type embedding (one when the model does not say).
    fn write_token_types(&self, metadata: &mut Metadata) -> Result<(), Error> {
        let count = match self.config.get("type_vocab_size") {
            None => Some(1),
            Some(value) => value.as_u64().and_then(|count| u32::try_from(count).ok()),
        };
        let Some(count) = count else {
            let found = &self.config["type_vocab_size"];
            return Err(self.files.wrong_type(
                "config.json",
                "type_vocab_size",
                "an integer that is not negative",
                found,
            ));
        };
        metadata.set("tokenizer.ggml.token_type_count", MetaValue::U32(count));
        Ok(())
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
