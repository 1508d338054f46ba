//! Keys and passphrases: from files, from the environment, from the terminal; never from the command line.

use crate::cli::{PassphraseArgs, TrustArgs};
use anyhow::{Context as _, bail};
use mlpack_fs::read_to_string_bounded;
use mlpack_provenance::{Policy, PrivateKey, PublicKey, Trust, TrustedKey};
use std::path::Path;

/// Longest file with a key or a passphrase.
const MAX_LEN: u64 = 64 << 10;
/// The variable with the passphrase.
const PASSPHRASE: &str = "MLPACK_PASSPHRASE";

/// The private key in a PEM file, or in the variable that `env:NAME` names.
pub fn private_key(from: &str, passphrase_from: &PassphraseArgs) -> anyhow::Result<PrivateKey> {
    let pem = match from.strip_prefix("env:") {
        Some(name) => std::env::var(name).ok().with_context(|| {
            format!("cannot read the key from the environment\n  expected: the variable `{name}` with PEM text\n  found:    it is not set")
        })?,
        None => read_to_string_bounded(Path::new(from), MAX_LEN)?,
    };
    let passphrase = if PrivateKey::is_encrypted(&pem) {
        passphrase(passphrase_from, &format!("passphrase of {from}: "))?
    } else {
        None
    };
    Ok(PrivateKey::parse(&pem, passphrase.as_deref(), from)?)
}

/// The passphrase; `None` where there is no file, no variable, and nobody to ask.
pub fn passphrase(from: &PassphraseArgs, prompt: &str) -> anyhow::Result<Option<String>> {
    if let Some(path) = &from.passphrase_file {
        let text = read_to_string_bounded(path, MAX_LEN)?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            bail!(
                "no passphrase in `{}`\n  expected: its first line is the passphrase\n  found:    an empty line",
                path.display()
            );
        }
        return Ok(Some(line.to_owned()));
    }
    if let Ok(text) = std::env::var(PASSPHRASE) {
        return Ok(Some(text));
    }
    // Asking fails where there is no terminal.
    Ok(rpassword::prompt_password(prompt).ok().filter(|text| !text.is_empty()))
}

/// The keys and the demands of `--key` or `--policy`.
pub fn policy(args: &TrustArgs) -> anyhow::Result<Policy> {
    if let Some(path) = &args.policy {
        return Ok(Policy::open(path)?);
    }
    let mut trust = Trust::default();
    for path in &args.keys {
        let name = path.display().to_string();
        let key = PublicKey::parse(&read_to_string_bounded(path, MAX_LEN)?, &name)?;
        trust.keys.push(TrustedKey::unlimited(name, key));
    }
    Ok(Policy::of_keys(trust))
}
