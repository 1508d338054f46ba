//! `--device`: what a build without GPUs does, and what it says.

use crate::support::{TestDir, base, fixture, mlpack, refused, sha256};

#[track_caller]
fn refuses(name: &str, args: &[&str]) {
    let dir = TestDir::new();
    let base = base();
    let stderr = refused(&dir, &[&["convert", &base, "--quant", "F16", "-o", "out"], args].concat(), 2);
    insta::assert_snapshot!(name, stderr);
}

#[test]
fn devices_that_are_not_there_are_refused() {
    refuses("device-unknown", &["--device", "gpu"]);
    refuses("device-number", &["--device", "cuda:x"]);
    if !cfg!(feature = "metal") {
        refuses("device-metal", &["--device", "metal"]);
    } else if !cfg!(target_os = "macos") {
        refuses("device-metal-elsewhere", &["--device", "metal"]);
    }
    refuses("device-memory-of-metal", &["--device", "metal", "--device-memory", "1GB"]);
    refuses("device-memory-of-the-cpu", &["--device", "cpu", "--device-memory", "1GB"]);
    refuses("device-memory-size", &["--device", "auto", "--device-memory", "much"]);
    if !mlpack_device::Device::IS_BUILT {
        refuses("device-not-built", &["--device", "cuda:1"]);
    }
}

#[test]
fn every_command_that_merges_or_encodes_takes_a_device() {
    let dir = TestDir::new();
    let release = fixture("legal-qa/mlpack.toml").display().to_string();
    for args in [
        &["merge", "m", "-a", "a", "-o", "out"][..],
        &["quantize", "m.gguf", "--quant", "Q8_0", "-o", "out"],
        &["release", &release, "-o", "out"],
    ] {
        let stderr = refused(&dir, &[args, &["--device", "cpu", "--device-memory", "1GB"]].concat(), 2);
        assert!(stderr.starts_with("error: --device-memory is for a GPU\n"), "{args:?}: {stderr}");
    }
}

#[test]
fn auto_says_what_it_took_and_the_bytes_are_the_same() {
    let dir = TestDir::new();
    let made = |out: &str, device: &[&str]| {
        let args = ["convert", &base(), "--quant", "Q4_K_M", "--name", "m", "-o", out];
        let (_, stderr) = mlpack(&dir).args(args).args(device).expect(0);
        (sha256(&dir.path(out).join("m-Q4_K_M.gguf")), stderr)
    };
    let (expected, silent) = made("default", &[]);
    let (cpu, _) = made("cpu", &["--device", "cpu"]);
    let (auto, said) = made("auto", &["--device", "auto"]);
    assert_eq!([cpu, auto], [expected.clone(), expected]);
    if !mlpack_device::Device::IS_BUILT {
        assert!(!silent.contains("device:"), "{silent}");
        assert!(said.contains("device: the CPU (this build of mlpack has no CUDA support"), "{said}");
    }
}
