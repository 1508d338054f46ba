//! docker-registry or distribution on a free port.

use crate::process::ensure;
use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A registry that ends with its value.
pub struct Registry {
    child: Child,
    /// `HOST:PORT`; it speaks plain HTTP.
    pub host: String,
}

impl Registry {
    /// Starts Debian's docker-registry with an empty, new folder.
    pub fn debian(dir: &Path) -> Result<Registry> {
        ensure("docker-registry", "docker-registry")?;
        Registry::start(Path::new("docker-registry"), dir)
    }

    /// Starts `program`, which is `docker-registry` or a later release of it, with an empty, new folder.
    pub fn start(program: &Path, dir: &Path) -> Result<Registry> {
        Registry::with(program, dir, serde_json::json!([]))
    }

    /// The same, but blobs are at another server: `base`, which serves the files of [`Registry::data`].
    pub fn redirecting(program: &Path, dir: &Path, base: &str) -> Result<Registry> {
        Registry::with(program, dir, serde_json::json!([{"name": "redirect", "options": {"baseurl": base}}]))
    }

    /// Where a registry that was started in `dir` keeps its files.
    pub fn data(dir: &Path) -> PathBuf {
        dir.join("data")
    }

    fn with(program: &Path, dir: &Path, of_storage: serde_json::Value) -> Result<Registry> {
        let name = program.display();
        workspace::fresh(dir)?;
        let config = serde_json::json!({
            "version": "0.1", "log": {"level": "info"}, "http": {"addr": "127.0.0.1:0", "secret": "bench"},
            "storage": {"filesystem": {"rootdirectory": Registry::data(dir)}}, "middleware": {"storage": of_storage},
        });
        let path = dir.join("config.yml");
        std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write `{}`", path.display()))?;
        let mut child = Command::new(program)
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let mut log = BufReader::new(child.stderr.take().context("a registry without a standard error")?);
        let mut line = String::new();
        loop {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                bail!("`{name}` ended before it listened");
            }
            if let Some((_, rest)) = line.split_once("listening on ") {
                let host = rest.split(['"', ',', ' ', '\n']).next().unwrap_or_default().to_owned();
                std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return Ok(Registry { child, host });
            }
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
