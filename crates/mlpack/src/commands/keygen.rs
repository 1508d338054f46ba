//! `mlpack keygen`

use crate::cli::{KeyKind, KeygenArgs};
use crate::exit::Exit;
use crate::keys;
use crate::show::Show;
use anyhow::bail;
use mlpack_fs::{Error, Operation};
use mlpack_provenance::{KeyAlgorithm, PrivateKey};
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Makes a key pair and writes it to new files.
pub fn keygen(args: &KeygenArgs, out: &Show) -> anyhow::Result<Exit> {
    let with_ending = |ending: &str| {
        let mut path = args.out.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let (private, public) = (with_ending(".pem"), with_ending(".pub"));
    for path in [&private, &public] {
        if path.exists() {
            bail!(
                "`{}` is there already\n  expected: a new name\n\nhint: a key that is replaced can no longer be used to check what it signed",
                path.display()
            );
        }
    }
    let passphrase = if args.encrypt || args.passphrase.passphrase_file.is_some() {
        let given = keys::passphrase(&args.passphrase, "passphrase of the new key: ")?;
        if given.is_none() {
            bail!(
                "no passphrase for the new key\n  expected: --passphrase-file FILE, MLPACK_PASSPHRASE, or a terminal to ask"
            );
        }
        given
    } else {
        None
    };
    let key = PrivateKey::generate(match args.algorithm {
        KeyKind::EcdsaP256 => KeyAlgorithm::EcdsaP256,
        KeyKind::EcdsaP384 => KeyAlgorithm::EcdsaP384,
        KeyKind::Ed25519 => KeyAlgorithm::Ed25519,
    })?;
    write_new(&private, key.to_pem(passphrase.as_deref()).as_bytes(), 0o600)?;
    write_new(&public, key.public().to_pem().as_bytes(), 0o644)?;
    let id = key.public().id().to_string();
    let algorithm = key.algorithm().name();
    let text = format!(
        "private key  {}{}\npublic key   {}\n{algorithm}, sha256:{id}\n",
        private.display(),
        if passphrase.is_some() { "  (encrypted)" } else { "" },
        public.display()
    );
    let value = json!({
        "schema": "mlpack.keygen/v1", "private": private, "public": public, "algorithm": algorithm, "sha256": id,
        "encrypted": passphrase.is_some(),
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Writes a file that was not there, with its mode from the start.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let io = |operation| move |e| Error::io(operation, path, e);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(io(Operation::Create))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(Operation::Write))?;
    Ok(())
}
