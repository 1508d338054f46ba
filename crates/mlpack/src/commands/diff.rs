//! `mlpack diff`

mod heat;
mod html;
mod plot;
mod report;

use crate::cli::DiffArgs;
use crate::exit::Exit;
use crate::inputs;
use crate::show::{self, Show, table};
use anyhow::bail;
use mlpack_convert::{Diff, Exceeded, Limits, OverlayOptions, Source, TensorDiff, Unpaired};
use mlpack_fs::write_atomic;
use mlpack_tensor::Escaped;
use report::{Kind, Report, cosine, count, figure, percent};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Tensors that are shown without `--all`.
const WORST: usize = 20;

/// Tensors of one side only that are shown without `--all`.
const UNPAIRED: usize = 10;

/// Measures how far a file is from its source, tensor by tensor.
pub fn diff(args: &DiffArgs, out: &Show) -> anyhow::Result<Exit> {
    let limits = Limits { max_rmse: args.max_rmse, min_cosine: args.min_cosine };
    let adapters = args.adapters.iter().map(|text| inputs::adapter(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let families = inputs::families(&args.arch_file)?;
    let resources = inputs::resources(&args.resources)?;
    let (a, b) = (open(&args.a, &adapters)?, open(&args.b, &[])?);
    out.warnings(&a.warnings);
    let bar = out.progress(b.byte_len());
    let diff = mlpack_convert::diff(&a, &b, &families, &resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    let report = Report::new(named(&args.a, &args.adapters), args.b.display().to_string(), diff, limits);
    if let Some(path) = &args.report {
        write_atomic(path, html::page(&report).as_bytes())?;
    }
    out.result(&text(&report, args.all), &value(&report));
    if report.diff.tensors.is_empty() {
        show::error(&anyhow::anyhow!(
            "nothing to compare: no tensor of `{}` has the name and the shape of one of `{}`",
            args.b.display(),
            args.a.display()
        ));
        return Ok(Exit::BadInput);
    }
    Ok(if report.holds() { Exit::Done } else { Exit::No })
}

fn open(path: &Path, adapters: &[(PathBuf, f64)]) -> anyhow::Result<Source> {
    if path.is_dir() {
        return Ok(Source::open(path, adapters, &OverlayOptions::default())?);
    }
    if !adapters.is_empty() {
        bail!("adapters are laid over a checkpoint\n  expected: a model directory\n  found:    `{}`", path.display());
    }
    Ok(Source::open_gguf(path)?)
}

/// What A is, in words.
fn named(path: &Path, adapters: &[String]) -> String {
    let adapters: Vec<String> = adapters.iter().map(|adapter| format!(" + {adapter}")).collect();
    format!("{}{}", path.display(), adapters.concat())
}

fn text(report: &Report, all: bool) -> String {
    let total = report.total();
    let tensors = report.diff.tensors.len();
    let mut text = format!(
        "A  {}\nB  {}\n\n{tensors} tensors, {} weights, {} bits per weight in B\n\
         RMSE {} ({} of A's root mean square), cosine {}\n\n",
        Escaped(&report.a),
        Escaped(&report.b),
        count(total.elements),
        figure(report.bits_per_weight()),
        figure(total.rmse()),
        percent(total.relative_rmse()),
        cosine(total.cosine())
    );
    let head = ["kind", "types", "bits", "relative", "RMSE", "cosine", "least cosine"];
    text.push_str(&table(head, report.kinds().iter().map(kind_row)));
    let (shown, title) = if all {
        (report.diff.tensors.iter().collect(), "every tensor".to_owned())
    } else {
        let worst: Vec<&TensorDiff> =
            report.worst_first().into_iter().filter(|t| t.error.squared_error != 0.0).take(WORST).collect();
        let title = format!("the {} of {tensors} tensors furthest from A (all: --all)", worst.len());
        (worst, title)
    };
    if shown.is_empty() {
        text.push_str("\nevery compared tensor of B holds the values of A\n");
    } else {
        let head = ["tensor", "relative", "type", "bits", "RMSE", "cosine", "largest", "at", "shape", ""];
        let rows = shown.into_iter().map(|t| tensor_row(report, t));
        text.push_str(&format!("\n{title}\n{}", table(head, rows)));
    }
    text.push_str(&unpaired(&report.diff, all));
    text.push_str(&verdict(report));
    text
}

fn kind_row(kind: &Kind<'_>) -> [String; 7] {
    let total = kind.total();
    let types: Vec<String> = kind.types().iter().map(|(name, n)| format!("{n} {name}")).collect();
    let least = kind.tensors.iter().map(|(_, t)| t.error.cosine()).fold(1.0, |least: f64, c| {
        // NaN is what a person must see.
        if c < least || c.is_nan() { c } else { least }
    });
    [
        Escaped(&kind.name).to_string(),
        types.join(", "),
        figure(kind.bits_per_weight()),
        percent(total.relative_rmse()),
        figure(total.rmse()),
        cosine(total.cosine()),
        cosine(least),
    ]
}

fn tensor_row(report: &Report, t: &TensorDiff) -> [String; 10] {
    let e = &t.error;
    let at = if e.max.error == 0.0 { String::new() } else { format!("{}, {}", e.max.row, e.max.column) };
    [
        Escaped(&t.name).to_string(),
        percent(e.relative_rmse()),
        format!("{} -> {}", t.a.name(), t.b.name()),
        figure(t.bits_per_weight()),
        figure(e.rmse()),
        cosine(e.cosine()),
        figure(e.max.error),
        at,
        t.shape.to_string(),
        html::over(&report.exceeded(t)),
    ]
}

fn unpaired(diff: &Diff, all: bool) -> String {
    let reshaped = diff.reshaped.iter().map(|r| format!("{}: shape {} in A, {} in B", Escaped(&r.name), r.a, r.b));
    let one_side = |side: &'static str, unpaired: &[Unpaired]| -> Vec<String> {
        let line = |u: &Unpaired| format!("{}: only in {side} ({} {})", Escaped(&u.name), u.stored.name(), u.shape);
        unpaired.iter().map(line).collect()
    };
    let mut lines: Vec<String> = reshaped.collect();
    lines.extend(one_side("A", &diff.only_in_a));
    lines.extend(one_side("B", &diff.only_in_b));
    if lines.is_empty() {
        return String::new();
    }
    let shown = if all { lines.len() } else { UNPAIRED };
    let mut text = format!("\nnot compared: {}\n", lines.len());
    for line in lines.iter().take(shown) {
        text.push_str(&format!("  {line}\n"));
    }
    if lines.len() > shown {
        text.push_str(&format!("  and {} more\n", lines.len() - shown));
    }
    text
}

fn verdict(report: &Report) -> String {
    let limits = report.limits_text();
    let (exceeding, not_compared) = (report.exceeding(), report.not_compared());
    match (report.limits.any(), exceeding, not_compared) {
        (false, ..) => String::new(),
        (true, 0, 0) => format!("\nevery tensor keeps the limits: {limits}\n"),
        (true, 0, n) => format!("\nno answer for {n} tensors that were not compared; limits: {limits}\n"),
        (true, n, _) => format!("\n{n} of {} tensors over the limits: {limits}\n", report.diff.tensors.len()),
    }
}

/// The result for machines. What is not a number is null.
fn value(report: &Report) -> Value {
    let diff = &report.diff;
    let total = report.total();
    let tensor = |t: &TensorDiff| {
        let e = &t.error;
        let exceeded = report.exceeded(t);
        let exceeded: Vec<&str> = exceeded
            .iter()
            .map(|e| match e {
                Exceeded::Rmse { .. } => "max_rmse",
                Exceeded::Cosine { .. } => "min_cosine",
            })
            .collect();
        json!({
            "name": t.name, "shape": t.shape.dims(), "a": t.a.name(), "b": t.b.name(), "bytes": t.byte_len,
            "bits_per_weight": t.bits_per_weight(), "rmse": e.rmse(), "relative_rmse": e.relative_rmse(),
            "cosine": e.cosine(), "max_error": e.max.error, "max_error_at": [e.max.row, e.max.column],
            "finite": e.is_finite(), "exceeded": exceeded,
        })
    };
    let unpaired = |u: &Unpaired| json!({"name": u.name, "type": u.stored.name(), "shape": u.shape.dims()});
    let reshaped: Vec<_> =
        diff.reshaped.iter().map(|r| json!({"name": r.name, "a": r.a.dims(), "b": r.b.dims()})).collect();
    json!({
        "schema": "mlpack.diff/v1",
        "a": report.a,
        "b": report.b,
        "limits": {"max_rmse": report.limits.max_rmse, "min_cosine": report.limits.min_cosine},
        "holds": report.holds(),
        "total": {
            "tensors": diff.tensors.len(), "elements": total.elements, "bits_per_weight": report.bits_per_weight(),
            "rmse": total.rmse(), "relative_rmse": total.relative_rmse(), "cosine": total.cosine(),
            "exceeded": report.exceeding(),
        },
        "tensors": diff.tensors.iter().map(tensor).collect::<Vec<_>>(),
        "only_in_a": diff.only_in_a.iter().map(unpaired).collect::<Vec<_>>(),
        "only_in_b": diff.only_in_b.iter().map(unpaired).collect::<Vec<_>>(),
        "reshaped": reshaped,
    })
}
