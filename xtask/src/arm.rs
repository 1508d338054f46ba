//! `cargo xtask arm`: the codecs on 64-bit Arm, under emulation, against the goldens of ggml.

use crate::process::{ensure, install, run};
use crate::workspace::cargo;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Debian's C library for the target; its folder is where the emulator looks for the loader.
const LIBRARY: (&str, &str) = ("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu");

/// Installs the emulator, the linker and Rust's target, then runs the golden and property tests of mlpack-quant.
pub fn command(arguments: &[&str]) -> Result<()> {
    ensure("qemu-aarch64", "qemu-user")?;
    ensure("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")?;
    let (package, folder) = LIBRARY;
    if !Path::new(folder).join("lib").is_dir() {
        install(package)?;
    }
    run(Command::new("rustup").args(["target", "add", TARGET]))?;
    let mut test = cargo();
    test.args(["test", "-p", "mlpack-quant", "--target", TARGET, "--test", "golden", "--test", "backends"]);
    test.args(arguments);
    test.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    test.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", format!("qemu-aarch64 -L {folder}"));
    run(&mut test)
}
