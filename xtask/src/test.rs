//! `cargo xtask test`: what the tests need, then all of them.

use crate::peers::Peers;
use crate::process::{ensure, run};
use crate::workspace::cargo;
use anyhow::Result;

/// Installs the peers of the default run, then runs every test and doctest with peers required: a test whose peer is
/// missing fails and names it.
pub fn command(arguments: &[&str]) -> Result<()> {
    const PEERS: [(&str, &str); 6] = [
        ("skopeo", "skopeo"),
        ("umoci", "umoci"),
        ("docker-registry", "docker-registry"),
        ("htpasswd", "apache2-utils"),
        ("openssl", "openssl"),
        ("unshare", "util-linux"),
    ];
    for (program, package) in PEERS {
        ensure(program, package)?;
    }
    let peers = Peers::locate()?;
    peers.provenance()?;
    peers.onnx()?;
    let test = |what: &[&str]| {
        run(cargo().args(["test", "--workspace"]).args(what).args(arguments).env("MLPACK_REQUIRE_PEERS", "1"))
    };
    test(&["--all-targets"])?;
    test(&["--doc"])
}
