//! What people see: results on standard output, everything else on standard error.

use crate::exit;
use anstream::{eprintln, print};
use indicatif::{ProgressBar, ProgressStyle};
use mlpack_convert::{Place, Plan, Resources, SealedFile, Source, WORTH_ELEMENTS};
use mlpack_lora::ProductDevice;
use mlpack_tensor::Escaped;
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

/// How to show results and progress.
pub struct Show {
    json: bool,
    quiet: bool,
}

impl Show {
    pub fn new(json: bool, quiet: bool) -> Show {
        Show { json, quiet }
    }

    /// Prints the result: `text` for people, or `value` as JSON.
    pub fn result(&self, text: &str, value: &serde_json::Value) {
        if self.json {
            let json = serde_json::to_string_pretty(value).expect("values with string keys always serialise");
            print!("{json}\n");
        } else {
            print!("{text}");
        }
    }

    /// Says what is being done.
    pub fn step(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Says what a person should know before relying on the result.
    pub fn warnings(&self, warnings: &[String]) {
        for warning in warnings {
            eprintln!("{} {warning}", "warning:".yellow().bold());
        }
    }

    /// Says where the work is done, where there is a choice.
    pub fn device(&self, resources: &Resources, source: &Source, plan: &Plan) {
        let gpu = |products: &ProductDevice| Escaped(products.gpu_name().unwrap_or("the CPU")).to_string();
        match resources.place(source, plan) {
            None => {}
            Some(Place::Products(products)) => {
                self.step(&format!("device: {} for products of adapters' factors, the CPU for the rest", gpu(products)))
            }
            Some(Place::NoProducts(products)) => {
                self.step(&format!("device: the CPU (no tensor that {} would help to merge)", gpu(products)))
            }
            Some(Place::Device(device)) => self.step(&format!("device: {}", Escaped(device.name()))),
            Some(Place::Measured) => self.step("device: the CPU (errors or changes are measured)"),
            Some(Place::NotWorth(0)) => self.step("device: the CPU (no type that is searched for)"),
            Some(Place::NotWorth(found)) => self.step(&format!(
                "device: the CPU (values to search for: {found}; a GPU is worth it from {WORTH_ELEMENTS} on)"
            )),
            Some(Place::NotOpened(error)) => self.step(&format!("device: the CPU ({})", error.in_one_line())),
        }
    }

    /// A bar over bytes with rate and time left; nothing where nobody watches.
    pub fn progress(&self, byte_len: u64) -> ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
            .expect("the template is fixed and valid");
        ProgressBar::new(byte_len).with_style(style)
    }
}

/// Shows an error and what to do about it.
pub fn error(error: &anyhow::Error) {
    eprintln!("{} {error}", "error:".red().bold());
    if let Some(hint) = exit::hint(error) {
        eprintln!("\n{} {hint}", "hint:".cyan().bold());
    }
}

/// What is said about a bug.
pub fn panic_message(info: &PanicHookInfo<'_>) {
    let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
    let what = info.payload_as_str().unwrap_or("unknown");
    eprintln!("{} internal error{place}: {what}", "error:".red().bold());
    eprintln!(
        "\nThis is a bug in mlpack {}. Please report it with the command that you ran.",
        env!("CARGO_PKG_VERSION")
    );
}

/// Bytes for people, in units of 1000.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

/// Files that were made, with size and digest.
pub fn files_table(files: &[SealedFile]) -> String {
    let row = |f: &SealedFile| [f.path.display().to_string(), bytes(f.byte_len), f.sha256.to_string()];
    table(["file", "size", "sha256"], files.iter().map(row))
}

/// The same as JSON.
pub fn files_json(files: &[SealedFile]) -> Vec<Value> {
    files.iter().map(|f| json!({"path": f.path, "bytes": f.byte_len, "sha256": f.sha256.to_string()})).collect()
}

/// A table without borders.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_or_so() {
        assert_eq!([0, 999, 1000, 999_600, 4_594_232].map(bytes), ["0 B", "999 B", "1.00 kB", "1.00 MB", "4.59 MB"]);
    }
}
