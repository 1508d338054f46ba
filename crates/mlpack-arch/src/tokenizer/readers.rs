//! One function per way in which a model class of the converter reads its vocabulary (llama.cpp b11434, the `set_vocab`
//! of the classes in `conversion/`).

use super::auto::ModelKind;
use super::bpe::{self, Base};
use super::special::{STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::{NORMAL, USER_DEFINED};
use super::{Error, Input, VocabReader, llama_hf, spm, spm_variants, tekken, tiktoken, unigram, wordpiece};
use crate::json::is_truthy;
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::Value;

const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// Reads the vocabulary and writes its keys.
pub(super) fn read(reader: VocabReader, input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    match reader {
        VocabReader::Llama => llama(input, metadata),
        VocabReader::Qwen => {
            if !spm::read(input, metadata)? {
                bpe::read(input, metadata)?;
            }
            Ok(())
        }
        VocabReader::Bpe => bpe::read(input, metadata),
        VocabReader::SentencePiece => sentencepiece(input, metadata),
        VocabReader::Gemma => gemma(input, metadata),
        VocabReader::Gemma2 => gemma2(input, metadata),
        VocabReader::Gemma3 if input.files.has(spm::FILE) => gemma2(input, metadata),
        VocabReader::Gemma3 => bpe::read(input, metadata),
        VocabReader::Phi3 if tokenizer_class(input) == Some("GPT2Tokenizer") => bpe::read(input, metadata),
        VocabReader::Phi3 => spm_variants::read_phi3(input, metadata),
        VocabReader::Glm4 => {
            let end = "<|endoftext|>";
            glm(input, metadata, &[("eos", end), ("eot", "<|user|>"), ("unk", end), ("bos", end)])
        }
        VocabReader::Glm4Moe => {
            let (end, turn) = ("<|endoftext|>", "<|observation|>");
            glm(input, metadata, &[("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", end), ("eom", turn)])
        }
        VocabReader::ChatGlm => {
            let end = "<|endoftext|>";
            glm(input, metadata, &[("eos", end), ("eot", "<|user|>"), ("unk", end)])
        }
        VocabReader::StableLm if input.files.tokenizer_json.is_some() => bpe::read(input, metadata),
        VocabReader::StableLm | VocabReader::Tiktoken => tiktoken::read(input, metadata),
        VocabReader::Mamba => mamba(input, metadata),
        VocabReader::InternLm2 => spm_variants::read_internlm2(input, metadata),
        VocabReader::HunyuanDense => hunyuan(input, metadata),
        VocabReader::Ernie45 => ernie(input, metadata),
        VocabReader::Bert => wordpiece::read(input, metadata),
        VocabReader::Roberta if input.files.tokenizer_json.is_some() => {
            bpe::read(input, metadata)?;
            input.write_token_types(metadata)
        }
        VocabReader::Roberta => wordpiece::read(input, metadata),
        VocabReader::XlmRoberta => unigram::read_xlm_roberta(input, None, metadata),
        VocabReader::NomicBert => nomic_bert(input, metadata),
        VocabReader::ModernBert => modern_bert(input, metadata),
        VocabReader::T5 => unigram::read_t5(input, metadata),
    }
}

/// `LlamaModel.set_vocab`.
fn llama(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    if input.files.tokenizer_json.is_none() && input.files.has(tekken::FILE) {
        return tekken::read(input, metadata);
    }
    if let Some(config) = &input.files.tokenizer_config {
        if let Some(value) = config.get("add_prefix_space").filter(|v| !v.is_null()) {
            metadata.set(ADD_SPACE_PREFIX, MetaValue::Bool(is_truthy(value)));
        }
        if tokenizer_class(input) == Some("HybridDNATokenizer") {
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

fn tokenizer_class<'i>(input: &'i Input<'_>) -> Option<&'i str> {
    input.files.tokenizer_config.as_ref()?.get("tokenizer_class")?.as_str()
}

/// `_set_vocab_sentencepiece`, where nothing else will do.
fn sentencepiece(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    if spm::read(input, metadata)? {
        return Ok(());
    }
    Err(Error::NoVocabulary { dir: input.files.dir.to_owned(), looked_for: vec![spm::FILE] })
}

/// `Gemma2Model.set_vocab`.
fn gemma2(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    sentencepiece(input, metadata)?;
    metadata.set(ADD_SPACE_PREFIX, MetaValue::Bool(false));
    Ok(())
}

/// `GemmaModel.set_vocab`: the special tokens of CodeGemma, of which GGUF has a key for the end of a turn only.
fn gemma(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    sentencepiece(input, metadata)?;
    let types = &["prefix", "suffix", "middle", "fsep", "eot"];
    let wanted = Wanted { merges: false, types, vocab_size: None };
    let mut vocab = SpecialVocab::load(input, &wanted)?.without_chat_template();
    for (kind, id) in [("prefix", 67), ("suffix", 69), ("middle", 68), ("fsep", 70), ("eot", 107)] {
        vocab.set_default_id(kind, id);
    }
    vocab.write(metadata, &mut input.warnings);
    metadata.set(ADD_SPACE_PREFIX, MetaValue::Bool(false));
    Ok(())
}

/// The GLM classes: byte-level BPE, and special tokens by content for the kinds that the files do not name.
fn glm(input: &mut Input<'_>, metadata: &mut Metadata, tokens: &[(&str, &str)]) -> Result<(), Error> {
    let base = Base::load(input, ModelKind::Bpe)?;
    let mut vocab = bpe::special(input)?;
    for (kind, token) in tokens {
        vocab.set_default_id(kind, base.added_id(input, token)?);
    }
    base.write("gpt2", metadata);
    vocab.write(metadata, &mut input.warnings);
    Ok(())
}

/// `MambaModel.set_vocab`.
fn mamba(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    let multiple = match input.config.get("pad_vocab_size_multiple") {
        Some(_) => input.configured_size("pad_vocab_size_multiple")?,
        None => Some(8),
    };
    let size = input.configured_size("vocab_size")?;
    let (Some(size), Some(multiple)) = (size, multiple) else {
        let key = if size.is_none() { "vocab_size" } else { "pad_vocab_size_multiple" };
        return Err(input.files.wrong_type("config.json", key, "a positive integer", &Value::Null));
    };
    input.size_override = Some(size.next_multiple_of(multiple));
    if input.files.tokenizer_json.is_some() {
        return bpe::read(input, metadata);
    }
    if spm::read(input, metadata)? {
        return Ok(());
    }
    Err(Error::NoTokenizerFiles { dir: input.files.dir.to_owned() })
}

/// `HunYuanModel.set_vocab`, for folders with a tokenizer.json.
fn hunyuan(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    Base::load(input, ModelKind::Bpe)?.write("gpt2", metadata);
    let padding = input.config.get("pad_token_id").and_then(Value::as_i64).unwrap_or(0);
    let types = if padding < 0 { &["bos", "eos", "unk", "sep", "cls", "mask"][..] } else { STANDARD_TYPES };
    let wanted = Wanted { merges: true, types, vocab_size: None };
    SpecialVocab::load(input, &wanted)?.write(metadata, &mut input.warnings);
    if let Some(id) = input.config.get("eod_token_id").filter(|v| !v.is_null()) {
        metadata.set("tokenizer.ggml.eos_token_id", MetaValue::U32(id_of(input, "config.json", "eod_token_id", id)?));
    }
    let generation = input.files.object("generation_config.json")?;
    if let Some([first, _, ..]) = generation.as_ref().and_then(|g| g.get("eos_token_id")?.as_array().map(Vec::as_slice))
    {
        let id = id_of(input, "generation_config.json", "eos_token_id", first)?;
        metadata.set("tokenizer.ggml.eot_token_id", MetaValue::U32(id));
    }
    Ok(())
}

fn id_of(input: &Input<'_>, file: &str, key: &str, id: &Value) -> Result<u32, Error> {
    let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
    number.ok_or_else(|| input.files.wrong_type(file, key, "a token id", id))
}

/// `Ernie4_5Model.set_vocab`.
fn ernie(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    sentencepiece(input, metadata)?;
    let config = input.files.tokenizer_config.as_ref();
    if let Some(value) = config.and_then(|c| c.get("add_prefix_space")).filter(|v| !v.is_null()) {
        metadata.set(ADD_SPACE_PREFIX, MetaValue::Bool(is_truthy(value)));
    }
    Ok(())
}

/// `NomicBertModel.set_vocab`. The mixture-of-experts model has a mask token that its SentencePiece file lacks.
fn nomic_bert(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    const MASK: usize = 250_001;
    let model = input.files.tokenizer_json.as_ref().and_then(|json| json.get("model")?.get("type")?.as_str());
    if model != Some("Unigram") {
        return wordpiece::read(input, metadata);
    }
    let experts = input.config.get("moe_every_n_layers").is_some_and(is_truthy);
    unigram::read_xlm_roberta(input, experts.then_some(MASK), metadata)
}

/// `ModernBertModel.set_vocab`. In mmBERT the added tokens for runs of spaces are ordinary ones.
fn modern_bert(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token"] {
        metadata.set(key, MetaValue::Bool(true));
    }
    let mut base = Base::load(input, ModelKind::Bpe)?;
    if base.pre == "mmbert" {
        for (token, kind) in base.tokens.iter_mut().zip(&mut base.types) {
            if *kind == USER_DEFINED && !token.is_empty() && token.bytes().all(|b| b == b' ') {
                *token = "\u{2581}".repeat(token.len());
                *kind = NORMAL;
            }
        }
    }
    base.write("gpt2", metadata);
    bpe::special(input)?.write(metadata, &mut input.warnings);
    Ok(())
}
