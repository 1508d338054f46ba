//! What can go wrong, whose fault it is, and what to do about it.

use mlpack_fs::{ErrorKind, Sha256};
use mlpack_tensor::{Escaped, join_limited};
use std::path::PathBuf;

/// Run ids shown in a message before the rest is counted.
const SHOWN_RUNS: usize = 5;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// A name that would not mean the same on another machine.
    #[error(
        "cannot state `{}`\n  expected: a relative name with `/` between its parts, at most {limit} bytes\n  found:    {found}",
        Escaped(name)
    )]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        found: &'static str,
        /// The longest name in bytes.
        limit: usize,
    },
    /// A parameter with a number that JSON readers do not agree on.
    #[error(
        "cannot state parameter `{}`\n  expected: an integer within 2^53, or the number as a string\n  found:    a number that readers may round",
        Escaped(place)
    )]
    InexactNumber {
        /// Where the number is.
        place: String,
    },
    /// A step that has no output.
    #[error("cannot state a step without an output")]
    NoSubject,
    /// More subjects than verifiers accept (sigstore-go: 1024).
    #[error("cannot state a step with so many outputs\n  expected: at most {limit}\n  found:    {found}")]
    TooManySubjects {
        /// How many there are.
        found: usize,
        /// How many may be.
        limit: usize,
    },
    /// Bytes that are not the JSON they should be.
    #[error("cannot read `{}`\n  {}", Escaped(origin), Escaped(&source.to_string()))]
    Json {
        /// The file, or the file and line.
        origin: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// JSON that is no in-toto statement of a known version, or breaks a rule of it.
    #[error("cannot read statement {digest}\n  field `{field}`: {rule}")]
    NotAStatement {
        /// Digest of the bytes.
        digest: Sha256,
        /// The field at fault.
        field: &'static str,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// A stored object whose bytes are not the ones that its name says.
    #[error("object of the store is damaged: `{}`\n  expected: sha256 {expected}\n  found:    sha256 {found}", path.display())]
    Damaged {
        /// The object.
        path: PathBuf,
        /// Its name.
        expected: Sha256,
        /// What its bytes hash to.
        found: Sha256,
    },
    /// SQLite refuses the file, or a value in it.
    #[error("cannot read `{}` as an MLflow database\n  sqlite: {}", path.display(), Escaped(&source.to_string()))]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// A database that lacks what every MLflow database has.
    #[error("cannot read `{}` as an MLflow database\n  expected: a table `{table}` with the columns {}\n  found:    {found}",
        path.display(), join_limited(columns.iter().copied(), 20))]
    NotMlflow {
        /// The database.
        path: PathBuf,
        /// The table that is missing or different.
        table: &'static str,
        /// The columns that are read.
        columns: &'static [&'static str],
        /// What is there instead.
        found: String,
    },
    /// A folder that is no file store of MLflow's.
    #[error("cannot read `{}` as an MLflow file store\n  expected: a folder for each experiment, with a `meta.yaml`\n  found:    none", path.display())]
    NotAFileStore {
        /// The folder.
        path: PathBuf,
    },
    /// A `meta.yaml` that cannot be read.
    #[error("cannot read `{}`\n  {rule}", path.display())]
    BadMeta {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        rule: &'static str,
    },
    /// A line of a metric's file that cannot be read.
    #[error("cannot read `{}` line {line}\n  expected: milliseconds, value, step", path.display())]
    BadMetric {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A server where nobody is to be asked.
    #[error("cannot ask `{}`: the network is not used here", Escaped(url))]
    NoNetwork {
        /// The server.
        url: String,
    },
    /// A server that does not answer, or not as expected.
    #[error("cannot read from MLflow server `{}`\n  {}", Escaped(url), sentence(reason))]
    Server {
        /// The server.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// Changes of the database are still in a journal beside it.
    #[error("cannot read `{}` as it is: `{}` holds changes that are not in it yet", path.display(), journal.display())]
    UnfinishedStore {
        /// The database.
        path: PathBuf,
        /// The journal.
        journal: PathBuf,
    },
    /// A run id that the database does not have.
    #[error("no run `{}` in `{}`\n  found:    {}", Escaped(run_id), path.display(), list_runs(nearest, *total))]
    RunNotFound {
        /// The database.
        path: PathBuf,
        /// The id asked for.
        run_id: String,
        /// The runs most like it, else the first runs: id and a description.
        nearest: Vec<(String, String)>,
        /// How many runs there are.
        total: u64,
    },
    /// A database without a run id.
    #[error("`{}` has {total} runs, and none is named\n  expected: `{}#RUN_ID`\n  found:    {}",
        path.display(), path.display(), list_runs(runs, *total))]
    RunNotNamed {
        /// The database.
        path: PathBuf,
        /// The first runs: id and a description.
        runs: Vec<(String, String)>,
        /// How many runs there are.
        total: u64,
    },
    /// Text that names no training run.
    #[error(
        "cannot find a training run in `{}`\n  expected: `mlflow.db#RUN_ID`, `mlruns#RUN_ID`, `http://HOST#RUN_ID` or a `trainer_state.json`",
        Escaped(text)
    )]
    UnknownRunSource {
        /// The text.
        text: String,
    },
    /// The run's curve and the trainer state beside the adapter have no value in common.
    #[error(transparent)]
    RunDisagrees(Box<Disagreement>),
    /// A file that is not a Hugging Face trainer state.
    #[error("cannot read `{}` as a trainer state\n  expected: a JSON object with `global_step` and `log_history`", path.display())]
    NotATrainerState {
        /// The file.
        path: PathBuf,
    },
    /// Text that is not the key it should be.
    #[error(
        "cannot read `{}` as {what}\n  expected: PEM with an ECDSA key on P-256 or P-384, or an Ed25519 key\n  found:    {}",
        Escaped(origin),
        Escaped(found)
    )]
    NotAKey {
        /// The file, or the variable.
        origin: String,
        /// `a private key` or `a public key`.
        what: &'static str,
        /// What is there.
        found: String,
    },
    /// An encrypted key without a passphrase.
    #[error("cannot open `{}`: it is encrypted, and no passphrase was given", Escaped(origin))]
    NoPassphrase {
        /// The file, or the variable.
        origin: String,
    },
    /// An encrypted key and a passphrase that does not open it.
    #[error("cannot open `{}`: the passphrase is wrong, or the file is damaged", Escaped(origin))]
    WrongPassphrase {
        /// The file, or the variable.
        origin: String,
    },
    /// The system gives no random numbers.
    #[error("cannot make a key: the system gives no random numbers\n  {}", Escaped(reason))]
    NoRandom {
        /// The system's reason.
        reason: String,
    },
    /// A key of a kind that OpenSSF Model Signing has no place for.
    #[error(
        "cannot sign a model with this key\n  expected: an ECDSA key on P-256 or P-384 (OpenSSF Model Signing v1.0)\n  found:    {algorithm}"
    )]
    UnsignableKey {
        /// The key's kind.
        algorithm: &'static str,
    },
    /// A directory without a file to sign.
    #[error("cannot sign `{}`: there is no file in it", path.display())]
    EmptyModel {
        /// The directory.
        path: PathBuf,
    },
    /// JSON that is no signature of a known form.
    #[error(
        "cannot read signature `{}`\n  field `{field}`\n  expected: {rule}\n  found:    {}",
        Escaped(origin),
        Escaped(found)
    )]
    NotABundle {
        /// The file, or the file and line.
        origin: String,
        /// The field at fault.
        field: &'static str,
        /// What should be there.
        rule: &'static str,
        /// What is there.
        found: String,
    },
    /// A policy that says something that mlpack does not know.
    #[error("cannot read policy `{}`\n  {}", path.display(), what.lines().map(sentence).collect::<Vec<_>>().join("\n  "))]
    BadPolicy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A chain that is not whole enough to be signed.
    #[error("cannot sign `{}`: what is stated about it does not hold\n  {}", path.display(), sentence(fault))]
    UnsoundChain {
        /// The artifact.
        path: PathBuf,
        /// The first contradiction.
        fault: String,
    },
    /// More of something than mlpack is willing to read.
    #[error("`{}` has too many {what}\n  expected: at most {limit}", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// A run that did not make the adapter it is given for.
#[derive(Debug, thiserror::Error)]
#[error(
    "run `{}` did not make this adapter: none of {compared} logged values agree with `{}`\n  {}, step {step}\n  expected: {expected:?} (trainer state)\n  found:    {found:?} (run)",
    Escaped(run_id), path.display(), Escaped(metric)
)]
pub struct Disagreement {
    /// The run.
    pub run_id: String,
    /// The trainer state.
    pub path: PathBuf,
    /// Values of the same metric and step in both.
    pub compared: u64,
    /// The first metric that differs.
    pub metric: String,
    /// Its step.
    pub step: i64,
    /// The trainer state's value.
    pub expected: f64,
    /// The run's value.
    pub found: f64,
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::BadName { .. }
            | Error::InexactNumber { .. }
            | Error::NoSubject
            | Error::RunNotFound { .. }
            | Error::RunNotNamed { .. }
            | Error::UnknownRunSource { .. }
            | Error::NoPassphrase { .. }
            | Error::WrongPassphrase { .. }
            | Error::UnsignableKey { .. }
            | Error::BadPolicy { .. }
            | Error::EmptyModel { .. } => ErrorKind::Misuse,
            Error::NoNetwork { .. } => ErrorKind::Misuse,
            Error::NoRandom { .. } | Error::Server { .. } => ErrorKind::Io,
            Error::TooManySubjects { .. } | Error::TooMany { .. } => ErrorKind::Limit,
            Error::Json { .. }
            | Error::NotAStatement { .. }
            | Error::Sqlite { .. }
            | Error::NotAKey { .. }
            | Error::NotAFileStore { .. }
            | Error::BadMeta { .. }
            | Error::BadMetric { .. }
            | Error::NotABundle { .. }
            | Error::NotATrainerState { .. } => ErrorKind::Malformed,
            Error::NotMlflow { .. } | Error::UnfinishedStore { .. } => ErrorKind::Unsupported,
            Error::Damaged { .. } | Error::RunDisagrees(_) | Error::UnsoundChain { .. } => ErrorKind::Mismatch,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Fs(e) => e.hint().map(str::to_owned),
            Error::RunNotFound { .. } | Error::RunNotNamed { .. } => {
                Some("a run's id is shown in its address in MLflow's pages; copy it whole".to_owned())
            }
            Error::UnfinishedStore { .. } => {
                Some("stop the process that writes it, or read a copy made with `sqlite3 mlflow.db .backup`".to_owned())
            }
            Error::NotMlflow { .. } => {
                Some("give the sqlite file of an MLflow tracking store (MLflow 2 or 3)".to_owned())
            }
            Error::RunDisagrees(_) => Some("give the id of the run that trained this adapter".to_owned()),
            Error::Damaged { .. } => Some("remove the damaged object, then run the step again".to_owned()),
            Error::NoPassphrase { .. } => Some(
                "give a file with the passphrase (--passphrase-file), or set MLPACK_PASSPHRASE; a terminal is asked"
                    .to_owned(),
            ),
            Error::UnsoundChain { .. } => {
                Some("look at `mlpack trace`; a signature would hide what is wrong".to_owned())
            }
            Error::NotAKey { what: "a private key", .. } => {
                Some("make one with `mlpack keygen --out KEY`, or convert it with `openssl pkcs8 -topk8`".to_owned())
            }
            Error::NoNetwork { .. } => {
                Some("import the run first: mlpack run import URL#RUN_ID --adapter DIR".to_owned())
            }
            _ => None,
        }
    }
}

/// Our own sentence around untrusted names: control characters are escaped, its quotes stay.
fn sentence(text: &str) -> String {
    text.split('`').map(|part| Escaped(part).to_string()).collect::<Vec<_>>().join("`")
}

fn list_runs(runs: &[(String, String)], total: u64) -> String {
    if runs.is_empty() {
        return "no runs".to_owned();
    }
    let shown: Vec<String> =
        runs.iter().take(SHOWN_RUNS).map(|(id, what)| format!("`{}` ({})", Escaped(id), Escaped(what))).collect();
    match total.saturating_sub(shown.len() as u64) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
