//! What must be on record: every fixture in fixtures/README.md, every dependency in docs/dependencies.md.

use crate::workspace;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;

const FIXTURES: &str = "fixtures/README.md";
const DEPENDENCIES: &str = "docs/dependencies.md";

/// Every file under fixtures/ has a row in the table of its README, and every row has a file.
pub fn fixtures(files: &[String]) -> Result<Vec<String>> {
    if !files.iter().any(|file| file == FIXTURES) {
        return Ok(vec![format!(
            "{FIXTURES}: missing; it says of every fixture what it shows, how it was made, and its licence"
        )]);
    }
    let rows = first_cells(&workspace::read(FIXTURES)?);
    let fixtures: Vec<&str> =
        files.iter().filter(|f| *f != FIXTURES).filter_map(|f| f.strip_prefix("fixtures/")).collect();
    Ok(compare_fixtures(&rows, &fixtures))
}

fn compare_fixtures(rows: &[String], fixtures: &[&str]) -> Vec<String> {
    let unlisted = fixtures.iter().filter(|file| !rows.iter().any(|row| covers(row, file))).map(|file| {
        format!("fixtures/{file}: has no row in {FIXTURES}; say what it shows, how it was made (tool and version), and its licence")
    });
    let stale = rows.iter().filter(|row| !fixtures.iter().any(|file| covers(row, file))).map(|row| {
        format!("{FIXTURES}: row `{row}` matches no file under fixtures/; correct the path or take the row out")
    });
    unlisted.chain(stale).collect()
}

/// Whether a row speaks of a file: by its path, by its folder (`folder/`, files directly in it), or by one `*` in the
/// file name (`folder/hf-*.json`).
fn covers(row: &str, file: &str) -> bool {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    if let Some(listed) = row.strip_suffix('/') {
        return listed == folder;
    }
    match row.split_once('*') {
        None => row == file,
        Some((start, end)) => {
            let (listed, prefix) = start.rsplit_once('/').unwrap_or(("", start));
            listed == folder
                && name.len() >= prefix.len() + end.len()
                && name.starts_with(prefix)
                && name.ends_with(end)
        }
    }
}

/// Every external crate of the workspace has a row that says what it is for and why this one.
pub fn dependencies() -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(serde::Deserialize)]
    struct Workspace {
        dependencies: toml::Table,
    }
    let manifest: Manifest = toml::from_str(&workspace::read("Cargo.toml")?).context("cannot parse `Cargo.toml`")?;
    let used: BTreeSet<String> = manifest
        .workspace
        .dependencies
        .into_iter()
        .filter(|(_, value)| value.get("path").is_none())
        .map(|(name, _)| name)
        .collect();
    let rows: BTreeSet<String> = first_cells(&workspace::read(DEPENDENCIES)?).into_iter().collect();
    let missing = used.difference(&rows).map(|name| {
        format!("Cargo.toml: `{name}` has no row in {DEPENDENCIES}; say what it is for, its licence, and why this one")
    });
    let stale = rows
        .difference(&used)
        .map(|name| format!("{DEPENDENCIES}: row `{name}` is no dependency of the workspace; take the row out"));
    Ok(missing.chain(stale).collect())
}

/// Every text in backticks in the first cell of a Markdown table row.
fn first_cells(markdown: &str) -> Vec<String> {
    let cells = markdown.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_the_first_cell_only() {
        let markdown = "`prose`\n| path | what |\n| --- | --- |\n| `a/b.json`, `c/` | see `d` |\n";
        assert_eq!(first_cells(markdown), ["a/b.json", "c/"]);
    }

    #[test]
    fn a_row_covers_a_file_a_folder_or_a_pattern_and_no_deeper_folder() {
        assert!(covers("a/b.json", "a/b.json") && !covers("a/b.json", "a/b.jso"));
        assert!(covers("a/", "a/b.json") && !covers("a/", "a/c/b.json") && !covers("a/", "ab/c"));
        assert!(covers("a/q-*.json", "a/q-F16.json") && !covers("a/q-*.json", "a/qi-F16.json"));
        assert!(!covers("a/q-*.json", "b/a/q-F16.json") && !covers("aa*aa", "aaa"));
    }

    #[test]
    fn unlisted_fixtures_and_stale_rows_are_named() {
        let findings = compare_fixtures(&["a/".to_owned(), "gone".to_owned()], &["a/x", "b/y"]);
        assert!(findings.len() == 2, "{findings:?}");
        assert!(
            findings[0].starts_with("fixtures/b/y: has no row") && findings[1].contains("row `gone` matches no file")
        );
    }
}
