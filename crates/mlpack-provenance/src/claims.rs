//! Everything that sidecars and stores around some files say, looked up by digest.

use crate::object::{MAX_OBJECT_LEN, Object};
use crate::store::{DIR_NAME, sidecar_path};
use crate::{Error, RunRecord, Statement, Store};
use mlpack_fs::{Sha256, read_bounded};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest sidecar, in bytes.
const MAX_SIDECAR_LEN: u64 = 32 << 20;
/// Folders above a file in which a store is looked for, its own included.
const LEVELS: usize = 4;
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
        for (i, line) in bytes.split(|b| *b == b'\n').enumerate() {
            let origin = || format!("{} line {}", path.file_name().unwrap_or_default().to_string_lossy(), i + 1);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if line.len() as u64 > MAX_OBJECT_LEN {
                sidecar.faults.push(format!("{}: longer than {MAX_OBJECT_LEN} bytes", origin()));
                continue;
            }
            match Object::parse(line, origin) {
                Ok(Some(object)) => sidecar.insert(object),
                Ok(None) => {}
                Err(e) => sidecar.faults.push(format!("{}: {}", origin(), one_line(&e))),
            }
        }
        Some(sidecar)
    }

    fn insert(&mut self, object: Object) {
        let digest = object.digest();
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
            Object::Run(..) => None,
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

    /// Adds the sidecar of a file, and the stores in its folder and the folders above.
    pub fn look_around(&mut self, path: &Path) {
        let Ok(path) = std::path::absolute(path) else { return };
        let sidecar = sidecar_path(&path);
        if self.visited.insert(sidecar.clone()) {
            self.sidecars.extend(Sidecar::open(&sidecar));
        }
        for folder in path.ancestors().skip(1).take(LEVELS) {
            let dir = folder.join(DIR_NAME);
            let known = fs::canonicalize(&dir).unwrap_or(dir.clone());
            if dir.is_dir() && self.visited.insert(known) {
                self.stores.push(Store::beside(folder));
            }
        }
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
                    Ok(Some(Object::Run(..)) | None) => {}
                    Err(e) => faults.push(one_line(&e)),
                }
            }
        }
        // An index is only an index: what counts is what the statement says.
        found.retain(|_, statement| statement.subjects().any(|(_, digest)| digest == subject));
        (found.into_values().collect(), faults)
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
            Object::Statement(_) => false,
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

    /// The statements and run records that lead back from an artifact, nearest first, each once.
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
                chain.push(Object::Statement(statement));
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
