//! `cargo xtask docs`: docs/cli.md, from the help texts of the built binary.

use crate::process::output;
use crate::workspace::{self, build_mlpack};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

const CLI: &str = "docs/cli.md";

/// Writes docs/cli.md.
pub fn write() -> Result<()> {
    workspace::write(CLI, &cli()?)
}

/// Fails when docs/cli.md is not what the binary says.
pub fn check() -> Result<()> {
    let expected = cli()?;
    if workspace::root().join(CLI).is_file() && workspace::read(CLI)? == expected {
        return Ok(());
    }
    bail!("`{CLI}` is out of date; run `cargo xtask docs` and commit what it writes")
}

fn cli() -> Result<String> {
    let mlpack = build_mlpack(false)?;
    let mut text =
        "# The command line\n\nWritten by `cargo xtask docs` from the help texts of the binary; do not edit.\n"
            .to_owned();
    describe(&mlpack, &mut Vec::new(), &mut text)?;
    Ok(text)
}

/// Appends the help of one command and of its subcommands.
fn describe(mlpack: &Path, path: &mut Vec<String>, text: &mut String) -> Result<()> {
    let mut command = Command::new(mlpack);
    command.args(&*path).arg("--help").env("NO_COLOR", "1").env("COLUMNS", "100");
    let help = output(&mut command)?;
    let title = [&["mlpack".to_owned()], path.as_slice()].concat().join(" ");
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {title}\n\n```text\n{}\n```\n", lines.join("\n")));
    for name in subcommands(&help) {
        path.push(name);
        describe(mlpack, path, text)?;
        path.pop();
    }
    Ok(())
}

/// The names listed under `Commands:`, without the `help` that clap adds everywhere.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A name is indented by two spaces; the continuation of a description by more.
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subcommands_are_the_names_under_their_heading() {
        let help = "A tool.\n\nUsage: x\n\nCommands:\n  merge    Merges\n           and more\n  convert  Converts\n  help     Print\n\nOptions:\n  -h\n";
        assert_eq!(subcommands(help), ["merge", "convert"]);
        assert_eq!(subcommands("Usage: x\n\nOptions:\n  -h\n"), [""; 0]);
    }
}
