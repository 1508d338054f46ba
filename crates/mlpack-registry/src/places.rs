//! Which repositories of a registry have which blobs, as far as earlier pushes told: another repository takes them over
//! there instead of being sent them.
//!
//! ```text
//! {"version":1,"registry":"HOST","blobs":{"<hex>":["REPOSITORY",…]}}
//! ```
//!
//! Nothing relies on it: a registry that does not have the blob any more opens a session instead of mounting it.

use crate::Error;
use mlpack_fs::{Operation, Sha256, read_bounded, write_atomic};
use mlpack_oci::Blob;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Largest file read.
const FILE_LIMIT: u64 = 16 << 20;
/// Blobs from this length on are worth remembering.
const LEAST_LEN: u64 = 1 << 20;
/// Blobs that are remembered; with more, everything before the current push is forgotten.
const BLOB_LIMIT: usize = 10_000;
/// Repositories that are remembered of a blob, the latest ones.
const REPOSITORY_LIMIT: usize = 3;

/// Where blobs are in one registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Places {
    version: u32,
    registry: String,
    blobs: BTreeMap<String, Vec<String>>,
}

impl Places {
    /// Reads the file; what does not parse or is of another registry counts as nothing.
    pub fn open(path: Option<&Path>, registry: &str) -> Result<Places, Error> {
        let none = Places { version: 1, registry: registry.to_owned(), blobs: BTreeMap::new() };
        let Some(path) = path else { return Ok(none) };
        match read_bounded(path, FILE_LIMIT) {
            Ok(bytes) => {
                let found: Option<Places> = serde_json::from_slice(&bytes).ok();
                Ok(found.filter(|found| found.version == 1 && found.registry == registry).unwrap_or(none))
            }
            Err(e) if e.is_not_found() => Ok(none),
            Err(e) => Err(e.into()),
        }
    }

    /// Repositories other than `repository` that have the blob.
    pub fn others(&self, digest: &Sha256, repository: &str) -> impl Iterator<Item = &String> {
        let known = self.blobs.get(&digest.to_string()).into_iter().flatten();
        known.filter(move |known| known.as_str() != repository)
    }

    /// Notes that the repository has the blobs.
    pub fn note<'a>(
        mut self,
        path: Option<&Path>,
        repository: &str,
        blobs: impl Iterator<Item = &'a Blob>,
    ) -> Result<(), Error> {
        let Some(path) = path else { return Ok(()) };
        let before = self.clone();
        let digests: Vec<String> =
            blobs.filter(|blob| blob.byte_len() >= LEAST_LEN).map(|blob| blob.digest().to_string()).collect();
        if self.blobs.len() + digests.len() > BLOB_LIMIT {
            self.blobs.clear();
        }
        for digest in digests {
            let known = self.blobs.entry(digest).or_default();
            known.retain(|known| known != repository);
            known.push(repository.to_owned());
            known.drain(..known.len().saturating_sub(REPOSITORY_LIMIT));
        }
        if self == before {
            return Ok(());
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, dir, e))?;
        }
        let bytes = serde_json::to_vec(&self).expect("string keys serialise");
        write_atomic(path, &bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_repositories_of_large_blobs_are_remembered_for_their_registry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("push/places.json");
        let large = Blob::of_bytes(vec![1; LEAST_LEN as usize]);
        let small = Blob::of_bytes(vec![2; 9]);
        let note = |repository: &str| {
            let blobs = [&large, &small];
            Places::open(Some(&path), "h").unwrap().note(Some(&path), repository, blobs.into_iter()).unwrap();
        };
        ["a", "b", "c", "d", "b"].iter().for_each(|repository| note(repository));
        let found = Places::open(Some(&path), "h").unwrap();
        assert_eq!(found.others(large.digest(), "d").collect::<Vec<_>>(), ["c", "b"]);
        assert_eq!(found.others(small.digest(), "d").count(), 0);
        assert_eq!(Places::open(Some(&path), "other").unwrap().others(large.digest(), "d").count(), 0);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Places::open(Some(&path), "h").unwrap().others(large.digest(), "d").count(), 0);
    }
}
