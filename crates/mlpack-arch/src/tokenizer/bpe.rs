//! Vocabularies that the HF library has to work for: byte-level BPE and WordPiece from `tokenizer.json` (llama.cpp
//! b11434, `conversion/base.py`, `get_vocab_base` and `_set_vocab_gpt2`).

use super::auto::{self, Loaded, ModelKind};
use super::special::{self, STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::{CONTROL, NORMAL, UNUSED, USER_DEFINED};
use super::{Error, Input, pre};
use mlpack_tensor::{MetaValue, Metadata};
use std::collections::HashMap;
use tokenizers::Tokenizer;

/// Reads `tokenizer.json` as byte-level BPE and writes its keys (`_set_vocab_gpt2`).
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    Base::load(input, ModelKind::Bpe)?.write("gpt2", metadata);
    special(input)?.write(metadata, &mut input.warnings);
    Ok(())
}

/// The merges and special tokens that go with byte-level BPE.
pub(super) fn special(input: &mut Input<'_>) -> Result<SpecialVocab, Error> {
    SpecialVocab::load(input, &Wanted { merges: true, types: STANDARD_TYPES, vocab_size: None })
}

/// Tokens and types by id, with the name of the pre-tokenizer.
pub(super) struct Base {
    pub(super) tokens: Vec<String>,
    pub(super) types: Vec<i32>,
    pub(super) pre: &'static str,
    /// The ids of the added tokens by content.
    pub(super) added: HashMap<String, u32>,
}

impl Base {
    /// `get_vocab_base`.
    pub(super) fn load(input: &mut Input<'_>, kind: ModelKind) -> Result<Base, Error> {
        let loaded = auto::load(input, kind)?;
        let Loaded { tokenizer, structure, .. } = &*loaded;
        let vocab = tokenizer.get_vocab(true);
        let size = match input.model_size()? {
            Some(size) => size,
            None => input.checked_size(vocab.len() as u64)?,
        };
        let by_id = by_id(input, &vocab, size)?;
        let ids = encode(input, tokenizer, pre::CHECK_TEXT, true)?;
        let pre = pre::name(input, &ids, structure, kind)?;

        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens = Vec::with_capacity(by_id.len());
        let mut types = Vec::with_capacity(by_id.len());
        for (id, token) in by_id.into_iter().enumerate() {
            let (token, kind) = match (token, added.get(&(id as u32))) {
                (None, _) => (format!("[PAD{id}]"), UNUSED),
                (Some(token), Some(properties)) if properties.content == *token => {
                    // llama.cpp looks for these tokens in text as it is, so they are stored as the tokenizer prints
                    // them.
                    let text = if properties.normalized { token.clone() } else { round_trip(input, tokenizer, token)? };
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
        Ok(Base { tokens, types, pre, added: loaded.added() })
    }

    /// Writes the model's name, the pre-tokenizer, tokens and types.
    pub(super) fn write(self, model: &str, metadata: &mut Metadata) {
        metadata.set("tokenizer.ggml.model", model.into());
        metadata.set("tokenizer.ggml.pre", self.pre.into());
        if !self.tokens.is_empty() {
            metadata.set("tokenizer.ggml.tokens", self.tokens.into());
            metadata.set("tokenizer.ggml.token_type", MetaValue::from(self.types));
        }
    }

    /// The id of an added token that a reader needs.
    pub(super) fn added_id(&self, input: &Input<'_>, token: &str) -> Result<u32, Error> {
        self.added
            .get(token)
            .copied()
            .ok_or_else(|| Error::NoSpecialToken { dir: input.files.dir.to_owned(), token: token.to_owned() })
    }
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

pub(super) fn encode(input: &Input<'_>, tokenizer: &Tokenizer, text: &str, specials: bool) -> Result<Vec<u32>, Error> {
    let path = input.files.dir.join("tokenizer.json");
    auto::guarded(&path, || Ok(tokenizer.encode(text, specials)?.get_ids().to_vec()))
}

fn round_trip(input: &Input<'_>, tokenizer: &Tokenizer, token: &str) -> Result<String, Error> {
    let path = input.files.dir.join("tokenizer.json");
    auto::guarded(&path, || tokenizer.decode(tokenizer.encode(token, false)?.get_ids(), false))
}
