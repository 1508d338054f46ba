//! Finding the bytes that something is stated about.

use super::State;
use super::walk::{Walk, file_name, hash_path};
use crate::Statement;
use crate::claims::Sidecar;
use crate::store::{SIDECAR_ENDING, sidecar_path};
use mlpack_fs::Sha256;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Most statements of a store that are looked through for an edited file's earlier digest.
const MAX_SCANNED: usize = 4096;

impl Walk<'_> {
    /// Looks for the bytes where they were seen, then by name around the traced file, and hashes what is there. Bytes that
    /// fit are as good as the statement that names them.
    pub fn find_bytes(
        &mut self,
        name: &str,
        digest: Sha256,
        attested: Option<State>,
    ) -> (State, Option<PathBuf>, Option<String>) {
        let fits = attested.unwrap_or(State::Claimed);
        let places = self.claims.locations(digest);
        let mut other = None;
        for place in &places {
            match self.hash(place) {
                Some(found) if found == digest => return (fits, Some(place.clone()), None),
                Some(found) => other = Some((place, found)),
                None => {}
            }
        }
        for place in self.places_by_name(name) {
            if self.hash(&place) == Some(digest) {
                return (fits, Some(place), None);
            }
        }
        match (other, places.first()) {
            // Signing writes claims anew, and nothing is made from them.
            (Some(_), _) if name.ends_with(SIDECAR_ENDING) => {
                (State::Claimed, None, Some("written anew since, as signing does".to_owned()))
            }
            (Some((place, found)), _) => {
                let note = format!("`{}` has sha256 {found} now", file_name(place));
                (State::Mismatch, Some(place.clone()), Some(note))
            }
            (None, Some(_)) => (State::Missing, None, Some("no longer where it was".to_owned())),
            (None, None) => (State::Claimed, None, Some("its bytes are not here".to_owned())),
        }
    }

    /// `DIR/FILE` in the traced file's folder and in the one above. The name is untrusted: only one that stays inside.
    fn places_by_name(&self, name: &str) -> Vec<PathBuf> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !inside {
            return Vec::new();
        }
        self.folder.ancestors().take(2).map(|folder| folder.join(name)).collect()
    }

    /// The digest of a regular file or a directory; `None` for everything else.
    pub fn hash(&mut self, path: &Path) -> Option<Sha256> {
        if let Some(known) = self.hashed.get(path) {
            return *known;
        }
        // Devices and pipes have no end.
        let found = match fs::metadata(path) {
            Ok(m) if m.is_file() && self.options.reuse_digests && self.claims.known_digest(path).is_some() => {
                self.claims.known_digest(path)
            }
            Ok(m) if m.is_file() || m.is_dir() => hash_path(path).ok(),
            _ => None,
        };
        self.hashed.insert(path.to_owned(), found);
        found
    }

    /// Why there is no step: nobody states one, or somebody states one about bytes that this path had before.
    pub fn why_nothing(&self, path: &Path, digest: Sha256) -> (State, Option<String>) {
        let name = file_name(path);
        if let Some(sidecar) = Sidecar::open(&sidecar_path(path)) {
            let subjects = || sidecar.statements().flat_map(Statement::subjects);
            let named = subjects().find(|(subject, _)| *subject == name);
            if let Some((subject, described)) = named.or_else(|| subjects().next()) {
                let what = if subject == name { String::new() } else { format!(" `{subject}` with") };
                let note = format!(
                    "no statement about these bytes; a sidecar is there but describes{what} sha256 {described}"
                );
                return (State::Mismatch, Some(note));
            }
        }
        let canonical = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        for store in self.claims.stores() {
            for (subject, described) in store.statements(MAX_SCANNED).iter().flat_map(Statement::subjects) {
                let was_here = || {
                    let places = store.places("locations", described);
                    places.iter().any(|place| fs::canonicalize(place).is_ok_and(|place| place == canonical))
                };
                if subject.rsplit('/').next() == Some(&name) && described != digest && was_here() {
                    let note = format!(
                        "no statement about these bytes; this path had sha256 {described} when it was recorded"
                    );
                    return (State::Mismatch, Some(note));
                }
            }
        }
        (State::Missing, Some("no statement about these bytes".to_owned()))
    }
}
