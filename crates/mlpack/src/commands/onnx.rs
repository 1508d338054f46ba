//! `mlpack convert --to onnx`

use super::changes;
use super::described::Described;
use crate::cli::ConvertArgs;
use crate::exit::Exit;
use crate::show::{Show, bytes, files_json, files_table};
use crate::{inputs, lineage};
use anyhow::bail;
use mlpack_convert::{OnnxRequest, Precision, Source, convert_onnx, plan_onnx};
use mlpack_fs::AtomicDir;
use mlpack_provenance::{RunSource, Step, StepKind, Store};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Converts a checkpoint to ONNX graphs, in every precision asked for, in one pass.
pub fn convert(args: &ConvertArgs, out: &Show) -> anyhow::Result<Exit> {
    inputs::only_onnx(&args.target, &args.quantizer)?;
    if args.embed_provenance {
        bail!("--embed-provenance is for GGUF files as yet\n  expected: --to gguf, or no such option");
    }
    let request = inputs::onnx(&args.target.onnx)?;
    let adapters = inputs::adapters(&args.source)?;
    let resources = inputs::resources(&args.resources)?;
    let families = inputs::families(&args.target.arch_file)?;
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let source = Source::open(&args.source.model, &adapters, &inputs::overlay(&args.source.merging)?)?;
    let runs = lineage::runs(&adapters, run.as_ref(), None)?;
    let described = Described::new(&source)?;
    let computation = described.computation(&source, &families)?;
    let mut plan = plan_onnx(&source, &computation, &request)?;
    plan.plan.limits = inputs::limits(&args.quantizer);
    plan.plan.measures_changes = args.source.merging.report.is_some();
    out.warnings(&plan.plan.warnings);
    let names: Vec<&str> = request.precisions.iter().map(|p| p.name()).collect();
    out.step(&format!(
        "converting {} tensors ({}) to {} of ONNX in one pass: {}",
        source.tensors().len(),
        computation.task(),
        bytes(plan.plan.byte_len()),
        names.join(", ")
    ));
    let dir = AtomicDir::create(&args.output)?;
    let path = dir.path().to_owned();
    let store = Store::beside(path.parent().unwrap_or(Path::new("")));
    lineage::recall(&source, &mut plan.plan, &store);
    let bar = out.progress(source.byte_len());
    let done = convert_onnx(&source, &plan, dir, &resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    lineage::note(&source, &done, &store)?;
    let dependencies = lineage::dependencies(&source, &plan.plan, &lineage::weights(&done), &runs, Some(&store))?;
    let mut step = Step::new(StepKind::Convert, parameters(args, &request), dependencies);
    step.outputs = lineage::directory(&path, &done.outputs);
    store.record(&step)?;
    store.write_sidecar(&step.outputs[0])?;
    let dropped = &plan.plan.dropped;
    let left: Vec<_> = dropped.iter().map(|(name, reason)| json!({"tensor": name, "reason": reason})).collect();
    let value = json!({
        "schema": "mlpack.convert-onnx/v1", "directory": path, "files": files_json(&done.outputs),
        "task": computation.task(), "precisions": names, "profile": request.profile.name(), "dropped": left, "warnings": plan.plan.warnings,
    });
    let mut text = files_table(&done.outputs);
    for (name, reason) in dropped {
        text.push_str(&format!("left out: {} ({reason})\n", mlpack_tensor::Escaped(name)));
    }
    if let Some(report) = &args.source.merging.report {
        text.push_str(&changes::write(report, &source, &done.changes)?);
    }
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// What was asked for, as the statement says it.
fn parameters(args: &ConvertArgs, request: &OnnxRequest) -> Map<String, Value> {
    let names: Vec<&str> = request.precisions.iter().map(|p| p.name()).collect();
    let mut parameters = Map::new();
    parameters.insert("to".to_owned(), json!("onnx"));
    parameters.insert("precision".to_owned(), json!(names));
    parameters.insert("profile".to_owned(), json!(request.profile.name()));
    if request.precisions.iter().any(|p| matches!(p, Precision::Int4 | Precision::Int8)) {
        parameters.insert("block-size".to_owned(), json!(request.blocks.size));
        parameters.insert("asymmetric".to_owned(), json!(request.blocks.asymmetric));
        parameters.insert("accuracy-level".to_owned(), json!(request.blocks.accuracy_level));
    }
    // A statement spells fractions as text, which no reader rounds.
    for (name, limit) in [("max-rmse", args.quantizer.max_rmse), ("min-cosine", args.quantizer.min_cosine)] {
        if let Some(limit) = limit {
            parameters.insert(name.to_owned(), json!(limit.to_string()));
        }
    }
    parameters
}
