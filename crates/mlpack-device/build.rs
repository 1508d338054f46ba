//! Compiles the kernels where a feature asks for it: with nvcc for devices, with the C compiler for the model of one.
//!
//! nvcc is the one that `MLPACK_NVCC` names, or `$CUDA_PATH/bin/nvcc`, or that of the search path. `MLPACK_CUDA_ARCHS` names
//! other architectures than the default, as nvcc writes them: `80,90`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// A binary for each; of the last one also the portable form, from which drivers make that of later devices.
const ARCHS: &str = "75,80,90,100,120";

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["MLPACK_NVCC", "CUDA_PATH", "MLPACK_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        image();
    }
    #[cfg(feature = "host-model")]
    model();
}

fn out(name: &str) -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join(name)
}

fn image() {
    let named = env::var_os("MLPACK_NVCC").map(PathBuf::from);
    let of_toolkit = env::var_os("CUDA_PATH").map(|root| PathBuf::from(root).join("bin/nvcc"));
    let nvcc = named.or(of_toolkit).unwrap_or_else(|| "nvcc".into());
    let archs = env::var("MLPACK_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let image = out("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    // What makes the bytes those of the CPU is there: no fused operations but those that are written, no flushed subnormals,
    // and division and square root rounded as IEEE 754 says.
    command.args(["-fatbin", "--options-file", "kernels/nvcc.options"]);
    for arch in archs.split(',') {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    let last = archs.rsplit(',').next().unwrap_or_default();
    command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    let status = command.arg("-o").arg(&image).arg("kernels/kernels.cu").status();
    let problem = match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(status.to_string()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(problem) = problem {
        println!("cargo::error=the feature `cuda` needs CUDA's compiler: {} {problem}", nvcc.display());
        println!("cargo::error=set CUDA_PATH to a toolkit of CUDA 13, or MLPACK_NVCC to its nvcc (docs/gpu.md)");
        std::process::exit(1);
    }
    println!("cargo::rustc-env=MLPACK_CUDA_IMAGE={}", image.display());
}

#[cfg(feature = "host-model")]
fn model() {
    // Optimised in every profile: it encodes in tests what devices encode.
    let compiler = cc::Build::new().opt_level(2).warnings(false).get_compiler();
    let library = out("libmlpack-host-model.so");
    let mut command = compiler.to_command();
    command.args(["-std=gnu11", "-ffp-contract=off", "-shared", "-fPIC", "-o"]).arg(&library);
    let status = command.args(["kernels/host.c", "-lm", "-lpthread"]).status().expect("the C compiler runs");
    assert!(status.success(), "the C compiler builds kernels/host.c: {status}");
    println!("cargo::rustc-env=MLPACK_HOST_MODEL={}", library.display());
}
