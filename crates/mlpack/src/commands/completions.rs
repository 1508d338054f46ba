//! `mlpack completions`

use crate::cli::Cli;
use crate::exit::Exit;
use clap::CommandFactory as _;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<Exit> {
    clap_complete::generate(shell, &mut Cli::command(), "mlpack", &mut std::io::stdout());
    Ok(Exit::Done)
}
