//! A small encoder for a vocabulary as written: the `tokenizer.*` keys of a GGUF file, read as llama.cpp b11434 reads
//! them (`src/llama-vocab.cpp`).

use super::charsmap::Charsmap;
use super::cut::{best, chars, join, priority_of};
use crate::tokenizer::Error;
use crate::tokenizer::auto::guarded;
use crate::tokenizer::ranks::byte_text;
use crate::tokenizer::spm::token_type::{CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use mlpack_tensor::{MetaArray, MetaValue, Metadata};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::utils::SysRegex;
use tokenizers::{
    NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
};

/// A vocabulary that can encode.
pub(super) struct Written<'m> {
    pub(super) tokens: &'m [String],
    types: &'m [i32],
    scores: &'m [f32],
    ids: HashMap<&'m str, u32>,
    /// Tokens that are looked for in a text before anything else, the longest first.
    specials: Vec<u32>,
    unknown: Option<u32>,
    /// Whether the id of the unknown token is written, and not llama.cpp's default.
    pub(super) names_unknown: bool,
    add_space_prefix: bool,
    pub(super) model: Model<'m>,
}

/// What cuts a text.
pub(super) enum Model<'m> {
    /// SentencePiece's BPE: neighbours are joined by the score of the token that they make.
    Scores,
    /// BPE with merges.
    Merges { ranks: HashMap<(&'m str, &'m str), u32>, rules: Rules },
    /// WordPiece: the longest token first.
    Words { lowercase: bool, strip_accents: bool, max_len: usize },
    /// Unigram: the best of all ways.
    Unigram { charsmap: Option<Charsmap<'m>>, merge_spaces: bool, max_len: usize },
}

/// What the name of a pre-tokenizer stands for.
pub(super) struct Rules {
    pub(super) name: String,
    regexes: Vec<SysRegex>,
    ignore_merges: bool,
    /// Whether tokens are plain text and not in the byte alphabet.
    pub(super) raw: bool,
    escape_spaces: bool,
}

impl Rules {
    /// `None` for a name whose rules are more than a list of regexes.
    fn of(name: &str, dir: &Path) -> Result<Option<Rules>, Error> {
        #[derive(serde::Deserialize)]
        struct Row {
            names: Vec<String>,
            split: Vec<String>,
            ignore_merges: bool,
            raw: bool,
            escape_spaces: bool,
        }
        let rows = include_str!("../data/pre-rules.jsonl").lines();
        let mut rows = rows.map(|line| serde_json::from_str::<Row>(line).expect("every line of the table is a row"));
        let Some(row) = rows.find(|row| row.names.iter().any(|known| known == name)) else { return Ok(None) };
        let regexes = row.split.iter().map(|regex| guarded(dir, || SysRegex::new(regex))).collect::<Result<_, _>>()?;
        let Row { ignore_merges, raw, escape_spaces, .. } = row;
        Ok(Some(Rules { name: name.to_owned(), regexes, ignore_merges, raw, escape_spaces }))
    }

    /// The words of a text: what each regex matches, and what lies between.
    fn words(&self, text: &str) -> Vec<String> {
        let text = if self.escape_spaces { text.replace(' ', "\u{2581}") } else { text.to_owned() };
        let mut words = vec![text.as_str()];
        for regex in &self.regexes {
            let mut cut = Vec::with_capacity(words.len());
            for word in words {
                let mut end = 0;
                for (from, to) in regex.find_iter(word).filter(|(from, to)| from < to) {
                    cut.push(&word[end..from]);
                    cut.push(&word[from..to]);
                    end = to;
                }
                cut.push(&word[end..]);
            }
            cut.retain(|word| !word.is_empty());
            words = cut;
        }
        let in_alphabet = |word: &str| if self.raw { word.to_owned() } else { byte_text(word.as_bytes()) };
        words.into_iter().map(in_alphabet).collect()
    }
}

impl<'m> Written<'m> {
    /// Reads the keys; the inner error says why such a vocabulary cannot be checked.
    pub(super) fn of(metadata: &'m Metadata, dir: &Path) -> Result<Result<Written<'m>, String>, Error> {
        let text = |key: &str| match metadata.find(&format!("tokenizer.ggml.{key}")) {
            Some(MetaValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let array = |key: &str| match metadata.find(&format!("tokenizer.ggml.{key}")) {
            Some(MetaValue::Array(array)) => Some(array),
            _ => None,
        };
        let flag = |key: &str| match metadata.find(&format!("tokenizer.ggml.{key}")) {
            Some(MetaValue::Bool(flag)) => Some(*flag),
            _ => None,
        };
        let Some(MetaArray::String(tokens)) = array("tokens") else {
            return Ok(Err("there are no tokens".to_owned()));
        };
        let types = match array("token_type") {
            Some(MetaArray::I32(types)) if types.len() == tokens.len() => &types[..],
            _ => return Ok(Err("there are no token types".to_owned())),
        };
        let scores = match array("scores") {
            Some(MetaArray::F32(scores)) if scores.len() == tokens.len() => &scores[..],
            _ => &[],
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id as u32) {
                let (dir, token) = (dir.to_owned(), token.clone());
                return Err(Error::RepeatedToken { dir, token, first: u64::from(first), second: id as u64 });
            }
        }
        let max_len = tokens.iter().map(String::len).max().unwrap_or(0);
        let (default_unknown, add_space_prefix, model) = match text("model").unwrap_or_default() {
            "llama" => (Some(0), true, Model::Scores),
            "bert" => {
                let lowercase = flag("normalizer.lowercase").unwrap_or(true);
                let strip_accents = flag("normalizer.strip_accents").unwrap_or(lowercase);
                (Some(100), false, Model::Words { lowercase, strip_accents, max_len })
            }
            "t5" => {
                let charsmap = match array("precompiled_charsmap") {
                    Some(MetaArray::U8(bytes)) => Charsmap::parse(bytes),
                    _ => None,
                };
                let merge_spaces = flag("remove_extra_whitespaces").unwrap_or(false);
                (Some(2), false, Model::Unigram { charsmap, merge_spaces, max_len })
            }
            "gpt2" => {
                let name = text("pre").unwrap_or("default");
                let Some(rules) = Rules::of(name, dir)? else {
                    return Ok(Err(format!("mlpack does not have the rules of the pre-tokenizer `{name}`")));
                };
                let merges = match array("merges") {
                    Some(MetaArray::String(merges)) => &merges[..],
                    _ => &[],
                };
                let mut ranks = HashMap::with_capacity(merges.len());
                for (rank, merge) in merges.iter().enumerate() {
                    let skip = merge.chars().next().map_or(0, char::len_utf8);
                    if let Some(at) = merge[skip..].find(' ') {
                        let (left, right) = (&merge[..skip + at], &merge[skip + at + 1..]);
                        ranks.entry((left, right)).or_insert(rank as u32);
                    }
                }
                (None, false, Model::Merges { ranks, rules })
            }
            other => return Ok(Err(format!("mlpack does not encode with a model `{other}`"))),
        };
        let named_unknown = match metadata.find("tokenizer.ggml.unknown_token_id") {
            Some(MetaValue::U32(id)) => Some(*id),
            _ => None,
        };
        let mut specials: Vec<u32> = (0..tokens.len() as u32)
            .filter(|id| matches!(types[*id as usize], CONTROL | USER_DEFINED | UNKNOWN))
            .filter(|id| !tokens[*id as usize].is_empty())
            .collect();
        specials.sort_by_key(|id| std::cmp::Reverse(tokens[*id as usize].len()));
        let add_space_prefix = flag("add_space_prefix").unwrap_or(add_space_prefix);
        let unknown = named_unknown.or(default_unknown).filter(|id| (*id as usize) < tokens.len());
        let names_unknown = named_unknown.is_some();
        let written = Written { tokens, types, scores, ids, specials, unknown, names_unknown, add_space_prefix, model };
        if matches!(written.model, Model::Scores) && written.byte_id(b'\n').or(written.id("\n")).is_none() {
            return Ok(Err("llama.cpp does not load a SentencePiece-style vocabulary without byte tokens".to_owned()));
        }
        Ok(Ok(written))
    }

    /// Whether there are rules for the name of a pre-tokenizer.
    #[cfg(test)]
    pub(super) fn has_rules(name: &str) -> bool {
        Rules::of(name, Path::new("")).unwrap().is_some()
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// A special token that is in the text.
    pub(super) fn special_in(&self, text: &str) -> Option<&str> {
        self.specials.iter().map(|id| self.tokens[*id as usize].as_str()).find(|token| text.contains(token))
    }

    /// The ids of a text, with special tokens recognised and none added.
    pub(super) fn encode(&self, dir: &Path, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        let mut after_special = true;
        for part in self.partition(text) {
            match part {
                Part::Special(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Part::Text(text) => {
                    self.encode_text(dir, text, after_special, &mut ids)?;
                    after_special = false;
                }
            }
        }
        Ok(ids)
    }

    /// Cuts the special tokens out of a text, the longest first.
    fn partition<'t>(&self, text: &'t str) -> Vec<Part<'t>> {
        let mut parts = if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] };
        for id in &self.specials {
            let token = self.tokens[*id as usize].as_str();
            if !text.contains(token) {
                continue;
            }
            let mut cut = Vec::with_capacity(parts.len());
            for part in parts {
                let Part::Text(mut rest) = part else {
                    cut.push(part);
                    continue;
                };
                while let Some(at) = rest.find(token) {
                    if at > 0 {
                        cut.push(Part::Text(&rest[..at]));
                    }
                    cut.push(Part::Special(*id));
                    rest = &rest[at + token.len()..];
                }
                if !rest.is_empty() {
                    cut.push(Part::Text(rest));
                }
            }
            parts = cut;
        }
        parts
    }

    fn encode_text(&self, dir: &Path, text: &str, after_special: bool, ids: &mut Vec<u32>) -> Result<(), Error> {
        match &self.model {
            Model::Scores => {
                let prefix = if self.add_space_prefix && after_special { " " } else { "" };
                let text = format!("{prefix}{text}").replace(' ', "\u{2581}");
                let score = |left: &str, right: &str| {
                    let id = self.id(&format!("{left}{right}"))?;
                    Some(priority_of(self.scores.get(id as usize).copied().unwrap_or(0.0)))
                };
                for range in join(&text, &chars(&text), score) {
                    self.push_or_bytes(&text[range], ids);
                }
            }
            Model::Merges { rules, .. } => {
                for word in rules.words(text) {
                    self.word(&word, rules.ignore_merges, ids);
                }
            }
            Model::Words { lowercase, strip_accents, .. } => {
                for word in words(dir, text, *lowercase, *strip_accents)? {
                    self.word(&word, false, ids);
                }
            }
            Model::Unigram { charsmap, merge_spaces, .. } => {
                self.word(&self.normalized(text, charsmap.as_ref(), *merge_spaces), false, ids);
            }
        }
        Ok(())
    }

    /// The ids of one word as the model cuts it, in the vocabulary's alphabet. `whole` makes a token of a word that is
    /// one, whatever the merges say.
    pub(super) fn word(&self, word: &str, whole: bool, ids: &mut Vec<u32>) {
        match &self.model {
            Model::Scores => {}
            Model::Merges { ranks, rules } => self.merge(word, ranks, rules, whole, ids),
            Model::Words { max_len, .. } => self.longest_first(&format!("\u{2581}{word}"), *max_len, ids),
            Model::Unigram { max_len, .. } => ids.extend(self.best(word, *max_len)),
        }
    }

    fn merge(
        &self,
        word: &str,
        ranks: &HashMap<(&str, &str), u32>,
        rules: &Rules,
        ignore_merges: bool,
        ids: &mut Vec<u32>,
    ) {
        let only_newlines = rules.raw && word.bytes().all(|b| b == b'\n');
        if (ignore_merges || only_newlines)
            && let Some(id) = self.id(word)
        {
            ids.push(id);
            return;
        }
        let priority = |left: &str, right: &str| ranks.get(&(left, right)).map(|rank| u32::MAX - rank);
        for range in join(word, &chars(word), priority) {
            let token = &word[range];
            match self.id(token) {
                Some(id) => ids.push(id),
                None if rules.raw => ids.extend(token.bytes().filter_map(|b| self.byte_id(b))),
                // Characters of the byte alphabet have tokens in a sound vocabulary, joined or alone.
                None => ids.extend(token.split("").filter(|c| c.is_ascii()).filter_map(|c| self.id(c))),
            }
        }
    }

    /// A token, or those of its bytes; an unknown one where a byte has none.
    fn push_or_bytes(&self, token: &str, ids: &mut Vec<u32>) {
        match self.id(token) {
            Some(id) => ids.push(id),
            None => ids.extend(token.bytes().filter_map(|b| self.byte_id(b).or(self.unknown))),
        }
    }

    fn byte_id(&self, byte: u8) -> Option<u32> {
        self.id(&format!("<0x{byte:02X}>"))
    }

    fn longest_first(&self, word: &str, max_len: usize, ids: &mut Vec<u32>) {
        let before = ids.len();
        let mut at = 0;
        while at < word.len() {
            let ends = (at + 1..=word.len().min(at + max_len + 1)).rev();
            let found =
                ends.filter(|end| word.is_char_boundary(*end)).find_map(|end| Some((self.id(&word[at..end])?, end)));
            match found {
                Some((id, end)) => {
                    ids.push(id);
                    at = end;
                }
                None => {
                    ids.truncate(before);
                    ids.extend(self.unknown);
                    return;
                }
            }
        }
    }

    fn normalized(&self, text: &str, charsmap: Option<&Charsmap<'_>>, merge_spaces: bool) -> String {
        let defined = |rest: &str| {
            let of_user = self.specials.iter().filter(|id| self.types[**id as usize] == USER_DEFINED);
            let token = of_user.map(|id| self.tokens[*id as usize].as_str()).find(|token| rest.starts_with(token));
            token.map_or(0, str::len)
        };
        let text = charsmap.map_or_else(|| text.to_owned(), |map| map.apply(text, defined));
        let (mut out, mut prefixed, mut in_word) = (String::new(), false, false);
        for c in text.chars() {
            if c == ' ' {
                in_word = false;
                if !merge_spaces {
                    out.push('\u{2581}');
                }
                continue;
            }
            if !in_word {
                in_word = true;
                if (self.add_space_prefix && !prefixed) || merge_spaces {
                    out.push('\u{2581}');
                    prefixed = true;
                }
            }
            out.push(c);
        }
        out
    }

    fn best(&self, text: &str, max_len: usize) -> Vec<u32> {
        let normal = self.types.iter().zip(self.scores).filter(|(kind, _)| **kind == NORMAL);
        let least = normal.map(|(_, score)| *score).fold(f32::MAX, f32::min);
        let token = |text: &str| {
            let id = self.id(text)?;
            match self.types[id as usize] {
                NORMAL | UNUSED => Some((id, f64::from(*self.scores.get(id as usize)?))),
                USER_DEFINED => Some((id, 0.0)),
                _ => None,
            }
        };
        best(text, max_len, token, (self.unknown.unwrap_or(0), f64::from(least - 10.0)))
    }
}

enum Part<'t> {
    Text(&'t str),
    Special(u32),
}

/// The words of a text as BERT has them.
fn words(dir: &Path, text: &str, lowercase: bool, strip_accents: bool) -> Result<Vec<String>, Error> {
    guarded(dir, || {
        let mut normalized = NormalizedString::from(text);
        BertNormalizer::new(true, true, Some(strip_accents), lowercase).normalize(&mut normalized)?;
        let mut words = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut words)?;
        let splits = words.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        Ok(splits.into_iter().map(|(word, ..)| word.to_owned()).collect())
    })
}
