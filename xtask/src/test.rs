//! `cargo xtask test`: what the tests need, then all of them.

use crate::process::{ensure, run};
use crate::workspace::cargo;
use anyhow::Result;

/// Installs the peers of the default run, then runs every test and doctest with peers required: a test whose peer is
/// missing fails and names it.
pub fn command(arguments: &[&str]) -> Result<()> {
    for (program, package) in [("skopeo", "skopeo"), ("umoci", "umoci"), ("unshare", "util-linux")] {
        ensure(program, package)?;
    }
    let test = |what: &[&str]| {
        run(cargo().args(["test", "--workspace"]).args(what).args(arguments).env("MLPACK_REQUIRE_PEERS", "1"))
    };
    test(&["--all-targets"])?;
    test(&["--doc"])
}
