//! Dependencies that nobody uses: each costs build time and trust.

use crate::workspace;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;

/// Every dependency of a crate is named in its sources, and every dependency of the workspace in some crate.
pub fn check(files: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut used = BTreeSet::new();
    for file in files.iter().filter(|file| file.ends_with("/Cargo.toml")) {
        let manifest = parse(file)?;
        let folder = file.strip_suffix("Cargo.toml").expect("filtered by this name");
        let mut sources = String::new();
        // The integration tests of the command line lie in the root.
        let ours =
            |source: &&String| source.starts_with(folder) || folder == "crates/mlpack/" && source.starts_with("tests/");
        for source in files.iter().filter(|source| source.ends_with(".rs")).filter(ours) {
            sources.push_str(&workspace::read(source)?);
        }
        let names: Vec<String> = ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .filter_map(|table| manifest.get(*table)?.as_table())
            .flat_map(|table| table.keys().cloned())
            .collect();
        findings.extend(unused(file, &names, &sources));
        used.extend(names);
        // What only one system needs may be there for its features alone.
        let systems = manifest.get("target").and_then(|target| target.as_table()).into_iter().flat_map(|t| t.values());
        let of_systems = systems.filter_map(|system| system.get("dependencies")?.as_table());
        used.extend(of_systems.flat_map(|table| table.keys().cloned()));
    }
    let root = parse("Cargo.toml")?;
    let offered =
        root.get("workspace").and_then(|w| w.get("dependencies")?.as_table()).context("no workspace dependencies")?;
    findings.extend(
        offered
            .keys()
            .filter(|name| !used.contains(*name))
            .map(|name| format!("Cargo.toml: no crate uses `{name}`; take it out of [workspace.dependencies]")),
    );
    Ok(findings)
}

fn parse(file: &str) -> Result<toml::Table> {
    toml::from_str(&workspace::read(file)?).with_context(|| format!("cannot parse `{file}`"))
}

/// The names that never occur in the sources as a word, spelled as in code.
fn unused(file: &str, names: &[String], sources: &str) -> Vec<String> {
    let words: BTreeSet<&str> = sources.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let unused = names.iter().filter(|name| !words.contains(name.replace('-', "_").as_str()));
    unused.map(|name| format!("{file}: `{name}` is not used; take it out")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_must_occur_as_a_word() {
        let names = ["owo-colors".to_owned(), "half".to_owned()];
        assert_eq!(unused("f", &names, "use owo_colors::X; half::f16"), [""; 0]);
        assert_eq!(unused("f", &names, "owo_colors; halfway"), ["f: `half` is not used; take it out"]);
    }
}
