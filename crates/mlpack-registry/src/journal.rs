//! What a push has open: upload sessions and how far they are, so that the next run goes on.
//!
//! ```text
//! {"version":1,"target":"HOST/REPOSITORY","limits":{…},"sessions":{"<hex>":{"location":URL,"offset":N}}}
//! ```
//!
//! A session's address may let anyone write to it, so the file is for its owner alone.

use crate::Error;
use crate::limits::Limits;
use mlpack_fs::{Operation, Sha256, read_bounded, write_atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Largest journal read.
const JOURNAL_LIMIT: u64 = 16 << 20;

/// The journal of pushes to one repository.
#[derive(Debug)]
pub(crate) struct Journal {
    path: Option<PathBuf>,
    entries: Mutex<Entries>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    version: u32,
    target: String,
    limits: Option<Limits>,
    sessions: BTreeMap<String, Session>,
}

/// An open upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Session {
    pub location: String,
    pub offset: u64,
}

impl Journal {
    /// Opens a journal, or begins one; what does not parse or is of another target is begun anew.
    pub fn open(path: Option<&Path>, target: &str) -> Result<Journal, Error> {
        let mut entries = Entries { version: 1, target: target.to_owned(), limits: None, sessions: BTreeMap::new() };
        if let Some(path) = path {
            match read_bounded(path, JOURNAL_LIMIT) {
                Ok(bytes) => {
                    let found: Option<Entries> = serde_json::from_slice(&bytes).ok();
                    if let Some(found) = found.filter(|f| f.version == 1 && f.target == target) {
                        entries = found;
                    }
                }
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Journal { path: path.map(Path::to_owned), entries: Mutex::new(entries) })
    }

    pub fn limits(&self) -> Option<Limits> {
        self.entries.lock().expect("no thread panics holding the lock").limits
    }

    pub fn session(&self, digest: &Sha256) -> Option<Session> {
        self.entries.lock().expect("no thread panics holding the lock").sessions.get(&digest.to_string()).cloned()
    }

    /// Notes how far an upload is; `None` when it is finished or lost.
    pub fn note(&self, digest: &Sha256, session: Option<Session>, limits: Limits) -> Result<(), Error> {
        let mut entries = self.entries.lock().expect("no thread panics holding the lock");
        match session {
            Some(session) => drop(entries.sessions.insert(digest.to_string(), session)),
            None => drop(entries.sessions.remove(&digest.to_string())),
        }
        entries.limits = Some(limits);
        self.write(&entries)
    }

    fn write(&self, entries: &Entries) -> Result<(), Error> {
        let Some(path) = &self.path else { return Ok(()) };
        if entries.sessions.is_empty() && !path.exists() {
            return Ok(());
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, dir, e))?;
        }
        let bytes = serde_json::to_vec(entries).expect("string keys serialise");
        write_atomic(path, &bytes)?;
        let permissions = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, permissions).map_err(|e| mlpack_fs::Error::io(Operation::Write, path, e))?;
        Ok(())
    }

    /// Everything arrived: nothing is left to go on with.
    pub fn finish(&self) -> Result<(), Error> {
        match &self.path {
            Some(path) if path.exists() => {
                std::fs::remove_file(path).map_err(|e| mlpack_fs::Error::io(Operation::Remove, path, e).into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_outlive_the_run_and_are_for_their_owner_and_target_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("push.json");
        let limits = Limits::of_host("h");
        let digest = Sha256::of(b"x");
        let session = Session { location: "http://h/u?_state=1".to_owned(), offset: 7 };
        Journal::open(Some(&path), "h/a").unwrap().note(&digest, Some(session.clone()), limits).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Journal::open(Some(&path), "h/a").unwrap();
        assert_eq!((again.session(&digest), again.limits()), (Some(session), Some(limits)));
        assert_eq!(Journal::open(Some(&path), "h/b").unwrap().session(&digest), None);
        again.finish().unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "{\"version\":1").unwrap();
        assert_eq!(Journal::open(Some(&path), "h/a").unwrap().session(&digest), None);
    }
}
