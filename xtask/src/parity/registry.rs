//! What mlpack publishes, serves and deploys, in the hands of other people's clients and registries: distribution 3, oras,
//! crane, Ollama itself, which pulls, shows and generates, and podman, which runs an image.

mod files;

use crate::peers::{GoTool, Peers};
use crate::process::{ensure, output, run_quiet};
use crate::registry::Registry;
use crate::workspace::{self, fresh};
use anyhow::{Context as _, Result, bail, ensure as check};
use files::Files;
use mlpack_fs::hash_file;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const FILE: &str = "dist/legal-qa-Q8_0.gguf";
const PROMPT: &str = "What does Article II, Section 3 say?";
const CONTAINER: &str = "mlpack-parity";
/// How often a server is asked whether it listens, a tenth of a second apart.
const PATIENCE: usize = 300;

/// A server that ends with its value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Publishes the legal-qa release and fails when any client does not get the same bytes.
pub fn run(peers: &Peers, mlpack: &Path) -> Result<()> {
    ensure("docker-registry", "docker-registry")?;
    let work = workspace::root().join("target/parity/registry");
    fresh(&work)?;
    output(Command::new("cp").arg("-r").arg(workspace::root().join("fixtures/legal-qa/.")).arg(&work))?;
    let scene = Scene { mlpack, sha256: String::new(), work };
    scene.mlpack(&["release", "mlpack.toml", "-o", "dist"])?;
    let scene = Scene { sha256: hash_file(&scene.work.join(FILE))?.0.to_string(), ..scene };
    let ollama = Ollama::start(peers, &scene.work)?;
    for (title, program) in [
        ("docker-registry 2.8", PathBuf::from("docker-registry")),
        ("distribution 3.1.2", peers.go_tool(GoTool::Distribution)?),
    ] {
        println!("{title}");
        let dir = scene.work.join("registry");
        scene.clients(peers, &Registry::start(&program, &dir)?.host)?;
        // Ollama takes a blob only from where a registry sends it to, under another host name.
        let files = Files::serve(Registry::data(&dir))?;
        let registry = Registry::redirecting(&program, &dir, &files.base)?;
        let reference = format!("{}/team/legal-qa:v1", registry.host);
        scene.mlpack(&["publish", FILE, &reference, "--plain-http", "--as", "ollama"])?;
        ollama.pulls(&scene, &reference)?;
    }
    println!("mlpack serve");
    scene.mlpack(&["publish", FILE, "oci:served:v1", "--as", "modelpack,ollama"])?;
    let (_server, host) = scene.serve("served")?;
    ollama.pulls(&scene, &format!("{host}/team/legal-qa:v1-ollama"))?;
    println!("mlpack deploy ollama");
    let store = ollama.store.display().to_string();
    scene.mlpack(&["deploy", "ollama", FILE, "legal-qa:stored", "--store", &store])?;
    ollama.has(&scene, "legal-qa:stored")?;
    scene.mlpack(&["deploy", "ollama", FILE, "legal-qa:told", "--api", &format!("http://{}", ollama.host)])?;
    ollama.answers("legal-qa:told")?;
    println!("podman, an image with llama.cpp's server in its base");
    scene.image(peers)
}

/// A folder with the release, and its Q8_0 file's digest.
struct Scene<'a> {
    mlpack: &'a Path,
    work: PathBuf,
    sha256: String,
}

impl Scene<'_> {
    fn mlpack(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new(self.mlpack).args(arguments).current_dir(&self.work))
    }

    /// Fails when the file is not the release's.
    fn same(&self, file: &Path) -> Result<()> {
        let found = hash_file(file)?.0.to_string();
        check!(found == self.sha256, "`{}` has sha256 {found}, not {}", file.display(), self.sha256);
        Ok(())
    }

    /// Publishes for every ecosystem, and pulls with mlpack, oras and crane.
    fn clients(&self, peers: &Peers, host: &str) -> Result<()> {
        let reference = format!("{host}/team/legal-qa:v1");
        self.mlpack(&["publish", FILE, &reference, "--plain-http", "--as", "modelpack,ollama,docker,image"])?;
        fresh(&self.work.join("pulled"))?;
        self.mlpack(&["pull", &reference, "--plain-http", "-o", "pulled/mlpack"])?;
        self.same(&self.work.join("pulled/mlpack/legal-qa-Q8_0.gguf"))?;
        let mut oras = Command::new(peers.go_tool(GoTool::Oras)?);
        run_quiet(
            oras.args(["pull", "--plain-http", "--no-tty", &reference, "-o"]).arg(self.work.join("pulled/oras")),
        )?;
        self.same(&self.work.join("pulled/oras/legal-qa-Q8_0.gguf"))?;
        let mut discover = Command::new(peers.go_tool(GoTool::Oras)?);
        let referrers = output(discover.args(["discover", "--plain-http", "--format", "json", &reference]))?;
        check!(referrers.contains("application/vnd.mlpack.claims.v1+jsonl"), "oras finds no claims: {referrers}");
        // Whole, its check takes every layer for gzip; without the layers it is right, and their files are exported below.
        let crane = peers.go_tool(GoTool::Crane)?;
        let image = format!("{reference}-image");
        run_quiet(Command::new(&crane).args(["validate", "--fast", "--insecure", "--remote", &image]))?;
        let exported = self.work.join("pulled/crane.tar");
        run_quiet(Command::new(&crane).args(["export", "--insecure", &image]).arg(&exported))?;
        fresh(&self.work.join("pulled/crane"))?;
        run_quiet(Command::new("tar").arg("-xf").arg(&exported).arg("-C").arg(self.work.join("pulled/crane")))?;
        self.same(&self.work.join("pulled/crane/models/legal-qa-Q8_0.gguf"))?;
        println!("  mlpack, oras and crane pull the same bytes, oras finds the claims, crane finds the image right");
        Ok(())
    }

    /// Appends the model to an image with llama.cpp's server, and asks the running container.
    fn image(&self, peers: &Peers) -> Result<()> {
        for (program, package) in [("umoci", "umoci"), ("podman", "podman"), ("runc", "runc")] {
            ensure(program, package)?;
        }
        let root = self.work.join("root");
        let server = peers.llama_server()?;
        fresh(&root)?;
        copy_with_libraries(&server, &root)?;
        let layout = self.work.join("base");
        let umoci = |arguments: &[&str]| run_quiet(Command::new("umoci").args(arguments).current_dir(&self.work));
        let image = format!("{}:v1", layout.display());
        umoci(&["init", "--layout", &layout.display().to_string()])?;
        umoci(&["new", "--image", &image])?;
        umoci(&["insert", "--rootless", "--image", &image, "root", "/"])?;
        let registry = Registry::debian(&self.work.join("registry"))?;
        let reference = format!("{}/team/server:v1", registry.host);
        let address = free_address()?;
        let (_, port) = address.rsplit_once(':').context("an address has a port")?;
        let of_server = ["--model", "/models/legal-qa-Q8_0.gguf", "--host", "127.0.0.1", "--port", port];
        let base = format!("oci:{image}");
        let mut arguments = vec!["publish", FILE, &reference, "--plain-http", "--as", "image", "--base", &base];
        let entrypoint = server.display().to_string();
        arguments.extend(["--entrypoint", &entrypoint]);
        let commands: Vec<String> = of_server.iter().map(|word| format!("--command={word}")).collect();
        arguments.extend(commands.iter().map(String::as_str));
        self.mlpack(&arguments)?;
        let mut podman = Command::new("podman");
        podman.args([
            "--runtime",
            "runc",
            "run",
            "--rm",
            "--name",
            CONTAINER,
            "--tls-verify=false",
            "--network",
            "host",
        ]);
        podman.args(["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1024:1024", &reference]);
        let log = std::fs::File::create(self.work.join("podman.log")).context("cannot write podman's log")?;
        let podman = podman.stdout(Stdio::null()).stderr(log).spawn().context("cannot start podman")?;
        let _container = Container { podman, image: reference };
        for _ in 0..PATIENCE {
            if http(&address, "GET", "/health", "").is_ok_and(|answer| answer.contains(" 200 ")) {
                let question = serde_json::json!({"prompt": PROMPT, "n_predict": 16, "temperature": 0});
                let answer = http(&address, "POST", "/completion", &question.to_string())?;
                let answer = json(&answer)?;
                let said = answer["content"].as_str().unwrap_or_default();
                check!(!said.is_empty(), "the server says nothing: {answer}");
                println!("  it answers: {said:?}");
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        bail!("the container does not answer; its log is `{}`", self.work.join("podman.log").display())
    }

    /// Serves a layout on a free port.
    fn serve(&self, layout: &str) -> Result<(Server, String)> {
        let mut serve = Command::new(self.mlpack);
        serve.args(["serve", layout, "--listen", "127.0.0.1:0"]).current_dir(&self.work);
        let mut child = serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start mlpack")?;
        let mut line = String::new();
        let stdout = child.stdout.take();
        let server = Server(child);
        BufReader::new(stdout.context("mlpack has no standard output")?).read_line(&mut line)?;
        let host = line.trim().strip_prefix("http://").with_context(|| format!("no address: `{line}`"))?;
        Ok((server, host.to_owned()))
    }
}

/// An address on loopback that is free until somebody takes it.
fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr())?.to_string())
}

/// One request over HTTP, and all of the answer.
fn http(address: &str, method: &str, path: &str, body: &str) -> Result<String> {
    let mut socket = TcpStream::connect(address)?;
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    socket.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = String::new();
    socket.take(workspace::TEXT_LIMIT).read_to_string(&mut answer)?;
    Ok(answer)
}

/// The document that an answer has.
fn json(answer: &str) -> Result<serde_json::Value> {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).with_context(|| format!("the answer is no JSON: {answer}"))
}

/// Copies a program and the libraries that it loads below `root`, each to its own path.
fn copy_with_libraries(program: &Path, root: &Path) -> Result<()> {
    let listed = output(Command::new("ldd").arg(program))?;
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in libraries.chain([program.to_owned()]) {
        let to = root.join(file.strip_prefix("/").context("ldd prints whole paths")?);
        let folder = to.parent().context("a file is in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        std::fs::copy(&file, &to).with_context(|| format!("cannot copy `{}`", file.display()))?;
    }
    Ok(())
}

/// A container that ends with its value, and its image with it.
struct Container {
    podman: Child,
    image: String,
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(run_quiet(Command::new("podman").args(["kill", CONTAINER])));
        drop(self.podman.wait());
        drop(run_quiet(Command::new("podman").args(["rmi", "--force", &self.image])));
    }
}

/// A running Ollama with a store of its own.
struct Ollama {
    _server: Server,
    program: PathBuf,
    host: String,
    store: PathBuf,
    home: PathBuf,
}

impl Ollama {
    fn start(peers: &Peers, work: &Path) -> Result<Ollama> {
        let program = peers.go_tool(GoTool::Ollama)?;
        let (store, home) = (work.join("ollama/models"), work.join("ollama"));
        fresh(&home)?;
        let host = free_address()?;
        let mut serve = Command::new(&program);
        serve.arg("serve").env("OLLAMA_HOST", &host).env("OLLAMA_MODELS", &store).env("HOME", &home);
        let log = std::fs::File::create(home.join("log")).context("cannot write Ollama's log")?;
        let server = serve.stdout(Stdio::null()).stderr(log).spawn().context("cannot start ollama")?;
        let ollama = Ollama { _server: Server(server), program, host, store, home };
        for _ in 0..PATIENCE {
            if output(&mut ollama.command(&["list"])).is_ok() {
                return Ok(ollama);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        bail!("ollama does not listen; its log is `{}`", ollama.home.join("log").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("OLLAMA_HOST", &self.host).env("HOME", &self.home);
        command
    }

    /// Pulls the model and takes it away again.
    fn pulls(&self, scene: &Scene<'_>, reference: &str) -> Result<()> {
        run_quiet(&mut self.command(&["pull", "--insecure", reference]))?;
        self.has(scene, reference)?;
        run_quiet(&mut self.command(&["rm", reference]))
    }

    /// Whether the store has the release's file, and the model says something.
    fn has(&self, scene: &Scene<'_>, name: &str) -> Result<()> {
        scene.same(&self.store.join("blobs").join(format!("sha256-{}", scene.sha256)))?;
        self.answers(name)
    }

    fn answers(&self, name: &str) -> Result<()> {
        let shown = output(&mut self.command(&["show", name]))?;
        check!(shown.contains("llama") && shown.contains("Q8_0"), "ollama shows something else: {shown}");
        let messages =
            serde_json::json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]);
        let chat = |more: serde_json::Value| -> Result<serde_json::Value> {
            let mut question = serde_json::json!({"model": name, "messages": messages, "stream": false});
            question.as_object_mut().context("it is an object")?.extend(more.as_object().cloned().unwrap_or_default());
            json(&http(&self.host, "POST", "/api/chat", &question.to_string())?)
        };
        // What Ollama makes of the messages with the template that mlpack translated for it.
        let prompt = chat(serde_json::json!({"_debug_render_only": true}))?;
        let prompt = prompt["_debug_info"]["rendered_template"].as_str().unwrap_or_default();
        let wanted = format!(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
        );
        check!(prompt == wanted, "ollama renders {prompt:?} instead of {wanted:?}");
        let said = chat(serde_json::json!({"options": {"temperature": 0, "num_predict": 16}}))?;
        let said = said["message"]["content"].as_str().unwrap_or_default();
        check!(!said.trim().is_empty(), "{name} says nothing");
        println!("  ollama shows it, renders its template and generates: {said:?}");
        Ok(())
    }
}
