//! OpenSSF Model Signing v1.0 (ossf/model-signing-spec; checked against model_signing 1.1.1): one signature over the digest
//! of every file of a directory, or of one file.
//!
//! ```text
//! statement: one subject, sha256 over the raw digests of the resources in listed order
//! predicate: { resources: [{ name, algorithm, digest }],
//!              serialization: { method: files | shards, hash_type, allow_symlinks, ignore_paths, shard_size } }
//! ```

use super::bundle::{Bundle, HintStyle};
use super::key::{KeyAlgorithm, PrivateKey, PublicKey};
use crate::tree::{GIT_FILES, IGNORED, hash_listed, list_tree};
use crate::{Error, json};
use mlpack_fs::{MappedFile, Sha256, hash_file, hash_files, read_bounded};
use mlpack_tensor::{Escaped, join_limited};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// `predicateType` of a model signature.
pub(crate) const MODEL_SIGNING_TYPE: &str = "https://model_signing/signature/v1.0";
/// The name of a signature in the directory that it is about.
pub const MODEL_SIGNATURE: &str = "model.sig";
/// Longest signature; one of 100 000 files has about 30 MB.
pub(crate) const MAX_SIGNATURE_LEN: u64 = 64 << 20;
/// Most resources of one signature.
const MAX_RESOURCES: usize = 1_000_000;
/// Files named in a message before the rest is counted.
const SHOWN: usize = 5;
/// How the reference implementation names the one file of a model that is a file; the specification says its name.
const ONE_FILE: &str = ".";

/// One part of a signed model.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The file, relative, `/` between parts; `.` where the model is one file.
    pub name: String,
    /// What is wrong with it; `None` when its bytes are the signed ones.
    pub fault: Option<&'static str>,
}

/// What a model signature says about the files that are there.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCheck {
    /// The signed statement in its bundle.
    pub bundle: Bundle,
    /// The digest over all resources, which for a directory is its tree digest.
    pub root: Sha256,
    /// Every signed file and every file that is there, in the order of their names.
    pub resources: Vec<Resource>,
}

impl ModelCheck {
    /// Whether the files are the signed ones, all of them and no others. The signature itself is another question.
    pub fn fits(&self) -> bool {
        self.faults().next().is_none()
    }

    /// The files that are not as signed.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.resources.iter().filter_map(|r| Some((r.name.as_str(), r.fault?)))
    }

    /// The faults in a sentence; `None` when there is none.
    pub fn note(&self) -> Option<String> {
        let faults: Vec<String> = self.faults().map(|(name, fault)| format!("`{}` {fault}", Escaped(name))).collect();
        if faults.is_empty() {
            return None;
        }
        let shown = faults.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        match faults.len().saturating_sub(SHOWN) {
            0 => Some(shown),
            more => Some(format!("{shown} and {more} more")),
        }
    }

    /// Whether the signature is this key's.
    pub fn verifies(&self, key: &PublicKey) -> bool {
        self.bundle.verifies(key)
    }
}

/// Signs a directory, or one file, and returns the bundle that belongs into `signature`. What is at the path `signature`
/// is not part of the model.
pub fn sign_model(model: &Path, signature: &Path, key: &PrivateKey) -> Result<Bundle, Error> {
    if key.algorithm() == KeyAlgorithm::Ed25519 {
        return Err(Error::UnsignableKey { algorithm: key.algorithm().name() });
    }
    Ok(Bundle::sign_as(&statement(model, signature)?, key, HintStyle::ModelSigning))
}

/// Where the signature of a model is: `DIR/model.sig`, or `FILE.sig`.
pub fn model_signature_path(model: &Path) -> PathBuf {
    if model.is_dir() {
        return model.join(MODEL_SIGNATURE);
    }
    let mut path = model.as_os_str().to_owned();
    path.push(".sig");
    PathBuf::from(path)
}

fn statement(model: &Path, signature: &Path) -> Result<Vec<u8>, Error> {
    let absolute = std::path::absolute(model).unwrap_or_else(|_| model.to_owned());
    let name = absolute.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (files, serialization) = if model.is_dir() {
        let ignored = ignored_for_signing(model, signature);
        let listed = list_tree(model, &ignored)?;
        let allow_symlinks = listed.iter().any(|file| file.is_link);
        let files = hash_listed(listed)?;
        let serialization = json!({
            "method": "files", "hash_type": "sha256", "allow_symlinks": allow_symlinks, "ignore_paths": ignored,
        });
        (files, serialization)
    } else {
        let serialization = json!({"method": "files", "hash_type": "sha256", "allow_symlinks": false});
        (vec![(ONE_FILE.to_owned(), hash_file(model)?.0)], serialization)
    };
    if files.is_empty() {
        return Err(Error::EmptyModel { path: model.to_owned() });
    }
    let root = Sha256::of_parts(files.iter().map(|(_, digest)| digest.as_bytes().as_slice()));
    let resources: Vec<Value> = files
        .iter()
        .map(|(name, digest)| json!({"name": name, "algorithm": "sha256", "digest": digest.to_string()}))
        .collect();
    Ok(json::canonical(&json!({
        "_type": crate::STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root.to_string()}}],
        "predicateType": MODEL_SIGNING_TYPE,
        "predicate": {"resources": resources, "serialization": serialization},
    })))
}

/// What is not part of a model: what a tree digest leaves out, and the signature itself when it is inside.
fn ignored_for_signing(model: &Path, signature: &Path) -> Vec<String> {
    let mut ignored: Vec<String> = IGNORED.iter().map(|name| (*name).to_owned()).collect();
    if let Some(inside) = name_inside(model, signature).filter(|name| !ignored.contains(name)) {
        ignored.push(inside);
    }
    ignored.sort();
    ignored
}

fn name_inside(dir: &Path, path: &Path) -> Option<String> {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let inside = absolute(path)?.strip_prefix(absolute(dir)?).ok()?.to_owned();
    let parts: Option<Vec<&str>> = inside.iter().map(|part| part.to_str()).collect();
    parts.map(|parts| parts.join("/"))
}

/// Compares a directory, or one file, with what the signature at `signature` says about it. Whether the signature is
/// somebody's is for [`ModelCheck::verifies`] to say.
pub fn check_model(model: &Path, signature: &Path) -> Result<ModelCheck, Error> {
    let origin = signature.display().to_string();
    let bundle = Bundle::parse(&read_bounded(signature, MAX_SIGNATURE_LEN)?, &origin)?;
    let signed = Signed::parse(&bundle, &origin)?;
    let mut resources = if model.is_dir() {
        let mut ignored = signed.ignored.clone();
        ignored.extend(GIT_FILES.iter().map(|name| (*name).to_owned()));
        ignored.extend(name_inside(model, signature));
        let listed = list_tree(model, &ignored)?;
        let mut checked = signed.check(|name| Some(model.join(name)))?;
        for file in listed.into_iter().filter(|file| !signed.parts.contains_key(&file.name)) {
            checked.push(Resource { name: file.name, fault: Some("is not signed") });
        }
        checked
    } else {
        let own = model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        signed.check(|name| (name == ONE_FILE || name == own).then(|| model.to_owned()))?
    };
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(ModelCheck { bundle, root: signed.root, resources })
}

/// What a signature says, checked for itself.
struct Signed {
    root: Sha256,
    ignored: Vec<String>,
    /// Files with their parts in order: start, end and digest; one part without an end for a whole file.
    parts: BTreeMap<String, Vec<(u64, Option<u64>, Sha256)>>,
}

impl Signed {
    fn parse(bundle: &Bundle, origin: &str) -> Result<Signed, Error> {
        let broken = |field, rule, found: String| Error::NotABundle { origin: origin.to_owned(), field, rule, found };
        let value =
            json::parse(bundle.payload()).map_err(|source| Error::Json { origin: origin.to_owned(), source })?;
        let wire: WireStatement =
            serde_json::from_value(value).map_err(|source| Error::Json { origin: origin.to_owned(), source })?;
        if wire.predicate_type != MODEL_SIGNING_TYPE {
            return Err(broken("predicateType", MODEL_SIGNING_TYPE, wire.predicate_type));
        }
        let [subject] = wire.subject.as_slice() else {
            return Err(broken("subject", "exactly one subject", wire.subject.len().to_string()));
        };
        let not_a_digest = |field, found: &str| broken(field, "64 lowercase hexadecimal digits", found.to_owned());
        let root = subject.digest.get("sha256").map_or("", String::as_str);
        let root: Sha256 = root.parse().map_err(|_| not_a_digest("subject.digest.sha256", root))?;
        let shards = match wire.predicate.serialization.method.as_str() {
            "files" => false,
            "shards" => true,
            other => return Err(broken("serialization.method", "files or shards", other.to_owned())),
        };
        if wire.predicate.resources.len() > MAX_RESOURCES {
            let found = wire.predicate.resources.len().to_string();
            return Err(broken("resources", "at most 1000000 resources", found));
        }
        let mut parts: BTreeMap<String, Vec<(u64, Option<u64>, Sha256)>> = BTreeMap::new();
        let mut digests = Vec::with_capacity(wire.predicate.resources.len());
        for resource in wire.predicate.resources {
            if resource.algorithm != "sha256" {
                return Err(broken("resources.algorithm", "sha256", resource.algorithm));
            }
            let digest: Sha256 =
                resource.digest.parse().map_err(|_| not_a_digest("resources.digest", &resource.digest))?;
            let (name, start, end) = if shards {
                let range = shard(&resource.name);
                let (name, start, end) =
                    range.ok_or_else(|| broken("resources.name", "PATH:START:END", resource.name.clone()))?;
                (name.to_owned(), start, Some(end))
            } else {
                (resource.name, 0, None)
            };
            let inside = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
            if name != ONE_FILE && (name.is_empty() || !inside) {
                return Err(broken("resources.name", "a relative path without `.` and `..`", name));
            }
            digests.push(digest);
            parts.entry(name).or_default().push((start, end, digest));
        }
        let found = Sha256::of_parts(digests.iter().map(|digest| digest.as_bytes().as_slice()));
        if found != root {
            return Err(broken("subject.digest.sha256", "the digest over all resources", root.to_string()));
        }
        for list in parts.values_mut() {
            list.sort_unstable_by_key(|(start, ..)| *start);
            let whole = list.len() == 1 && list[0].1.is_none();
            let mut next = 0;
            let chained = list.iter().all(|(start, end, _)| {
                let fits = *start == next && end.is_some_and(|end| end > *start);
                next = end.unwrap_or(0);
                fits
            });
            if !whole && !chained {
                let names = join_limited(parts.keys().map(String::as_str), SHOWN);
                return Err(broken("resources.name", "each part of each file once", names));
            }
        }
        let inside = |path: &String| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        let ignored = wire.predicate.serialization.ignore_paths.into_iter().filter(inside).collect();
        Ok(Signed { root, ignored, parts })
    }

    fn check(&self, place: impl Fn(&str) -> Option<PathBuf>) -> Result<Vec<Resource>, Error> {
        let found: Vec<Option<PathBuf>> =
            self.parts.keys().map(|name| place(name).filter(|path| path.is_file())).collect();
        let is_whole = |parts: &[(u64, Option<u64>, Sha256)]| matches!(parts, [(_, None, _)]);
        let whole = self.parts.values().zip(&found).filter(|(parts, _)| is_whole(parts));
        let whole: Vec<&PathBuf> = whole.filter_map(|(_, path)| path.as_ref()).collect();
        let mut digests = hash_files(&whole)?.into_iter();
        let mut checked = Vec::with_capacity(self.parts.len());
        for ((name, parts), path) in self.parts.iter().zip(found) {
            let fault = match path {
                None => Some("is missing"),
                Some(path) => {
                    let same = match parts.as_slice() {
                        [(_, None, digest)] => digests.next() == Some(*digest),
                        parts => {
                            let file = MappedFile::open(&path)?;
                            let len = parts.last().and_then(|(_, end, _)| *end);
                            len == Some(file.byte_len())
                                && parts.iter().all(|(start, end, digest)| {
                                    let range = *start as usize..end.unwrap_or(0) as usize;
                                    file.bytes().get(range).is_some_and(|part| Sha256::of(part) == *digest)
                                })
                        }
                    };
                    (!same).then_some("has other bytes than the signed ones")
                }
            };
            checked.push(Resource { name: name.clone(), fault });
        }
        Ok(checked)
    }
}

/// `PATH:START:END`.
fn shard(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, end) = name.rsplit_once(':')?;
    let (path, start) = rest.rsplit_once(':')?;
    Some((path, start.parse().ok()?, end.parse().ok()?))
}

#[derive(Deserialize)]
struct WireStatement {
    subject: Vec<WireSubject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: WirePredicate,
}

#[derive(Deserialize)]
struct WireSubject {
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WirePredicate {
    resources: Vec<WireResource>,
    serialization: WireSerialization,
}

#[derive(Deserialize)]
struct WireResource {
    name: String,
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
struct WireSerialization {
    method: String,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[cfg(test)]
mod tests;
