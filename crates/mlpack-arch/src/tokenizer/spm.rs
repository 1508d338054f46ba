//! SentencePiece vocabularies: `tokenizer.model` (`sentencepiece_model.proto`, sentencepiece 0.2), with the tokens that
//! `added_tokens.json` and `tokenizer_config.json` put in place (llama.cpp b11434, `conversion/base.py`,
//! `_create_vocab_sentencepiece`).

use super::special::{self, STANDARD_TYPES, SpecialVocab, Wanted};
use super::{Error, Input};
use crate::json::is_truthy;
use mlpack_tensor::{Escaped, MetaValue, Metadata};
use prost::Message as _;
use std::collections::HashSet;
use std::path::PathBuf;

/// Token types of GGUF (`gguf-py/gguf/constants.py`, `TokenType`).
pub(super) mod token_type {
    pub(in crate::tokenizer) const NORMAL: i32 = 1;
    pub(in crate::tokenizer) const UNKNOWN: i32 = 2;
    pub(in crate::tokenizer) const CONTROL: i32 = 3;
    pub(in crate::tokenizer) const USER_DEFINED: i32 = 4;
    pub(in crate::tokenizer) const UNUSED: i32 = 5;
    pub(in crate::tokenizer) const BYTE: i32 = 6;
}
use token_type::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};

/// Tokens with scores and types, by id.
#[derive(Default)]
pub(super) struct ScoredTokens {
    pub(super) tokens: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) types: Vec<i32>,
}

impl ScoredTokens {
    pub(super) fn push(&mut self, token: String, score: f32, kind: i32) {
        self.tokens.push(token);
        self.scores.push(score);
        self.types.push(kind);
    }

    pub(super) fn set(&mut self, id: usize, token: String, score: f32, kind: i32) {
        self.tokens[id] = token;
        self.scores[id] = score;
        self.types[id] = kind;
    }

    /// Writes the keys of a `llama` vocabulary, then the special tokens.
    pub(super) fn write(self, input: &mut Input<'_>, metadata: &mut Metadata) -> Result<(), Error> {
        input.warn_unused_pre();
        let size = self.tokens.len() as u64;
        self.write_tokens("llama", metadata);
        let wanted = Wanted { merges: false, types: STANDARD_TYPES, vocab_size: Some(size) };
        SpecialVocab::load(input, &wanted)?.write(metadata, &mut input.warnings);
        Ok(())
    }

    /// Writes the model's name, the pre-tokenizer `default`, tokens, scores and types.
    pub(super) fn write_tokens(self, model: &str, metadata: &mut Metadata) {
        metadata.set("tokenizer.ggml.model", model.into());
        metadata.set("tokenizer.ggml.pre", "default".into());
        if !self.tokens.is_empty() {
            metadata.set("tokenizer.ggml.tokens", self.tokens.into());
            metadata.set("tokenizer.ggml.scores", self.scores.into());
            metadata.set("tokenizer.ggml.token_type", MetaValue::from(self.types));
        }
    }

    /// Fills the vocabulary up to `size` with unused tokens.
    pub(super) fn pad(&mut self, size: usize) {
        for id in self.tokens.len()..size {
            self.push(format!("[PAD{id}]"), PAD_SCORE, UNUSED);
        }
    }
}

/// Reads `tokenizer.model` and writes its keys; `false` when there is no such file.
pub(super) fn read(input: &mut Input<'_>, metadata: &mut Metadata) -> Result<bool, Error> {
    let Some(model) = Model::open(input, FILE)? else { return Ok(false) };
    let per_layer = match input.config.get("vocab_size_per_layer_input") {
        Some(_) => Some(input.configured_size("vocab_size_per_layer_input")?),
        None => None,
    };
    let configured = per_layer.map_or_else(|| input.model_size(), Ok)?;
    let size = match configured {
        Some(size) => size,
        None => input.checked_size(model.pieces.len() as u64)?,
    } as usize;

    let mut vocab = ScoredTokens::default();
    let found = model.pieces.len();
    for (text, score, kind) in model.pieces.into_iter().take(size) {
        vocab.push(text, score, kind);
    }
    vocab.pad(size);
    if found > size {
        input.warnings.push(format!(
            "`{FILE}` has {found} tokens, but the model has {size}: the tokens from {size} on are left out"
        ));
    }
    apply_added_tokens(input, &mut vocab)?;
    apply_added_tokens_decoder(input, &mut vocab)?;
    vocab.write(input, metadata)?;
    Ok(true)
}

/// The file that a SentencePiece reader looks for first.
pub(super) const FILE: &str = "tokenizer.model";
/// Bytes of the largest model that is read (Gemma 3: 4.7 MB).
const MAX_BYTES: u64 = 16 << 20;
const PAD_SCORE: f32 = -10_000.0;
pub(super) const ADDED_SCORE: f32 = -1_000.0;

/// `ModelProto`, as far as the vocabulary needs it. Text is bytes here, so that invalid UTF-8 can be told apart from an
/// invalid message.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub(super) trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) normalizer_spec: Option<NormalizerSpec>,
}

/// `ModelProto.SentencePiece`. `kind` is an enumeration whose numbers are those of GGUF token types.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub(super) text: Option<Vec<u8>>,
    #[prost(float, optional, tag = "2")]
    pub(super) score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

/// `TrainerSpec`, as far as loading checks it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TrainerSpec {
    /// 1 is Unigram (the default), 2 is BPE, 3 is words, 4 is characters.
    #[prost(int32, optional, tag = "3")]
    pub(super) model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    pub(super) byte_fallback: Option<bool>,
}

/// `NormalizerSpec`: what happens to a text before it is cut. The flags are true by default.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    pub(super) add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    pub(super) remove_extra_whitespaces: Option<bool>,
}

/// `TrainerSpec.ModelType`.
pub(super) mod model_type {
    pub(in crate::tokenizer) const UNIGRAM: i32 = 1;
    pub(in crate::tokenizer) const BPE: i32 = 2;
}

/// A SentencePiece model after the checks that SentencePiece makes when it loads one.
pub(super) struct Model {
    /// Text, score and GGUF type by id.
    pub(super) pieces: Vec<(String, f32, i32)>,
    pub(super) model_type: i32,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) charsmap: Vec<u8>,
    /// The ids of the pieces that the model itself calls user-defined. In `pieces` they are normal: for GGUF only files
    /// beside the model define user tokens.
    pub(super) user_defined: Vec<usize>,
}

impl Model {
    /// Reads a model of the folder; `None` when there is no such file.
    pub(super) fn open(input: &mut Input<'_>, name: &str) -> Result<Option<Model>, Error> {
        let Some(bytes) = input.files.bytes(name, MAX_BYTES)? else { return Ok(None) };
        let path = input.files.dir.join(name);
        let proto = ModelProto::decode(&bytes[..])
            .map_err(|e| Error::NotSentencePiece { path: path.clone(), reason: e.to_string() })?;
        let trainer = proto.trainer_spec.unwrap_or_default();
        let normalizer = proto.normalizer_spec.unwrap_or_default();
        let defined = proto.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Some(USER_DEFINED));
        Ok(Some(Model {
            user_defined: defined.map(|(id, _)| id).collect(),
            pieces: checked_pieces(path, proto.pieces, trainer.byte_fallback.unwrap_or(false))?,
            model_type: trainer.model_type.unwrap_or(model_type::UNIGRAM),
            add_dummy_prefix: normalizer.add_dummy_prefix.unwrap_or(true),
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces.unwrap_or(true),
            charsmap: normalizer.precompiled_charsmap.unwrap_or_default(),
        }))
    }
}

/// The pieces with their scores and GGUF types.
fn checked_pieces(path: PathBuf, found: Vec<Piece>, byte_fallback: bool) -> Result<Vec<(String, f32, i32)>, Error> {
    let mut seen = [HashSet::new(), HashSet::new()];
    let mut pieces = Vec::with_capacity(found.len());
    let (mut unknown, mut byte) = (0, 0);
    for (id, piece) in found.into_iter().enumerate() {
        let bad = |piece: &[u8], expected| Error::BadPiece {
            path: path.clone(),
            id,
            piece: String::from_utf8_lossy(piece).into_owned(),
            expected,
        };
        let text = String::from_utf8(piece.text.unwrap_or_default()).map_err(|e| bad(e.as_bytes(), "text in UTF-8"))?;
        let kind = piece.kind.filter(|kind| (NORMAL..=BYTE).contains(kind)).unwrap_or(NORMAL);
        let reserved = matches!(kind, UNKNOWN | CONTROL | BYTE);
        if text.is_empty() {
            return Err(bad(b"", "text that is not empty"));
        }
        if !seen[usize::from(reserved)].insert(text.clone()) {
            return Err(bad(text.as_bytes(), "text that no other piece has"));
        }
        match kind {
            UNKNOWN if unknown > 0 => return Err(bad(text.as_bytes(), "one unknown piece in the model")),
            UNKNOWN => unknown += 1,
            BYTE if !byte_fallback => {
                return Err(bad(text.as_bytes(), "no byte pieces in a model without byte fallback"));
            }
            BYTE if !is_byte_piece(&text) => return Err(bad(text.as_bytes(), "a byte piece from <0x00> to <0xFF>")),
            BYTE => byte += 1,
            _ => {}
        }
        let kind = if kind == USER_DEFINED { NORMAL } else { kind };
        pieces.push((text, piece.score.unwrap_or(0.0), kind));
    }
    if unknown == 0 {
        return Err(Error::BadModel { path, expected: "one unknown piece", found: 0 });
    }
    if byte_fallback && byte != 256 {
        return Err(Error::BadModel { path, expected: "256 byte pieces in a model with byte fallback", found: byte });
    }
    Ok(pieces)
}

/// Whether the text is `<0xHH>` with two capital hexadecimal digits.
pub(super) fn is_byte_piece(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')))
}

/// `added_tokens.json`: a map from token to id.
pub(super) fn apply_added_tokens(input: &mut Input<'_>, vocab: &mut ScoredTokens) -> Result<(), Error> {
    const NAME: &str = "added_tokens.json";
    let Some(added) = input.files.object(NAME)? else { return Ok(()) };
    for (token, id) in added {
        if let Some(id) = checked_id(input, vocab, NAME, &token, id.as_u64(), &id.to_string())? {
            vocab.set(id, token, ADDED_SCORE, USER_DEFINED);
        }
    }
    Ok(())
}

/// `added_tokens_decoder` of `tokenizer_config.json`: a map from id, as text, to token.
fn apply_added_tokens_decoder(input: &mut Input<'_>, vocab: &mut ScoredTokens) -> Result<(), Error> {
    const NAME: &str = "tokenizer_config.json";
    let decoder = input.files.tokenizer_config.as_ref().and_then(|c| c.get("added_tokens_decoder")).cloned();
    let Some(decoder) = decoder else { return Ok(()) };
    let Some(decoder) = decoder.as_object() else {
        return Err(input.files.wrong_type(NAME, "added_tokens_decoder", "an object", &decoder));
    };
    for (key, data) in decoder {
        let Some(content) = data.get("content").and_then(|c| c.as_str()) else {
            let key = format!("added_tokens_decoder.{key}.content");
            let found = data.get("content").unwrap_or(data);
            return Err(input.files.wrong_type(NAME, key, "a string", found));
        };
        let Some(id) = checked_id(input, vocab, NAME, content, key.trim().parse().ok(), key)? else { continue };
        if vocab.types[id] != UNUSED && vocab.tokens[id] != content {
            input.warnings.push(format!(
                "token {id} `{}` is replaced by `{}` (`{NAME}`)",
                Escaped(&vocab.tokens[id]),
                Escaped(content)
            ));
        }
        if data.get("special").is_some_and(is_truthy) || special::looks_special(content) {
            vocab.set(id, content.to_owned(), ADDED_SCORE, CONTROL);
        } else {
            vocab.set(id, content.replace('\u{2581}', " "), ADDED_SCORE, USER_DEFINED);
        }
    }
    Ok(())
}

/// An id as an index into the vocabulary; `None`, with a warning, when it lies beyond it.
fn checked_id(
    input: &mut Input<'_>,
    vocab: &ScoredTokens,
    file: &str,
    token: &str,
    id: Option<u64>,
    found: &str,
) -> Result<Option<usize>, Error> {
    let size = vocab.tokens.len();
    match id {
        Some(id) if id < size as u64 => Ok(Some(id as usize)),
        Some(id) => {
            input.warnings.push(format!(
                "token `{}` with id {id} of `{file}` is left out: the model has {size} tokens",
                Escaped(token)
            ));
            Ok(None)
        }
        None => Err(Error::BadTokenId {
            path: input.files.dir.join(file),
            token: token.to_owned(),
            max: size.saturating_sub(1) as u64,
            found: found.to_owned(),
        }),
    }
}
