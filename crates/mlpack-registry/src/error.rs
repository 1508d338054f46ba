//! What can go wrong between here and a registry. No message holds a credential, a token or a signed query.

use mlpack_fs::{ErrorKind, Sha256};
use mlpack_tensor::Escaped;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// A layout or a blob could not be read or written.
    #[error(transparent)]
    Oci(#[from] mlpack_oci::Error),
    /// The server could not be reached, or the connection failed again and again.
    #[error("cannot reach `{url}`\n  found:    {}{}", Escaped(reason), Tries(*tries))]
    Unreachable {
        /// The address, without its query.
        url: String,
        /// The last failure.
        reason: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The server answered with a status that ends the work.
    #[error("cannot {operation}\n  at `{url}`\n  expected: {expected}\n  found:    status {status}{}{}", Detail(detail), Tries(*tries))]
    Status {
        /// What was attempted.
        operation: String,
        /// The address, without its query.
        url: String,
        /// The status that would have been right.
        expected: &'static str,
        /// The status.
        status: u16,
        /// The registry's own words, credentials taken out.
        detail: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The registry wants credentials, or others than it got.
    #[error("cannot {operation}\n  at `{url}`\n  found:    status {status}: {}", match credentials {
        true => "the credentials are refused, or do not reach that far",
        false => "the registry wants credentials and there are none for it",
    })]
    Unauthorized {
        /// What was attempted.
        operation: String,
        /// The address, without its query.
        url: String,
        /// 401 or 403.
        status: u16,
        /// Whether credentials were known.
        credentials: bool,
    },
    /// The registry names a token service that must not get the credentials.
    #[error(
        "cannot authenticate with `{host}`\n  expected: a token service over https, or on the same host\n  found:    `{}`",
        Escaped(realm)
    )]
    InsecureRealm {
        /// The registry.
        host: String,
        /// The token service, without its query.
        realm: String,
    },
    /// Credentials could not be read.
    #[error("cannot read the credentials for `{host}`\n  from {}\n  {trouble}", Escaped(source_name))]
    Credentials {
        /// The registry.
        host: String,
        /// The file or the credential helper.
        source_name: String,
        /// What is wrong.
        trouble: Trouble,
    },
    /// The server broke the protocol.
    #[error("cannot {operation}\n  at `{url}`\n  expected: {expected}\n  found:    {}", Escaped(found))]
    Protocol {
        /// What was attempted.
        operation: String,
        /// The address, without its query.
        url: String,
        /// What the specification wants.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// Content that does not have its digest.
    #[error(
        "cannot {operation}\n  at `{url}`\n  expected: content of digest sha256:{expected}\n  found:    sha256:{found}"
    )]
    WrongDigest {
        /// What was attempted.
        operation: String,
        /// The address, without its query.
        url: String,
        /// The digest that was asked for.
        expected: Sha256,
        /// The digest of what came.
        found: Sha256,
    },
    /// Content of another length than its descriptor says.
    #[error("cannot {operation}\n  at `{url}`\n  expected: {expected} bytes\n  found:    {found} bytes")]
    WrongLength {
        /// What was attempted.
        operation: String,
        /// The address, without its query.
        url: String,
        /// Bytes that the descriptor says.
        expected: u64,
        /// Bytes that the server has.
        found: u64,
    },
    /// A blob that is not on this machine, and that the registry did not take over from where it is.
    #[error(
        "cannot push blob sha256:{digest} to `{repository}`\n  expected: the registry takes it over from the repository of the base\n  found:    it does not"
    )]
    NotHere {
        /// The blob.
        digest: Sha256,
        /// Where it should go.
        repository: String,
    },
    /// A document larger than its limit.
    #[error("cannot {operation}\n  at `{url}`\n  expected: at most {limit} bytes\n  found:    more")]
    TooLarge {
        /// What was attempted.
        operation: String,
        /// The address, without its query.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Redirects that lead nowhere.
    #[error("cannot {operation}\n  at `{url}`\n  expected: at most {limit} redirects")]
    Redirects {
        /// What was attempted.
        operation: String,
        /// The address where it began, without its query.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// The disk has too little room for what would be pulled.
    #[error("cannot pull into `{}`: the disk has too little room\n  expected: {needed} bytes free\n  found:    {free} bytes free", dir.display())]
    NoSpace {
        /// The output directory.
        dir: PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A certificate file that cannot be used.
    #[error("cannot read `{}`\n  expected: certificates in PEM\n  found:    {}", path.display(), Escaped(found))]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// The server cannot listen.
    #[error("cannot listen on `{}`\n  found:    {}", Escaped(address), Escaped(reason))]
    Listen {
        /// The address.
        address: String,
        /// What the system answered.
        reason: String,
    },
}

/// Why credentials cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The file is not JSON of the right shape.
    #[error("expected: a docker or podman credential file\n  found:    {}", Escaped(.0))]
    Malformed(String),
    /// An entry that is not base64 of `user:password`.
    #[error("expected: base64 of `user:password` in `auth`\n  found:    something else")]
    Auth,
    /// The helper program cannot be started.
    #[error("the credential helper does not start: {}", Escaped(.0))]
    Start(String),
    /// The helper program failed.
    #[error("the credential helper failed: {}", Escaped(.0))]
    Failed(String),
    /// The helper program printed something else.
    #[error("expected: JSON with `Username` and `Secret` from the credential helper\n  found:    something else")]
    Output,
    /// A helper's name that could be a path.
    #[error("expected: a credential helper's name of letters, digits, `-`, `_` and `.`\n  found:    `{}`", Escaped(.0))]
    Name(String),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::Oci(e) => e.kind(),
            Error::Unreachable { .. }
            | Error::Status { .. }
            | Error::Unauthorized { .. }
            | Error::NoSpace { .. }
            | Error::Listen { .. }
            | Error::Credentials { .. } => ErrorKind::Io,
            Error::InsecureRealm { .. } | Error::Protocol { .. } | Error::Certificates { .. } => ErrorKind::Malformed,
            Error::NotHere { .. } => ErrorKind::Unsupported,
            Error::WrongDigest { .. } | Error::WrongLength { .. } => ErrorKind::Mismatch,
            Error::TooLarge { .. } | Error::Redirects { .. } => ErrorKind::Limit,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::Oci(e) => return e.hint(),
            Error::Unreachable { reason, url, .. }
                if url.starts_with("https:") && reason.contains("InvalidContentType") =>
            {
                "the server does not speak TLS; if it is yours, add --plain-http"
            }
            Error::Unreachable { reason, .. } if reason.contains("certificate") => {
                "give the certificate authority of the registry with --ca"
            }
            Error::Unreachable { .. } => "run again: what was transferred is kept, and the next run goes on from there",
            Error::Unauthorized { credentials: false, .. } => "log in first, such as with podman login or docker login",
            Error::Unauthorized { credentials: true, .. } => "log in again, or ask for access to the repository",
            Error::Status { status: 404, .. } => "check the name and the tag",
            Error::Status { status: 429 | 500.., .. } => {
                "run again later: what was transferred is kept, and the next run goes on from there"
            }
            Error::WrongDigest { .. } => "the registry or something before it changed the content; nothing was kept",
            Error::NotHere { .. } => "copy the base into a layout first, and give --base oci:DIR:TAG",
            Error::NoSpace { .. } => "free some space or choose another output directory",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the server said that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Status { status: 404, .. })
    }
}

struct Detail<'a>(&'a str);

impl std::fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", Escaped(self.0)) }
    }
}

struct Tries(u32);

impl std::fmt::Display for Tries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 > 1 { write!(f, " ({} tries)", self.0) } else { Ok(()) }
    }
}
