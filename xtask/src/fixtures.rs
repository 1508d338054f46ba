//! `cargo xtask fixtures`: the digest of every fixture, so that an edit by accident is seen.

use crate::workspace;
use anyhow::{Result, bail};
use std::collections::BTreeMap;

const SUMS: &str = "fixtures/SHA256SUMS";
/// Files that are about fixtures, not fixtures.
const NOT_FIXTURES: &[&str] = &["README.md", "SHA256SUMS", "golden.sha256"];

/// Writes fixtures/SHA256SUMS.
pub fn write() -> Result<()> {
    workspace::write(SUMS, &format_sums(&digests()?))
}

/// Compares every fixture with fixtures/SHA256SUMS.
pub fn check() -> Result<()> {
    let differences = differences(&parse_sums(&workspace::read(SUMS)?), &digests()?);
    if !differences.is_empty() {
        bail!(
            "fixtures differ from `{SUMS}`\n  {}\nif that is meant, run `cargo xtask fixtures` and commit what it writes",
            differences.join("\n  ")
        );
    }
    Ok(())
}

type Digests = BTreeMap<String, String>;

fn digests() -> Result<Digests> {
    let files = workspace::files()?;
    let fixtures = files.iter().filter_map(|file| file.strip_prefix("fixtures/")).filter(|f| !NOT_FIXTURES.contains(f));
    fixtures
        .map(|file| {
            let (digest, _) = mlpack_fs::hash_file(&workspace::root().join("fixtures").join(file))?;
            Ok((file.to_owned(), digest.to_string()))
        })
        .collect()
}

/// The format of `sha256sum`, so that `cd fixtures && sha256sum -c SHA256SUMS` checks it too.
pub fn format_sums(digests: &Digests) -> String {
    digests.iter().map(|(file, digest)| format!("{digest}  {file}\n")).collect()
}

/// The files and digests of a `sha256sum` list.
pub fn parse_sums(text: &str) -> Digests {
    text.lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(digest, file)| (file.to_owned(), digest.to_owned()))
        .collect()
}

/// One line for each file that is missing, new or changed.
pub fn differences(expected: &Digests, found: &Digests) -> Vec<String> {
    let missing_or_changed = expected.iter().filter_map(|(file, digest)| match found.get(file) {
        None => Some(format!("{file}: missing")),
        Some(now) if now != digest => Some(format!("{file}: expected {digest}, found {now}")),
        Some(_) => None,
    });
    let new = found.keys().filter(|file| !expected.contains_key(*file)).map(|file| format!("{file}: not in the list"));
    missing_or_changed.chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_is_what_the_list_says() {
        check().unwrap();
    }

    #[test]
    fn sums_are_read_back_and_differences_named() {
        let of =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(f, d)| (f.to_string(), d.to_string())).collect::<Digests>();
        let expected = of(&[("a b", "1"), ("c", "2"), ("d", "3")]);
        assert_eq!(parse_sums(&format_sums(&expected)), expected);
        let found = of(&[("a b", "1"), ("c", "9"), ("e", "3")]);
        assert_eq!(differences(&expected, &found), ["c: expected 2, found 9", "d: missing", "e: not in the list"]);
    }
}
