//! The store: a folder `.mlpack` beside outputs.
//!
//! ```text
//! .mlpack/objects/sha256/ab/<hex>                statements, run records and signatures, named by their digest
//! .mlpack/subjects/ab/<subject hex>/<hex>        empty: statement <hex> is about that subject (derivable)
//! .mlpack/signatures/ab/<statement hex>/<hex>    empty: bundle <hex> signs that statement (derivable)
//! .mlpack/locations/ab/<hex>/<hex of the text>   a path where bytes of that digest were seen; local, never stated
//! .mlpack/sources/ab/<record hex>/<hex of the text>   the run store that a record was read from; local, never stated
//! .mlpack/digests/ab/<hex of the path>           a large file's stamp and digest, so that it is not hashed again; local
//! ```
//!
//! **Invariant**: nothing in a store but `digests` is ever changed, so runs at the same time cannot lose each other's entries.

use crate::claims::{Claims, Sidecar};
use crate::object::{MAX_OBJECT_LEN, Object};
use crate::run::says_more;
use crate::sign::Bundle;
use crate::{Artifact, Dependency, Error, FoundRun, Statement, Step, StepKind};
use mlpack_fs::{FileStamp, Operation, Sha256, read_bounded, write_atomic};
use serde_json::{Map, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The folder's name.
pub(crate) const DIR_NAME: &str = ".mlpack";
/// How a sidecar's name ends.
pub(crate) const SIDECAR_ENDING: &str = ".claims.jsonl";
/// Most entries read of one index folder.
const MAX_ENTRIES: usize = 256;
/// Longest path kept.
const MAX_PATH_LEN: u64 = 4096;
/// Smaller files are hashed each time.
const MIN_KNOWN_LEN: u64 = 1 << 20;
/// Longest note of a digest.
const MAX_NOTE_LEN: u64 = 512;

/// A store. It is created by the first thing that is written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    // The folder that holds `.mlpack`.
    root: PathBuf,
}

impl Store {
    /// The store of outputs that lie in `folder`: `folder/.mlpack`.
    pub fn beside(folder: &Path) -> Store {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        Store { root: folder.to_owned() }
    }

    /// The store's own folder.
    pub fn dir(&self) -> PathBuf {
        self.root.join(DIR_NAME)
    }

    /// Records a step: its statement, what other stores and sidecars know about its inputs, and where the bytes of inputs
    /// and outputs are. The outputs must be under their final names.
    pub fn record(&self, step: &Step) -> Result<Statement, Error> {
        let statement = step.statement()?;
        for dependency in &step.dependencies {
            let (Some(digest), Some(path)) = (dependency.sha256, &dependency.path) else { continue };
            self.adopt(digest, path)?;
            self.remember("locations", digest, path)?;
        }
        self.put(&Object::Statement(statement.clone()))?;
        for output in &step.outputs {
            self.remember("locations", output.sha256, &output.path)?;
        }
        Ok(statement)
    }

    /// Notes the digest of a file that had this stamp when it was read. A file that has changed since, or a small one, is
    /// left out.
    pub fn note_digest(&self, path: &Path, stamp: &FileStamp, sha256: Sha256) -> Result<(), Error> {
        let Ok(path) = fs::canonicalize(path) else { return Ok(()) };
        if stamp.byte_len() < MIN_KNOWN_LEN || FileStamp::of(&path).ok().as_ref() != Some(stamp) {
            return Ok(());
        }
        let entry = self.note_path(&path);
        if self.known_digest(&path) == Some(sha256) {
            return Ok(());
        }
        let parent = entry.parent().expect("an entry is in a folder");
        fs::create_dir_all(parent).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, parent, e))?;
        write_atomic(&entry, format!("{stamp} {sha256}\n").as_bytes())?;
        Ok(())
    }

    /// The digest that was noted for a file, when nothing tells that it has changed since.
    pub fn known_digest(&self, path: &Path) -> Option<Sha256> {
        let path = fs::canonicalize(path).ok()?;
        let entry = self.note_path(&path);
        let text = String::from_utf8(read_bounded(&entry, MAX_NOTE_LEN).ok()?).ok()?;
        let (stamp, sha256) = text.trim_end().split_once(' ')?;
        let now = FileStamp::of(&path).ok()?;
        let fits = now.to_string() == stamp && now.is_long_before(&FileStamp::of(&entry).ok()?);
        sha256.parse().ok().filter(|_| fits)
    }

    fn note_path(&self, path: &Path) -> PathBuf {
        let hex = Sha256::of(path.as_os_str().as_encoded_bytes()).to_string();
        self.dir().join("digests").join(&hex[..2]).join(&hex)
    }

    /// Keeps a signature over a statement.
    pub fn add_signature(&self, statement: &Statement, bundle: Bundle) -> Result<(), Error> {
        self.put(&Object::signed(bundle, statement.clone()))
    }

    /// Records which run trained an adapter, so that the adapter's digest leads to the run from now on, also from
    /// artifacts made earlier. `weights` are the adapter's weight files alone: a configuration that two adapters share
    /// would lead to both runs. `bases` are the base's weights, where somebody says on which bytes the adapter was trained.
    /// Returns the dependency for the steps that use the adapter; an unknown run records nothing.
    pub fn record_run(&self, run: &FoundRun, weights: &[Artifact], bases: &[Dependency]) -> Result<Dependency, Error> {
        if let FoundRun::Known(known) = run {
            let record = &known.record;
            self.put(&Object::Run(Box::new(record.clone()), record.to_bytes()))?;
            for (digest, path) in &known.seen {
                self.remember("locations", *digest, path)?;
            }
            if let Some(db) = &known.store {
                self.remember("sources", record.digest(), db)?;
            }
            let named_by = if known.named_by_caller { "caller" } else { "files beside the adapter" };
            let parameters = Map::from_iter([("run-named-by".to_owned(), json!(named_by))]);
            let dependencies = [&[run.dependency()], bases].concat();
            let mut step = Step::new(StepKind::Train, parameters, dependencies);
            step.outputs = weights.to_vec();
            // A statement that names the base as well says all that this one would.
            let mut said = false;
            for of in weights {
                said |= bases.is_empty() && says_more(&of.path, of.sha256, record.digest())?;
            }
            if !said {
                self.record(&step)?;
            }
        }
        Ok(run.dependency())
    }

    /// Writes `<artifact>.claims.jsonl` beside the artifact: everything that is known about its chain, one object a line,
    /// so that the artifact can travel without the store. Replaces an earlier sidecar; returns its path.
    pub fn write_sidecar(&self, artifact: &Artifact) -> Result<PathBuf, Error> {
        self.write_sidecar_of(artifact.sha256, &artifact.path, &Claims::default())
    }

    /// The same, with what `others` know besides this store. A statement that is signed is there in its bundles alone.
    pub(crate) fn write_sidecar_of(&self, artifact: Sha256, path: &Path, others: &Claims) -> Result<PathBuf, Error> {
        let mut chain = Claims::of_store(self.clone()).chain(artifact)?;
        for object in others.chain(artifact)? {
            if !chain.contains(&object) {
                chain.push(object);
            }
        }
        let signed: BTreeSet<Sha256> = chain.iter().filter_map(|object| Some(object.signs()?.digest())).collect();
        let mut bytes = Vec::new();
        for object in chain.iter().filter(|object| !signed.contains(&object.digest())) {
            bytes.extend_from_slice(object.bytes());
            bytes.push(b'\n');
        }
        let path = sidecar_path(path);
        write_atomic(&path, &bytes)?;
        Ok(path)
    }

    /// Copies what is known beside `path` about the bytes with that digest, and where they come from.
    fn adopt(&self, digest: Sha256, path: &Path) -> Result<(), Error> {
        let mut claims = Claims::default();
        claims.look_around(path);
        for object in claims.chain(digest)? {
            self.put(&object)?;
            for place in claims.sources(object.digest()) {
                self.remember("sources", object.digest(), &place)?;
            }
            let Object::Statement(statement) = &object else { continue };
            let inputs = statement.build.iter().flat_map(|b| &b.dependencies).filter_map(|d| d.sha256);
            for known in inputs.chain(statement.subjects().map(|(_, digest)| digest)) {
                for place in claims.locations(known) {
                    self.remember("locations", known, &place)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn put(&self, object: &Object) -> Result<(), Error> {
        let digest = object.digest();
        let path = self.object_path(digest);
        if !path.is_file() {
            write_once(&path, object.bytes())?;
        }
        match object {
            Object::Statement(statement) => {
                for (_, subject) in statement.subjects() {
                    self.index("subjects", subject, digest)?;
                }
            }
            Object::Signed(signed) => {
                self.put(&Object::Statement(signed.1.clone()))?;
                self.index("signatures", signed.1.digest(), digest)?;
            }
            Object::Run(..) => {}
        }
        Ok(())
    }

    fn index(&self, kind: &str, key: Sha256, object: Sha256) -> Result<(), Error> {
        let dir = self.entry_dir(kind, key);
        fs::create_dir_all(&dir).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, &dir, e))?;
        let entry = dir.join(object.to_string());
        fs::File::create(&entry).map_err(|e| mlpack_fs::Error::io(Operation::Create, &entry, e))?;
        Ok(())
    }

    /// The object of that name: checked against its name.
    pub(crate) fn object(&self, digest: Sha256) -> Result<Option<Object>, Error> {
        let path = self.object_path(digest);
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_OBJECT_LEN)?;
        let found = Sha256::of(&bytes);
        if found != digest {
            return Err(Error::Damaged { path, expected: digest, found });
        }
        Object::parse(&bytes, || path.display().to_string())
    }

    /// Digests of the statements that the index lists for a subject, in order.
    pub(crate) fn about(&self, subject: Sha256) -> Vec<Sha256> {
        names(&self.entry_dir("subjects", subject)).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Digests of the bundles that the index lists for a statement, in order.
    pub(crate) fn signatures(&self, statement: Sha256) -> Vec<Sha256> {
        names(&self.entry_dir("signatures", statement)).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Every object of the store whose bytes are whole, up to a limit, in the order of digests.
    pub(crate) fn objects(&self, limit: usize) -> Vec<Object> {
        let objects = self.dir().join("objects/sha256");
        let digests = names(&objects).into_iter().flat_map(|prefix| names(&objects.join(prefix)));
        digests.take(limit).filter_map(|name| self.object(name.parse().ok()?).ok().flatten()).collect()
    }

    /// Every statement among them.
    pub(crate) fn statements(&self, limit: usize) -> Vec<Statement> {
        let statement = |object| match object {
            Object::Statement(statement) => Some(statement),
            Object::Run(..) | Object::Signed(_) => None,
        };
        self.objects(limit).into_iter().filter_map(statement).collect()
    }

    /// Paths of `kind` (`locations` or `sources`) for a digest, resolved, in a fixed order.
    pub(crate) fn places(&self, kind: &str, digest: Sha256) -> Vec<PathBuf> {
        let dir = self.entry_dir(kind, digest);
        let read = |name: &String| String::from_utf8(read_bounded(&dir.join(name), MAX_PATH_LEN).ok()?).ok();
        let mut texts: Vec<String> = names(&dir).iter().filter_map(read).collect();
        texts.sort();
        texts.iter().map(|text| tidy(&self.root.join(text))).collect()
    }

    /// Notes a path for a digest. A path that cannot be written down, or that is not there, is left out: the notes only
    /// help to find bytes again.
    fn remember(&self, kind: &str, digest: Sha256, path: &Path) -> Result<(), Error> {
        fs::create_dir_all(self.dir()).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, self.dir(), e))?;
        let (Ok(path), Ok(root)) = (fs::canonicalize(path), fs::canonicalize(&self.root)) else { return Ok(()) };
        let relative = relative(&root, &path);
        let Some(text) = relative.to_str().filter(|text| text.len() as u64 <= MAX_PATH_LEN) else { return Ok(()) };
        let entry = self.entry_dir(kind, digest).join(Sha256::of(text.as_bytes()).to_string());
        if entry.is_file() { Ok(()) } else { write_once(&entry, text.as_bytes()) }
    }

    fn object_path(&self, digest: Sha256) -> PathBuf {
        let hex = digest.to_string();
        self.dir().join("objects/sha256").join(&hex[..2]).join(&hex)
    }

    fn entry_dir(&self, kind: &str, digest: Sha256) -> PathBuf {
        let hex = digest.to_string();
        self.dir().join(kind).join(&hex[..2]).join(&hex)
    }
}

/// The sidecar of an artifact: `<artifact>.claims.jsonl`.
pub fn sidecar_path(artifact: &Path) -> PathBuf {
    // A path that ends with `/` still names the directory.
    let mut path: std::ffi::OsString = artifact.components().as_path().as_os_str().to_owned();
    path.push(SIDECAR_ENDING);
    PathBuf::from(path)
}

/// The signatures in the claims of an artifact, each with its statement, in the order of their digests. What cannot be read
/// is left out: nothing is believed for being there.
pub fn signatures_of(artifact: &Path) -> Vec<(Bundle, Statement)> {
    let sidecar = Sidecar::open(&sidecar_path(artifact));
    sidecar.iter().flat_map(Sidecar::bundles).cloned().collect()
}

/// The bundle of the step that made an artifact: `<artifact>.sigstore.json`.
pub(crate) fn bundle_path(artifact: &Path) -> PathBuf {
    let mut path: std::ffi::OsString = artifact.components().as_path().as_os_str().to_owned();
    path.push(".sigstore.json");
    PathBuf::from(path)
}

/// Writes a file that is named by its content. Another process that writes it at this moment writes the same bytes.
fn write_once(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    match write_atomic(path, bytes) {
        Ok(_) | Err(mlpack_fs::Error::Busy { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Names in a folder, sorted, at most [`MAX_ENTRIES`]; none when it cannot be listed.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names.truncate(MAX_ENTRIES);
    names
}

/// `path` as seen from `root`, both canonical; absolute when they share no folder.
fn relative(root: &Path, path: &Path) -> PathBuf {
    let shared = root.components().zip(path.components()).take_while(|(a, b)| a == b).count();
    if shared <= 1 {
        return path.to_owned();
    }
    let up = root.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(path.components().skip(shared)).collect()
}

/// A path without `DIR/..`, so that it reads well; both ends were canonical when it was written.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match (part, tidy.components().next_back()) {
            (Component::ParentDir, Some(Component::Normal(_))) => {
                tidy.pop();
            }
            (Component::CurDir, _) => {}
            _ => tidy.push(part),
        }
    }
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_kept_relative_to_the_store_where_possible() {
        let r = |root: &str, path: &str| relative(Path::new(root), Path::new(path)).display().to_string();
        assert_eq!(r("/w/out", "/w/out/m.gguf"), "m.gguf");
        assert_eq!(r("/w/out", "/w/base/model.safetensors"), "../base/model.safetensors");
        assert_eq!(r("/w/out", "/data/base"), "/data/base");
        assert_eq!(tidy(Path::new("/w/out/../base/x")), Path::new("/w/base/x"));
        assert_eq!(tidy(Path::new("../../base/./x")), Path::new("../../base/x"));
    }

    #[test]
    fn a_sidecar_is_named_after_its_artifact() {
        assert_eq!(sidecar_path(Path::new("out/m.gguf")), Path::new("out/m.gguf.claims.jsonl"));
        assert_eq!(sidecar_path(Path::new("out/merged/")), Path::new("out/merged.claims.jsonl"));
    }
}
