//! Debian's docker-registry for a test, and an image made by hand.

use mlpack_oci::{Blob, Layout, Package, media};
use serde_json::json;
use std::path::Path;

#[path = "../../crates/mlpack-registry/tests/support/mod.rs"]
mod transfers;

pub use transfers::proxy::{Act, Proxy, Seen};
pub use transfers::{noise, present};

/// A registry on a free port, ended with the test; `None` where it or skopeo is missing.
pub fn start() -> Option<transfers::Registry> {
    let skopeo = present("skopeo", "--version");
    transfers::Registry::start(&transfers::Setup::default()).filter(|_| skopeo)
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
