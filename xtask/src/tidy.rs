//! The house rules as checks. A failure says what to do about it.
//!
//! The same checks run as `cargo xtask tidy` and as a unit test of this crate.

mod records;
mod rooms;
mod rust;
mod unused;
mod words;

use crate::workspace;
use anyhow::{Result, bail};

/// Runs every check and fails with all findings.
pub fn command() -> Result<()> {
    let findings = findings()?;
    if !findings.is_empty() {
        bail!("tidy found {} things to mend\n\n{}\n", findings.len(), findings.join("\n"));
    }
    eprintln!("tidy: nothing to mend");
    Ok(())
}

fn findings() -> Result<Vec<String>> {
    let files = workspace::files()?;
    let mut findings = rooms::top_level(&files);
    findings.extend(rooms::check(&files)?);
    findings.extend(unused::check(&files)?);
    findings.extend(words::check(&files)?);
    findings.extend(records::fixtures(&files)?);
    findings.extend(records::dependencies()?);
    for file in files.iter().filter(|file| file.ends_with(".rs")) {
        findings.extend(rust::check(file, &workspace::read(file)?));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let findings = super::findings().unwrap();
        assert!(findings.is_empty(), "{} things to mend:\n{}", findings.len(), findings.join("\n"));
    }
}
