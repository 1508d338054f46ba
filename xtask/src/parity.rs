//! `cargo xtask parity`: mlpack against llama.cpp, byte for byte: what it converts, what it quantizes, and single rows; and
//! against PEFT: what it merges; against transformers in ONNX Runtime: what its graphs compute; in cosign's hands: what it signs; in the hands of
//! other clients, registries and runtimes: what it publishes.

mod archs;
mod convert;
mod lineage;
mod lora;
mod onnx;
mod quantize;
mod real;
mod registry;
mod rows;
mod runtimes;
mod subjects;

use crate::peers::Peers;
use crate::workspace::build_mlpack;
use anyhow::{Context as _, Result, bail};

/// The cases of each group, by name.
const GROUPS: &[(&str, &[&str])] = &[
    ("convert", &["base", "merged", "smollm2", "mistral", "llama3", "qwen2"]),
    ("quantize", &["ftypes", "options", "mixtures"]),
    ("rows", &["rows"]),
    ("archs", &["archs"]),
    ("lora", &["kinds", "opens"]),
    ("lineage", &["lineage"]),
    ("registry", &["registry"]),
    ("onnx", ONNX),
];

/// The cases of ONNX.
const ONNX: &[&str] = &["graphs", "runtimes", "validate", "sentences"];

/// What to compare.
struct Options {
    cases: Vec<&'static str>,
    /// Of the quantized files, only those with this text in their title.
    only: String,
    /// Whether the goldens of the architectures are written.
    record: bool,
    /// Where the random rows begin.
    seed: u64,
}

/// Runs the named cases, or all, and fails when anything differs.
pub fn command(arguments: &[&str]) -> Result<()> {
    let options = parse(arguments)?;
    let peers = Peers::locate()?;
    // These have peers of their own, which take minutes to build.
    if options.cases.contains(&"lineage") {
        lineage::run(&peers, &build_mlpack(true)?)?;
    }
    if options.cases.contains(&"registry") {
        registry::run(&peers, &build_mlpack(true)?)?;
    }
    if options.cases.iter().all(|case| ["lineage", "registry"].contains(case)) {
        return Ok(());
    }
    peers.llama_cpp()?;
    peers.python_packages()?;
    let of_group = |name: &str| -> Vec<&'static str> {
        let cases = GROUPS.iter().filter(|(group, _)| *group == name).flat_map(|(_, cases)| *cases);
        cases.copied().filter(|case| options.cases.contains(case)).collect()
    };
    let (converted, quantized) = (of_group("convert"), of_group("quantize"));
    let mut differing = 0;
    if options.cases.contains(&"archs") {
        differing += archs::run(&options.only, options.record, &peers, &build_mlpack(true)?)?;
    }
    if !converted.is_empty() || !quantized.is_empty() {
        let mlpack = build_mlpack(true)?;
        differing += convert::run(&converted, &peers, &mlpack)?;
        differing += quantize::run(&quantized, &options.only, &peers, &mlpack)?;
    }
    if options.cases.contains(&"kinds") {
        differing += lora::run(&options.only, &peers, &build_mlpack(true)?)?;
    }
    if options.cases.contains(&"opens") {
        differing += lora::opens(&peers, &build_mlpack(true)?)?;
    }
    if options.cases.contains(&"graphs") {
        differing += onnx::run(&options.only, &peers, &build_mlpack(true)?)?;
    }
    if options.cases.contains(&"runtimes") {
        let mlpack = build_mlpack(true)?;
        differing += runtimes::run(&peers, &mlpack)? + real::beyond_builder(&peers, &mlpack)?;
    }
    if options.cases.contains(&"validate") {
        differing += real::validate(&peers, &build_mlpack(true)?)?;
    }
    if options.cases.contains(&"sentences") {
        differing += real::sentences(&peers, &build_mlpack(true)?)?;
    }
    if options.cases.contains(&"rows") {
        differing += rows::run(options.seed, &peers)?;
    }
    if differing > 0 {
        bail!("{differing} files or rows differ from the reference");
    }
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Options> {
    let mut options = Options { cases: Vec::new(), only: String::new(), record: false, seed: 1 };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("`{argument}` needs a value"));
        match *argument {
            "--only" => options.only = value()?.to_lowercase(),
            "--record" => options.record = true,
            "--archs" => options.cases.push("archs"),
            "--onnx" => options.cases.extend(ONNX),
            "--seed" => options.seed = value()?.parse().context("`--seed` needs a number")?,
            name => {
                let named = |(group, cases): &(&str, &'static [&'static str])| -> Vec<&'static str> {
                    cases.iter().copied().filter(|case| *case == name || *group == name).collect()
                };
                let named: Vec<&str> = GROUPS.iter().flat_map(named).collect();
                if named.is_empty() {
                    let names = GROUPS.iter().flat_map(|(group, cases)| [&[*group], *cases].concat());
                    let names: Vec<&str> = names.collect();
                    bail!(
                        "unknown case `{name}`\n  expected: --only TEXT, --seed N, --archs, --onnx, --record, or one of {}",
                        names.join(", ")
                    );
                }
                options.cases.extend(named);
            }
        }
    }
    if options.cases.is_empty() {
        options.cases = GROUPS.iter().flat_map(|(_, cases)| *cases).copied().collect();
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_stands_for_its_cases_and_nothing_for_all() {
        let cases = |arguments: &[&str]| parse(arguments).unwrap().cases;
        assert_eq!(cases(&["quantize", "base"]), ["ftypes", "options", "mixtures", "base"]);
        assert_eq!(cases(&["rows"]), ["rows"]);
        assert_eq!(cases(&["--seed", "3"]).len(), 19);
        assert_eq!(cases(&["lora"]), ["kinds", "opens"]);
        assert_eq!(cases(&["--archs"]), ["archs"]);
    }

    #[test]
    fn what_is_not_a_case_is_named_with_what_is() {
        let error = parse(&["ftype"]).err().unwrap().to_string();
        assert!(error.contains("unknown case `ftype`") && error.contains("ftypes"), "{error}");
    }
}
