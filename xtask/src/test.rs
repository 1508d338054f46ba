//! `cargo xtask test`: what the tests need, then all of them.

use crate::peers::Peers;
use crate::process::{ensure, run};
use crate::workspace::cargo;
use anyhow::Result;

/// Installs the peers of the default run, then runs every test and doctest with peers required: a test whose peer is
/// missing fails and names it.
pub fn command(arguments: &[&str]) -> Result<()> {
    ensure("skopeo", "skopeo")?;
    let peers = Peers::locate()?;
    peers.ggml_base()?;
    let test = |what: &[&str]| {
        run(cargo()
            .args(["test", "--workspace"])
            .args(what)
            .args(arguments)
            .env("MLPACK_REQUIRE_PEERS", "1")
            .env("MLPACK_PEER_LLAMA", peers.llama_bin()))
    };
    test(&["--all-targets"])?;
    test(&["--doc"])
}
