//! `cargo xtask metal`: mlpack for Macs, with and without Metal, where there is no Mac: checked, compiled and linked, but not run.
//!
//! What Apple's SDK would give is made up: zig brings the headers of the C library and the list of what it exports, and of frameworks
//! and other libraries there are only the names. What is not found is left for a Mac to find, so linking shows little more than that
//! every object is one of a Mac.

use crate::peers::Peers;
use crate::process::{output, run};
use crate::workspace::{self, cargo};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "aarch64-apple-darwin";

/// The C compiler that build scripts call.
const COMPILER: &str = include_str!("../scripts/macos_cc.sh");

/// Frameworks and libraries that the programs name: each with its place on a Mac.
const FRAMEWORKS: &[&str] =
    &["CoreFoundation", "CoreGraphics", "Foundation", "Metal", "Security", "SystemConfiguration"];
const LIBRARIES: &[(&str, &str)] =
    &[("libobjc", "/usr/lib/libobjc.A.dylib"), ("libiconv", "/usr/lib/libiconv.2.dylib")];

/// Checks every crate of mlpack for macOS, with and without Metal, and tests here what is said without a Mac; with `--link` also
/// builds the program.
pub fn command(arguments: &[&str]) -> Result<()> {
    let link = match arguments {
        [] => false,
        ["--link"] => true,
        _ => bail!("`metal` takes no options but --link"),
    };
    let zig = Peers::locate()?.zig()?;
    run(Command::new("rustup").args(["target", "add", TARGET]))?;
    let scratch = workspace::root().join("target/macos");
    let tools = Tools::write(&scratch, &zig)?;
    for features in [&[][..], &["--features", "metal"]] {
        let mut clippy = tools.cargo();
        clippy.args(["clippy", "--package", "mlpack", "--all-targets"]).args(features);
        run(clippy.args(["--", "-D", "warnings"]))?;
    }
    // What the program says where it has the feature and there is no Metal.
    run(cargo().args(["test", "--package", "mlpack", "--features", "metal", "--test", "integration", "--", "device"]))?;
    if link {
        let mut build = tools.cargo();
        run(build.args(["build", "--package", "mlpack", "--bin", "mlpack", "--features", "metal"]))?;
        let program = workspace::target_dir()?.join(TARGET).join("debug/mlpack");
        let bytes = mlpack_fs::MappedFile::open(&program)?;
        // A 64-bit Mach-O file for Arm (Apple, mach-o/loader.h).
        let magic = bytes.bytes().get(..8).context("the program is empty")?;
        anyhow::ensure!(
            magic == [0xcf, 0xfa, 0xed, 0xfe, 0x0c, 0, 0, 1],
            "`{}` is no program of a Mac",
            program.display()
        );
        eprintln!("{} is linked; no Mac has run it", program.display());
    }
    Ok(())
}

/// What stands in for Apple's tools and SDK.
struct Tools {
    zig: PathBuf,
    dir: PathBuf,
}

impl Tools {
    fn write(dir: &Path, zig: &Path) -> Result<Tools> {
        let (libraries, frameworks) = (dir.join("sdk/usr/lib"), dir.join("sdk/System/Library/Frameworks"));
        for dir in [&libraries, &frameworks] {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
        }
        script(&dir.join("cc"), COMPILER)?;
        script(&dir.join("ar"), "#!/bin/sh\nexec \"$MLPACK_ZIG\" ar \"$@\"\n")?;
        let lld = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
        let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
        let lld = lld.join("lib/rustlib").join(host.trim()).join("bin/rust-lld");
        // By its name rustc sees that it takes the options of Apple's linker.
        let linker = format!("#!/bin/sh\nexec '{}' -flavor darwin \"$@\" -undefined dynamic_lookup\n", lld.display());
        script(&dir.join("ld"), &linker)?;
        let system = zig.with_file_name("lib").join("libc/darwin/libSystem.tbd");
        // Of Arm it lists variants alone, one of which the linker does not know; they export the same.
        let system = mlpack_fs::read_to_string_bounded(&system, workspace::TEXT_LIMIT)?.replace("arm64e.x1-", "arm64-");
        for name in ["libSystem", "libc", "libm"] {
            write(&libraries.join(name).with_extension("tbd"), &system)?;
        }
        for (name, place) in LIBRARIES {
            write(&libraries.join(name).with_extension("tbd"), &stub(place))?;
        }
        for name in FRAMEWORKS {
            let dir = frameworks.join(name).with_extension("framework");
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
            let place = format!("/System/Library/Frameworks/{name}.framework/Versions/A/{name}");
            write(&dir.join(name).with_extension("tbd"), &stub(&place))?;
        }
        Ok(Tools { zig: zig.to_owned(), dir: dir.to_owned() })
    }

    fn cargo(&self) -> Command {
        let mut command = cargo();
        command.env("CARGO_BUILD_TARGET", TARGET).env("MLPACK_ZIG", &self.zig).env("SDKROOT", self.dir.join("sdk"));
        command.env("CC_aarch64_apple_darwin", self.dir.join("cc")).env("AR_aarch64_apple_darwin", self.dir.join("ar"));
        command.env("CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER", self.dir.join("ld"));
        command
    }
}

/// A library of which only the place is known.
fn stub(place: &str) -> String {
    format!("--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\ninstall-name: '{place}'\n...\n")
}

fn script(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    run(Command::new("chmod").arg("+x").arg(path))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}
