//! Byte-level BPE vocabularies from `tokenizer.json` (llama.cpp b11434, `conversion/base.py`, `get_vocab_base` and
//! `_set_vocab_gpt2`).

use super::auto::{self, Loaded};
use super::special::{self, STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::{CONTROL, NORMAL, UNUSED, USER_DEFINED};
use super::{Error, Input, pre};
use mlpack_tensor::{MetaValue, Metadata};
use std::collections::HashMap;
use tokenizers::Tokenizer;

/// Reads `tokenizer.json` and writes its keys.
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    let Loaded { tokenizer, structure, .. } = auto::load(input)?;
    let vocab = tokenizer.get_vocab(true);
    let size = match input.configured_size("vocab_size")? {
        Some(size) => size,
        None => input.checked_size(vocab.len() as u64)?,
    };
    let by_id = by_id(input, &vocab, size)?;
    let ids = encode(input, &tokenizer, pre::CHECK_TEXT, true)?;
    let pre = pre::name(input, &ids, &structure)?;

    let added = tokenizer.get_added_tokens_decoder();
    let mut tokens = Vec::with_capacity(by_id.len());
    let mut types = Vec::with_capacity(by_id.len());
    for (id, token) in by_id.into_iter().enumerate() {
        let (token, kind) = match (token, added.get(&(id as u32))) {
            (None, _) => (format!("[PAD{id}]"), UNUSED),
            (Some(token), Some(properties)) if properties.content == *token => {
                // llama.cpp looks for these tokens in text as it is, so they are stored as the tokenizer prints them.
                let text = if properties.normalized { token.clone() } else { round_trip(input, &tokenizer, token)? };
                if properties.special || special::looks_special(&text) {
                    (text, CONTROL)
                } else {
                    (text.replace('\u{2581}', " "), USER_DEFINED)
                }
            }
            (Some(token), _) => (token.clone(), NORMAL),
        };
        tokens.push(token);
        types.push(kind);
    }
    metadata.set("tokenizer.ggml.model", "gpt2".into());
    metadata.set("tokenizer.ggml.pre", pre.into());
    if !tokens.is_empty() {
        metadata.set("tokenizer.ggml.tokens", tokens.into());
        metadata.set("tokenizer.ggml.token_type", MetaValue::from(types));
    }
    let wanted = Wanted { merges: true, types: STANDARD_TYPES, vocab_size: None };
    SpecialVocab::load(input, &wanted)?.write(metadata, &mut input.warnings);
    Ok(())
}

/// The vocabulary by id, `size` entries long.
pub(super) fn by_id<'v>(
    input: &Input<'_>,
    vocab: &'v HashMap<String, u32>,
    size: u64,
) -> Result<Vec<Option<&'v String>>, Error> {
    let path = || input.files.dir.join("tokenizer.json");
    if let Some((token, id)) = vocab.iter().max_by_key(|(token, id)| (**id, std::cmp::Reverse(*token)))
        && u64::from(*id) >= size
    {
        return Err(Error::BeyondVocabulary {
            path: path(),
            token: token.clone(),
            id: u64::from(*id),
            vocab_size: size,
        });
    }
    let mut by_id: Vec<Option<&String>> = vec![None; size as usize];
    let mut shared: Option<(u32, &String, &String)> = None;
    for (token, id) in vocab {
        if let Some(other) = by_id[*id as usize].replace(token) {
            let pair = (*id, other.min(token), other.max(token));
            shared = Some(shared.map_or(pair, |least| least.min(pair)));
        }
    }
    match shared {
        None => Ok(by_id),
        Some((id, first, second)) => {
            Err(Error::SharedId { path: path(), id: u64::from(id), first: first.clone(), second: second.clone() })
        }
    }
}

fn encode(input: &Input<'_>, tokenizer: &Tokenizer, text: &str, specials: bool) -> Result<Vec<u32>, Error> {
    let path = input.files.dir.join("tokenizer.json");
    auto::guarded(&path, || Ok(tokenizer.encode(text, specials)?.get_ids().to_vec()))
}

fn round_trip(input: &Input<'_>, tokenizer: &Tokenizer, token: &str) -> Result<String, Error> {
    let path = input.files.dir.join("tokenizer.json");
    auto::guarded(&path, || tokenizer.decode(tokenizer.encode(token, false)?.get_ids(), false))
}
