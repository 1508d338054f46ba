//! Unigram vocabularies: T5 (llama.cpp b11434, `conversion/t5.py`) and XLM-RoBERTa (`conversion/bert.py`,
//! `_xlmroberta_set_vocab`).
//!
//! A Unigram vocabulary carries what SentencePiece does to a text first: the compiled replacements (`charsmap`), the
//! space before the first word, and whether runs of spaces are one.

use super::auto::{self, Loaded, ModelKind};
use super::ranks::base64;
use super::special::{STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::{CONTROL, NORMAL, UNKNOWN, USER_DEFINED};
use super::spm::{self, Model, ScoredTokens, model_type};
use super::{Error, Input};
use crate::json::is_truthy;
use mlpack_tensor::{MetaArray, MetaValue, Metadata};
use serde_json::Value;
use std::collections::HashSet;

/// T5: `tokenizer.model`, else `spiece.model`. A BPE model in `tokenizer.model` is read as such.
pub(super) fn read_t5(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    const OLD: &str = "spiece.model";
    let name = if input.files.has(spm::FILE) { spm::FILE } else { OLD };
    let Some(model) = Model::open(input, name)? else {
        let (dir, looked_for) = (input.files.dir.to_owned(), vec![spm::FILE, OLD]);
        return Err(Error::NoVocabulary { dir, looked_for });
    };
    if model.model_type == model_type::BPE && name == spm::FILE {
        return spm::read(input, metadata).map(|_| ());
    }
    expect_unigram(input, name, &model)?;
    let found = model.pieces.len() as u64;
    let size = input.model_size()?.unwrap_or(found);
    if found > size {
        return Err(Error::SizesDiffer { path: input.files.dir.join(name), vocab_size: size, found });
    }
    let before = Before::of(&model);
    let mut vocab = ScoredTokens::default();
    for (text, score, kind) in model.pieces {
        vocab.push(text, score, kind);
    }
    vocab.pad(size as usize);
    spm::apply_added_tokens(input, &mut vocab)?;
    write(input, vocab, before, false, metadata)
}

/// XLM-RoBERTa: `sentencepiece.bpe.model`, else `tokenizer.json`. `mask` is the id of a mask token that the SentencePiece
/// model lacks.
pub(super) fn read_xlm_roberta(
    input: &mut Input<'_>,
    mask: Option<usize>,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    const FILE: &str = "sentencepiece.bpe.model";
    let Some(model) = Model::open(input, FILE)? else { return read_json(input, metadata) };
    expect_unigram(input, FILE, &model)?;
    let before = Before::of(&model);
    let found = model.pieces.len() as u64;
    let size = input.checked_size(input.model_size()?.unwrap_or(0).max(found))? as usize;
    let mut all = ScoredTokens::default();
    for (text, score, kind) in model.pieces {
        all.push(text, score, kind);
    }
    all.pad(size);
    // The model was trained with four tokens where SentencePiece has three, so all the others are one id higher.
    let mut vocab = ScoredTokens::default();
    for (token, kind) in [("<s>", CONTROL), ("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)] {
        vocab.push(token.to_owned(), 0.0, kind);
    }
    let rest = all.tokens.into_iter().zip(all.scores).zip(all.types).skip(3);
    for ((text, score), kind) in rest.take(size.saturating_sub(4)) {
        vocab.push(text, score, kind);
    }
    if let Some(id) = mask {
        if id >= vocab.tokens.len() {
            let path = input.files.dir.join("config.json");
            return Err(Error::SizesDiffer { path, vocab_size: size as u64, found: id as u64 + 1 });
        }
        vocab.set(id, "<mask>".to_owned(), 0.0, CONTROL);
    }
    write(input, vocab, before, true, metadata)
}

/// XLM-RoBERTa from `tokenizer.json`.
fn read_json(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    const FILE: &str = "tokenizer.json";
    let loaded = auto::load(input, ModelKind::Unigram)?;
    let Loaded { tokenizer, specials, add_prefix_space, .. } = &*loaded;
    let json = input.files.tokenizer_json.as_ref().expect("the tokenizer was loaded from it");
    let model = json.get("model").unwrap_or(&Value::Null);
    let pieces = model.get("vocab").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let charsmap = json.get("normalizer").and_then(|n| n.get("precompiled_charsmap"));
    let charsmap = match charsmap {
        Some(Value::String(text)) => base64(text),
        _ => None,
    };
    let Some(charsmap) = charsmap else {
        let found = json.get("normalizer").unwrap_or(&Value::Null);
        return Err(input.files.wrong_type(FILE, "normalizer.precompiled_charsmap", "a text in base64", found));
    };
    let config = input.files.tokenizer_config.as_ref();
    let before = Before {
        add_space_prefix: *add_prefix_space,
        // The converter takes this from a flag about decoding; transformers' default is false.
        remove_extra_whitespaces: config.and_then(|c| c.get("clean_up_tokenization_spaces")).is_some_and(is_truthy),
        charsmap,
    };
    let added = loaded.added();
    let unknown = config.and_then(|c| c.get("unk_token")).and_then(Value::as_str).and_then(|t| added.get(t)).copied();
    let unknown = unknown.map_or_else(|| model.get("unk_id").map_or(Some(3), Value::as_u64), |id| Some(u64::from(id)));
    let special: HashSet<u32> = specials.iter().filter_map(|token| tokenizer.token_to_id(token)).collect();
    let added: HashSet<u32> = added.into_values().collect();
    let base = tokenizer.get_vocab_size(false);
    let mut vocab = ScoredTokens::default();
    for (id, piece) in pieces.iter().take(base).enumerate() {
        let score = piece.get(1).and_then(Value::as_f64);
        let (Some(text), Some(score)) = (tokenizer.id_to_token(id as u32), score) else {
            return Err(input.files.wrong_type(FILE, format!("model.vocab[{id}]"), "a token and its score", piece));
        };
        let kind = match id as u32 {
            id if unknown == Some(u64::from(id)) => UNKNOWN,
            id if special.contains(&id) => CONTROL,
            id if added.contains(&id) => USER_DEFINED,
            _ => NORMAL,
        };
        vocab.push(text, score as f32, kind);
    }
    let size = input.checked_size(input.model_size()?.unwrap_or(0).max(vocab.tokens.len() as u64))?;
    vocab.pad(size as usize);
    write(input, vocab, before, true, metadata)
}

/// What is done to a text before it is cut.
struct Before {
    add_space_prefix: bool,
    remove_extra_whitespaces: bool,
    charsmap: Vec<u8>,
}

impl Before {
    fn of(model: &Model) -> Before {
        Before {
            add_space_prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            charsmap: model.charsmap.clone(),
        }
    }
}

fn expect_unigram(input: &Input<'_>, name: &str, model: &Model) -> Result<(), Error> {
    if model.model_type == model_type::UNIGRAM {
        return Ok(());
    }
    let found = match model.model_type {
        model_type::BPE => "BPE".to_owned(),
        other => format!("model type {other}"),
    };
    Err(Error::WrongModel { path: input.files.dir.join(name), expected: "Unigram", found })
}

fn write(
    input: &mut Input<'_>,
    vocab: ScoredTokens,
    before: Before,
    token_types: bool,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    input.warn_unused_pre();
    let vocab_size = Some(vocab.tokens.len() as u64);
    vocab.write_tokens("t5", metadata);
    metadata.set("tokenizer.ggml.add_space_prefix", MetaValue::Bool(before.add_space_prefix));
    if token_types {
        input.write_token_types(metadata)?;
    }
    let flag = MetaValue::Bool(before.remove_extra_whitespaces);
    metadata.set("tokenizer.ggml.remove_extra_whitespaces", flag);
    if !before.charsmap.is_empty() {
        let bytes = MetaValue::Array(MetaArray::U8(before.charsmap));
        metadata.set("tokenizer.ggml.precompiled_charsmap", bytes);
    }
    let wanted = Wanted { merges: false, types: STANDARD_TYPES, vocab_size };
    SpecialVocab::load(input, &wanted)?.write(metadata, &mut input.warnings);
    Ok(())
}
