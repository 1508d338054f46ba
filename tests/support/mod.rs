//! A directory for a test, the command to test, and failures that say everything.

pub mod registry;

use mlpack_fs::hash_file;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A file or folder under `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// The base of the legal-qa fixture, as an argument.
pub fn base() -> String {
    fixture("legal-qa/kjv-llama").display().to_string()
}

/// What a command that has to fail with `code` says; it prints nothing else and leaves nothing behind.
#[track_caller]
pub fn refused(dir: &TestDir, args: &[&str], code: i32) -> String {
    let before = dir.listing();
    let (stdout, stderr) = mlpack(dir).args(args).expect(code);
    assert_eq!(stdout, "", "standard output is data");
    assert_eq!(dir.listing(), before, "nothing is left behind");
    stderr
}

/// Makes the directory `made`, which has a journal while it is made, in a process that is killed when that has so many lines. A
/// process that is faster than whoever watches it is begun again.
pub fn kill_at(dir: &TestDir, args: &[&str], made: &str, lines: usize) {
    let was_killed = (0..20).any(|_| {
        let killed = killed_at(dir, args, made, lines);
        if !killed {
            std::fs::remove_dir_all(dir.path(made)).unwrap();
        }
        killed
    });
    assert!(was_killed, "the journal never had {lines} lines");
}

/// Whether the process lived until its journal had so many lines.
fn killed_at(dir: &TestDir, args: &[&str], made: &str, lines: usize) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mlpack"))
        .args(args)
        .current_dir(dir.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (folder, name) = made.rsplit_once('/').unwrap_or((".", made));
    let journal = dir.path(&format!("{folder}/.{name}.mlpack-partial/.mlpack-journal"));
    let noted = || std::fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    while noted() < lines && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap().signal() == Some(9)
}

/// A golden of llama.cpp b11434 on the legal-qa base.
pub fn golden(name: &str) -> Value {
    let path = fixture("legal-qa/golden/llama.cpp-b11434").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The sha256 of a file, as goldens spell it.
pub fn sha256(path: &Path) -> String {
    hash_file(path).unwrap().0.to_string()
}

/// The folder with ONNX Runtime's library, where it is installed.
pub fn onnxruntime() -> Option<PathBuf> {
    let peers: PathBuf = std::env::var_os("MLPACK_PEERS_DIR").map_or_else(|| fixture("../target/peers"), Into::into);
    let versions = std::fs::read_dir(peers.join("venv/lib")).into_iter().flatten().flatten();
    let mut folders = versions.map(|version| version.path().join("site-packages/onnxruntime/capi"));
    let found = folders.find(|folder| folder.is_dir());
    if found.is_none() {
        assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "onnxruntime is required and not installed");
        println!("skipped: needs onnxruntime (cargo xtask peers onnx)");
    }
    found
}

/// An empty directory that goes with the test.
pub struct TestDir(tempfile::TempDir);

impl TestDir {
    pub fn new() -> TestDir {
        TestDir(tempfile::Builder::new().prefix("mlpack-test-").tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Everything below the directory, sorted, hidden files included.
    pub fn listing(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), found);
                } else {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        walk(self.0.path(), "", &mut found);
        found.sort();
        found
    }

    /// A copy of a fixture folder that a test may change.
    pub fn copy(&self, from: &str, name: &str) -> PathBuf {
        let to = self.path(name);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(fixture(from)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
        to
    }
}

/// The command under test, in a directory.
pub struct Mlpack {
    command: Command,
    dir: PathBuf,
}

/// `mlpack` in a test's directory.
pub fn mlpack(dir: &TestDir) -> Mlpack {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlpack"));
    command.current_dir(dir.path("")).env("NO_COLOR", "1").env_remove("RUST_BACKTRACE").env_remove("MLPACK_PASSPHRASE");
    command.env_remove("ORT_DYLIB_PATH");
    command.stdin(std::process::Stdio::null());
    Mlpack { command, dir: dir.path("") }
}

impl Mlpack {
    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Mlpack {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Mlpack {
        self.command.env(name, value);
        self
    }

    /// Runs it, expecting "the answer is no" or "bad input".
    #[track_caller]
    pub fn fails(mut self) {
        let output = self.command.output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 3)), "{}", self.report(&output));
    }

    /// Runs it: standard output, standard error, exit code.
    pub fn outcome(mut self) -> (String, String, i32) {
        let output = self.command.output().unwrap();
        (self.clean(&output.stdout), self.clean(&output.stderr), output.status.code().unwrap_or(-1))
    }

    /// Runs it, expecting success; standard output.
    pub fn succeed(self) -> String {
        self.expect(0).0
    }

    /// Runs it, expecting success with `--json`.
    pub fn json(self) -> Value {
        let out = self.args(["--json"]).succeed();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("not JSON: {e}\n{out}"))
    }

    /// Runs it, expecting an exit code; standard output and error with paths of this run taken out.
    pub fn expect(mut self, code: i32) -> (String, String) {
        let output = self.command.output().unwrap();
        let found = output.status.code();
        assert_eq!(found, Some(code), "{}", self.report(&output));
        (self.clean(&output.stdout), self.clean(&output.stderr))
    }

    fn clean(&self, bytes: &[u8]) -> String {
        let fixtures = fixture("");
        String::from_utf8_lossy(bytes)
            .replace(&*self.dir.to_string_lossy(), "[DIR]/")
            .replace(&*fixtures.to_string_lossy(), "[FIXTURES]/")
            .replace("//", "/")
    }

    fn report(&self, output: &Output) -> String {
        format!(
            "{:?}\nin {}\nstatus {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.dir.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }
}
