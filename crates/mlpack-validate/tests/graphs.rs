//! A graph is near the reference of its own model, and far from that of another: what is compared is not the graph with itself.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "tests look for a tool, and say what they skip")]

use mlpack_arch::Families;
use mlpack_convert::{
    BlockOptions, Computation, Layout, OnnxRequest, Precision, Resources, Source, plan_onnx, seal_onnx, write_onnx,
};
use mlpack_fs::AtomicDir;
use mlpack_onnx::{FixedDims, Profile};
use mlpack_validate::{Reference, Runtime};
use std::path::{Path, PathBuf};

/// ONNX Runtime's library, where it is installed.
fn library() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let peers = std::env::var_os("MLPACK_PEERS_DIR").map_or_else(|| here.join("../../target/peers"), Into::into);
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = entries(peers.join("venv/lib"))
        .flat_map(|python| entries(python.join("site-packages/onnxruntime/capi")))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so")));
    if found.is_none() {
        assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "onnxruntime is required and not installed");
        println!("skipped: needs onnxruntime (cargo xtask peers onnx)");
    }
    found
}

#[test]
fn a_graph_is_near_its_own_model_and_far_from_the_merged_one() {
    let Some(library) = library() else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa");
    let open = |adapters: &[(PathBuf, f64)]| {
        let source = Source::open(&fixtures.join("kjv-llama"), adapters, &Default::default()).unwrap();
        let computation = Computation::open(&source, None, &Families::builtin(), None).unwrap();
        (source, computation)
    };
    let (source, computation) = open(&[]);
    let request = OnnxRequest {
        precisions: vec![Precision::Fp32],
        profile: Profile::Portable,
        blocks: BlockOptions::default(),
        fixed: FixedDims::default(),
        layout: Layout::Plain,
        keep_fp32: Vec::new(),
    };
    let plan = plan_onnx(&source, &computation, &request).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = AtomicDir::create(&dir.path().join("out")).unwrap();
    let mut done = write_onnx(&source, &plan, &out, &Resources::default(), &|_| {}).unwrap();
    seal_onnx(out, &mut done).unwrap();
    let graph = dir.path().join("out/model.onnx");

    let runtime = Runtime::load(&library).unwrap();
    let compared = |(source, computation): (&Source, &Computation)| {
        let reference = Reference::compute(source, computation, &FixedDims::default()).unwrap();
        runtime.compare(&reference, &graph, Precision::Fp32).unwrap()
    };
    let own = compared((&source, &computation));
    assert!(own.is_near(), "{own:?}");
    assert_eq!(own.outputs[0].agreement, Some((30, 30)));
    let (merged, computation) = open(&[(fixtures.join("legal-qa-lora"), 1.0)]);
    let other = compared((&merged, &computation));
    assert!(!other.is_near() && other.outputs[0].cosine > 0.5, "{other:?}");
}
