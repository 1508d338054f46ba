//! The identity of a directory: the root digest of OpenSSF Model Signing v1.0.

use crate::{Error, json};
use mlpack_fs::{Operation, Sha256, hash_files};
use std::fs;
use std::path::{Path, PathBuf};

/// Entries of the top level that are not part of a model: the ignore list of OpenSSF Model Signing, mlpack's store, and a
/// signature of the model.
pub(crate) const IGNORED: [&str; 6] = [".git", ".gitattributes", ".github", ".gitignore", ".mlpack", "model.sig"];
/// The ignore list of OpenSSF Model Signing itself.
pub(crate) const GIT_FILES: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];
/// Most files of a tree.
const MAX_FILES: usize = 100_000;
/// Deepest nesting of a tree.
const MAX_DEPTH: usize = 32;

/// sha256 over the raw digests of the files in the order of their full names, by code point (OpenSSF Model Signing v1.0,
/// method `files`). Names are relative to the directory with `/` between parts.
pub fn tree_digest(files: &[(String, Sha256)]) -> Sha256 {
    let mut sorted: Vec<&(String, Sha256)> = files.iter().collect();
    sorted.sort();
    Sha256::of_parts(sorted.iter().map(|(_, digest)| digest.as_bytes().as_slice()))
}

/// A tensor, as [`tensors_digest`] takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorContent {
    /// Its name.
    pub name: String,
    /// Its type, as its format spells it.
    pub stored: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
    /// The digest of its bytes.
    pub sha256: Sha256,
}

/// sha256 over the canonical JSON of `[[name, type, shape, sha256], …]` in the order of names: the same for the same
/// tensors, however they are spread over files and whatever else the files say.
pub fn tensors_digest(tensors: &[TensorContent]) -> Sha256 {
    let mut sorted: Vec<&TensorContent> = tensors.iter().collect();
    sorted.sort_by(|a, b| (&a.name, &a.stored, &a.shape, a.sha256).cmp(&(&b.name, &b.stored, &b.shape, b.sha256)));
    // Dimensions as text: readers do not agree on large numbers.
    let row = |t: &&TensorContent| {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        serde_json::json!([t.name, t.stored, shape, t.sha256.to_string()])
    };
    Sha256::of(&json::canonical(&sorted.iter().map(row).collect::<Vec<_>>()))
}

/// A file of a directory.
pub(crate) struct ListedFile {
    /// Relative to the directory, `/` between parts.
    pub name: String,
    pub path: PathBuf,
    pub is_link: bool,
}

/// Hashes the regular files of a directory, by name.
pub(crate) fn hash_tree(dir: &Path) -> Result<Vec<(String, Sha256)>, Error> {
    hash_listed(list_tree(dir, &IGNORED.map(str::to_owned))?)
}

/// Hashes files, in their order.
pub(crate) fn hash_listed(files: Vec<ListedFile>) -> Result<Vec<(String, Sha256)>, Error> {
    let (names, paths): (Vec<String>, Vec<PathBuf>) = files.into_iter().map(|file| (file.name, file.path)).unzip();
    Ok(names.into_iter().zip(hash_files(&paths)?).collect())
}

/// The regular files of a directory in the order of their names, without `ignored`: relative paths of files and
/// directories. A link to a file counts as the file; links to directories are not followed, so that no tree is endless.
pub(crate) fn list_tree(dir: &Path, ignored: &[String]) -> Result<Vec<ListedFile>, Error> {
    let mut files = Vec::new();
    walk(dir, "", 0, ignored, &mut files)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, depth: usize, ignored: &[String], files: &mut Vec<ListedFile>) -> Result<(), Error> {
    let list_error = |e| mlpack_fs::Error::io(Operation::List, dir, e);
    if depth > MAX_DEPTH {
        return Err(Error::TooMany { path: dir.to_owned(), what: "nested directories", limit: MAX_DEPTH });
    }
    for entry in fs::read_dir(dir).map_err(list_error)? {
        let entry = entry.map_err(list_error)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if ignored.contains(&name) {
            continue;
        }
        let kind = entry.file_type().map_err(list_error)?;
        if kind.is_dir() {
            walk(&entry.path(), &format!("{name}/"), depth + 1, ignored, files)?;
        } else if entry.path().is_file() {
            files.push(ListedFile { name, path: entry.path(), is_link: kind.is_symlink() });
        }
        if files.len() > MAX_FILES {
            return Err(Error::TooMany { path: dir.to_owned(), what: "files", limit: MAX_FILES });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_hashed_in_the_order_of_the_specification() {
        // Full names by code point: `-` and `.` sort before `/`, so `sub-1.bin` comes before `sub/z.bin`.
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        for (name, content) in [
            ("sub/z.bin", "1"),
            ("sub-1.bin", "2"),
            ("sub.bin", "3"),
            ("Upper.txt", "4"),
            ("é.txt", ""),
            (".git/x", "5"),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let files = hash_tree(dir.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["Upper.txt", "sub-1.bin", "sub.bin", "sub/z.bin", "é.txt"]);
        let digests = ["4", "2", "3", "1", ""].map(|c| Sha256::of(c.as_bytes()));
        let expected = Sha256::of_parts(digests.iter().map(|d| d.as_bytes().as_slice()));
        assert_eq!(tree_digest(&files), expected);
    }

    #[test]
    fn tensors_are_known_whatever_their_order_and_any_difference_shows() {
        let tensor = |name: &str, stored: &str, shape: &[u64], bytes: &[u8]| TensorContent {
            name: name.to_owned(),
            stored: stored.to_owned(),
            shape: shape.to_vec(),
            sha256: Sha256::of(bytes),
        };
        let (a, b) = (tensor("a", "F16", &[2, 3], b"a"), tensor("b", "F16", &[6], b"b"));
        let both = tensors_digest(&[a.clone(), b.clone()]);
        assert_eq!(both, tensors_digest(&[b.clone(), a.clone()]));
        let expected =
            format!("[[\"a\",\"F16\",[\"2\",\"3\"],\"{}\"],[\"b\",\"F16\",[\"6\"],\"{}\"]]", a.sha256, b.sha256);
        assert_eq!(both, Sha256::of(expected.as_bytes()));
        for other in [
            tensor("c", "F16", &[2, 3], b"a"),
            tensor("a", "BF16", &[2, 3], b"a"),
            tensor("a", "F16", &[3, 2], b"a"),
            tensor("a", "F16", &[2, 3], b"x"),
        ] {
            assert_ne!(tensors_digest(&[other, b.clone()]), both);
        }
    }

    #[test]
    fn a_link_to_a_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
        let names: Vec<String> = hash_tree(dir.path()).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
