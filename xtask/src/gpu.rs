//! `cargo xtask gpu`: mlpack with its CUDA kernels, built where there is no GPU, in a folder that shows on a machine with one
//! whether it works.

use crate::peers::Peers;
use crate::process::{output, run};
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
    // Its own check, with a driver that is modelled on the host.
    run(Command::new(out.join("selfcheck")).args(["--model", "--values", "4194304", "--no-bench"]))?;
    eprintln!("{} runs on any Linux machine with a driver for CUDA 13: run.sh", out.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display())).map(|_| ())
}
