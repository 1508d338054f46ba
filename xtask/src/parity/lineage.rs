//! What mlpack signs and publishes, in the hands of cosign: a file with its bundle, and an image with what refers to it.
//!
//! Offline: keys, no transparency log, a docker-registry on loopback.

use crate::peers::{GoTool, Peers};
use crate::process::{attempt, output};
use crate::registry::Registry;
use crate::workspace::{self, fresh};
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;

const FILE: &str = "dist/legal-qa-Q8_0.gguf";

/// Signs and publishes the legal-qa release with each kind of key, and fails when cosign says anything else than it should.
pub fn run(peers: &Peers, mlpack: &Path) -> Result<()> {
    let cosign = peers.go_tool(GoTool::Cosign)?;
    let work = workspace::root().join("target/parity/lineage");
    // cosign takes SHA-256 for every key unless it is told; with P-384 belongs SHA-384.
    for (algorithm, told) in
        [("ecdsa-p256", &[][..]), ("ecdsa-p384", &["--signature-digest-algorithm", "sha384"]), ("ed25519", &[])]
    {
        fresh(&work)?;
        output(Command::new("cp").arg("-r").arg(workspace::root().join("fixtures/legal-qa/.")).arg(&work))?;
        let mlpack = |arguments: &[&str]| output(Command::new(mlpack).args(arguments).current_dir(&work));
        let cosign = |arguments: &[&str], accepts: bool| -> Result<()> {
            // It keeps a cache in the home directory.
            let mut command = Command::new(&cosign);
            command.args(arguments).args(told).arg("--insecure-ignore-tlog").current_dir(&work).env("HOME", &work);
            match (attempt(&mut command)?, accepts) {
                (Ok(()), true) | (Err(_), false) => Ok(()),
                (Ok(()), false) => bail!("cosign accepts what it should not: {}", arguments.join(" ")),
                (Err((_, said)), true) => bail!("cosign refuses: {}\n{said}", arguments.join(" ")),
            }
        };
        mlpack(&["release", "mlpack.toml", "-o", "dist"])?;
        for name in ["release", "other"] {
            mlpack(&["keygen", "--out", name, "--algorithm", algorithm])?;
        }
        mlpack(&["sign", FILE, "--key", "release.pem"])?;
        let registry = Registry::debian(&work.join("registry"))?;
        let (signed, plain) = (format!("{}/signed:v1", registry.host), format!("{}/plain:v1", registry.host));
        mlpack(&["publish", FILE, &signed, "--plain-http", "--key", "release.pem"])?;
        let bundle = format!("{FILE}.sigstore.json");
        let blob = |key: &str, accepts| {
            let kind = ["--type", "slsaprovenance1"];
            cosign(
                &[&["verify-blob-attestation", "--key", key, "--bundle", &bundle], &kind[..], &[FILE]].concat(),
                accepts,
            )
        };
        let image = |reference: &str, key: &str, accepts| {
            let kind = ["--type", "slsaprovenance1", "--allow-http-registry"];
            cosign(&[&["verify-attestation", "--key", key], &kind[..], &[reference]].concat(), accepts)
        };
        blob("release.pub", true)?;
        blob("other.pub", false)?;
        image(&signed, "release.pub", true)?;
        image(&signed, "other.pub", false)?;
        // Signed statements about the file alone say nothing about the manifest.
        mlpack(&["publish", FILE, &plain, "--plain-http"])?;
        image(&plain, "release.pub", false)?;
        let path = work.join(FILE);
        let mut bytes = mlpack_fs::read_bounded(&path, workspace::TEXT_LIMIT)?;
        *bytes.last_mut().context("the file is empty")? ^= 1;
        std::fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
        blob("release.pub", false)?;
        println!("  {algorithm}: cosign accepts the file and the image, and no other key, image or byte");
    }
    Ok(())
}
