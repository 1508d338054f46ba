//! A signed release in a registry or a layout: what refers to it is found from the reference alone, and damage is named.

use crate::cli_registry::serve;
use crate::cli_sign::{FILE, RUN, Release};
use crate::support::{TestDir, mlpack, registry, sha256};
use std::path::{Path, PathBuf};

/// Somewhere else, with the key and nothing of the release.
fn away(release: &Release) -> TestDir {
    let away = TestDir::new();
    std::fs::copy(release.dir.path("release.pub"), away.path("release.pub")).unwrap();
    mlpack(&away).args(["keygen", "--out", "other"]).succeed();
    away
}

/// The reference leads to the run, with signatures all the way, and only with the right key.
fn check(away: &TestDir, reference: &str) {
    let traced = ["trace", reference, "--plain-http", "--key", "release.pub"];
    let text = mlpack(away).args(traced).succeed();
    for part in [&format!("training run {RUN}"), "us-constitution-qa", "learning_rate=0.003", "package  statement"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("unsigned") && !text.contains("untrusted"), "{text}");
    let policy = "[[key]]\nfile = 'release.pub'\n[require]\nsteps = ['package', 'convert', 'train']\n\
                  links = ['base', 'adapter', 'run', 'dataset']\n";
    std::fs::write(away.path("policy.toml"), policy).unwrap();
    mlpack(away).args(["verify", reference, "--plain-http", "--policy", "policy.toml"]).succeed();
    let (text, _) = mlpack(away).args(["verify", reference, "--plain-http", "--key", "other.pub"]).expect(1);
    assert!(text.contains("no  the artifact is signed by a trusted key"), "{text}");
}

/// The file of a blob in a docker-registry's folder.
fn blob(registry: &Path, digest: &str) -> PathBuf {
    registry.join("data/docker/registry/v2/blobs/sha256").join(&digest[..2]).join(digest).join("data")
}

#[test]
fn a_release_traces_to_its_run_from_a_real_registry() {
    let Some(registry) = registry::start() else { return };
    let release = Release::signed();
    let reference = format!("{}/team/legal-qa:v1", registry.host);
    release.run(&["publish", FILE, &reference, "--plain-http", "--key", "release.pem"]).succeed();
    let away = away(&release);
    check(&away, &reference);
    // Manifests of other kinds have the claims as referrers alone.
    let ollama = format!("{}/team/ollama:v1", registry.host);
    release.run(&["publish", FILE, &ollama, "--plain-http", "--key", "release.pem", "--as", "ollama"]).succeed();
    check(&away, &ollama);

    // One flipped byte of a blob: of the claims, of a signature, of the weights.
    let refused = |args: &[&str], digest: &str| {
        let (_, stderr) = mlpack(&away).args(args.iter().chain(&["--plain-http"])).expect(3);
        assert!(stderr.contains(&format!("expected: content of digest sha256:{digest}")), "{stderr}");
    };
    let flipped = |digest: &str, test: &dyn Fn()| {
        let path = blob(registry.dir.path(), digest);
        release.flip(&path);
        test();
        release.flip(&path);
    };
    let claims = sha256(&release.dir.path(&format!("{FILE}.claims.jsonl")));
    flipped(&claims, &|| refused(&["trace", &reference, "--key", "release.pub"], &claims));
    let bundle = sha256(&release.dir.path(&format!("{FILE}.sigstore.json")));
    flipped(&bundle, &|| refused(&["verify", &reference, "--key", "release.pub"], &bundle));
    let weights = sha256(&release.dir.path(FILE));
    flipped(&weights, &|| refused(&["pull", &reference, "-o", "pulled"], &weights));
    check(&away, &reference);
}

#[test]
fn a_layout_holds_its_signatures_and_serves_them() {
    let release = Release::signed();
    release.run(&["publish", FILE, "oci:far:v1", "--key", "release.pem"]).succeed();
    let away = away(&release);
    let copied = std::process::Command::new("cp").arg("-r").arg(release.dir.path("far")).arg(away.path("")).status();
    assert!(copied.unwrap().success());
    check(&away, "oci:far:v1");
    // This server has the API of referrers; docker-registry has the fallback tag alone.
    let served = serve(&away, "far");
    check(&away, &format!("{}/any/name:v1", served.host));
    // Copied on, they go along.
    let Some(registry) = registry::start() else { return };
    let reference = format!("{}/team/copied:v2", registry.host);
    mlpack(&away).args(["publish", "oci:far:v1", &reference, "--plain-http"]).succeed();
    std::fs::remove_dir_all(away.path("far")).unwrap();
    check(&away, &reference);
}

#[test]
fn the_same_key_and_files_give_the_same_package() {
    let release = Release::signed();
    let publish = |layout: &str| {
        release.run(&["publish", FILE, &format!("oci:{layout}/l:v1"), "--key", "release.pem"]).succeed();
        let blobs = std::fs::read_dir(release.dir.path(&format!("{layout}/l/blobs/sha256"))).unwrap();
        let mut names: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(publish("a"), publish("b"));
}
