//! The tokenizers of the source: a SentencePiece model, `tokenizer.json`, or ranks of byte strings.

use super::charsmap::Charsmap;
use super::cut::{best, join, priority_of};
use crate::tokenizer::auto::{self, Loaded, ModelKind, guarded};
use crate::tokenizer::ranks::Ranks;
use crate::tokenizer::spm::token_type::{BYTE, NORMAL, UNKNOWN, UNUSED};
use crate::tokenizer::spm::{Model, model_type};
use crate::tokenizer::tekken::Tekken;
use crate::tokenizer::{Error, Input, bpe, spm, tekken, tiktoken};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use tokenizers::utils::SysRegex;
use tokenizers::{
    NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
};

/// A tokenizer of the source.
pub(super) struct Source {
    /// The file that it comes from.
    pub(super) file: &'static str,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    Library(Rc<Loaded>),
    Pieces(Pieces),
    Ranks { ranks: Ranks, regex: SysRegex, first: u32 },
}

/// The tokenizers of the folder: first the one that a vocabulary of that kind was made from, then others that should
/// agree with it.
pub(super) fn sources(input: &mut Input<'_>, model: &str, warnings: &mut Vec<String>) -> Result<Vec<Source>, Error> {
    const JSON: &str = "tokenizer.json";
    let mut sources = Vec::new();
    let files: &[&'static str] = match model {
        "llama" => &[spm::FILE],
        "t5" => &["sentencepiece.bpe.model", spm::FILE, "spiece.model"],
        _ => &[],
    };
    for file in files {
        if let Some(model) = Model::open(input, file)? {
            let kind = Kind::Pieces(Pieces::of(model, *file == "sentencepiece.bpe.model"));
            sources.push(Source { file, kind });
            break;
        }
    }
    let json = input.files.tokenizer_json.as_ref();
    let kind = json.and_then(|json| json.get("model")?.get("type")?.as_str()).and_then(|kind| match kind {
        "BPE" => Some(ModelKind::Bpe),
        "WordPiece" => Some(ModelKind::WordPiece),
        "Unigram" => Some(ModelKind::Unigram),
        _ => None,
    });
    if let Some(kind) = kind {
        match auto::load(input, kind) {
            Ok(loaded) => sources.push(Source { file: JSON, kind: Kind::Library(loaded) }),
            Err(error) if sources.is_empty() => return Err(error),
            Err(_) => warnings.push(format!("`{JSON}`, which was not needed, cannot be loaded as a tokenizer")),
        }
    }
    if json_is_absent(input) {
        if let Some(tekken) = Tekken::open(input)? {
            let path = input.files.dir.join(tekken::FILE);
            let regex = guarded(&path, || SysRegex::new(&tekken.pattern))?;
            let first = tekken.special_count();
            sources.push(Source { file: tekken::FILE, kind: Kind::Ranks { ranks: tekken.ranks, regex, first } });
        } else if let Some(tiktoken::Tiktoken { ranks, .. }) = tiktoken::open(input)? {
            let path = input.files.dir.join(tiktoken::FILE);
            let regex = guarded(&path, || SysRegex::new(auto::QWEN2))?;
            sources.push(Source { file: tiktoken::FILE, kind: Kind::Ranks { ranks, regex, first: 0 } });
        }
    }
    Ok(sources)
}

fn json_is_absent(input: &Input<'_>) -> bool {
    input.files.tokenizer_json.is_none()
}

impl Source {
    /// The ids of a text, with special tokens recognised where the tokenizer knows any, and none added.
    pub(super) fn encode(&self, input: &Input<'_>, text: &str) -> Result<Vec<u32>, Error> {
        Ok(match &self.kind {
            Kind::Library(loaded) => bpe::encode(input, &loaded.tokenizer, text, false)?,
            Kind::Pieces(pieces) => pieces.encode(text),
            Kind::Ranks { ranks, regex, first } => {
                let words = regex.find_iter(text).filter(|(from, to)| from < to);
                words.flat_map(|(from, to)| ranks.encode(&text.as_bytes()[from..to])).map(|rank| rank + first).collect()
            }
        })
    }
}

/// What a `tokenizer.json` does to a text before its model cuts it: the text, and the words.
pub(super) fn words(dir: &Path, loaded: &Loaded, text: &str) -> Result<(String, Vec<String>), Error> {
    guarded(dir, || {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = loaded.tokenizer.get_normalizer() {
            normalizer.normalize(&mut normalized)?;
        }
        let after = normalized.get().to_owned();
        let mut words = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = loaded.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        Ok((after, splits.into_iter().map(|(word, ..)| word.to_owned()).collect()))
    })
}

/// A SentencePiece model at work.
pub(super) struct Pieces {
    by_text: HashMap<String, (u32, f32)>,
    byte_ids: HashMap<u8, u32>,
    /// Pieces that are cut out of a text before anything else.
    pub(super) defined: HashSet<String>,
    /// Whether some pieces are marked as unused, which SentencePiece takes apart again.
    pub(super) has_unused: bool,
    unknown: u32,
    bpe: bool,
    add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) charsmap: Vec<u8>,
    max_len: usize,
    least: f32,
    /// Whether ids are those of XLM-RoBERTa: a padding token at 1, all the others one higher.
    moved: bool,
}

impl Pieces {
    fn of(model: Model, moved: bool) -> Pieces {
        let mut pieces = Pieces {
            by_text: HashMap::with_capacity(model.pieces.len()),
            byte_ids: HashMap::new(),
            defined: HashSet::new(),
            has_unused: false,
            unknown: 0,
            bpe: model.model_type == model_type::BPE,
            add_dummy_prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            charsmap: model.charsmap,
            max_len: 0,
            least: f32::MAX,
            moved,
        };
        let defined: HashSet<usize> = model.user_defined.into_iter().collect();
        for (id, (text, score, kind)) in model.pieces.into_iter().enumerate() {
            match kind {
                NORMAL | UNUSED => {
                    pieces.has_unused |= kind == UNUSED;
                    pieces.max_len = pieces.max_len.max(text.len());
                    if defined.contains(&id) {
                        pieces.defined.insert(text.clone());
                    } else {
                        pieces.least = pieces.least.min(score);
                    }
                    pieces.by_text.insert(text, (id as u32, score));
                }
                UNKNOWN => pieces.unknown = id as u32,
                BYTE => {
                    if let Ok(byte) = u8::from_str_radix(&text[3..5], 16) {
                        pieces.byte_ids.insert(byte, id as u32);
                    }
                }
                _ => {}
            }
        }
        pieces
    }

    /// The text as the model sees it: replaced, spaces as U+2581.
    pub(super) fn normalized(&self, text: &str) -> String {
        let keep = |rest: &str| self.defined_prefix(rest);
        let map = (!self.charsmap.is_empty()).then(|| Charsmap::parse(&self.charsmap)).flatten();
        let mut text = map.map_or_else(|| text.to_owned(), |map| map.apply(text, keep));
        if self.remove_extra_whitespaces {
            text = text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        }
        if self.add_dummy_prefix && !text.is_empty() {
            text.insert(0, ' ');
        }
        text.replace(' ', "\u{2581}")
    }

    fn defined_prefix(&self, text: &str) -> usize {
        let longest = self.defined.iter().filter(|piece| text.starts_with(piece.as_str())).map(String::len).max();
        longest.unwrap_or(0)
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.normalized(text);
        let ids = if self.bpe { self.join(&text) } else { self.best(&text) };
        if !self.moved {
            return ids;
        }
        let moved = |id: u32| match id {
            id if id == self.unknown => 3,
            1 => 0,
            2 => 2,
            id => id + 1,
        };
        ids.into_iter().map(moved).collect()
    }

    fn join(&self, text: &str) -> Vec<u32> {
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            starts.push(at);
            at += self.defined_prefix(&text[at..]).max(c.len_utf8());
        }
        let score = |left: &str, right: &str| {
            if self.defined.contains(left) || self.defined.contains(right) {
                return None;
            }
            self.by_text.get(&format!("{left}{right}")).map(|(_, score)| priority_of(*score))
        };
        let mut ids = Vec::new();
        for range in join(text, &starts, score) {
            match self.by_text.get(&text[range.clone()]) {
                Some((id, _)) => ids.push(*id),
                None if self.byte_ids.is_empty() => self.push_unknown(&mut ids),
                None => ids.extend(text[range].bytes().map(|b| self.byte_ids[&b])),
            }
        }
        ids
    }

    fn best(&self, text: &str) -> Vec<u32> {
        let token = |text: &str| {
            let (id, score) = self.by_text.get(text)?;
            Some((*id, if self.defined.contains(text) { 0.0 } else { f64::from(*score) }))
        };
        best(text, self.max_len, token, (self.unknown, f64::from(self.least - 10.0)))
    }

    /// Unknown pieces side by side are one.
    fn push_unknown(&self, ids: &mut Vec<u32>) {
        if ids.last() != Some(&self.unknown) {
            ids.push(self.unknown);
        }
    }
}

/// The added tokens of a `tokenizer.json` with what a GGUF vocabulary cannot say of them.
pub(super) fn added_tokens(loaded: &Loaded) -> Vec<(u32, String, Option<&'static str>)> {
    let mut tokens: Vec<_> = loaded.tokenizer.get_added_tokens_decoder().into_iter().collect();
    tokens.sort_by_key(|(id, _)| *id);
    let limit = |token: &tokenizers::AddedToken| match token {
        token if token.lstrip || token.rstrip => Some("it takes spaces beside it away"),
        token if token.single_word => Some("it stands for whole words only"),
        token if token.normalized => Some("it is looked for after normalization"),
        _ => None,
    };
    tokens.into_iter().map(|(id, token)| (id, token.content.clone(), limit(&token))).collect()
}
