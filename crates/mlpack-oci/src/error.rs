//! What can go wrong, with the file, the field and the numbers.

use crate::modelfile::ParameterKind;
use mlpack_fs::{ErrorKind, Sha256};
use mlpack_tensor::{Escaped, join_limited, nearest};
use std::fmt;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// A reference or a tag does not parse.
    #[error("cannot use `{}` as a reference\n  {problem}", Escaped(text))]
    InvalidReference {
        /// The text given.
        text: String,
        /// The part that is wrong.
        problem: ReferenceProblem,
    },
    /// A directory that has files in it and is not an image layout.
    #[error("cannot open image layout `{}`\n  expected: a file `oci-layout`, or an empty directory\n  found:    other files, and no `oci-layout`", dir.display())]
    NotALayout {
        /// The directory.
        dir: PathBuf,
    },
    /// An image layout of another version.
    #[error("cannot open image layout `{}`\n  key `imageLayoutVersion`\n  expected: `1.0.0`\n  found:    `{}`", dir.display(), Escaped(found))]
    LayoutVersion {
        /// The directory.
        dir: PathBuf,
        /// The version found.
        found: String,
    },
    /// A document of a layout is not what its media type says.
    #[error("cannot read `{}`\n  expected: {expected}\n  found:    {}", path.display(), Escaped(reason))]
    MalformedDocument {
        /// The file.
        path: PathBuf,
        /// What the document should be.
        expected: &'static str,
        /// The parser's reason.
        reason: String,
    },
    /// A descriptor of a document that cannot be read: its digest algorithm or its size.
    #[error("cannot read blob `{}` of image layout `{}`\n  {problem}", Escaped(digest), dir.display())]
    UnreadableBlob {
        /// The layout.
        dir: PathBuf,
        /// The digest as the descriptor has it.
        digest: String,
        /// What is wrong.
        problem: BlobProblem,
    },
    /// No such tag in the layout.
    #[error("cannot find tag `{}` in image layout `{}`\n  found:    {}", Escaped(tag), dir.display(), Tags(known))]
    UnknownTag {
        /// The layout.
        dir: PathBuf,
        /// The tag asked for.
        tag: String,
        /// The tags there are.
        known: Vec<String>,
    },
    /// Blobs that the layout refers to are missing or wrong.
    #[error("image layout `{}` is broken: {} of its blobs are missing or wrong{}", dir.display(), problems.len(), Problems(problems))]
    BrokenLayout {
        /// The layout.
        dir: PathBuf,
        /// The digest (as text) and the problem of each.
        problems: Vec<(String, BlobProblem)>,
    },
    /// A file does not have the digest that the caller knows it by, or changed while it was read.
    #[error("cannot store `{}`: its content does not match its digest\n  expected: sha256:{expected}\n  found:    sha256:{found}", path.display())]
    ContentMismatch {
        /// The file.
        path: PathBuf,
        /// The digest expected.
        expected: Sha256,
        /// The digest of what was read.
        found: Sha256,
    },
    /// Nothing was given to publish.
    #[error("cannot publish: no artifact was given")]
    NoArtifacts,
    /// Two artifacts would get the same tag.
    #[error("cannot publish `{}` and `{}` under one name\n  both would be tagged `{tag}`", first.display(), second.display())]
    SameVariant {
        /// The tag.
        tag: String,
        /// One artifact.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A variant whose label makes no tag.
    #[error("cannot publish `{}` as a variant of `{tag}`\n  expected: a label of up to {} characters from letters, digits, `.`, `_` and `-`\n  found:    `{}`", path.display(), 127usize.saturating_sub(tag.len()), Escaped(label))]
    VariantLabel {
        /// The artifact.
        path: PathBuf,
        /// The tag of the whole.
        tag: String,
        /// The label.
        label: String,
    },
    /// An artifact without a file of weights.
    #[error("cannot publish `{}`\n  expected: {expected}\n  found:    {}", path.display(), Names(found))]
    NoWeights {
        /// The artifact.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
        /// The files found.
        found: Vec<String>,
    },
    /// An ecosystem that has no place for the format.
    #[error("cannot publish `{}` for {ecosystem}\n  expected: {}\n  found:    {format}", path.display(), match *ecosystem {
        "ollama" => "gguf",
        _ => "gguf or safetensors",
    })]
    FormatNotTaken {
        /// The artifact.
        path: PathBuf,
        /// The ecosystem's word.
        ecosystem: &'static str,
        /// The format's word.
        format: &'static str,
    },
    /// A manifest or an archive that holds what cannot become files.
    #[error("cannot read what the artifact holds\n  expected: {expected}\n  found:    `{}`", Escaped(found))]
    Contents {
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A name that Ollama does not take.
    #[error(
        "cannot use `{}` as the name of an Ollama model\n  expected: [HOST/][NAMESPACE/]MODEL[:TAG], each of letters, digits, `_`, `-` and `.`\n  found:    {found}",
        Escaped(text)
    )]
    OllamaName {
        /// The name as it was given.
        text: String,
        /// What is wrong.
        found: &'static str,
    },
    /// A base image that is none, or that no layer can be added to.
    #[error("cannot use `{}` as a base image\n  expected: {expected}\n  found:    {}", Escaped(base), Escaped(found))]
    NoBase {
        /// The base as it was given.
        base: String,
        /// What an image has.
        expected: &'static str,
        /// What it has.
        found: String,
    },
    /// Two files of one artifact would have the same path in it.
    #[error("cannot publish `{}`\n  file `{}` comes twice: from `{}` and from `{}`", artifact.display(), Escaped(name), first.display(), second.display())]
    SameFile {
        /// The artifact.
        artifact: PathBuf,
        /// The path inside it.
        name: String,
        /// One source.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A directory entry that cannot be published.
    #[error("cannot publish `{}`\n  expected: a regular file, or a link to one\n  found:    {found}", path.display())]
    NotAFile {
        /// The entry.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A directory with more files, or nested deeper, than an artifact may have.
    #[error("cannot publish `{}`\n  expected: at most {limit} {what}", path.display())]
    TooMany {
        /// The directory.
        path: PathBuf,
        /// The limit.
        limit: usize,
        /// What is counted.
        what: &'static str,
    },
    /// A field of the model's description breaks its specification.
    #[error("cannot describe the model\n  field `{field}`\n  expected: {}\n  found:    `{}`", problem.expected, Escaped(&problem.found))]
    InvalidField {
        /// The field.
        field: String,
        /// What it should be and is.
        problem: FieldProblem,
    },
    /// A Modelfile that Ollama would not read.
    #[error("cannot read `{}`\n  line {line}: {problem}", path.display())]
    MalformedModelfile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: ModelfileProblem,
    },
    /// A parameter that Ollama does not know.
    #[error(
        "unknown Modelfile parameter `{}`\n  expected: one of {}",
        Escaped(name),
        join_limited(crate::parameter_names(), usize::MAX)
    )]
    UnknownParameter {
        /// The name given.
        name: String,
    },
    /// A parameter's value is of the wrong type.
    #[error("cannot set Modelfile parameter `{name}`\n  expected: {kind}\n  found:    `{}`", Escaped(found))]
    ParameterValue {
        /// The parameter.
        name: &'static str,
        /// Its type.
        kind: ParameterKind,
        /// The value given.
        found: String,
    },
    /// A text that the Modelfile's syntax cannot carry.
    #[error("cannot write Modelfile instruction `{instruction}`\n  {problem}")]
    Unquotable {
        /// The instruction, in capitals.
        instruction: &'static str,
        /// Why.
        problem: ModelfileProblem,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::InvalidReference { .. }
            | Error::NotALayout { .. }
            | Error::UnknownTag { .. }
            | Error::NoArtifacts
            | Error::SameVariant { .. }
            | Error::VariantLabel { .. }
            | Error::SameFile { .. }
            | Error::InvalidField { .. }
            | Error::OllamaName { .. }
            | Error::UnknownParameter { .. }
            | Error::ParameterValue { .. } => ErrorKind::Misuse,
            Error::LayoutVersion { .. }
            | Error::NotAFile { .. }
            | Error::FormatNotTaken { .. }
            | Error::Unquotable { .. } => ErrorKind::Unsupported,
            Error::MalformedDocument { .. }
            | Error::BrokenLayout { .. }
            | Error::NoWeights { .. }
            | Error::NoBase { .. }
            | Error::Contents { .. }
            | Error::MalformedModelfile { .. } => ErrorKind::Malformed,
            Error::UnreadableBlob { problem, .. } => match problem {
                BlobProblem::Algorithm => ErrorKind::Unsupported,
                BlobProblem::TooLarge { .. } | BlobProblem::TooDeep { .. } => ErrorKind::Limit,
                _ => ErrorKind::Malformed,
            },
            Error::ContentMismatch { .. } => ErrorKind::Mismatch,
            Error::TooMany { .. } => ErrorKind::Limit,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::InvalidReference { problem, .. } => problem.hint(),
            Error::NotALayout { .. } => "choose a directory that does not exist yet, or an image layout",
            Error::SameVariant { .. } => "give each artifact its own variant label, or publish them under two tags",
            Error::ContentMismatch { .. } => {
                "the file changed after its digest was taken; run again when nobody writes it"
            }
            Error::BrokenLayout { .. } => "publish again: missing and truncated blobs are written anew",
            Error::UnknownParameter { name } => {
                let names = nearest(name, crate::parameter_names(), 3);
                return (!names.is_empty()).then(|| format!("did you mean {}?", join_limited(names, 3)));
            }
            Error::Unquotable { instruction: "TEMPLATE", .. } => {
                "leave the template out: Ollama then uses the chat template in the GGUF"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// The part of a reference that does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceProblem {
    /// `oci:DIR` without a tag.
    #[error("expected: `oci:DIR:TAG`\n  found:    no tag")]
    NoTag,
    /// `oci::TAG`.
    #[error("expected: `oci:DIR:TAG`\n  found:    no directory")]
    NoDirectory,
    /// The tag's characters or length.
    #[error("expected: a tag of 1 to 128 letters, digits, `.`, `_` and `-`, not starting with `.` or `-`")]
    Tag,
    /// No registry host before the first slash.
    #[error("expected: `oci:DIR:TAG` or `HOST/REPOSITORY:TAG`\n  found:    no registry host")]
    NoHost,
    /// The repository's characters.
    #[error(
        "expected: a repository of lower-case letters and digits, joined by single `.`, `_`, `__`, `-` or `/`, at most 255 characters"
    )]
    Repository,
    /// The digest after `@`.
    #[error("expected: `@sha256:` and 64 lower-case hexadecimal digits")]
    Digest,
}

impl ReferenceProblem {
    fn hint(self) -> &'static str {
        match self {
            ReferenceProblem::NoTag => "add `:` and a tag, such as `:latest`",
            ReferenceProblem::NoDirectory => "name the directory of the layout between the two colons",
            ReferenceProblem::NoHost => {
                "for a directory on disk write `oci:DIR:TAG`; a registry needs its host, such as `ghcr.io/team/model:v1`"
            }
            ReferenceProblem::Tag => "an example of a tag is `v1.0-q4_k_m`",
            ReferenceProblem::Repository => "registries take no capital letters in names",
            ReferenceProblem::Digest => "an example is `@sha256:` followed by the output of sha256sum",
        }
    }
}

/// What is wrong with a blob that a layout refers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobProblem {
    /// There is no such file.
    #[error("the blob is missing")]
    Missing,
    /// The length differs from the descriptor's.
    #[error("expected: {expected} bytes, found: {found} bytes")]
    WrongSize {
        /// Bytes that the descriptor says.
        expected: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// The content has another digest.
    #[error("found:    content of digest sha256:{found}")]
    WrongDigest {
        /// The digest of the content.
        found: Sha256,
    },
    /// A digest algorithm other than sha256.
    #[error("expected: a sha256 digest")]
    Algorithm,
    /// A manifest or an index that does not parse.
    #[error("expected: {expected}, found: {}", Escaped(reason))]
    NotADocument {
        /// What the media type says.
        expected: &'static str,
        /// The parser's reason.
        reason: String,
    },
    /// A manifest or an index larger than any registry takes.
    #[error("expected: a document of at most {limit} bytes, found: {found} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
        /// Bytes that the descriptor says.
        found: u64,
    },
    /// Indexes nested deeper than the limit.
    #[error("expected: at most {limit} indexes inside each other")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// What a field should be and is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// What the specification wants.
    pub expected: &'static str,
    /// What was given.
    pub found: String,
}

/// Why a text is no Modelfile, or cannot be put into one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelfileProblem {
    /// A word that is no instruction.
    #[error(
        "expected: one of `FROM`, `LICENSE`, `TEMPLATE`, `SYSTEM`, `ADAPTER`, `DRAFT`, `RENDERER`, `PARSER`, `PARAMETER`, `MESSAGE`, `REQUIRES`\n  found:    `{}`",
        Escaped(.0)
    )]
    Instruction(String),
    /// The word after PARAMETER or MESSAGE has a character it may not have.
    #[error("expected: a name and a value\n  found:    `{}`", Escaped(.0))]
    Name(String),
    /// A role that MESSAGE does not take.
    #[error("expected: `system`, `user` or `assistant`\n  found:    `{}`", Escaped(.0))]
    Role(String),
    /// A quoted value without its closing quotes, or an instruction without a value.
    #[error("the value is not complete at the end of the file")]
    Incomplete,
    /// No FROM.
    #[error("there is no `FROM` instruction")]
    NoFrom,
    /// REQUIRES with something else than a version.
    #[error("expected: a version such as `0.14.0`\n  found:    `{}`", Escaped(.0))]
    Version(String),
    /// A parameter that Ollama does not know.
    #[error("unknown parameter `{}`, expected: one of {}", Escaped(.0), join_limited(crate::parameter_names(), usize::MAX))]
    Parameter(String),
    /// A parameter's value is of the wrong type.
    #[error("parameter `{name}`\n  expected: {kind}\n  found:    `{}`", Escaped(found))]
    Value {
        /// The parameter.
        name: &'static str,
        /// Its type.
        kind: ParameterKind,
        /// The value found.
        found: String,
    },
    /// A character that Ollama's parser drops.
    #[error("expected: printable characters, tabs and line ends (Ollama drops the others)\n  found:    U+{:04X} at byte {offset}", *character as u32)]
    Unprintable {
        /// The character.
        character: char,
        /// Its byte offset in the value.
        offset: usize,
    },
    /// A text that neither bare, nor quoted, nor triple-quoted is read back as it is.
    #[error("the text has three double quotes and a line end, which no quoting of a Modelfile can carry")]
    Quotes,
}

struct Tags<'a>(&'a [String]);

impl fmt::Display for Tags<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no tags");
        }
        f.write_str(&join_limited(self.0.iter().map(String::as_str), 12))
    }
}

struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no files");
        }
        f.write_str(&join_limited(self.0.iter().map(String::as_str), 8))
    }
}

struct Problems<'a>(&'a [(String, BlobProblem)]);

/// Broken blobs shown before the list is cut.
const SHOWN_PROBLEMS: usize = 8;

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (digest, problem) in self.0.iter().take(SHOWN_PROBLEMS) {
            write!(f, "\n  blob `{}`: {problem}", Escaped(digest))?;
        }
        match self.0.len().checked_sub(SHOWN_PROBLEMS) {
            Some(n) if n > 0 => write!(f, "\n  and {n} more"),
            _ => Ok(()),
        }
    }
}
