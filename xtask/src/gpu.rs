//! `cargo xtask gpu`: mlpack with its CUDA kernels, built where there is no GPU, in a folder that shows on a machine with one
//! whether it works. The kernels' instructions are looked at first, and the folder is tried on a driver modelled on the host.

use crate::peers::Peers;
use crate::process::{output, run, shown};
use crate::workspace::{self, cargo};
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// What the folder's script does, in order; it stops at the first thing that is wrong.
const SCRIPT: &str = include_str!("../scripts/gpu_run.sh");

/// Builds the folder `target/gpu`. With `--dev` the programs are built without optimisation.
pub fn command(arguments: &[&str]) -> Result<()> {
    let release = match arguments {
        [] => true,
        ["--dev"] => false,
        _ => anyhow::bail!("`gpu` takes no options but --dev"),
    };
    let peers = Peers::locate()?;
    let toolkit = peers.cuda()?;
    let kernels = workspace::root().join("crates/mlpack-device/kernels");
    let scratch = workspace::root().join("target/gpu-scratch");
    workspace::fresh(&scratch)?;
    eprint!("{}", inspect(&toolkit.join("bin/nvcc"), &kernels, &scratch)?);
    let build = |what: &[&str]| {
        let mut build = cargo();
        build.arg("build").args(what).args(["--features", "cuda"]).env("CUDA_PATH", &toolkit);
        if release {
            build.arg("--release");
        }
        run(&mut build)
    };
    build(&["--package", "mlpack", "--bin", "mlpack"])?;
    build(&["--package", "mlpack-device", "--example", "selfcheck"])?;
    let built = workspace::target_dir()?.join(if release { "release" } else { "debug" });
    let out = workspace::root().join("target/gpu");
    workspace::fresh(&out)?;
    copy(&built.join("mlpack"), &out.join("mlpack"))?;
    copy(&built.join("examples/selfcheck"), &out.join("selfcheck"))?;
    run(Command::new("cp").arg("-r").arg(workspace::root().join("fixtures/legal-qa")).arg(out.join("legal-qa")))?;
    let script = out.join("run.sh");
    std::fs::write(&script, SCRIPT).with_context(|| format!("cannot write `{}`", script.display()))?;
    run(Command::new("chmod").arg("+x").arg(&script))?;
    // What it needs of the system, apart from the driver that it opens when it runs.
    eprint!("{}", output(Command::new("ldd").arg(out.join("mlpack")))?);
    without_driver(&out, &scratch)?;
    // The whole script, as on a machine with a GPU, but small.
    let driver = scratch.join("libcuda.so.1");
    run(Command::new(out.join("selfcheck")).arg("--driver").arg(&driver))?;
    run(Command::new(&script).args(["0", "65536", "1"]).env("LD_LIBRARY_PATH", &scratch))?;
    eprintln!("{} runs on any Linux machine with a driver for CUDA 13: run.sh", out.display());
    Ok(())
}

/// Compiles the kernels for one architecture, and says what each one takes.
fn inspect(nvcc: &Path, kernels: &Path, scratch: &Path) -> Result<String> {
    let compile = |how: &[&str], to: &Path| {
        let mut nvcc = Command::new(nvcc);
        nvcc.args(how).arg("--options-file").arg(kernels.join("nvcc.options")).arg("-o").arg(to);
        nvcc.arg(kernels.join("kernels.cu"));
        nvcc
    };
    let ptx = scratch.join("kernels.ptx");
    run(&mut compile(&["-ptx", "-arch=compute_90"], &ptx))?;
    check_instructions(&mlpack_fs::read_to_string_bounded(&ptx, workspace::TEXT_LIMIT)?)?;
    let mut verbose = compile(&["-cubin", "-arch=sm_90", "-Xptxas", "-v"], &scratch.join("kernels.cubin"));
    let done = verbose.output().with_context(|| format!("cannot start `{}`", nvcc.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "nvcc failed: {said}");
    Ok(resources(&said))
}

/// Refuses arithmetic whose results are not those of IEEE 754, and fused operations where the kernels do not ask for them.
fn check_instructions(ptx: &str) -> Result<()> {
    let (mut kernel, mut kernels, mut wrong) = ("", 0, Vec::new());
    for line in ptx.lines().map(str::trim) {
        if let Some((_, name)) = line.split_once(".entry ") {
            (kernel, kernels) = (name.trim_end_matches('('), kernels + 1);
        }
        let instruction = line.rsplit_once("} ").map_or(line, |(_, after)| after);
        let instruction = instruction.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or("");
        let float = instruction.ends_with(".f32") || instruction.ends_with(".f64");
        let fused = instruction.starts_with("fma.") || instruction.starts_with("mad.");
        let inexact = [".approx", ".full", ".ftz"].iter().any(|part| instruction.contains(part));
        // Merging asks for fused additions of exact products.
        if float && (inexact || fused && kernel != "merge") {
            wrong.push(format!("  {kernel}: {instruction}"));
        }
    }
    anyhow::ensure!(kernels > 0, "nvcc wrote no kernel");
    anyhow::ensure!(wrong.is_empty(), "instructions that round in another way than the CPU:\n{}", wrong.join("\n"));
    eprintln!("{kernels} kernels: no fused operation outside `merge`, no approximation, no flushed subnormal");
    Ok(())
}

/// What ptxas says of each kernel, as a table: registers, local memory, spilled bytes, shared memory of a block of threads.
fn resources(said: &str) -> String {
    let mut rows = Vec::new();
    let number = |line: &str, before: &str| -> u64 {
        let at = line.find(before).map_or("", |at| line[..at].trim_end());
        at.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    };
    let (mut name, mut local, mut spilled) = ("", 0, 0);
    for line in said.lines() {
        if let Some((_, after)) = line.split_once("Compiling entry function '") {
            name = after.split('\'').next().unwrap_or("");
        } else if line.contains("bytes stack frame") {
            (local, spilled) = (number(line, " bytes stack frame"), number(line, " bytes spill stores"));
        } else if line.contains("Used ") && line.contains(" registers") {
            rows.push((name, number(line, " registers"), local, spilled, number(line, " bytes smem")));
        }
    }
    rows.sort_unstable();
    let mut table = String::from(
        "| kernel | registers | local bytes | spilled | shared bytes |\n| --- | --- | --- | --- | --- |\n",
    );
    for (name, registers, local, spilled, shared) in rows {
        table += &format!("| `{name}` | {registers} | {local} | {spilled} | {shared} |\n");
    }
    table
}

/// Where there is no driver, the program says so, `auto` takes the CPU, and the script stops with its own exit code.
fn without_driver(out: &Path, scratch: &Path) -> Result<()> {
    let convert = |device: &str| {
        let mut mlpack = Command::new(out.join("mlpack"));
        mlpack.arg("convert").arg(out.join("legal-qa/kjv-llama")).args(["--quant", "Q4_K_M", "--device", device]);
        mlpack.arg("-o").arg(scratch.join(device));
        mlpack
    };
    if convert("cuda").output()?.status.success() {
        eprintln!("this machine has a GPU: what the folder does without one is not looked at");
        return Ok(());
    }
    let said = |command: &mut Command, code: i32, text: &str| -> Result<()> {
        let done = command.output().with_context(|| format!("cannot start `{}`", shown(command)))?;
        let printed = [done.stdout, done.stderr].concat();
        let printed = String::from_utf8_lossy(&printed);
        let fits = done.status.code() == Some(code) && printed.contains(text);
        anyhow::ensure!(fits, "`{}`: {}, not {code} and `{text}`:\n{printed}", shown(command), done.status);
        eprintln!("without a driver, `{}` says `{text}`", shown(command));
        Ok(())
    };
    said(&mut convert("cuda"), 4, "cannot find the CUDA driver")?;
    said(&mut convert("auto"), 0, "device: the CPU")?;
    said(&mut Command::new(out.join("run.sh")), 4, "nothing was checked")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display())).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_round_otherwise_are_refused() {
        let of = |kernel: &str, line: &str| check_instructions(&format!(".visible .entry {kernel}(\n\t{line}\n"));
        for fine in
            ["div.rn.f32 %f1, %f2, %f3;", "mad.lo.s32 %r1, %r2, %r3, %r4;", "@%p1 bra $L;", "sqrt.rn.f32 %f1, %f2;"]
        {
            of("q4_k", fine).unwrap();
        }
        of("merge", "fma.rn.f64 %fd1, %fd2, %fd3, %fd4;").unwrap();
        for wrong in [
            "fma.rn.f32 %f1, %f2, %f3, %f4;",
            "div.full.f32 %f1, %f2, %f3;",
            "@%p2 sqrt.approx.f32 %f1, %f2;",
            "add.ftz.f32 %f1, %f2;",
        ] {
            of("q4_k", wrong).unwrap_err();
        }
        check_instructions("").unwrap_err();
    }

    #[test]
    fn what_ptxas_says_becomes_a_table() {
        let said = "ptxas info    : Compiling entry function 'q4_k' for 'sm_90'\n\
            ptxas info    : Function properties for q4_k\n    248 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 128 registers, used 1 barriers, 248 bytes cumulative stack size, 10688 bytes smem\n";
        assert!(resources(said).ends_with("| `q4_k` | 128 | 248 | 4 | 10688 |\n"), "{}", resources(said));
    }
}
