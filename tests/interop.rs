//! Our files in the hands of other implementations.

use crate::support::{TestDir, fixture, mlpack};
use std::path::PathBuf;
use std::process::Command;

#[test]
fn gguf_rs_lib_reads_every_file_type() {
    let dir = TestDir::new();
    let base = fixture("legal-qa/kjv-llama");
    let imatrix = fixture("legal-qa/golden/llama.cpp-b11434/imatrix.gguf");
    let quants: Vec<&str> = mlpack_convert::FileType::ALL.iter().map(|ty| ty.name).collect();
    mlpack(&dir)
        .args(["convert", base.to_str().unwrap(), "--imatrix", imatrix.to_str().unwrap()])
        .args(["--quant", &quants.join(","), "-o", "out"])
        .succeed();
    for quant in quants {
        let path = dir.path(&format!("out/kjv-llama-{quant}.gguf"));
        let ours = mlpack_gguf::GgufFile::open(&path).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let theirs = gguf_rs_lib::reader::GGUFFileReader::new(file).unwrap_or_else(|e| panic!("{quant}: {e}"));
        assert_eq!(theirs.metadata().get_string("general.name"), Some("Kjv Llama"), "{quant}");
        assert_eq!(theirs.tensor_infos().len(), ours.tensors().len());
        for (a, b) in ours.tensors().iter().zip(theirs.tensor_infos()) {
            let dims: Vec<u64> = a.shape.dims().iter().rev().copied().collect();
            assert_eq!((a.name.as_str(), dims.as_slice()), (b.name(), b.shape().dims()), "{quant}");
            assert_eq!(b.tensor_type().name(), a.ty.name(), "{quant}: {}", a.name);
        }
    }
}

#[test]
fn the_safetensors_crate_reads_a_merged_checkpoint() {
    let dir = TestDir::new();
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    mlpack(&dir).args(["merge", base.to_str().unwrap(), "-a", adapter.to_str().unwrap(), "-o", "merged"]).succeed();
    let bytes = std::fs::read(dir.path("merged/model.safetensors")).unwrap();
    let merged = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(merged.len(), 29);
    assert_eq!(merged.tensor("model.layers.0.self_attn.q_proj.weight").unwrap().shape(), [256, 256]);
}

/// A Python that has onnx and onnxruntime, where there is one.
fn onnx_python() -> Option<PathBuf> {
    let peers: PathBuf = std::env::var_os("MLPACK_PEERS_DIR").map_or_else(|| fixture("../target/peers"), Into::into);
    let python = peers.join("venv/bin/python");
    let imports = Command::new(&python).args(["-c", "import onnx, onnxruntime"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "onnxruntime is required and not installed");
        println!("skipped: needs onnxruntime (cargo xtask peers onnx)");
        return None;
    }
    Some(python)
}

fn script(name: &str) -> PathBuf {
    fixture("../xtask/scripts").join(name)
}

#[test]
fn graphs_of_static_shapes_compute_what_open_ones_do() {
    let Some(python) = onnx_python() else { return };
    let dir = TestDir::new();
    let base = fixture("legal-qa/kjv-llama");
    for profile in ["std", "portable", "ort"] {
        let convert = |name: &str, dims: &[&str]| {
            let args = ["convert", base.to_str().unwrap(), "--to", "onnx", "--precision", "fp32", "--layout", "plain"];
            mlpack(&dir).args(args).args(["--profile", profile, "-o", name]).args(dims).succeed();
            dir.path(name).join("model.onnx")
        };
        let open = convert(&format!("{profile}-open"), &[]);
        for dims in ["batch=1,sequence=16,past=0", "batch=1,sequence=1,past=15"] {
            let fixed = convert(&format!("{profile}-{dims}"), &["--fix-dims", dims]);
            let output =
                Command::new(&python).arg(script("onnx_static.py")).args([fixed, open.clone()]).output().unwrap();
            assert!(output.status.success(), "{profile} {dims}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn onnx_runtime_generates_what_transformers_does() {
    let Some(python) = onnx_python() else { return };
    let dir = TestDir::new();
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    for profile in ["std", "portable", "ort"] {
        let args = ["convert", base.to_str().unwrap(), "-a", adapter.to_str().unwrap(), "--to", "onnx"];
        mlpack(&dir).args(args).args(["--precision", "fp32", "--profile", profile, "-o", profile]).succeed();
        let output = Command::new(&python)
            .arg(script("onnx_greedy.py"))
            .arg(dir.path(&format!("{profile}/onnx/model.onnx")))
            .arg(fixture("legal-qa/golden/transformers-greedy.json"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{profile}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn skopeo_opens_what_release_publishes() {
    let dir = TestDir::new();
    let file = fixture("legal-qa/mlpack.toml");
    mlpack(&dir).args(["release", file.to_str().unwrap(), "-o", "dist"]).succeed();
    let inspect = |tag: &str| {
        Command::new("skopeo")
            .args(["inspect", "--raw", &format!("oci:dist/layout:{tag}")])
            .current_dir(dir.path(""))
            .output()
    };
    let Ok(output) = inspect("v1-q4_k_m") else {
        assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "skopeo is required and not installed");
        println!("skipped: skopeo is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
    let index: serde_json::Value = serde_json::from_slice(&inspect("v1").unwrap().stdout).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
    let copied = Command::new("skopeo")
        .args(["copy", "--all", "oci:dist/layout:v1", "oci:copy:v1"])
        .current_dir(dir.path(""))
        .output()
        .unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    mlpack_oci::Layout::open(&dir.path("copy")).unwrap().verify().unwrap();
}
