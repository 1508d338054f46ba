//! Developer commands of the workspace, run as `cargo xtask COMMAND`.
//!
//! Every step that CI runs is one of these commands, so that a developer's machine and CI do the same thing. A command
//! that needs a tool of somebody else names it when it is missing; nothing is skipped in silence.

mod arm;
mod bench;
mod compare;
mod demo;
mod docs;
mod fixtures;
mod fuzz;
mod golden;
mod gpu;
mod metal;
mod parity;
mod peers;
mod process;
mod registry;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND [OPTION]...

checks, run by CI
  tidy                 the house rules: arrows between crates, file headers, fixtures and dependencies on record
  docs [--check]       writes docs/cli.md from the built binary; --check fails when it is out of date
  fixtures [--check]   writes fixtures/SHA256SUMS; --check fails when a fixture differs from it
  golden [--check]     writes fixtures/golden.sha256, digests of our own outputs; --check fails when one changed
  test [ARGUMENT]...   installs what the tests need, then runs all of them; arguments go to `cargo test`

other machines
  arm [ARGUMENT]...    mlpack-quant's goldens and properties on 64-bit Arm under qemu; installs what that needs

  gpu [--dev]          mlpack with its CUDA kernels in target/gpu, with what shows on a machine with a GPU whether they are right
                         and how fast they are; installs CUDA's compiler; --dev builds without optimisation
  metal [--link]       checks mlpack for Macs, with and without Metal; installs a C compiler for macOS; --link builds the program too

other inputs
  fuzz [READER]...     libFuzzer over the readers of untrusted bytes (tests/fuzz); default all, 30 seconds each
                         --seconds N  for that long each

other people's tools, under target/peers (or $MLPACK_PEERS_DIR)
  peers [NAME]...      installs them; NAME is one of ggml-base, llama-cpp, python, smollm2,
                       tokenizers, provenance, onnx, onnx-runtimes, minilm, optimum, cuda, zig, and what takes minutes to build and is
                       left out by default: llama-server, cosign, crane, distribution, ollama, oras
  parity [CASE]...     compares mlpack with llama.cpp byte for byte; CASE is a group or one of its cases; default all
                         convert: base, merged, smollm2, mistral, llama3, qwen2
                         quantize: ftypes, options (both SmolLM2), mixtures (experts and other shapes)
                         rows: random rows through ggml_quantize_chunk
                         archs (or --archs): a small checkpoint of every architecture
                         lineage: what cosign says of signed files and of what publish attached
                         registry: what Ollama, oras, crane, podman and distribution 3 say of what is published
                         onnx (or --onnx): graphs (decoders and encoders in ONNX Runtime against transformers, integers against
                         its quantizers), runtimes (SmolLM2 in onnxruntime-genai and transformers.js), validate (SmolLM2 in
                         every profile and precision), sentences (200 through all-MiniLM-L6-v2)
                         --only TEXT  quantizes only where the printed title has this text
                         --seed N     other random rows (default 1)
                         --record     archs: writes the goldens that the tests compare with
  bench [PART]...      measures mlpack against the peers on a synthetic 1.07 B checkpoint; default all parts
                         convert: with an adapter to F16, against PEFT and llama.cpp's converter
                         quantize: a BF16 GGUF to each of several types, against llama-quantize
                         chain: with an adapter to Q4_K_M, against all three
                         lineage: what it costs a release
                         trace: a graph of 1000 nodes; alone it needs no peers
                         --dir DIR    where inputs and outputs live (default /dev/shm/mlpack-bench)
                         --runs N     runs of each side, alternating (default 3)
                         --only TYPES of quantize, only these types, separated by commas
                         --out FILE   appends the tables, dated, to a Markdown file
                         --keep       keeps the inputs for the next bench

  demo                 the release of the legal-qa fixture and the trace of one of its files, for the README
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["tidy"] => tidy::command(),
        ["docs"] => docs::write(),
        ["docs", "--check"] => docs::check(),
        ["fixtures"] => fixtures::write(),
        ["fixtures", "--check"] => fixtures::check(),
        ["golden"] => golden::write(),
        ["golden", "--check"] => golden::check(),
        ["test", rest @ ..] => test::command(rest),
        ["arm", rest @ ..] => arm::command(rest),
        ["peers", names @ ..] => peers::command(names),
        ["parity", cases @ ..] => parity::command(cases),
        ["bench", rest @ ..] => bench::command(rest),
        ["gpu", rest @ ..] => gpu::command(rest),
        ["metal", rest @ ..] => metal::command(rest),
        ["fuzz", rest @ ..] => fuzz::command(rest),
        ["demo"] => demo::command(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
