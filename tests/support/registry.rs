//! Debian's docker-registry for a test, and an image made by hand.

use mlpack_oci::{Blob, Layout, Package, media};
use serde_json::json;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Whether the tool can be run.
pub fn present(tool: &str, argument: &str) -> bool {
    if Command::new(tool).arg(argument).output().is_ok_and(|o| o.status.success()) {
        return true;
    }
    assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none_or(|v| v != "1"), "`{tool}` is not installed");
    println!("skipped: needs {tool} (cargo xtask test installs it)");
    false
}

/// A registry on a free port, ended with the test.
pub struct Registry {
    child: Child,
    pub host: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// A registry, or `None` where it or skopeo is missing.
    pub fn start() -> Option<Registry> {
        if !present("docker-registry", "--version") || !present("skopeo", "--version") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "version": "0.1", "log": {"level": "info"}, "http": {"addr": "127.0.0.1:0", "secret": "the same"},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}},
        });
        let path = dir.path().join("config.yml");
        // Every JSON document is a YAML document.
        std::fs::write(&path, config.to_string()).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let host = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the registry says where it listens");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ',', ' ', '\n']).next().unwrap().to_owned();
            }
        };
        // Whoever writes into a full pipe waits: the log is read to its end.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Registry { child, host, _dir: dir })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A layout with an image of two platforms and one layer, which holds `base.txt`; its reference.
pub fn base_image(dir: &Path) -> String {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o644);
    builder.append_data(&mut header, "base.txt", &b"base"[..]).unwrap();
    let layer = Blob::of_bytes(builder.into_inner().unwrap());
    let diff_id = format!("sha256:{}", layer.digest());
    let mut package = Package::default();
    let layer = package.add_blob(media::IMAGE_LAYER, layer);
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = package.add_blob(media::IMAGE_CONFIG, Blob::of_bytes(config.to_string().into_bytes()));
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media::IMAGE_MANIFEST, "config": config, "layers": [layer]});
        let mut entry = json!(package.add_document(media::IMAGE_MANIFEST, &manifest));
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        entries.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": entries});
    package.add_document(media::IMAGE_INDEX, &index);
    let digest = package.documents().last().unwrap().digest;
    package.tag("1".parse().unwrap(), digest);
    package.store(&Layout::open_or_create(dir).unwrap()).unwrap();
    format!("oci:{}:1", dir.display())
}
