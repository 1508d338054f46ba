//! A registry for a test, a proxy that breaks things on purpose, and packages to send.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod proxy;

use mlpack_fs::Sha256;
use mlpack_oci::{Blob, Package, media};
use mlpack_registry::Options;
use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Whether the tool can be run.
#[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
pub fn present(tool: &str, argument: &str) -> bool {
    if Command::new(tool).arg(argument).output().is_ok_and(|o| o.status.success()) {
        return true;
    }
    assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none_or(|v| v != "1"), "`{tool}` is not installed");
    eprintln!("skipped: needs {tool} (cargo xtask test installs it)");
    false
}

/// Debian's docker-registry, listening on a free port, ended with the test.
pub struct Registry {
    child: Child,
    pub host: String,
    pub dir: tempfile::TempDir,
}

/// How a registry is set up.
#[derive(Default)]
pub struct Setup<'a> {
    pub htpasswd: Option<(&'a str, &'a str)>,
    pub tls: bool,
}

impl Registry {
    /// A registry, or `None` where Debian's package is missing.
    pub fn start(setup: &Setup<'_>) -> Option<Registry> {
        if !present("docker-registry", "--version") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut http = json!({"addr": "127.0.0.1:0", "secret": "the same after a restart"});
        let mut config = json!({
            "version": "0.1", "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": at("data")}, "delete": {"enabled": true}},
        });
        if setup.tls {
            certificate(dir.path());
            http["tls"] = json!({"certificate": at("server.pem"), "key": at("server.key")});
        }
        if let Some((user, password)) = setup.htpasswd {
            let made = Command::new("htpasswd").args(["-Bbn", user, password]).output().unwrap();
            assert!(made.status.success());
            std::fs::write(at("htpasswd"), made.stdout).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": at("htpasswd")}});
        }
        config["http"] = http;
        // Every JSON document is a YAML document.
        std::fs::write(at("config.yml"), config.to_string()).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut host = None;
        let mut line = String::new();
        while log.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once("listening on ") {
                host = Some(rest.split(['"', ',', ' ', '\n']).next().unwrap().to_owned());
                break;
            }
            line.clear();
        }
        // Whoever writes into a full pipe waits: the log is read to its end.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let host = host.expect("the registry says where it listens");
        Some(Registry { child, host, dir })
    }

    /// The certificate of the authority that signed the registry's.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An authority and a certificate of 127.0.0.1, made with openssl.
fn certificate(dir: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem \
        -addext basicConstraints=critical,CA:TRUE && \
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr && \
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > ext && \
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Options that do not sleep.
pub fn options() -> Options {
    Options { plain_http: true, pause: Arc::new(|_| {}), ..Options::default() }
}

/// Bytes that no pattern explains, the same each time.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A package of one manifest over blobs of those lengths, tagged `v1`.
pub fn package(lens: &[usize]) -> (Package, Sha256) {
    let mut package = Package::default();
    let config = package.add_blob(media::IMAGE_CONFIG, Blob::of_bytes(b"{}".to_vec()));
    let layers: Vec<_> = lens
        .iter()
        .enumerate()
        .map(|(at, len)| package.add_blob(media::WEIGHT_RAW, Blob::of_bytes(noise(*len, at as u64 + 1))))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": media::IMAGE_MANIFEST, "config": config, "layers": layers});
    package.add_document(media::IMAGE_MANIFEST, &manifest);
    let digest = package.documents()[0].digest;
    package.tag("v1".parse().unwrap(), digest);
    (package, digest)
}

/// No progress is watched.
pub fn quiet(_: i64) {}
