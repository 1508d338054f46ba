//! Developer commands of the workspace, run as `cargo xtask COMMAND`.
//!
//! Every step that CI runs is one of these commands, so that a developer's machine and CI do the same thing. A command
//! that needs a tool of somebody else names it when it is missing; nothing is skipped in silence.

mod bench;
mod bench_model;
mod compare;
mod demo;
mod docs;
mod fixtures;
mod golden;
mod parity;
mod peers;
mod process;
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

other people's tools, under target/peers (or $MLPACK_PEERS_DIR)
  peers [NAME]...      installs them; NAME is one of ggml-base, llama-cpp, python, smollm2; default all
  parity [CASE]...     compares mlpack with llama.cpp byte for byte; CASE is one of base, merged, smollm2; default all
  bench [OPTION]...    measures mlpack against PEFT and llama.cpp's converter on a synthetic 1.07 B checkpoint
                         --dir DIR    where inputs and outputs live (default /dev/shm/mlpack-bench)
                         --runs N     runs of each side, alternating (default 3)
                         --out FILE   appends the table, dated, to a Markdown file
                         --keep       keeps the checkpoint for the next bench

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
        ["peers", names @ ..] => peers::command(names),
        ["parity", cases @ ..] => parity::command(cases),
        ["bench", rest @ ..] => bench::command(rest),
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
