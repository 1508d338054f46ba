//! The layouts that mlpack writes, opened with other people's tools.
//!
//! The tools are Debian packages. Where one is missing its test says so and checks nothing; with
//! `MLPACK_REQUIRE_PEERS=1`, as the project's own test run sets it, a missing tool is a failure.

#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

use mlpack_oci::{
    Artifact, Details, ExtraFile, ImageOptions, LayerKind, Layout, ModelConfig, ModelFormat, PublishRequest, Published,
    publish,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether the tool can be run.
fn present(tool: &str) -> bool {
    if Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return true;
    }
    assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none_or(|v| v != "1"), "`{tool}` is not installed");
    eprintln!("not checked with `{tool}`: it is not installed");
    false
}

fn run(tool: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A layout with two variants of a model, tagged 1.0, 1.0-f16 and 1.0-q8_0.
fn published(dir: &Path) -> (PathBuf, Published) {
    let write = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let readme = write("README.md", "# legal-qa\n");
    let artifacts = ["F16", "Q8_0"].map(|quant| Artifact {
        path: write(&format!("legal-qa-{quant}.gguf"), quant),
        format: ModelFormat::Gguf,
        variant: Some(quant.to_owned()),
        config: ModelConfig { name: Some("legal-qa".to_owned()), ..ModelConfig::default() },
        extra: vec![ExtraFile { path: readme.clone(), name: "README.md".to_owned(), kind: LayerKind::Doc }],
        details: Details::default(),
    });
    let layout = Layout::open_or_create(&dir.join("layout")).unwrap();
    let request = PublishRequest {
        artifacts: &artifacts,
        tag: &"1.0".parse().unwrap(),
        ecosystems: &[],
        image: &ImageOptions::default(),
        annotations: &BTreeMap::new(),
        digests: &BTreeMap::new(),
    };
    let published = publish(&layout, &request).unwrap();
    (layout.dir().to_owned(), published)
}

#[test]
fn skopeo_reads_and_copies_every_tag_with_its_digest() {
    if !present("skopeo") {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let (layout, published) = published(tmp.path());
    let copy_dir = tmp.path().join("copy");
    for manifest in published.manifests.iter().chain(&published.index) {
        let source = format!("oci:{}:{}", layout.display(), manifest.tag);
        let raw = run("skopeo", &["inspect", "--raw", &source]);
        assert_eq!(mlpack_fs::Sha256::of(&raw), manifest.digest, "{}", manifest.tag);
        let target = format!("oci:{}:{}", copy_dir.display(), manifest.tag);
        run("skopeo", &["--insecure-policy", "copy", "--all", &source, &target]);
        let copied = Layout::open(&copy_dir).unwrap().resolve(&manifest.tag).unwrap();
        assert_eq!(copied.digest(), manifest.descriptor.digest(), "{}", manifest.tag);
    }
    // What skopeo wrote is a layout to us, and every blob came along.
    let (ours, theirs) = (Layout::open(&layout).unwrap(), Layout::open(&copy_dir).unwrap());
    assert_eq!(theirs.verify().unwrap(), ours.verify().unwrap());
    // A layout that skopeo wrote takes another tag, and skopeo still reads it.
    let root = published.root();
    theirs.tag(&root.descriptor, &"again".parse().unwrap()).unwrap();
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci:{}:again", copy_dir.display())]);
    assert_eq!(mlpack_fs::Sha256::of(&raw), root.digest);
}

#[test]
fn umoci_lists_the_tags() {
    if !present("umoci") {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let (layout, _) = published(tmp.path());
    let listed = String::from_utf8(run("umoci", &["ls", "--layout", &layout.to_string_lossy()])).unwrap();
    let mut tags: Vec<&str> = listed.lines().collect();
    tags.sort_unstable();
    assert_eq!(tags, ["1.0", "1.0-f16", "1.0-q8_0"]);
}
