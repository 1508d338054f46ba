//! Words that no committed file may hold: paths of one machine, hosts of package registries.

use crate::workspace;
use anyhow::Result;

/// Folders that exist on somebody's machine. Written in two parts so that this file does not hold them.
const MACHINE_FOLDERS: &[&str] =
    &[concat!("/", "work/"), concat!("/", "opt/"), concat!("/", "root/"), concat!("/", "home/")];

/// Package managers know their registries; a host written down here goes stale and breaks mirrors.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("//crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.go", "lang.org"),
    concat!("deb.", "debian.org"),
];

/// Cargo writes its registry's address into the lock file itself.
const MAY_NAME_HOSTS: &[&str] = &["Cargo.lock"];

const FILE_LIMIT: u64 = 256 << 20;

/// Looks through every committed file, binary ones too.
pub fn check(files: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files {
        let bytes = mlpack_fs::read_bounded(&workspace::root().join(file), FILE_LIMIT)?;
        findings.extend(in_file(file, &bytes));
    }
    Ok(findings)
}

fn in_file(file: &str, bytes: &[u8]) -> Vec<String> {
    let mut findings = Vec::new();
    for folder in MACHINE_FOLDERS {
        if let Some(at) = positions(bytes, folder.as_bytes()).find(|at| starts_a_path(bytes, *at)) {
            findings.push(format!(
                "{file}:{}: names the absolute path `{folder}…`, which exists on one machine only; use a relative path or an option",
                line_of(bytes, at)
            ));
        }
    }
    if MAY_NAME_HOSTS.contains(&file) {
        return findings;
    }
    for host in REGISTRY_HOSTS {
        if let Some(at) = positions(bytes, host.as_bytes()).next() {
            findings.push(format!(
                "{file}:{}: names the registry host `{host}`; name the package and its version, and let the package manager find it",
                line_of(bytes, at)
            ));
        }
    }
    findings
}

/// Whether the slash at `at` begins an absolute path: `src/opt/x` does not, `"/…` and `file:///…` do.
fn starts_a_path(bytes: &[u8], at: usize) -> bool {
    match at.checked_sub(1).map(|before| bytes[before]) {
        None => true,
        Some(before) => !(before.is_ascii_alphanumeric() || b"._-~}$*>)".contains(&before)),
    }
}

fn positions<'a>(bytes: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = word[0];
    (0..bytes.len().saturating_sub(word.len() - 1))
        .filter(move |at| bytes[*at] == first && bytes[*at..].starts_with(word))
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_are_found_and_relative_ones_are_not() {
        for folder in MACHINE_FOLDERS {
            for text in [format!("{folder}x"), format!("a\n open(\"{folder}x\")"), format!("file://{folder}")] {
                assert_eq!(in_file("f", text.as_bytes()).len(), 1, "{text}");
            }
            for text in [format!("src{folder}x"), format!("..{folder}x"), format!("${{dir}}{folder}x")] {
                assert_eq!(in_file("f", text.as_bytes()), [""; 0], "{text}");
            }
        }
    }

    #[test]
    fn registry_hosts_are_found_with_their_line_except_in_the_lock_file() {
        for host in REGISTRY_HOSTS {
            let text = format!("a\nb https:{}{host}/simple", if host.starts_with('/') { "" } else { "//" });
            let findings = in_file("f", text.as_bytes());
            assert!(findings.len() == 1 && findings[0].starts_with("f:2: "), "{findings:?}");
            assert_eq!(in_file("Cargo.lock", text.as_bytes()), [""; 0]);
        }
    }
}
