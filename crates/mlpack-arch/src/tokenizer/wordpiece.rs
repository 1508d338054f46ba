//! WordPiece vocabularies (llama.cpp b11434, `conversion/bert.py`, `BertModel.set_vocab`).
//!
//! `##ing` continues a word and `play` starts one; GGUF marks the start instead: `ing` and `▁play`. Control tokens stay
//! as they are.

use super::auto::ModelKind;
use super::bpe::Base;
use super::special::{STANDARD_TYPES, SpecialVocab, Wanted};
use super::spm::token_type::CONTROL;
use super::{Error, Input};
use mlpack_tensor::Metadata;

/// Reads `tokenizer.json` as WordPiece and writes its keys.
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    let mut base = Base::load(input, ModelKind::WordPiece)?;
    input.write_token_types(metadata)?;
    for (token, kind) in base.tokens.iter_mut().zip(&base.types) {
        if *kind != CONTROL {
            *token = match token.strip_prefix("##") {
                Some(rest) => rest.to_owned(),
                None => format!("\u{2581}{token}"),
            };
        }
    }
    let vocab_size = Some(base.tokens.len() as u64);
    base.write("bert", metadata);
    let wanted = Wanted { merges: false, types: STANDARD_TYPES, vocab_size };
    SpecialVocab::load(input, &wanted)?.write(metadata, &mut input.warnings);
    Ok(())
}
