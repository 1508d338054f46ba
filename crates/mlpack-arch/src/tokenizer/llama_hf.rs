//! Llama vocabularies from `tokenizer.json`: BPE with byte fallback (llama.cpp b11434, `gguf-py/gguf/vocab.py`,
//! `LlamaHfVocab`, and `conversion/base.py`, `_set_vocab_llama_hf`).

use super::auto::{self, Loaded, ModelKind};
use super::spm::ScoredTokens;
use super::spm::token_type::{BYTE, CONTROL, NORMAL, USER_DEFINED};
use super::{Error, Input};
use crate::json::is_truthy;
use mlpack_tensor::Metadata;
use serde_json::Value;

/// The one score that llama.cpp gives to tokens of an HF file.
const SCORE: f32 = -1_000.0;

/// Reads `tokenizer.json` and writes its keys; `false` when the file is not there or is not of this kind.
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<bool, Error> {
    let Some(json) = &input.files.tokenizer_json else { return Ok(false) };
    let field = |object: &str, key: &str| json.get(object).and_then(|m| m.get(key));
    let is_bpe = field("model", "type").and_then(Value::as_str) == Some("BPE");
    let byte_fallback = field("model", "byte_fallback").is_some_and(is_truthy);
    let sequence = field("decoder", "type").and_then(Value::as_str) == Some("Sequence");
    if !is_bpe || !byte_fallback || !sequence {
        return Ok(false);
    }
    let loaded = auto::load(input, ModelKind::Bpe)?;
    let Loaded { tokenizer, specials, .. } = &*loaded;
    let base = input.checked_size(tokenizer.get_vocab_size(false) as u64)?;
    let specials: std::collections::HashSet<&str> = specials.iter().map(String::as_str).collect();
    let is_special = |token: &str| specials.contains(token);

    let mut vocab = ScoredTokens::default();
    let all = tokenizer.get_vocab(true);
    let below: std::collections::HashMap<String, u32> =
        all.into_iter().filter(|(_, id)| u64::from(*id) < base).collect();
    for (id, token) in super::bpe::by_id(input, &below, base)?.into_iter().enumerate() {
        let Some(token) = token else {
            let path = input.files.dir.join("tokenizer.json");
            return Err(Error::MissingId { path, id: id as u64, vocab_size: base });
        };
        let kind = match () {
            () if is_byte_token(token) => BYTE,
            () if is_special(token) => CONTROL,
            () => NORMAL,
        };
        vocab.push(token.clone(), SCORE, kind);
    }
    let mut added: Vec<(u32, String)> =
        tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, token.content)).collect();
    added.sort();
    for (_, token) in added.into_iter().filter(|(id, _)| u64::from(*id) >= base) {
        let kind = if is_special(&token) { CONTROL } else { USER_DEFINED };
        vocab.push(token, SCORE, kind);
    }
    vocab.write(input, metadata)?;
    Ok(true)
}

/// Whether the text is `<0xHH>` with two hexadecimal digits of either case.
fn is_byte_token(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::is_byte_token;

    #[test]
    fn byte_tokens_are_hexadecimal_pairs() {
        assert!(is_byte_token("<0x0A>") && is_byte_token("<0xff>"));
        assert!(!is_byte_token("<0x0>") && !is_byte_token("<0xGG>") && !is_byte_token("0x0A") && !is_byte_token(""));
    }
}
