//! What an interrupted run leaves for the next: how far each of its files was right.
//!
//! ```text
//!   .mlpack-journal   in the directory that is not sealed yet
//!     mlpack journal 1 SHA256        which work this is: another has nothing to do with what lies here
//!     0 1048576 SHA256               file 0: its first 1048576 bytes have that digest
//!     1 524288 SHA256                …
//! ```
//! A line is appended when the bytes are written, so after a kill every whole line is true. After a failure of power the
//! files may lack what a line tells; whoever takes a file up compares digests, so that a line need not be believed.

use crate::{AtomicDir, Error, Operation, Sha256, read_to_string_bounded};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

pub(crate) const NAME: &str = ".mlpack-journal";
const FIRST_LINE: &str = "mlpack journal 1";

/// The longest journal that is read: a hundred lines for each of some thousand files.
const MAX_LEN: u64 = 64 << 20;

/// The journal of a directory that is not sealed yet; [`AtomicDir::seal`] removes it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
    found: BTreeMap<usize, Vec<(u64, Sha256)>>,
}

impl Journal {
    /// Opens the journal of a directory, if it is of the same work; else everything in the directory is removed.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn open(dir: &AtomicDir, work: &Sha256) -> Result<Journal, Error> {
        let path = dir.contents().join(NAME);
        let left = if path.is_file() { read_to_string_bounded(&path, MAX_LEN).ok() } else { None };
        let first_line = format!("{FIRST_LINE} {work}\n");
        let records = left.as_deref().and_then(|text| text.strip_prefix(&first_line)).map(records);
        let create = |e| Error::io(Operation::Create, &path, e);
        let open = || OpenOptions::new().append(true).create(true).open(&path).map_err(create);
        let (file, found) = match records {
            Some((found, whole)) => {
                let file = open()?;
                // Half a line must not become a whole one.
                file.set_len((first_line.len() + whole) as u64).map_err(create)?;
                (file, found)
            }
            None => {
                dir.clear()?;
                let mut file = open()?;
                file.write_all(first_line.as_bytes()).map_err(create)?;
                (file, BTreeMap::new())
            }
        };
        Ok(Journal { path, file: Mutex::new(file), found })
    }

    /// Prefixes of a file that an earlier run noted, shortest first.
    pub fn found(&self, file: usize) -> &[(u64, Sha256)] {
        self.found.get(&file).map_or(&[], Vec::as_slice)
    }

    /// Notes that the first bytes of a file are written and have that digest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, file: usize, byte_len: u64, sha256: &Sha256) -> Result<(), Error> {
        let line = format!("{file} {byte_len} {sha256}\n");
        let mut journal = self.file.lock().expect("no thread panics holding the lock");
        journal.write_all(line.as_bytes()).map_err(|e| Error::io(Operation::Write, &self.path, e))
    }
}

/// Prefixes by file, each longer than the one before, and the bytes of the lines that are whole.
fn records(text: &str) -> (BTreeMap<usize, Vec<(u64, Sha256)>>, usize) {
    let mut found: BTreeMap<usize, Vec<(u64, Sha256)>> = BTreeMap::new();
    let mut whole = 0;
    for line in text.split_inclusive('\n') {
        let mut parts = line.strip_suffix('\n').unwrap_or_default().split(' ');
        let file = parts.next().and_then(|part| part.parse().ok());
        let byte_len = parts.next().and_then(|part| part.parse().ok());
        let sha256 = parts.next().and_then(|part| part.parse().ok());
        let (Some(file), Some(byte_len), Some(sha256), None) = (file, byte_len, sha256, parts.next()) else { break };
        let prefixes = found.entry(file).or_default();
        // A later run may have begun the file anew.
        prefixes.retain(|(len, _)| *len < byte_len);
        prefixes.push((byte_len, sha256));
        whole += line.len();
    }
    (found, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_of_the_same_work_finds_what_was_noted_and_another_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let (work, other) = (Sha256::of(b"work"), Sha256::of(b"other"));
        let out = AtomicDir::take_up(&path).unwrap();
        let journal = Journal::open(&out, &work).unwrap();
        assert_eq!(journal.found(0), []);
        journal.note(1, 10, &Sha256::of(b"a")).unwrap();
        journal.note(0, 7, &Sha256::of(b"b")).unwrap();
        journal.note(1, 20, &Sha256::of(b"c")).unwrap();
        drop(journal);
        out.keep();

        let out = AtomicDir::take_up(&path).unwrap();
        // Killed within a line.
        let mut file = OpenOptions::new().append(true).open(out.contents().join(NAME)).unwrap();
        file.write_all(b"0 9 12ab").unwrap();
        let journal = Journal::open(&out, &work).unwrap();
        assert_eq!(journal.found(1), [(10, Sha256::of(b"a")), (20, Sha256::of(b"c"))]);
        // The file was begun anew.
        journal.note(1, 5, &Sha256::of(b"d")).unwrap();
        drop(journal);
        let journal = Journal::open(&out, &work).unwrap();
        assert_eq!((journal.found(0), journal.found(1)), (&[(7, Sha256::of(b"b"))][..], &[(5, Sha256::of(b"d"))][..]));
        drop(journal);

        std::fs::write(out.contents().join("x"), b"x").unwrap();
        let journal = Journal::open(&out, &other).unwrap();
        assert_eq!((journal.found(0), out.contents().join("x").exists()), (&[][..], false));
        drop(journal);
        out.seal().unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "the journal goes when the directory is sealed");
    }

    #[test]
    fn what_is_no_journal_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let out = AtomicDir::take_up(&dir.path().join("out")).unwrap();
        let work = Sha256::of(b"work");
        for text in ["", "mlpack journal 1", "mlpack journal 2 x\n", "\0\0\0\0"] {
            std::fs::write(out.contents().join(NAME), text).unwrap();
            std::fs::write(out.contents().join("x"), b"x").unwrap();
            let journal = Journal::open(&out, &work).unwrap();
            assert_eq!((journal.found(0), out.contents().join("x").exists()), (&[][..], false), "{text:?}");
        }
    }
}
