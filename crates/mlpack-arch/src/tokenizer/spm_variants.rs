//! The two SentencePiece vocabularies that the converter reads in a way of their own (llama.cpp b11434,
//! `conversion/phi.py`, `Phi3MiniModel`, and `conversion/internlm.py`, `InternLM2Model`): added tokens stand as they
//! are, with no rule for tokens that only look special, and those of `tokenizer.json` count too.

use super::special::{STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::{CONTROL, UNUSED, USER_DEFINED};
use super::spm::{self, ADDED_SCORE, Model, ScoredTokens};
use super::{Error, Input};
use crate::json::is_truthy;
use mlpack_tensor::{Escaped, MetaValue, Metadata};
use serde_json::Value;

/// Phi-3: a vocabulary of `vocab_size`, the model's tokens, then the added ones.
pub(super) fn read_phi3(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    let mut vocab = pieces(input, true)?;
    spm::apply_added_tokens(input, &mut vocab)?;
    apply_as_they_stand(input, &mut vocab)?;
    vocab.write(input, metadata)
}

/// InternLM2: as many tokens as the model has, those of `added_tokens.json` after them, and `<|im_end|>` as the end of
/// a text where it is an added token.
pub(super) fn read_internlm2(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    /// What stands for the zero byte, which would end a string in C.
    const ZERO: &str = "\u{1f409}";
    const CHAT_END: &str = "<|im_end|>";
    let add_prefix = Model::open(input, spm::FILE)?.is_some_and(|model| model.add_dummy_prefix);
    let mut vocab = pieces(input, false)?;
    for id in 0..vocab.tokens.len() {
        if vocab.tokens[id] == "\0" {
            vocab.tokens[id] = ZERO.to_owned();
        }
        if vocab.tokens[id].starts_with("[UNUSED") {
            vocab.types[id] = UNUSED;
        }
    }
    for (token, _) in input.files.object("added_tokens.json")?.into_iter().flatten() {
        vocab.push(token, ADDED_SCORE, USER_DEFINED);
    }
    let chat_end = apply_as_they_stand(input, &mut vocab)?.into_iter().rev().find(|(_, token)| token == CHAT_END);
    input.warn_unused_pre();
    let size = vocab.tokens.len() as u64;
    vocab.write_tokens("llama", metadata);
    metadata.set("tokenizer.ggml.add_space_prefix", MetaValue::Bool(add_prefix));
    let wanted = Wanted { merges: false, types: STANDARD_TYPES, vocab_size: Some(size) };
    let mut special = SpecialVocab::load(input, &wanted)?;
    let Some(eos) = special.id("eos") else {
        return Err(Error::NoSpecialToken { dir: input.files.dir.to_owned(), token: "eos_token".to_owned() });
    };
    if let Some((id, _)) = chat_end {
        let id = id as u32;
        if id != eos {
            input.warnings.push(format!("the end of a text is token {id} `{CHAT_END}`, as in a chat, and not {eos}"));
        }
        special.replace_id("eos", id);
    }
    special.write(metadata, &mut input.warnings);
    Ok(())
}

/// The tokens of `tokenizer.model`, no more than `vocab_size`; filled up to it where `pad` says so.
fn pieces(input: &mut Input<'_>, pad: bool) -> Result<ScoredTokens, Error> {
    let Some(model) = Model::open(input, spm::FILE)? else {
        let (dir, looked_for) = (input.files.dir.to_owned(), vec![spm::FILE]);
        return Err(Error::NoVocabulary { dir, looked_for });
    };
    let found = model.pieces.len() as u64;
    let size = input.model_size()?.unwrap_or(found);
    if (pad && found > size) || (!pad && found < size) {
        return Err(Error::SizesDiffer { path: input.files.dir.join(spm::FILE), vocab_size: size, found });
    }
    let mut vocab = ScoredTokens::default();
    for (text, score, kind) in model.pieces.into_iter().take(size as usize) {
        vocab.push(text, score, kind);
    }
    vocab.pad(size as usize);
    Ok(vocab)
}

/// Puts `added_tokens_decoder` of `tokenizer_config.json`, then `added_tokens` of `tokenizer.json`, in place; gives what
/// was put, in order.
fn apply_as_they_stand(input: &mut Input<'_>, vocab: &mut ScoredTokens) -> Result<Vec<(usize, String)>, Error> {
    const CONFIG: &str = "tokenizer_config.json";
    const FILE: &str = "tokenizer.json";
    let decoder = input.files.tokenizer_config.as_ref().and_then(|c| c.get("added_tokens_decoder"));
    let decoder = decoder.and_then(Value::as_object).into_iter().flatten();
    let mut tokens: Vec<(&str, Value, Value)> =
        decoder.map(|(id, token)| (CONFIG, Value::from(id.as_str()), token.clone())).collect();
    let added = input.files.tokenizer_json.as_ref().and_then(|json| json.get("added_tokens"));
    for token in added.and_then(Value::as_array).into_iter().flatten() {
        tokens.push((FILE, token.get("id").cloned().unwrap_or_default(), token.clone()));
    }
    let mut done = Vec::with_capacity(tokens.len());
    for (file, id, token) in tokens {
        let Some(content) = token.get("content").and_then(Value::as_str) else {
            return Err(input.files.wrong_type(file, "added_tokens.content", "a string", &token));
        };
        let number = id.as_u64().or_else(|| id.as_str().and_then(|id| id.trim().parse().ok()));
        let Some(id) = number.filter(|id| *id < vocab.tokens.len() as u64).map(|id| id as usize) else {
            return Err(Error::BadTokenId {
                path: input.files.dir.join(file),
                token: content.to_owned(),
                max: (vocab.tokens.len() as u64).saturating_sub(1),
                found: id.to_string(),
            });
        };
        if vocab.types[id] != UNUSED && vocab.tokens[id] != content {
            input.warnings.push(format!(
                "token {id} `{}` is replaced by `{}` (`{file}`)",
                Escaped(&vocab.tokens[id]),
                Escaped(content)
            ));
        }
        let kind = if token.get("special").is_some_and(is_truthy) { CONTROL } else { USER_DEFINED };
        vocab.set(id, content.to_owned(), ADDED_SCORE, kind);
        done.push((id, content.to_owned()));
    }
    Ok(done)
}
