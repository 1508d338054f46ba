//! Debian's docker-registry on a free port.

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A registry that ends with its value.
pub struct Registry {
    child: Child,
    /// `HOST:PORT`; it speaks plain HTTP.
    pub host: String,
}

impl Registry {
    /// Starts it with an empty, new folder.
    pub fn start(dir: &Path) -> Result<Registry> {
        workspace::fresh(dir)?;
        let config = serde_json::json!({
            "version": "0.1", "log": {"level": "info"}, "http": {"addr": "127.0.0.1:0", "secret": "bench"},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
        });
        let path = dir.join("config.yml");
        std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write `{}`", path.display()))?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start docker-registry")?;
        let mut log = BufReader::new(child.stderr.take().context("docker-registry has no standard error")?);
        let mut line = String::new();
        loop {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                bail!("docker-registry ended before it listened");
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
