//! `--validate`: graphs that were written, but have no name yet, beside a forward pass of their source.

use crate::cli::ValidateArgs;
use crate::show::Show;
use anyhow::bail;
use mlpack_convert::{Computation, OnnxPlan, OnnxRequest, Precision, Source};
use mlpack_tensor::Escaped;
use mlpack_validate::{Comparison, OutputComparison, Overflow, Reference, Runtime, Tolerance};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where the library is, where `--onnxruntime` does not say it.
const LIBRARY: &str = "ORT_DYLIB_PATH";

/// A graph beside its source.
#[derive(Debug)]
pub struct Validated {
    /// The graph, in its directory.
    pub file: String,
    /// How its numbers are stored.
    pub precision: Precision,
    /// How far it is.
    pub comparison: Comparison,
}

/// A graph that is farther from its source than its precision may be.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is too far from its source{}{}\n  expected: {}", Escaped(&.0.file), outputs(.0), overflow(&.0.comparison), expected(.0.comparison.tolerance))]
pub struct TooFar(Box<Validated>);

impl TooFar {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        let overflows = self.0.comparison.outputs.iter().any(|output| output.not_finite > 0);
        (self.0.precision == Precision::Fp16 && overflows).then_some(
            "the weights fit in float16, but something that is computed from them does not; use --precision bf16, fp32 or int4",
        )
    }
}

/// The library that graphs are to run in, where that is asked for. What it cannot run is refused before anything is written.
pub fn runtime(args: &ValidateArgs, request: &OnnxRequest) -> anyhow::Result<Option<Runtime>> {
    if !args.validate {
        return Ok(None);
    }
    if request.precisions.contains(&Precision::Bf16) {
        bail!("--validate runs graphs on the CPU, where ONNX Runtime has no bfloat16\n  expected: other precisions");
    }
    Ok(Some(Runtime::load(&library(args))?))
}

/// The library: what is said, in the folder that is said, or what the system finds under its usual name.
fn library(args: &ValidateArgs) -> PathBuf {
    let said = args.onnxruntime.clone();
    let said = said.or_else(|| std::env::var_os(LIBRARY).filter(|path| !path.is_empty()).map(PathBuf::from));
    let usual = format!("{}onnxruntime{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let Some(path) = said else { return usual.into() };
    if !path.is_dir() {
        return path;
    }
    // Python's package has the version behind the name, or before its ending.
    let is_it = |file: &Path| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = usual.strip_suffix(std::env::consts::DLL_SUFFIX).unwrap_or(&usual);
        name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.') && rest.contains(std::env::consts::DLL_SUFFIX))
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|file| is_it(file))
        .collect();
    files.sort();
    files.pop().unwrap_or_else(|| path.join(usual))
}

/// Runs every graph that was written into `contents`.
///
/// # Errors
/// [`TooFar`] for the first graph that is.
pub fn all(
    runtime: &Runtime,
    (source, computation): (&Source, &Computation),
    request: &OnnxRequest,
    plan: &OnnxPlan,
    contents: &Path,
    out: &Show,
) -> anyhow::Result<Vec<Validated>> {
    out.step("validating in ONNX Runtime");
    let reference = Reference::compute(source, computation, &request.fixed)?;
    let mut done = Vec::new();
    for &precision in &request.precisions {
        let is_graph = |name: &str| name.ends_with(".onnx");
        let mut graphs =
            plan.plan.outputs.iter().filter(|o| o.variant == Some(precision.name()) && is_graph(&o.file_name));
        let file = graphs.next().expect("every precision has a graph").file_name.clone();
        let comparison = runtime.compare(&reference, &contents.join(&file), precision)?;
        let validated = Validated { file, precision, comparison };
        if !validated.comparison.is_near() {
            return Err(TooFar(Box::new(validated)).into());
        }
        done.push(validated);
    }
    Ok(done)
}

/// For people.
pub fn text(validated: &[Validated]) -> String {
    validated.iter().map(|graph| format!("validated: {}{}\n", Escaped(&graph.file), outputs(graph))).collect()
}

/// For machines, and for the statement, which spells fractions as text.
pub fn json(validated: &[Validated]) -> Value {
    let output = |output: &OutputComparison| {
        let mut value = json!({
            "output": output.name, "max-error": format!("{:.1e}", output.max_error),
            "largest": format!("{:.1e}", output.largest), "cosine": format!("{:.6}", output.cosine),
        });
        if let Some(least) = output.min_cosine {
            value["min-cosine"] = json!(format!("{least:.6}"));
        }
        if let Some((same, of)) = output.agreement {
            value["argmax-agreement"] = json!({"same": same, "of": of});
        }
        value
    };
    let graph = |graph: &Validated| {
        let outputs: Vec<Value> = graph.comparison.outputs.iter().map(output).collect();
        json!({"file": graph.file, "outputs": outputs, "tolerance": expected(graph.comparison.tolerance)})
    };
    validated.iter().map(graph).collect()
}

fn outputs(graph: &Validated) -> String {
    let line = |output: &OutputComparison| {
        let agreement = match output.agreement {
            Some((same, of)) => format!(", the same argmax in {same} of {of}"),
            None => String::new(),
        };
        let least = output.min_cosine.map(|least| format!(" (of a vector at least {least:.6})")).unwrap_or_default();
        let OutputComparison { name, max_error, largest, cosine, not_finite, .. } = output;
        let name = Escaped(name);
        if *not_finite > 0 {
            return format!("\n  output `{name}`: {not_finite} values are infinite or no numbers");
        }
        format!("\n  output `{name}`: within {max_error:.1e} of {largest:.1e}, cosine {cosine:.6}{least}{agreement}")
    };
    graph.comparison.outputs.iter().map(line).collect()
}

/// Where values become infinite in float16.
fn overflow(comparison: &Comparison) -> String {
    let broken = comparison.outputs.iter().any(|output| output.not_finite > 0);
    match comparison.overflow.as_ref().filter(|_| broken) {
        Some(Overflow { tensor, is_output, magnitude }) => {
            let way = if *is_output { "comes from" } else { "goes into" };
            format!("\n  overflow: {magnitude:.1e} {way} `{}`; float16 ends at 65504", Escaped(tensor))
        }
        None => String::new(),
    }
}

fn expected(tolerance: Tolerance) -> String {
    match tolerance {
        Tolerance::Share(share) => format!("differences of at most {share:.0e} of the largest value"),
        Tolerance::Cosine(least) => format!("a cosine of at least {least}"),
    }
}
