//! Other programs: run, echoed and named when they fail; found on the path; installed from Debian when missing.

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Lines kept of what a failed attempt printed.
const ATTEMPT_LINES: usize = 6;

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command with this process's standard streams, after showing it on stderr.
pub fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command whose output nobody reads.
pub fn run_quiet(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

/// Runs a command and returns its stdout. Its stderr is shown when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let stdout = output_bytes(command)?;
    String::from_utf8(stdout).with_context(|| format!("`{}` printed text that is not UTF-8", shown(command)))
}

/// The same where the output need not be text.
pub fn output_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let line = shown(command);
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !done.status.success() {
        bail!("`{line}` failed: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr).trim_end());
    }
    Ok(done.stdout)
}

/// Runs a command that may fail: `Err` is its exit code and what it printed last, on stderr or else on stdout.
pub fn attempt(command: &mut Command) -> Result<std::result::Result<(), (Option<i32>, String)>> {
    let line = shown(command);
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if done.status.success() {
        return Ok(Ok(()));
    }
    let printed = if done.stderr.is_empty() { &done.stdout } else { &done.stderr };
    let printed = String::from_utf8_lossy(printed);
    let lines: Vec<&str> = printed.trim_end().lines().collect();
    let last = lines[lines.len().saturating_sub(ATTEMPT_LINES)..].join("\n");
    Ok(Err((done.status.code(), last)))
}

/// The full path of a program on `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Makes sure that `program` is on the path, from the Debian package `package` where this user may install it.
pub fn ensure(program: &str, package: &str) -> Result<()> {
    if find(program).is_some() {
        return Ok(());
    }
    install(package).with_context(|| format!("`{program}` is missing, and the tests need it"))?;
    if find(program).is_none() {
        bail!("Debian package `{package}` is installed, but `{program}` is still not on the path");
    }
    Ok(())
}

/// Installs a Debian package, as root or through a `sudo` that asks nothing.
pub fn install(package: &str) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("this machine has no apt-get: install `{package}` with its own package manager, then run this again");
    }
    let root = output(Command::new("id").arg("-u"))?.trim() == "0";
    if !root && find("sudo").is_none() {
        bail!("not root, and no sudo: run `apt-get install {package}` as root, then run this again");
    }
    let apt = |arguments: &[&str]| {
        let mut command = if root { Command::new("env") } else { Command::new("sudo") };
        if !root {
            command.args(["-n", "env"]);
        }
        run(command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments))
    };
    let wanted = ["install", "-y", "--no-install-recommends", package];
    // Package lists may be absent on a fresh machine or out of date on an old one.
    if apt(&wanted).is_err() {
        apt(&["update"])?;
        apt(&wanted)?;
    }
    Ok(())
}
