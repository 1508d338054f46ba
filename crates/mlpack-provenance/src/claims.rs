//! Everything that sidecars and stores around some files say, looked up by digest.

use crate::object::{MAX_OBJECT_LEN, Object};
use crate::sign::Bundle;
use crate::store::{DIR_NAME, SIDECAR_ENDING, bundle_path, sidecar_path};
use crate::{Error, RunRecord, Statement, Store};
use mlpack_fs::{Operation, Sha256, read_bounded};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest sidecar, in bytes.
const MAX_SIDECAR_LEN: u64 = 32 << 20;
/// Folders above a file in which a store is looked for, its own included.
const LEVELS: usize = 4;
/// Folders below a folder in which stores and sidecars are looked for.
const LEVELS_BELOW: usize = 2;
/// Most entries of folders, and most objects of a store, that are looked at.
const MAX_SEEN: usize = 65_536;
/// Most objects of one chain.
const MAX_CHAIN: usize = 4096;

/// Sidecars and stores.
#[derive(Default)]
pub(crate) struct Claims {
    stores: Vec<Store>,
    sidecars: Vec<Sidecar>,
    visited: BTreeSet<PathBuf>,
}

/// A sidecar, read.
#[derive(Default)]
pub(crate) struct Sidecar {
    pub path: PathBuf,
    objects: BTreeMap<Sha256, Object>,
    // Subject to statements.
    about: BTreeMap<Sha256, BTreeSet<Sha256>>,
    // Statement to bundles.
    signatures: BTreeMap<Sha256, BTreeSet<Sha256>>,
    /// What is wrong with the file or with lines of it.
    pub faults: Vec<String>,
}

impl Sidecar {
    /// Reads a sidecar; `None` when there is none. Lines that are JSON but neither statements nor run records are left to
    /// those who know them.
    pub fn open(path: &Path) -> Option<Sidecar> {
        if !path.is_file() {
            return None;
        }
        let mut sidecar = Sidecar { path: path.to_owned(), ..Sidecar::default() };
        let bytes = match read_bounded(path, MAX_SIDECAR_LEN) {
            Ok(bytes) => bytes,
            Err(e) => {
                sidecar.faults.push(e.to_string());
                return Some(sidecar);
            }
        };
        sidecar.read(&bytes);
        Some(sidecar)
    }

    fn read(&mut self, bytes: &[u8]) {
        let path = self.path.clone();
        for (i, line) in bytes.split(|b| *b == b'\n').enumerate() {
            let origin = || format!("{} line {}", path.file_name().unwrap_or_default().to_string_lossy(), i + 1);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if line.len() as u64 > MAX_OBJECT_LEN {
                self.faults.push(format!("{}: longer than {MAX_OBJECT_LEN} bytes", origin()));
                continue;
            }
            match Object::parse(line, origin) {
                Ok(Some(object)) => self.insert(object),
                Ok(None) => {}
                Err(e) => self.faults.push(format!("{}: {}", origin(), one_line(&e))),
            }
        }
    }

    /// Reads a file with one bundle; `None` when there is none.
    pub fn open_bundle(path: &Path) -> Option<Sidecar> {
        if !path.is_file() {
            return None;
        }
        let mut sidecar = Sidecar { path: path.to_owned(), ..Sidecar::default() };
        let read = read_bounded(path, MAX_OBJECT_LEN).map_err(Error::from);
        match read.and_then(|bytes| Object::parse(&bytes, || path.display().to_string())) {
            Ok(Some(object)) => sidecar.insert(object),
            Ok(None) => {}
            Err(e) => sidecar.faults.push(one_line(&e)),
        }
        Some(sidecar)
    }

    fn insert(&mut self, object: Object) {
        let digest = object.digest();
        if let Object::Signed(signed) = &object {
            self.signatures.entry(signed.1.digest()).or_default().insert(digest);
            self.insert(Object::Statement(signed.1.clone()));
        }
        if let Object::Statement(statement) = &object {
            for (_, subject) in statement.subjects() {
                self.about.entry(subject).or_default().insert(digest);
            }
        }
        self.objects.insert(digest, object);
    }

    fn statements_about(&self, subject: Sha256) -> impl Iterator<Item = &Statement> {
        self.about.get(&subject).into_iter().flatten().filter_map(|digest| match self.objects.get(digest) {
            Some(Object::Statement(statement)) => Some(statement),
            _ => None,
        })
    }

    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.objects.values().filter_map(|object| match object {
            Object::Statement(statement) => Some(statement),
            Object::Run(..) | Object::Signed(_) => None,
        })
    }

    /// Every bundle with its statement.
    pub fn bundles(&self) -> impl Iterator<Item = &(Bundle, Statement)> {
        self.objects.values().filter_map(|object| match object {
            Object::Signed(signed) => Some(&**signed),
            Object::Run(..) | Object::Statement(_) => None,
        })
    }
}

/// A run record, or why there is none.
pub(crate) enum FoundRecord {
    /// With its exact bytes.
    Found(Box<RunRecord>, Vec<u8>),
    Damaged(String),
    Missing,
}

impl Claims {
    pub fn of_store(store: Store) -> Claims {
        Claims { stores: vec![store], ..Claims::default() }
    }

    /// Adds the sidecar of a file and the bundle beside it, and the stores in its folder and the folders above.
    pub fn look_around(&mut self, path: &Path) {
        let Ok(path) = std::path::absolute(path) else { return };
        let sidecar = sidecar_path(&path);
        if self.visited.insert(sidecar.clone()) {
            self.sidecars.extend(Sidecar::open(&sidecar));
            self.sidecars.extend(Sidecar::open_bundle(&bundle_path(&path)));
        }
        for folder in path.ancestors().skip(1).take(LEVELS) {
            let dir = folder.join(DIR_NAME);
            let known = fs::canonicalize(&dir).unwrap_or(dir.clone());
            if dir.is_dir() && self.visited.insert(known) {
                self.stores.push(Store::beside(folder));
            }
        }
    }

    /// Adds a sidecar that is named otherwise here, such as a blob of an image.
    pub fn add_sidecar(&mut self, path: &Path, name: &str) {
        if let Some(mut sidecar) = Sidecar::open(path) {
            sidecar.path = PathBuf::from(name);
            self.sidecars.push(sidecar);
        }
    }

    /// The same from its bytes.
    pub fn add_sidecar_bytes(&mut self, bytes: &[u8], name: &str) {
        let mut sidecar = Sidecar { path: PathBuf::from(name), ..Sidecar::default() };
        sidecar.read(bytes);
        self.sidecars.push(sidecar);
    }

    /// Adds one bundle.
    pub fn add_bundle(&mut self, origin: &str, bytes: &[u8]) {
        let mut sidecar = Sidecar { path: PathBuf::from(origin), ..Sidecar::default() };
        match Object::parse(bytes, || origin.to_owned()) {
            Ok(Some(object)) => sidecar.insert(object),
            Ok(None) => {}
            Err(e) => sidecar.faults.push(one_line(&e)),
        }
        self.sidecars.push(sidecar);
    }

    /// Adds the stores in a folder, in the folders above and in those two levels below, and every sidecar that lies
    /// in one of the latter.
    pub fn look_in(&mut self, folder: &Path) -> Result<(), Error> {
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        self.look_around(&absolute.join(DIR_NAME));
        let mut folders = vec![(absolute, 0)];
        let mut seen = 0;
        while let Some((folder, depth)) = folders.pop() {
            let list_error = |e| mlpack_fs::Error::io(Operation::List, &folder, e);
            let mut entries: Vec<PathBuf> = fs::read_dir(&folder)
                .map_err(list_error)?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<_, _>>()
                .map_err(list_error)?;
            entries.sort();
            for entry in entries {
                let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
                seen += 1;
                if seen > MAX_SEEN {
                    return Err(Error::TooMany { path: folder, what: "entries", limit: MAX_SEEN });
                }
                if name == DIR_NAME {
                    let known = fs::canonicalize(&entry).unwrap_or(entry.clone());
                    if entry.is_dir() && self.visited.insert(known) {
                        self.stores.push(Store::beside(&folder));
                    }
                } else if entry.is_dir() && depth < LEVELS_BELOW && !name.starts_with('.') {
                    folders.push((entry, depth + 1));
                } else if let Some(artifact) = name.strip_suffix(SIDECAR_ENDING) {
                    self.look_around(&folder.join(artifact));
                }
            }
        }
        Ok(())
    }

    /// Every statement and run record, each once, in the order of their digests.
    pub fn all(&self) -> Vec<Object> {
        let mut all: BTreeMap<Sha256, Object> = BTreeMap::new();
        for sidecar in &self.sidecars {
            all.extend(sidecar.objects.iter().map(|(digest, object)| (*digest, object.clone())));
        }
        for store in &self.stores {
            all.extend(store.objects(MAX_SEEN).into_iter().map(|object| (object.digest(), object)));
        }
        all.into_values().filter(|object| object.signs().is_none()).collect()
    }

    /// The digest of a file that was hashed before, when nothing tells that it has changed since.
    pub fn known_digest(&self, path: &Path) -> Option<Sha256> {
        self.stores.iter().find_map(|store| store.known_digest(path))
    }

    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// Faults of the sidecars read so far: where, and what.
    pub fn faults(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.sidecars.iter().flat_map(|s| s.faults.iter().map(|fault| (s.path.as_path(), fault.as_str())))
    }

    /// The statements about a digest, each once, in the order of their digests, and the faults met on the way.
    pub fn about(&self, subject: Sha256) -> (Vec<Statement>, Vec<String>) {
        let mut found: BTreeMap<Sha256, Statement> = BTreeMap::new();
        let mut faults = Vec::new();
        for statement in self.sidecars.iter().flat_map(|sidecar| sidecar.statements_about(subject)) {
            found.insert(statement.digest(), statement.clone());
        }
        for store in &self.stores {
            for digest in store.about(subject) {
                match store.object(digest) {
                    Ok(Some(Object::Statement(statement))) => {
                        found.insert(digest, statement);
                    }
                    Ok(Some(Object::Run(..) | Object::Signed(_)) | None) => {}
                    Err(e) => faults.push(one_line(&e)),
                }
            }
        }
        // An index is only an index: what counts is what the statement says.
        found.retain(|_, statement| statement.subjects().any(|(_, digest)| digest == subject));
        (found.into_values().collect(), faults)
    }

    /// The bundles over a statement, each once, in the order of their digests, and the faults met on the way.
    pub fn bundles(&self, statement: Sha256) -> (Vec<Bundle>, Vec<String>) {
        let mut found: BTreeMap<Sha256, Bundle> = BTreeMap::new();
        let mut faults = Vec::new();
        for sidecar in &self.sidecars {
            for digest in sidecar.signatures.get(&statement).into_iter().flatten() {
                if let Some(Object::Signed(signed)) = sidecar.objects.get(digest) {
                    found.insert(*digest, signed.0.clone());
                }
            }
        }
        for store in &self.stores {
            for digest in store.signatures(statement) {
                match store.object(digest) {
                    Ok(Some(Object::Signed(signed))) if signed.1.digest() == statement => {
                        found.insert(digest, signed.0);
                    }
                    Ok(_) => {}
                    Err(e) => faults.push(one_line(&e)),
                }
            }
        }
        (found.into_values().collect(), faults)
    }

    /// Every bundle of the sidecars read so far, with its sidecar.
    pub fn sidecar_bundles(&self) -> impl Iterator<Item = (&Path, &(Bundle, Statement))> {
        self.sidecars.iter().flat_map(|s| s.bundles().map(|bundle| (s.path.as_path(), bundle)))
    }

    /// The run record with that digest. When only another record of the same run is there, that is told.
    pub fn record(&self, digest: Sha256, uri: Option<&str>) -> FoundRecord {
        for sidecar in &self.sidecars {
            if let Some(Object::Run(record, bytes)) = sidecar.objects.get(&digest) {
                return FoundRecord::Found(record.clone(), bytes.clone());
            }
        }
        let mut damage = None;
        for store in &self.stores {
            match store.object(digest) {
                Ok(Some(Object::Run(record, bytes))) => return FoundRecord::Found(record, bytes),
                Ok(_) => {}
                Err(e) => damage = Some(one_line(&e)),
            }
        }
        let same_run = |object: &Object| match object {
            Object::Run(record, _) => Some(record.source.uri.as_str()) == uri,
            Object::Statement(_) | Object::Signed(_) => false,
        };
        for sidecar in &self.sidecars {
            if let Some((other, _)) = sidecar.objects.iter().find(|(_, object)| same_run(object)) {
                damage.get_or_insert(format!("the sidecar's record of this run has sha256 {other}"));
            }
        }
        damage.map_or(FoundRecord::Missing, FoundRecord::Damaged)
    }

    /// Paths where bytes of that digest were seen.
    pub fn locations(&self, digest: Sha256) -> Vec<PathBuf> {
        self.places("locations", digest)
    }

    /// Run stores that the record with that digest was read from.
    pub fn sources(&self, record: Sha256) -> Vec<PathBuf> {
        self.places("sources", record)
    }

    fn places(&self, kind: &str, digest: Sha256) -> Vec<PathBuf> {
        let mut places = Vec::new();
        for place in self.stores.iter().flat_map(|store| store.places(kind, digest)) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    /// The statements and run records that lead back from an artifact, nearest first, each once; after each statement the
    /// bundles over it.
    pub fn chain(&self, artifact: Sha256) -> Result<Vec<Object>, Error> {
        let mut chain = Vec::new();
        let mut queued = BTreeSet::from([artifact]);
        let mut queue = VecDeque::from([artifact]);
        while let Some(digest) = queue.pop_front() {
            if chain.len() >= MAX_CHAIN {
                break;
            }
            let mut next = Vec::new();
            for statement in self.about(digest).0 {
                if statement.passes_through(digest) || !queued.insert(statement.digest()) {
                    continue;
                }
                next.extend(statement.build.iter().flat_map(|b| &b.dependencies).map(|d| (d.sha256, d.uri.clone())));
                let (bundles, _) = self.bundles(statement.digest());
                chain.push(Object::Statement(statement.clone()));
                chain.extend(bundles.into_iter().map(|bundle| Object::signed(bundle, statement.clone())));
            }
            for (dependency, uri) in next {
                let Some(dependency) = dependency.filter(|d| queued.insert(*d)) else { continue };
                match self.record(dependency, uri.as_deref()) {
                    FoundRecord::Found(record, bytes) => chain.push(Object::Run(record, bytes)),
                    FoundRecord::Damaged(_) | FoundRecord::Missing => queue.push_back(dependency),
                }
            }
        }
        Ok(chain)
    }
}

/// An error's text on one line, for a place in a list.
fn one_line(error: &Error) -> String {
    error.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ")
}
