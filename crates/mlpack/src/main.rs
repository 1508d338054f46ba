//! `mlpack`: from a finished training run to published, traceable model artifacts.
//!
//! Parse, call, show, exit. The work is in the libraries; this crate alone prints, and alone knows exit codes.

mod cli;
mod commands;
mod exit;
mod html;
mod http;
mod inputs;
mod keys;
mod lineage;
mod show;

use clap::Parser as _;
use cli::{Cli, Command, DeployCommand};
use exit::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(show::panic_message));
    let outcome = std::panic::catch_unwind(|| {
        let cli = Cli::parse();
        run(cli)
    });
    match outcome {
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(error)) => {
            show::error(&error);
            exit::of(&error).into()
        }
        // The hook has said what and where.
        Err(_) => Exit::Internal.into(),
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let out = show::Show::new(cli.json, cli.quiet);
    match cli.command {
        Command::Release(args) => commands::release(&args, &out),
        Command::Merge(args) => commands::merge(&args, &out),
        Command::Convert(args) => commands::convert(&args, &out),
        Command::Quantize(args) => commands::quantize(&args, &out),
        Command::Check(args) => commands::check(&args, &out),
        Command::Diff(args) => commands::diff(&args, &out),
        Command::Publish(args) => commands::publish(&args, &out),
        Command::Pull(args) => commands::pull(&args, &out),
        Command::Serve(args) => commands::serve(&args, &out),
        Command::Deploy(DeployCommand::Ollama(args)) => commands::deploy_ollama(&args, &out),
        Command::Export(args) => commands::export(&args, &out),
        Command::Import(args) => commands::import(&args, &out),
        Command::Trace(args) => commands::trace(&args, &out),
        Command::Rebuild(args) => commands::rebuild(&args, &out),
        Command::Run(args) => commands::run(&args, &out),
        Command::Keygen(args) => commands::keygen(&args, &out),
        Command::Sign(args) => commands::sign(&args, &out),
        Command::Verify(args) => commands::verify(&args, &out),
        Command::Archs(args) => commands::archs(&args, &out),
        Command::Completions { shell } => commands::completions(shell),
    }
}
