//! Going on after an interrupted merge.
//!
//! The unsealed directory has a journal ([`Journal`]) with digests of how far each file was right. Whether they are of
//! this work is decided by a digest of everything that the values depend on; whether the bytes still are what the journal
//! says, by hashing them again. Slabs that lie in what is right are not merged again.

use crate::{Error, MergePlan, Source};
use mlpack_fs::{AtomicDir, AtomicFile, Journal, Sha256, hash_file};
use std::fmt::Write as _;
use std::sync::Mutex;

/// Notes are made each time that this share of a file was written.
const SHARE: u64 = 64;

/// The least number of bytes between two notes.
const LEAST: u64 = 64 << 10;

/// What an interrupted run left, and what the next one will find.
pub(crate) struct Resume {
    journal: Journal,
    /// For each output of the merge how many bytes have to be written before the next note.
    next: Vec<Mutex<u64>>,
}

impl Resume {
    /// Looks for what an interrupted run of the same merge left in a directory. What another one left is removed.
    pub(crate) fn open(source: &Source, plan: &MergePlan, dir: &AtomicDir) -> Result<Resume, Error> {
        let journal = Journal::open(dir, &identity(source, plan)?)?;
        let next = plan.plan.outputs.iter().map(|_| Mutex::new(0)).collect();
        Ok(Resume { journal, next })
    }

    /// Prefixes of an output that were noted; `None` for one that is not the merge's.
    pub(crate) fn found(&self, output: usize) -> Option<&[(u64, Sha256)]> {
        (output < self.next.len()).then(|| self.journal.found(output))
    }

    /// Notes how far an output is written, if that is further enough than the last time.
    pub(crate) fn note(&self, output: usize, file: &AtomicFile) -> Result<(), Error> {
        // Whoever is noting sees what this thread wrote, or the next one does.
        let Some(Ok(mut next)) = self.next.get(output).map(Mutex::try_lock) else { return Ok(()) };
        if *next > file.byte_len() {
            return Ok(());
        }
        let least = (*next).max(file.kept() + 1).min(file.byte_len());
        if let Some((byte_len, sha256)) = file.prefix(least) {
            self.journal.note(output, byte_len, &sha256)?;
            // The last note is of the whole file.
            let step = LEAST.max(file.byte_len() / SHARE);
            *next = if byte_len == file.byte_len() { u64::MAX } else { (byte_len + step).min(file.byte_len()) };
        }
        Ok(())
    }
}

/// A digest of everything that decides the merged bytes. Weights are told by what the system says of their files, which
/// takes no time; small files by their content.
fn identity(source: &Source, plan: &MergePlan) -> Result<Sha256, Error> {
    let mut text = format!("mlpack {}\nplan {}\n", env!("CARGO_PKG_VERSION"), plan.plan.digest());
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{key} {value}");
    };
    for file in source.files() {
        line("base", &file.stamp());
    }
    for (adapter, weight) in source.adapters() {
        line("adapter", &adapter.stamp());
        // All of its bits.
        line("weight", &weight.to_bits());
        if let Some(config) = adapter.config_path() {
            line("config", &hash_file(config)?.0);
        }
    }
    for path in &plan.plan.described_by {
        line("file", &hash_file(path)?.0);
    }
    if let Some(overlay) = source.overlay() {
        line("combine", &format_args!("{:?}", overlay.combine()));
    }
    Ok(Sha256::of(text.as_bytes()))
}
