//! `mlpack trace`

use crate::cli::TraceArgs;
use crate::exit::Exit;
use crate::show::Show;
use mlpack_provenance::{CheckStore, Line, State, Trace, TraceOptions};
use owo_colors::OwoColorize as _;

/// Shows what a file is made from, and how far that was checked.
pub fn trace(args: &TraceArgs, out: &Show) -> anyhow::Result<Exit> {
    let check_store = match &args.check_store {
        None => CheckStore::No,
        Some(None) => CheckStore::Remembered,
        Some(Some(path)) => CheckStore::At(path.clone()),
    };
    let trace = mlpack_provenance::trace(&args.path, &TraceOptions { check_store })?;
    out.result(&text(&trace), &trace.to_json());
    Ok(if trace.holds() { Exit::Done } else { Exit::No })
}

/// The tree with coloured states; the colours go where the output is no terminal.
pub fn text(trace: &Trace) -> String {
    let line = |line: Line| {
        let state = match line.state {
            None => String::new(),
            Some(state @ State::Verified) => format!("  [{}]", state.name().green()),
            Some(state @ (State::Claimed | State::Missing)) => format!("  [{}]", state.name().yellow()),
            Some(state @ State::Mismatch) => format!("  [{}]", state.name().red()),
        };
        format!("{}{}{state}\n", line.branches, line.text)
    };
    trace.lines().into_iter().map(line).collect()
}
