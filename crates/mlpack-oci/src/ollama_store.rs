//! Ollama's store of models on disk (ollama 0.17.4, `manifest/paths.go`, `types/model/name.go`).
//!
//! ```text
//! DIR/blobs/sha256-<hex>                             the layers and the config
//! DIR/manifests/<host>/<namespace>/<model>/<tag>     the manifest; `ollama list` shows its digest
//! ```
//!
//! Ollama looks for a blob by its name alone, so a blob gets its name only when its bytes have been hashed; and it removes
//! blobs that no manifest names when it starts, so the manifest follows at once.

use crate::{Blob, Error, Package};
use mlpack_fs::{Operation, Sha256, hash_file, write_atomic};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest host, and longest part of every other kind.
const HOST_LIMIT: usize = 350;
const PART_LIMIT: usize = 80;

/// A model's name: `[HOST/][NAMESPACE/]MODEL[:TAG]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaName {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

impl FromStr for OllamaName {
    type Err = Error;

    fn from_str(text: &str) -> Result<OllamaName, Error> {
        let refuse = |found| Error::OllamaName { text: text.to_owned(), found };
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, "latest"),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match parts[..] {
            [model] => ("registry.ollama.ai", "library", model),
            [namespace, model] => ("registry.ollama.ai", namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err(refuse("more than three parts")),
        };
        let fits = |part: &str, limit: usize, also: &[u8]| {
            let bytes = part.as_bytes();
            let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
            !bytes.is_empty()
                && bytes.len() <= limit
                && word(&bytes[0])
                && bytes.iter().all(|b| word(b) || *b == b'-' || also.contains(b))
        };
        if !fits(host, HOST_LIMIT, b".:") {
            return Err(refuse("a host that is none"));
        }
        if !fits(namespace, PART_LIMIT, b"") {
            return Err(refuse("a namespace that is none (it has no dots)"));
        }
        if !fits(model, PART_LIMIT, b".") {
            return Err(refuse("a model's name that is none"));
        }
        if !fits(tag, PART_LIMIT, b".") {
            return Err(refuse("a tag that is none"));
        }
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(str::to_owned);
        Ok(OllamaName { host, namespace, model, tag })
    }
}

/// As Ollama shows it: without what is the default.
impl fmt::Display for OllamaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != "registry.ollama.ai" {
            write!(f, "{}/{}/", self.host, self.namespace)?;
        } else if self.namespace != "library" {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

/// A store.
#[derive(Clone, Debug)]
pub struct OllamaStore {
    dir: PathBuf,
}

/// What an installation came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The manifest's path.
    pub manifest: PathBuf,
    /// Bytes that share their disk space with the artifact: hard links.
    pub bytes_linked: u64,
    /// Bytes that were written.
    pub bytes_copied: u64,
    /// Bytes that were there already.
    pub bytes_skipped: u64,
}

impl OllamaStore {
    /// The store in `dir` (`OLLAMA_MODELS`), which is made where it is missing.
    pub fn new(dir: &Path) -> OllamaStore {
        OllamaStore { dir: dir.to_owned() }
    }

    /// Installs the manifest of that digest under a name: blobs first, the manifest last. A file of the package becomes a hard
    /// link where the file system allows it, so it must not be changed in place afterwards.
    pub fn install(&self, name: &OllamaName, package: &Package, manifest: &Sha256) -> Result<Installed, Error> {
        let path = ["manifests", &name.host, &name.namespace, &name.model, &name.tag]
            .iter()
            .fold(self.dir.clone(), |path, part| path.join(part));
        let mut installed = Installed { manifest: path.clone(), ..Installed::default() };
        let blobs = self.dir.join("blobs");
        fs::create_dir_all(&blobs).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, &blobs, e))?;
        for blob in package.blobs() {
            self.place(blob, &mut installed)?;
        }
        let document = package.document(manifest).expect("the caller names a document of its package");
        write_atomic(&path, &document.bytes)?;
        Ok(installed)
    }

    fn place(&self, blob: &Blob, installed: &mut Installed) -> Result<(), Error> {
        let path = self.dir.join("blobs").join(format!("sha256-{}", blob.digest()));
        let len = blob.byte_len();
        match fs::symlink_metadata(&path) {
            // A blob of another length is what a fault left: Ollama would load it.
            Ok(m) if m.is_file() && m.len() == len && hash_file(&path)?.0 == *blob.digest() => {
                installed.bytes_skipped += len;
                return Ok(());
            }
            Ok(_) => fs::remove_file(&path).map_err(|e| mlpack_fs::Error::io(Operation::Remove, &path, e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(mlpack_fs::Error::io(Operation::Open, &path, e).into()),
        }
        if let Some(source) = blob.file() {
            // Linked only when it is what its digest says now, and only where it is the file itself.
            let is_file = fs::symlink_metadata(source).is_ok_and(|m| m.is_file());
            if is_file && hash_file(source)?.0 == *blob.digest() && fs::hard_link(source, &path).is_ok() {
                installed.bytes_linked += len;
                return Ok(());
            }
        }
        crate::layout::write_blob(blob, &path)?;
        installed.bytes_copied += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn names_are_those_of_ollama() {
        for (text, shown, path) in [
            ("legal-qa", "legal-qa:latest", ["registry.ollama.ai", "library", "legal-qa", "latest"]),
            ("me/m.1:q4_K_M", "me/m.1:q4_K_M", ["registry.ollama.ai", "me", "m.1", "q4_K_M"]),
            ("localhost:5000/team/m:v1", "localhost:5000/team/m:v1", ["localhost:5000", "team", "m", "v1"]),
        ] {
            let name: OllamaName = text.parse().unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!([&*name.host, &*name.namespace, &*name.model, &*name.tag], path);
        }
        for (text, found) in [
            ("", "a model's name that is none"),
            ("a/b/c/d", "more than three parts"),
            ("../m", "a namespace that is none (it has no dots)"),
            ("n.s/m", "a namespace that is none (it has no dots)"),
            ("h/n/..", "a model's name that is none"),
            ("m:", "a tag that is none"),
            ("m:a b", "a tag that is none"),
        ] {
            let error = text.parse::<OllamaName>().unwrap_err();
            assert!(matches!(error, Error::OllamaName { found: f, .. } if f == found), "{text}");
        }
    }

    #[test]
    fn a_file_is_linked_a_text_is_written_and_a_broken_blob_is_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let source = tmp.path().join("m.gguf");
        write_atomic(&source, b"GGUF").unwrap();
        let mut package = Package::default();
        package.add_blob("x", Blob::of_file(&source, None).unwrap());
        package.add_blob("y", Blob::of_bytes(b"text".to_vec()));
        let manifest = package.add_bytes(media::DOCKER_MANIFEST, b"{}\n".to_vec(), None);
        let digest = crate::layout::sha256(manifest.digest()).unwrap();
        let store = OllamaStore::new(&tmp.path().join("store"));
        let name: OllamaName = "m".parse().unwrap();
        let installed = store.install(&name, &package, &digest).unwrap();
        assert_eq!((installed.bytes_linked, installed.bytes_copied, installed.bytes_skipped), (4, 4, 0));
        let blob = tmp.path().join(format!("store/blobs/sha256-{}", Sha256::of(b"GGUF")));
        assert_eq!(fs::metadata(&blob).unwrap().ino(), fs::metadata(&source).unwrap().ino());
        assert_eq!(mlpack_fs::read_bounded(&installed.manifest, 10).unwrap(), b"{}\n");
        assert!(installed.manifest.ends_with("manifests/registry.ollama.ai/library/m/latest"));
        let text = tmp.path().join(format!("store/blobs/sha256-{}", Sha256::of(b"text")));
        write_atomic(&text, b"t3xt").unwrap();
        let again = store.install(&name, &package, &digest).unwrap();
        assert_eq!((again.bytes_copied, again.bytes_skipped), (4, 4));
        assert_eq!(mlpack_fs::read_bounded(&text, 10).unwrap(), b"text");
    }
}
