//! What can be wrong with a tokenizer's files.

use mlpack_fs::ErrorKind;
use mlpack_tensor::{Escaped, join_limited};
use std::path::PathBuf;

/// An error of [`read`](super::read). The file is always named.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] mlpack_fs::Error),
    /// The folder holds none of the files that a vocabulary can be read from.
    #[error("cannot read a tokenizer from `{}`\n  expected: {}\n  found:    neither", dir.display(), join_limited(looked_for.iter().copied(), 4))]
    NoVocabulary {
        /// The model's folder.
        dir: PathBuf,
        /// The file names that were looked for.
        looked_for: Vec<&'static str>,
    },
    /// A JSON file does not parse.
    #[error("cannot read `{}`: not JSON\n  found:    {} at line {line}, column {column}", path.display(), Escaped(reason))]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's words.
        reason: String,
    },
    /// A value of a JSON file is not of the type that it must have.
    #[error("cannot read `{}`\n  key `{}`\n  expected: {expected}\n  found:    {}", path.display(), Escaped(key), Escaped(found))]
    WrongType {
        /// The file.
        path: PathBuf,
        /// Where in the file, dotted.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// `tokenizer.model` is not a SentencePiece model.
    #[error("cannot read `{}`: not a SentencePiece model\n  found:    {}", path.display(), Escaped(reason))]
    NotSentencePiece {
        /// The file.
        path: PathBuf,
        /// The decoder's words.
        reason: String,
    },
    /// A piece of a SentencePiece model breaks one of the rules that SentencePiece checks when it loads a model.
    #[error("cannot read `{}`\n  piece {id} `{}`\n  expected: {expected}", path.display(), Escaped(piece))]
    BadPiece {
        /// The file.
        path: PathBuf,
        /// The id of the piece.
        id: usize,
        /// Its text; bytes that are not UTF-8 are replaced.
        piece: String,
        /// The rule.
        expected: &'static str,
    },
    /// A SentencePiece model as a whole breaks one of those rules.
    #[error("cannot read `{}`\n  expected: {expected}\n  found:    {found}", path.display())]
    BadModel {
        /// The file.
        path: PathBuf,
        /// The rule.
        expected: &'static str,
        /// The number of pieces of that kind.
        found: usize,
    },
    /// A file names a token id that cannot be one.
    #[error("cannot read `{}`\n  token `{}`\n  expected: an id from 0 to {max}\n  found:    {}", path.display(), Escaped(token), Escaped(found))]
    BadTokenId {
        /// The file.
        path: PathBuf,
        /// The token.
        token: String,
        /// The largest id allowed.
        max: u64,
        /// The id as written.
        found: String,
    },
    /// A token's id does not fit the vocabulary size of the model.
    #[error("the tokenizer `{}` does not fit the model\n  token `{}`\n  expected: an id below {vocab_size} (`vocab_size` of config.json)\n  found:    {id}", path.display(), Escaped(token))]
    BeyondVocabulary {
        /// The file.
        path: PathBuf,
        /// A token with the largest id.
        token: String,
        /// Its id.
        id: u64,
        /// `vocab_size` of the model.
        vocab_size: u64,
    },
    /// Two tokens have one id, so that the vocabulary has no defined content.
    #[error("cannot read `{}`\n  token `{}`\n  expected: an id of its own\n  found:    {id}, the id of `{}`", path.display(), Escaped(second), Escaped(first))]
    SharedId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u64,
        /// One token, first in byte order.
        first: String,
        /// The other.
        second: String,
    },
    /// The base vocabulary has no token for an id.
    #[error("cannot read `{}`\n  expected: a token for every id below {vocab_size}\n  found:    none for {id}", path.display())]
    MissingId {
        /// The file.
        path: PathBuf,
        /// The id.
        id: u64,
        /// Tokens of the base vocabulary.
        vocab_size: u64,
    },
    /// The vocabulary as written cuts a text otherwise than the source's own tokenizer.
    #[error("{0}")]
    TokenizationDiffers(Box<Difference>),
    /// Two tokens have one text, which llama.cpp's loader does not take.
    #[error("the vocabulary of `{}` cannot be loaded by llama.cpp\n  token `{}`\n  expected: one id for a text\n  found:    {first} and {second}", dir.display(), Escaped(token))]
    RepeatedToken {
        /// The model's folder.
        dir: PathBuf,
        /// The text.
        token: String,
        /// One id.
        first: u64,
        /// The other.
        second: u64,
    },
    /// A vocabulary larger than mlpack reads.
    #[error("cannot read the tokenizer of `{}`: the vocabulary is larger than the limit\n  key `vocab_size`\n  expected: at most {limit}\n  found:    {found}", dir.display())]
    VocabularyTooLarge {
        /// The model's folder.
        dir: PathBuf,
        /// The limit.
        limit: u64,
        /// The size asked for.
        found: u64,
    },
    /// The tokenizers library refuses `tokenizer.json`.
    #[error("cannot read `{}`: the tokenizers library refuses it\n  found:    {}", path.display(), Escaped(reason))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The library's words.
        reason: String,
    },
    /// A file holds another kind of model than the family's vocabularies are.
    #[error("cannot convert the tokenizer `{}`\n  key `model.type`\n  expected: {expected}\n  found:    {}", path.display(), Escaped(found))]
    WrongModel {
        /// The file.
        path: PathBuf,
        /// The kind that the family has.
        expected: &'static str,
        /// The kind found.
        found: String,
    },
    /// The number of tokens does not fit the vocabulary size of the model.
    #[error("the tokenizer `{}` does not fit the model\n  expected: a vocabulary of {vocab_size} tokens\n  found:    {found}", path.display())]
    SizesDiffer {
        /// The file.
        path: PathBuf,
        /// Tokens that the configuration asks for.
        vocab_size: u64,
        /// Tokens found.
        found: u64,
    },
    /// A special token that the family needs is not there.
    #[error("cannot read the tokenizer of `{}`\n  expected: the special token `{}`\n  found:    none of that name", dir.display(), Escaped(token))]
    NoSpecialToken {
        /// The model's folder.
        dir: PathBuf,
        /// The token, or its name in the configuration.
        token: String,
    },
    /// The folder has weights only.
    #[error("cannot read a tokenizer from `{}`\n  expected: `tokenizer.json` or `tokenizer.model`\n  found:    neither", dir.display())]
    NoTokenizerFiles {
        /// The model's folder.
        dir: PathBuf,
    },
    /// A special token's id lies beyond the vocabulary.
    #[error("the special tokens of `{}` do not fit the vocabulary\n  key `{}`\n  expected: an id below {vocab_size}\n  found:    {id}", dir.display(), Escaped(key))]
    SpecialBeyondVocabulary {
        /// The model's folder.
        dir: PathBuf,
        /// The key of GGUF, which is that of config.json without `tokenizer.ggml.`.
        key: String,
        /// Tokens of the vocabulary.
        vocab_size: u64,
        /// The id.
        id: u64,
    },
    /// A vocabulary of a format that mlpack does not read.
    #[error("cannot convert the tokenizer `{}`\n  expected: a SentencePiece `tokenizer.model` or a BPE `tokenizer.json`\n  found:    {format}", path.display())]
    UnsupportedFormat {
        /// The file that says so.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// llama.cpp b11434 has no name for the way in which this tokenizer splits text.
    #[error("cannot name the pre-tokenizer of `{}`\n  key `tokenizer.ggml.pre`\n  expected: a tokenizer that llama.cpp b11434 knows, by its check text or by its structure\n  found:    token ids with sha256 {hash}", path.display())]
    UnknownPreTokenizer {
        /// The file.
        path: PathBuf,
        /// sha256 of the token ids of the check text, in hexadecimal.
        hash: String,
    },
    /// The name given for the pre-tokenizer is not one that llama.cpp b11434 can load.
    #[error("unknown pre-tokenizer `{}`{}", Escaped(name), Suggestion(nearest))]
    UnknownPreName {
        /// The name given.
        name: String,
        /// Names like it, best first.
        nearest: Vec<&'static str>,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::File(e) => e.kind(),
            Error::NoVocabulary { .. } | Error::NoTokenizerFiles { .. } => ErrorKind::Io,
            Error::NotJson { .. }
            | Error::WrongType { .. }
            | Error::NotSentencePiece { .. }
            | Error::BadPiece { .. }
            | Error::BadModel { .. }
            | Error::BadTokenId { .. }
            | Error::SharedId { .. }
            | Error::MissingId { .. }
            | Error::NoSpecialToken { .. }
            | Error::RepeatedToken { .. }
            | Error::Refused { .. } => ErrorKind::Malformed,
            Error::BeyondVocabulary { .. }
            | Error::TokenizationDiffers(_)
            | Error::SizesDiffer { .. }
            | Error::SpecialBeyondVocabulary { .. } => ErrorKind::Mismatch,
            Error::VocabularyTooLarge { .. } => ErrorKind::Limit,
            Error::WrongModel { .. } | Error::UnsupportedFormat { .. } | Error::UnknownPreTokenizer { .. } => {
                ErrorKind::Unsupported
            }
            Error::UnknownPreName { .. } => ErrorKind::Misuse,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Error::File(e) => return e.hint().map(str::to_owned),
            Error::NoVocabulary { .. } => {
                "copy the tokenizer's files next to the weights; a folder with only vocab.json and merges.txt becomes \
                 one with tokenizer.json when transformers loads the tokenizer and saves it again"
            }
            Error::NoTokenizerFiles { .. } => {
                "llama.cpp takes the vocabulary of GPT-NeoX for such a folder: copy the tokenizer.json that the model was \
                 trained with next to the weights (for the first Mamba models that of EleutherAI/gpt-neox-20b)"
            }
            Error::TokenizationDiffers(found) if found.pre.is_some() => {
                "the name of the pre-tokenizer was found by structure or given with --pre: try the name of another tokenizer \
                 that splits text like this one"
            }
            Error::TokenizationDiffers(_) => {
                "the model would read other tokens than it was trained with; this is a fault of the tokenizer's files or of \
                 mlpack: please report it with the model's name"
            }
            Error::SizesDiffer { .. } => {
                "use the tokenizer that the model was trained with, and the config.json that belongs to both"
            }
            Error::SpecialBeyondVocabulary { .. } => {
                "correct the id, or remove it, in the file that names it: at run time it would stand for no token"
            }
            Error::BeyondVocabulary { .. } => {
                "the tokenizer has tokens that the embedding has no row for: resize the embedding in training, or use \
                 the tokenizer that the model was trained with"
            }
            Error::UnknownPreTokenizer { .. } => {
                "if you know which tokenizer this one splits text like, name it with --pre, for example --pre qwen2"
            }
            Error::UnsupportedFormat { .. } => "save the tokenizer as tokenizer.json with transformers",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// A text that two tokenizers cut differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The model's folder.
    pub dir: PathBuf,
    /// The source's tokenizer.
    pub file: &'static str,
    /// The text.
    pub probe: String,
    /// The first token that differs, from 0.
    pub at: usize,
    /// Its id and text from the source's tokenizer; none when it gives fewer tokens.
    pub expected: Option<(u32, String)>,
    /// Its id and text from the vocabulary as written.
    pub found: Option<(u32, String)>,
    /// The name of the pre-tokenizer, where that is what cuts otherwise.
    pub pre: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (dir, at, file) = (self.dir.display(), self.at, self.file);
        writeln!(f, "the tokenizer of `{dir}` would not work as it does now")?;
        writeln!(f, "  text `{}`", Escaped(&self.probe))?;
        writeln!(f, "  expected: {} as token {at} (`{file}`)", Shown(&self.expected))?;
        write!(f, "  found:    {}", Shown(&self.found))?;
        self.pre.as_ref().map_or(Ok(()), |pre| write!(f, " (with the pre-tokenizer `{pre}`)"))
    }
}

struct Shown<'a>(&'a Option<(u32, String)>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((id, text)) => write!(f, "{id} `{}`", Escaped(text)),
            None => f.write_str("the end"),
        }
    }
}

struct Suggestion<'a>(&'a [&'static str]);

impl std::fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("\n  expected: a name that llama.cpp b11434 knows")?;
        match self.0 {
            [] => Ok(()),
            names => write!(f, ", perhaps {}", join_limited(names.iter().copied(), 3)),
        }
    }
}
