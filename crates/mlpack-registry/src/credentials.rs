//! Credentials as docker and podman keep them: config.json, auth.json, and the helper programs that they name.
//!
//! ```text
//! {"auths": {"HOST[/PATH]": {"auth": base64(user:password), "identitytoken": …}}, "credHelpers": {HOST: NAME}, "credsStore": NAME}
//! ```

use crate::{Error, Trouble};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mlpack_fs::read_bounded;
use serde_json::Value;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Largest credential file read, and most that a helper may print.
const FILE_LIMIT: u64 = 1 << 20;

/// A user's right to use a registry. Its parts are never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password, or what a registry takes as one.
    Password {
        /// The user.
        user: String,
        /// The password or the access token.
        password: String,
    },
    /// A refresh token that the token service exchanges (`identitytoken`).
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Texts that no message may hold.
    pub(crate) fn secrets(&self) -> Vec<String> {
        match self {
            Credentials::Password { user, password } => {
                vec![password.clone(), STANDARD.encode(format!("{user}:{password}"))]
            }
            Credentials::IdentityToken(token) => vec![token.clone()],
        }
    }
}

/// Where credentials are looked for, in order. The first file that knows the registry decides.
#[derive(Clone, Debug, Default)]
pub struct CredentialFiles {
    /// Docker `config.json` and podman `auth.json` files; one that does not exist is passed over.
    pub files: Vec<PathBuf>,
}

impl CredentialFiles {
    /// The credentials for a repository of a host, or `None`: then the client is anonymous.
    pub fn find(&self, host: &str, repository: &str) -> Result<Option<Credentials>, Error> {
        for path in &self.files {
            let failed =
                |source_name: String, trouble| Error::Credentials { host: host.to_owned(), source_name, trouble };
            let bytes = match read_bounded(path, FILE_LIMIT) {
                Ok(bytes) => bytes,
                Err(e) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            let name = format!("`{}`", path.display());
            let malformed = |reason: String| failed(name.clone(), Trouble::Malformed(reason));
            // The reason of serde_json holds a position and no content.
            let config: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
            let Value::Object(config) = config else { return Err(malformed("no object".to_owned())) };
            let helpers = [config.get("credHelpers").and_then(|helpers| helpers.get(host)), config.get("credsStore")];
            for helper in helpers.into_iter().flatten().filter_map(Value::as_str).filter(|name| !name.is_empty()) {
                let source = format!("the credential helper `{helper}` of {name}");
                if let Some(found) = ask_helper(helper, &server_of(host)).map_err(|t| failed(source, t))? {
                    return Ok(Some(found));
                }
            }
            if let Some(entry) = config.get("auths").and_then(|auths| entry(auths, host, repository))
                && let Some(found) = inline(entry).map_err(|t| failed(name.clone(), t))?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The entry for a repository: the longest path first, then the host in the spellings that are in use.
fn entry<'a>(auths: &'a Value, host: &str, repository: &str) -> Option<&'a Value> {
    let mut key = format!("{host}/{repository}");
    loop {
        if let Some(entry) = auths.get(&key) {
            return Some(entry);
        }
        match key.rfind('/') {
            Some(slash) => key.truncate(slash),
            None => break,
        }
    }
    let spellings = [
        server_of(host),
        format!("https://{host}"),
        format!("https://{host}/"),
        format!("https://{host}/v1/"),
        format!("https://{host}/v2/"),
        format!("http://{host}"),
    ];
    spellings.iter().find_map(|key| auths.get(key))
}

/// The name that docker's tools give to a registry.
fn server_of(host: &str) -> String {
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => "https://index.docker.io/v1/".to_owned(),
        host => host.to_owned(),
    }
}

fn inline(entry: &Value) -> Result<Option<Credentials>, Trouble> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::IdentityToken(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or(Trouble::Auth)?;
        let (user, password) = decoded.split_once(':').ok_or(Trouble::Auth)?;
        let password = password.trim_end_matches('\0');
        return Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }));
    }
    Ok(match (text("username"), text("password")) {
        (Some(user), Some(password)) => {
            Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
        }
        _ => None,
    })
}

/// Asks `docker-credential-NAME get`. That the helper does not know the server is no error.
fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>, Trouble> {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Trouble::Name(name.to_owned()));
    }
    run_helper(Path::new(&format!("docker-credential-{name}")), server)
}

fn run_helper(program: &Path, server: &str) -> Result<Option<Credentials>, Trouble> {
    let start = |e: std::io::Error| Trouble::Start(e.kind().to_string());
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input has an answer of its own.
        drop(stdin.write_all(server.as_bytes()));
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(FILE_LIMIT).read_to_end(&mut output).map_err(start)?;
    }
    let status = child.wait().map_err(start)?;
    if !status.success() {
        let text = String::from_utf8_lossy(&output).to_lowercase();
        return match text.contains("not found") {
            true => Ok(None),
            // What it printed may hold a secret.
            false => Err(Trouble::Failed(status.to_string())),
        };
    }
    let answer: Value = serde_json::from_slice(&output).map_err(|_| Trouble::Output)?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str);
    match (text("Username"), text("Secret")) {
        (Some("<token>"), Some(secret)) => Ok(Some(Credentials::IdentityToken(secret.to_owned()))),
        (Some(user), Some(secret)) => {
            Ok(Some(Credentials::Password { user: user.to_owned(), password: secret.to_owned() }))
        }
        _ => Err(Trouble::Output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn files_are_asked_in_order_and_the_longest_path_wins() {
        let dir = tempfile::tempdir().unwrap();
        let podman = dir.path().join("auth.json");
        let docker = dir.path().join("config.json");
        let auth = |text: &str| STANDARD.encode(text);
        let text = serde_json::json!({"auths": {
            "r.example:5000": {"auth": auth("host:a:b")}, "r.example:5000/team": {"auth": auth("team:t")},
        }});
        std::fs::write(&podman, text.to_string()).unwrap();
        let text = serde_json::json!({"auths": {
            "r.example:5000": {"auth": auth("other:x")}, "https://s.example/v1/": {"identitytoken": "refresh"},
            "https://index.docker.io/v1/": {"username": "u", "password": "p"}, "t.example": {},
        }});
        std::fs::write(&docker, text.to_string()).unwrap();
        let files = CredentialFiles { files: vec![dir.path().join("absent"), podman, docker] };
        let find = |host: &str, repository: &str| files.find(host, repository).unwrap();
        assert_eq!(find("r.example:5000", "team/model"), password("team", "t"));
        assert_eq!(find("r.example:5000", "teams"), password("host", "a:b"));
        assert_eq!(find("s.example", "x"), Some(Credentials::IdentityToken("refresh".to_owned())));
        assert_eq!(find("docker.io", "x"), password("u", "p"));
        assert_eq!((find("t.example", "x"), find("r.example", "x")), (None, None));
    }

    #[test]
    fn a_helper_program_is_asked_and_its_secret_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        let script = "#!/bin/sh\nread server\ncase $server in\n r.example) echo '{\"Username\":\"u\",\"Secret\":\"s3cret\"}';;\n \
             t.example) echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}';;\n n.example) echo credentials not found; exit 1;;\n \
             *) echo s3cret; exit 2;;\nesac\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(run_helper(&program, "r.example"), Ok(password("u", "s3cret")));
        assert_eq!(run_helper(&program, "t.example"), Ok(Some(Credentials::IdentityToken("t".to_owned()))));
        assert_eq!(run_helper(&program, "n.example"), Ok(None));
        let trouble = run_helper(&program, "x.example").unwrap_err();
        assert_eq!(trouble, Trouble::Failed("exit status: 2".to_owned()));
        assert_eq!(format!("{:?}", password("u", "s3cret")), "Some(Credentials(…))");
        assert!(matches!(ask_helper("../../bin/sh", "x"), Err(Trouble::Name(_))));
    }

    #[test]
    fn a_malformed_file_is_named_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let files = CredentialFiles { files: vec![path.clone()] };
        for (text, expected) in [
            ("{\"auths\": s3cret", "expected value at line 1 column 11"),
            ("[]", "no object"),
            ("{\"auths\":{\"h:1\":{\"auth\":\"s3cret\"}}}", "something else"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = files.find("h:1", "x").unwrap_err().to_string();
            assert!(error.ends_with(expected) && !error.contains("s3cret"), "{error}");
        }
    }
}
