//! The identity of a directory: the root digest of OpenSSF Model Signing v1.0.

use crate::Error;
use mlpack_fs::{Operation, Sha256, hash_file};
use std::fs;
use std::path::{Path, PathBuf};

/// Entries of the top level that are not part of a model: the ignore list of OpenSSF Model Signing, and mlpack's store.
const IGNORED: [&str; 5] = [".git", ".gitattributes", ".github", ".gitignore", ".mlpack"];
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

/// Hashes the regular files of a directory, by name. A link to a file counts as the file; links to directories are not
/// followed, so that no tree is endless.
pub(crate) fn hash_tree(dir: &Path) -> Result<Vec<(String, Sha256)>, Error> {
    let mut files = Vec::new();
    walk(dir, "", 0, &mut files)?;
    files.sort();
    files.into_iter().map(|(name, path)| Ok((name, hash_file(&path)?.0))).collect()
}

fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, PathBuf)>) -> Result<(), Error> {
    let list_error = |e| mlpack_fs::Error::io(Operation::List, dir, e);
    if depth > MAX_DEPTH {
        return Err(Error::TooMany { path: dir.to_owned(), what: "nested directories", limit: MAX_DEPTH });
    }
    for entry in fs::read_dir(dir).map_err(list_error)? {
        let entry = entry.map_err(list_error)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if depth == 0 && IGNORED.contains(&name.as_str()) {
            continue;
        }
        let name = format!("{prefix}{name}");
        if entry.file_type().map_err(list_error)?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), depth + 1, files)?;
        } else if entry.path().is_file() {
            files.push((name, entry.path()));
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
    fn a_link_to_a_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
        let names: Vec<String> = hash_tree(dir.path()).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
