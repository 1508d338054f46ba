//! `mlpack convert`

use crate::cli::{ConvertArgs, Format};
use crate::exit::Exit;
use crate::show::{Show, bytes, files_table};
use crate::{inputs, lineage};
use mlpack_arch::Families;
use mlpack_convert::{
    FileType, GgufRequest, Output, Plan, Resources, SealedFile, Source, execute, open_model, plan_gguf,
};
use mlpack_provenance::{Artifact, FoundRun, RunSource, Step, StepKind, Store};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Converts a checkpoint to every variant asked for, in one pass.
pub fn convert(args: &ConvertArgs, out: &Show) -> anyhow::Result<Exit> {
    let Format::Gguf = args.target.format;
    let adapters = inputs::adapters(&args.source)?;
    let variants = inputs::variants(&args.target.quant)?;
    let resources = inputs::resources(&args.resources)?;
    let name = inputs::output_name(&args.target, &args.source, &adapters)?;
    let families = inputs::families(&args.target.arch_file)?;
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let source = Source::open(&args.source.model, &adapters)?;
    let runs = lineage::runs(&adapters, run.as_ref(), None)?;
    let request = GgufRequest { name: &name, variants: &variants, pre: args.target.pre.as_deref() };
    let (plan, files) = convert_into(&source, &families, &request, &runs, &args.output, &resources, out)?;
    let (text, value) = report(&plan, &files);
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Converts, and records a step for each output; shared with `release`.
pub fn convert_into(
    source: &Source,
    families: &Families,
    request: &GgufRequest<'_>,
    runs: &[FoundRun],
    dir: &Path,
    resources: &Resources,
    out: &Show,
) -> anyhow::Result<(Plan, Vec<SealedFile>)> {
    let model = open_model(source, families)?;
    let plan = plan_gguf(source, &model, request)?;
    out.warnings(&plan.warnings);
    let names: Vec<&str> = request.variants.iter().map(|v| v.name).collect();
    out.step(&format!(
        "converting {} tensors ({}) to {} in one pass: {}",
        source.checkpoint.tensors().len(),
        model.arch(),
        bytes(plan.byte_len()),
        names.join(", ")
    ));
    let bar = out.progress(source.checkpoint.shards().iter().map(|s| s.byte_len()).sum());
    let done = execute(source, &plan, dir, resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    let store = Store::beside(dir);
    let dependencies = lineage::dependencies(source, &done, &plan.described_by, runs, &store)?;
    for ((output, file), variant) in plan.outputs.iter().zip(&done.outputs).zip(request.variants) {
        let mut step = Step::new(StepKind::Convert, parameters(request, *variant), dependencies.clone());
        step.outputs = vec![Artifact::file(&file.path, file.sha256)];
        step.byproducts.insert("tensor-types".to_owned(), tensor_types(output));
        store.record(&step)?;
        store.write_sidecar(&step.outputs[0])?;
    }
    Ok((plan, done.outputs))
}

/// What was asked for, as the statement says it. Other variants of the same run do not show in it.
fn parameters(request: &GgufRequest<'_>, variant: FileType) -> Map<String, Value> {
    let mut parameters = Map::new();
    parameters.insert("to".to_owned(), json!("gguf"));
    parameters.insert("quant".to_owned(), json!(variant.name));
    parameters.insert("name".to_owned(), json!(request.name));
    if let Some(pre) = request.pre {
        parameters.insert("pre".to_owned(), json!(pre));
    }
    parameters
}

fn tensor_types(output: &Output) -> Value {
    output.tensors.iter().map(|t| (t.name.clone(), json!(t.stored.name()))).collect::<Map<_, _>>().into()
}

fn report(plan: &Plan, files: &[SealedFile]) -> (String, Value) {
    let mut text = files_table(files);
    for (name, reason) in &plan.dropped {
        text.push_str(&format!("left out: {} ({reason})\n", mlpack_tensor::Escaped(name)));
    }
    let outputs: Vec<_> = plan
        .outputs
        .iter()
        .zip(files)
        .map(|(output, file)| {
            json!({
                "path": file.path, "quant": output.variant, "bytes": file.byte_len, "sha256": file.sha256.to_string(),
                "tensors": output.tensors.len(), "types": type_counts(output),
            })
        })
        .collect();
    let dropped: Vec<_> = plan.dropped.iter().map(|(name, reason)| json!({"tensor": name, "reason": reason})).collect();
    let value = json!({
        "schema": "mlpack.convert/v1", "outputs": outputs, "dropped": dropped, "warnings": plan.warnings,
    });
    (text, value)
}

/// How many tensors of an output have each type.
pub fn type_counts(output: &Output) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for tensor in &output.tensors {
        *counts.entry(tensor.stored.name()).or_default() += 1;
    }
    counts
}
