//! I/O errors that carry their path, and the kinds every error of the workspace answers to.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Whose fault an error is. The command line picks the exit code from it; the text never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The environment: a missing file, a full disk, a refused permission, a network.
    Io,
    /// This file breaks its specification.
    Malformed,
    /// Valid input that mlpack does not handle.
    Unsupported,
    /// Two inputs disagree: an adapter and its base, a digest and its content.
    Mismatch,
    /// A named limit or budget would be exceeded.
    Limit,
    /// The caller asked for something that makes no sense.
    Misuse,
}

/// What was being done to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Opening for reading.
    Open,
    /// Reading.
    Read,
    /// Creating a file.
    Create,
    /// Creating a directory.
    CreateDir,
    /// Reserving space for an output.
    Reserve,
    /// Writing.
    Write,
    /// Flushing to the disk.
    Sync,
    /// Renaming to the final name.
    Rename,
    /// Removing.
    Remove,
    /// Listing a directory.
    List,
    /// Taking the lock of an output that another process is writing.
    Lock,
}

impl Operation {
    fn verb(self) -> &'static str {
        match self {
            Operation::Open => "open",
            Operation::Read => "read",
            Operation::Create => "create",
            Operation::CreateDir => "create directory",
            Operation::Reserve => "reserve space for",
            Operation::Write => "write",
            Operation::Sync => "flush",
            Operation::Rename => "put in place",
            Operation::Remove => "remove",
            Operation::List => "list",
            Operation::Lock => "lock",
        }
    }
}

/// An I/O error with its path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {} `{}`: {}", operation.verb(), path.display(), Reason(source))]
    Io {
        /// What was being done.
        operation: Operation,
        /// To which path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The disk has no room for an output.
    #[error("cannot reserve space for `{}`: the disk is full\n  expected: {needed} bytes free\n  found:    {} bytes free", path.display(), Found(*free))]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Bytes that the output needs.
        needed: u64,
        /// Bytes that are free, when the system could tell.
        free: Option<u64>,
    },
    /// A file is larger than what its reader accepts.
    #[error("cannot read `{}`: the file is larger than its limit\n  expected: at most {limit} bytes\n  found:    {found} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
        /// The size found in bytes.
        found: u64,
    },
    /// A text file is not UTF-8.
    #[error("cannot read `{}`: not UTF-8\n  found:    an invalid byte at offset {offset}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte.
        offset: u64,
    },
    /// An output directory exists and holds files.
    #[error("cannot create `{}`: it exists and is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Another process is writing the same output.
    #[error("cannot create `{}`: another process is writing it", path.display())]
    Busy {
        /// The output.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps a system error.
    pub fn io(operation: Operation, path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::Io { operation, path: path.into(), source }
    }

    /// The path that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::NoSpace { path, .. }
            | Error::TooLarge { path, .. }
            | Error::NotUtf8 { path, .. }
            | Error::NotEmpty { path }
            | Error::Busy { path } => path,
        }
    }

    /// Whether the error is "no such file or directory".
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Io { .. } | Error::NoSpace { .. } | Error::Busy { .. } => ErrorKind::Io,
            Error::TooLarge { .. } => ErrorKind::Limit,
            Error::NotUtf8 { .. } => ErrorKind::Malformed,
            Error::NotEmpty { .. } => ErrorKind::Misuse,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoSpace { .. } => {
                Some("free some space or choose another output directory; nothing was left behind")
            }
            Error::NotEmpty { .. } => Some("choose a directory that does not exist yet"),
            Error::Busy { .. } => Some("wait for the other run, or choose another output name"),
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("check the path"),
                io::ErrorKind::PermissionDenied => Some("check the permissions of the path and of its folder"),
                _ => None,
            },
            Error::TooLarge { .. } | Error::NotUtf8 { .. } => None,
        }
    }
}

/// The system's reason in words, without the "(os error N)" that Rust appends.
struct Reason<'a>(&'a io::Error);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        let mut chars = text.chars();
        match chars.next() {
            Some(c) => write!(f, "{}{}", c.to_lowercase(), chars.as_str()),
            None => Ok(()),
        }
    }
}

struct Found(Option<u64>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => write!(f, "{n}"),
            None => f.write_str("too few"),
        }
    }
}
