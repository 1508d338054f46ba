//! Whether a vocabulary does after conversion what the source's tokenizer does: probe texts are encoded by both.
//!
//! The encoder here is llama.cpp's reading of the written keys ([`written`]). What it gives is compared with the
//! tokenizer of the file that the vocabulary was made from ([`source`]). A difference is an error, except where it is
//! the format's or the converter's own, which a warning names:
//!
//! - llama.cpp has no Unicode normalization (NFC, NFKC) outside Unigram vocabularies;
//! - its regexes for a pre-tokenizer that the converter knows by its hash are near the tokenizer's own, not always equal;
//! - a SentencePiece-style vocabulary made from `tokenizer.json` has no scores, so texts may be cut otherwise;
//! - added tokens that strip spaces, stand for whole words or are normalized have no such properties in GGUF;
//! - before a special token, a Unigram vocabulary keeps a space that the source's tokenizer may take away;
//! - after a special token, a SentencePiece-style vocabulary begins a text anew, with a space before it;
//! - a WordPiece or Unigram text may be prepared otherwise (spaces, accents), and an unknown token that no file names is
//!   another one in llama.cpp;
//! - a `tokenizer.json` beside the SentencePiece model that was read may differ from it.

mod charsmap;
mod cut;
mod source;
mod written;

use super::auto::Loaded;
use super::files::Files;
use super::{Difference, Error, Input, TokenizerRequest, bpe, pre};
use mlpack_tensor::{Metadata, join_limited};
use source::{Kind, Source};
use std::path::Path;
use written::{Model, Written};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizationCheck {
    /// Texts that both tokenizers encoded alike.
    pub equal: usize,
    /// Texts that were encoded.
    pub probes: usize,
    /// Known differences, and why nothing was compared when nothing was, one sentence each.
    pub warnings: Vec<String>,
}

/// Encodes probe texts with the source's own tokenizer and with the vocabulary as written, and compares the ids.
/// `metadata` holds the `tokenizer.*` keys, as [`read`](super::read) gave them for the same request. Takes the time of
/// loading the tokenizer once more; the probes are a fixed number of short texts.
///
/// # Errors
/// [`Error::TokenizationDiffers`] with the first text and token that differ, [`Error::RepeatedToken`] for a vocabulary
/// that llama.cpp cannot load, and the errors of reading the files.
pub fn check_tokenization(request: &TokenizerRequest<'_>, metadata: &Metadata) -> Result<TokenizationCheck, Error> {
    check(&mut Input::new(request, Files::open(request.dir)?)?, request.dir, metadata)
}

/// [`check_tokenization`] with files that are read already.
pub(super) fn check(input: &mut Input<'_>, dir: &Path, metadata: &Metadata) -> Result<TokenizationCheck, Error> {
    let mut check = TokenizationCheck { equal: 0, probes: 0, warnings: Vec::new() };
    let written = match Written::of(metadata, dir)? {
        Ok(written) => written,
        Err(reason) => {
            check.warnings.push(format!("the tokenization is not checked: {reason}"));
            return Ok(check);
        }
    };
    let model = match &written.model {
        Model::Scores => "llama",
        Model::Unigram { .. } => "t5",
        Model::Merges { .. } | Model::Words { .. } => "",
    };
    let sources = source::sources(input, model, &mut check.warnings)?;
    if sources.is_empty() {
        let reason = "the folder has no tokenizer of its own to compare with";
        check.warnings.push(format!("the tokenization is not checked: {reason}"));
    }
    for (i, source) in sources.iter().enumerate() {
        let comparison = Comparison { input: &*input, dir, written: &written, source, first: i == 0 };
        comparison.run(&mut check)?;
    }
    Ok(check)
}

/// Texts of every sort that tokenizers cut in ways of their own. They are in composed form (NFC) and hold no token that
/// is special to any known model.
fn probes() -> Vec<String> {
    serde_json::from_str(include_str!("data/probes.json")).expect("the probes are an array of texts")
}

/// Added tokens that are tried, spread over all of them.
const ADDED_PROBES: usize = 48;

/// One source against the vocabulary.
struct Comparison<'c> {
    input: &'c Input<'c>,
    dir: &'c Path,
    written: &'c Written<'c>,
    source: &'c Source,
    /// Whether the vocabulary was made from this source.
    first: bool,
}

/// What a difference means.
enum Verdict {
    /// The sentence of a warning, to be said once.
    Known(String),
    /// The vocabulary is at fault.
    Vocabulary,
    /// The name of the pre-tokenizer is at fault.
    PreTokenizer,
}

impl Comparison<'_> {
    fn run(&self, check: &mut TokenizationCheck) -> Result<(), Error> {
        let mut known: Vec<(String, Vec<String>)> = Vec::new();
        for probe in probes().iter().map(String::as_str).chain([pre::CHECK_TEXT]) {
            // A tokenizer of its own may have a special token anywhere.
            if matches!(self.source.kind, Kind::Pieces(_) | Kind::Ranks { .. })
                && self.written.special_in(probe).is_some()
            {
                continue;
            }
            self.compare(probe, None, check, &mut known)?;
        }
        if let Kind::Library(loaded) = &self.source.kind {
            let added = source::added_tokens(loaded);
            let step = added.len().div_ceil(ADDED_PROBES).max(1);
            for (id, token, limit) in added.iter().step_by(step).chain(added.last()) {
                if self.written.tokens.len() > *id as usize && !token.trim().is_empty() {
                    self.compare(&format!("a{token}b 1 {token} c"), Some(*limit), check, &mut known)?;
                }
            }
        }
        for (reason, probes) in known {
            let texts = join_limited(probes.iter().map(String::as_str), 2);
            check.warnings.push(format!("{reason} (seen in {texts})"));
        }
        Ok(())
    }

    /// `limit` is there for the probe of an added token, with what GGUF cannot say of it.
    fn compare(
        &self,
        probe: &str,
        limit: Option<Option<&'static str>>,
        check: &mut TokenizationCheck,
        known: &mut Vec<(String, Vec<String>)>,
    ) -> Result<(), Error> {
        let expected = self.source.encode(self.input, probe)?;
        let found = self.written.encode(self.dir, probe)?;
        check.probes += 1;
        if expected == found {
            check.equal += 1;
            return Ok(());
        }
        let reason = match self.judge(probe, limit, &expected)? {
            Verdict::Known(reason) => reason,
            verdict => {
                let at = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
                let token = |ids: &[u32]| ids.get(at).map(|id| (*id, self.text(*id)));
                return Err(Error::TokenizationDiffers(Box::new(Difference {
                    dir: self.dir.to_owned(),
                    file: self.source.file,
                    probe: probe.to_owned(),
                    at,
                    expected: token(&expected),
                    found: token(&found),
                    pre: match (&self.written.model, verdict) {
                        (Model::Merges { rules, .. }, Verdict::PreTokenizer) => Some(rules.name.clone()),
                        _ => None,
                    },
                })));
            }
        };
        match known.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, probes)) => probes.push(probe.to_owned()),
            None => known.push((reason, vec![probe.to_owned()])),
        }
        Ok(())
    }

    fn text(&self, id: u32) -> String {
        self.written.tokens.get(id as usize).cloned().unwrap_or_default()
    }

    fn judge(&self, probe: &str, limit: Option<Option<&'static str>>, expected: &[u32]) -> Result<Verdict, Error> {
        let file = self.source.file;
        let known = |reason: &str| Ok(Verdict::Known(reason.to_owned()));
        if !self.first {
            return Ok(Verdict::Known(format!(
                "the vocabulary was made from another file than `{file}`, as llama.cpp's converter does it, and `{file}` \
                 cuts some texts otherwise"
            )));
        }
        if let Some(Some(property)) = limit {
            return Ok(Verdict::Known(format!(
                "an added token has a property that GGUF has no place for ({property}), so texts with it are cut otherwise"
            )));
        }
        match (&self.source.kind, &self.written.model) {
            (Kind::Library(_), Model::Scores) if limit.is_some() => {
                known("after a special token llama.cpp begins a text with a space, and the source's tokenizer does not")
            }
            (Kind::Library(_), Model::Scores) => known(
                "llama.cpp's converter gives no scores to the tokens of a tokenizer.json of this kind, so some texts are \
                 cut otherwise; with the model's tokenizer.model in the folder they would not be",
            ),
            (_, Model::Words { .. } | Model::Unigram { .. }) if !self.written.names_unknown => known(
                "the files name no unknown token, so llama.cpp takes its default for one: add unk_token_id to config.json",
            ),
            (Kind::Library(_), Model::Unigram { .. }) if limit.is_some() => {
                known("llama.cpp keeps a space before a special token, which the source's tokenizer takes away")
            }
            (Kind::Library(_), Model::Words { .. }) if limit.is_some() => {
                known("llama.cpp does not find an added token of a WordPiece vocabulary that is not special")
            }
            (Kind::Library(loaded), _) => self.judge_words(probe, limit.is_some(), loaded, expected),
            (Kind::Pieces(pieces), Model::Scores) => {
                let replaced = !pieces.charsmap.is_empty() || pieces.remove_extra_whitespaces;
                let plain = probe.replace(' ', "\u{2581}");
                if replaced && pieces.normalized(probe).trim_start_matches('\u{2581}') != plain {
                    return known("the SentencePiece model normalizes texts, which llama.cpp does not do");
                }
                let defines = |piece: &String| probe.contains(&piece.replace('\u{2581}', " "));
                if pieces.has_unused || pieces.defined.iter().any(defines) {
                    return known(
                        "the SentencePiece model has unused or user-defined pieces, which are ordinary in GGUF",
                    );
                }
                Ok(Verdict::Vocabulary)
            }
            (Kind::Ranks { .. }, Model::Merges { .. }) => {
                known("llama.cpp cuts some texts otherwise than the source's tokenizer")
            }
            _ => Ok(Verdict::Vocabulary),
        }
    }

    /// The verdict on a vocabulary that was made from `tokenizer.json`: cut into words as the source's tokenizer does it,
    /// the text must give the same tokens; then it is how llama.cpp makes words that differs.
    fn judge_words(&self, probe: &str, added: bool, loaded: &Loaded, expected: &[u32]) -> Result<Verdict, Error> {
        let known = |reason: &str| Ok(Verdict::Known(reason.to_owned()));
        if added {
            return Ok(Verdict::Vocabulary);
        }
        if self.written.special_in(probe).is_some_and(|token| !loaded.added().contains_key(token)) {
            return known("an added token with U+2581 is one with a space in GGUF, and is found in other texts");
        }
        let (after, words) = source::words(self.dir, loaded, probe)?;
        let raw = matches!(&self.written.model, Model::Merges { rules, .. } if rules.raw);
        let plain = if raw { probe.replace(' ', "\u{2581}") } else { probe.to_owned() };
        if matches!(self.written.model, Model::Merges { .. }) && after != plain {
            return known("the source's tokenizer normalizes texts, which llama.cpp does not do");
        }
        let by_words = |whole: bool| {
            let mut ids = Vec::new();
            words.iter().for_each(|word| self.written.word(word, whole, &mut ids));
            ids
        };
        if by_words(false) != expected && by_words(true) != expected {
            return Ok(Verdict::Vocabulary);
        }
        let Model::Merges { rules, .. } = &self.written.model else {
            return known("llama.cpp prepares texts otherwise than the source's tokenizer (spaces, accents, case)");
        };
        let ids = bpe::encode(self.input, &loaded.tokenizer, pre::CHECK_TEXT, true)?;
        if !pre::is_name_of(&rules.name, &ids) {
            return Ok(Verdict::PreTokenizer);
        }
        Ok(Verdict::Known(format!(
            "llama.cpp cuts some texts otherwise than the source's tokenizer, although its converter knows that one as \
             `{}`",
            rules.name
        )))
    }
}

#[cfg(test)]
mod tests;
