//! `mlpack convert`

use super::changes;
use super::described::Described;
use crate::cli::{ConvertArgs, Format, QuantizerArgs, RequantizerArgs};
use crate::exit::Exit;
use crate::show::{Show, bytes, files_table};
use crate::{inputs, lineage};
use anyhow::{Context as _, bail};
use mlpack_arch::{Families, Model};
use mlpack_convert::{
    Done, FileType, GgufRequest, Limits, LoraRequest, Output, Plan, QuantizeOptions, Resources, SealedFile, Source,
    TensorError, execute, plan_gguf, plan_lora,
};
use mlpack_provenance::{Artifact, Dependency, FoundRun, RunSource, Step, StepKind, Store};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The parameter of a statement whose files say what they are made from.
pub const EMBEDDED: &str = "embed-provenance";

/// Converts a checkpoint to every variant asked for, in one pass.
pub fn convert(args: &ConvertArgs, out: &Show) -> anyhow::Result<Exit> {
    if args.validation.validate && args.target.format != Format::Onnx {
        bail!("--validate is for ONNX\n  expected: --to onnx");
    }
    match args.target.format {
        Format::Gguf => inputs::no_onnx(&args.target)?,
        Format::GgufLora => return convert_lora(args, out),
        Format::Onnx => return super::onnx::convert(args, out),
    }
    inputs::no_base(&args.target)?;
    let adapters = inputs::adapters(&args.source)?;
    let variants = inputs::variants(&args.target.quant)?;
    let resources = inputs::resources_on(&args.resources, &args.device, out)?;
    let name = inputs::output_name(&args.target, &args.source, &adapters)?;
    let families = inputs::families(&args.target.arch_file)?;
    let mut quantizer = Quantizer::new(&args.quantizer, Path::new(""))?;
    quantizer.measures_changes = args.source.merging.report.is_some();
    quantizer.embed = args.embed_provenance;
    quantizer.parameters.extend(inputs::merging_parameters(&args.source.merging));
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let source = Source::open(&args.source.model, &adapters, &inputs::overlay(&args.source.merging)?)?;
    let runs = lineage::runs(&adapters, run.as_ref(), None)?;
    let pre = args.target.pre.as_deref();
    let split = inputs::split(&args.target)?;
    let request = GgufRequest { name: &name, variants: &variants, pre, options: &quantizer.options, split };
    let planned =
        PlannedConversion::new(&source, &families, &request, &quantizer, &runs, &args.output, &resources, out)?;
    let (plan, done) = planned.run(&source, &runs, &resources, out)?;
    let (mut text, value) = report(&plan, &done);
    if let Some(report) = &args.source.merging.report {
        text.push_str(&changes::write(report, &source, &done.changes)?);
    }
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Converts an adapter for itself; its base is only described.
fn convert_lora(args: &ConvertArgs, out: &Show) -> anyhow::Result<Exit> {
    let dir = &args.source.model;
    let base = args.target.base.as_deref().context(
        "the base model of the adapter is not named\n  expected: --base DIR, a directory with its config.json",
    )?;
    if !args.source.adapters.is_empty() {
        bail!("an adapter is converted for itself\n  expected: no -a with --to gguf-lora");
    }
    let variants =
        if args.target.quant.is_empty() { vec![FileType::F32] } else { inputs::variants(&args.target.quant)? };
    let name = inputs::output_name(&args.target, &args.source, &[])?;
    let resources = inputs::resources_on(&args.resources, &args.device, out)?;
    let families = inputs::families(&args.target.arch_file)?;
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let runs = lineage::runs(&[(dir.clone(), 1.0)], run.as_ref(), None)?;
    let request = LoraRequest { dir, name: &name, variants: &variants };
    let (plan, done) = convert_lora_into(base, &families, &request, &runs, &args.output, &resources, out)?;
    let (text, value) = report(&plan, &done);
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Converts an adapter for itself, and records a step for each output; shared with `rebuild`.
pub fn convert_lora_into(
    base: &Path,
    families: &Families,
    request: &LoraRequest<'_>,
    runs: &[FoundRun],
    dir: &Path,
    resources: &Resources,
    out: &Show,
) -> anyhow::Result<(Plan, Done)> {
    let model = Model::open(base, families)?;
    let source = Source::open_adapter(request.dir)?;
    let mut plan = plan_lora(&source, &model, request)?;
    plan.described_by.push(request.dir.join("adapter_config.json"));
    plan.described_by.extend_from_slice(families.files());
    out.warnings(&plan.warnings);
    out.step(&format!("converting {} tensors of an adapter ({})", source.tensors().len(), model.arch()));
    out.device(resources, &source, &plan);
    let bar = out.progress(source.byte_len());
    let done = execute(&source, &plan, dir, resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    out.warnings(&done.warnings);
    let parameters = |variant: &str| {
        let mut parameters = Map::new();
        parameters.insert("to".to_owned(), json!("gguf-lora"));
        parameters.insert("quant".to_owned(), json!(variant));
        parameters.insert("name".to_owned(), json!(request.name));
        Ok(parameters)
    };
    let store = Store::beside(dir);
    let dependencies = lineage::read(&source, &plan, &done, runs, &store, out)?;
    record(StepKind::Convert, &plan, &done, &dependencies, &store, parameters)?;
    Ok((plan, done))
}

/// What was asked of the quantizer: options, limits, and how a statement says it.
pub struct Quantizer {
    pub options: QuantizeOptions,
    pub limits: Limits,
    /// Whether it is to be told how much the adapters change.
    pub measures_changes: bool,
    pub parameters: Map<String, Value>,
    /// Whether the files say what they are made from.
    pub embed: bool,
}

impl Quantizer {
    /// Relative paths start at `folder`.
    pub fn new(args: &QuantizerArgs, folder: &Path) -> anyhow::Result<Quantizer> {
        let requantizer = RequantizerArgs::default();
        Ok(Quantizer {
            options: inputs::quantize_options(args, &requantizer, folder)?,
            limits: inputs::limits(args),
            measures_changes: false,
            parameters: inputs::parameters(args, &requantizer, folder)?,
            embed: false,
        })
    }

    /// What is asked of a variant, as a statement says it.
    fn parameters_of(&self, request: &GgufRequest<'_>, variant: &str) -> Map<String, Value> {
        let mut parameters = Map::new();
        parameters.insert("to".to_owned(), json!("gguf"));
        parameters.insert("quant".to_owned(), json!(variant));
        parameters.insert("name".to_owned(), json!(request.name));
        if let Some(pre) = request.pre {
            parameters.insert("pre".to_owned(), json!(pre));
        }
        for (key, limit) in
            [("split-max-tensors", request.split.max_tensors), ("split-max-size", request.split.max_byte_len)]
        {
            if limit > 0 {
                parameters.insert(key.to_owned(), json!(limit));
            }
        }
        parameters.extend(self.parameters.clone());
        if self.embed {
            parameters.insert(EMBEDDED.to_owned(), json!(true));
        }
        parameters
    }
}

/// A conversion before it is done; shared with `release`, which may do it together with a merge, and `rebuild`.
pub struct PlannedConversion {
    pub plan: Plan,
    /// What was asked of each variant, as a statement says it.
    parameters: BTreeMap<&'static str, Map<String, Value>>,
    dir: PathBuf,
    store: Store,
}

impl PlannedConversion {
    /// Plans a conversion into `dir`, and says so.
    #[expect(
        clippy::too_many_arguments,
        reason = "everything that a conversion is made of, each from another part of a release"
    )]
    pub fn new(
        source: &Source,
        families: &Families,
        request: &GgufRequest<'_>,
        quantizer: &Quantizer,
        runs: &[FoundRun],
        dir: &Path,
        resources: &Resources,
        out: &Show,
    ) -> anyhow::Result<PlannedConversion> {
        let described = Described::new(source)?;
        let model = described.open(source, families)?;
        let mut plan = plan_gguf(source, &model, request)?;
        described.settle(source, &mut plan);
        plan.described_by.extend_from_slice(families.files());
        plan.limits = quantizer.limits;
        plan.measures_changes = quantizer.measures_changes;
        out.warnings(&plan.warnings);
        let names: Vec<&str> = request.variants.iter().map(|v| v.name).collect();
        out.step(&format!(
            "converting {} tensors ({}) to {} in one pass: {}",
            source.tensors().len(),
            model.arch(),
            bytes(plan.byte_len()),
            names.join(", ")
        ));
        let parameters: BTreeMap<_, _> =
            names.into_iter().map(|name| (name, quantizer.parameters_of(request, name))).collect();
        let store = Store::beside(dir);
        lineage::recall(source, &mut plan, &store);
        if quantizer.embed {
            lineage::embed(StepKind::Convert, source, &mut plan, runs, resources, |name| Ok(parameters[name].clone()))?;
        }
        Ok(PlannedConversion { plan, parameters, dir: dir.to_owned(), store })
    }

    /// Converts, and records a step for each variant.
    pub fn run(
        self,
        source: &Source,
        runs: &[FoundRun],
        resources: &Resources,
        out: &Show,
    ) -> anyhow::Result<(Plan, Done)> {
        out.device(resources, source, &self.plan);
        let bar = out.progress(source.byte_len());
        let done = execute(source, &self.plan, &self.dir, resources, &|n| bar.inc(n))?;
        bar.finish_and_clear();
        out.warnings(&done.warnings);
        self.record(source, &done, runs, out)?;
        Ok((self.plan, done))
    }

    /// Records a step for each variant.
    pub fn record(&self, source: &Source, done: &Done, runs: &[FoundRun], out: &Show) -> anyhow::Result<()> {
        let dependencies = lineage::read(source, &self.plan, done, runs, &self.store, out)?;
        record(
            StepKind::Convert,
            &self.plan,
            done,
            &dependencies,
            &self.store,
            |name| Ok(self.parameters[name].clone()),
        )
    }
}

/// Records a step for each variant. `parameters` are what was asked for, as the statement says it; other variants of the
/// same run do not show in it.
pub fn record(
    kind: StepKind,
    plan: &Plan,
    done: &Done,
    dependencies: &[Dependency],
    store: &Store,
    parameters: impl Fn(&str) -> anyhow::Result<Map<String, Value>>,
) -> anyhow::Result<()> {
    let outputs: Vec<(&Output, &SealedFile)> = plan.outputs.iter().zip(&done.outputs).collect();
    // The parts of a split variant are one result.
    for parts in outputs.chunk_by(|(a, _), (b, _)| a.variant == b.variant) {
        let variant = parts[0].0.variant.unwrap_or_default();
        let mut step = Step::new(kind, parameters(variant)?, dependencies.to_vec());
        step.outputs = parts.iter().map(|(_, file)| Artifact::file(&file.path, file.sha256)).collect();
        let types = parts.iter().flat_map(|(output, _)| tensor_types(output)).collect::<Map<_, _>>();
        step.byproducts.insert("tensor-types".to_owned(), types.into());
        store.record(&step)?;
        for output in &step.outputs {
            store.write_sidecar(output)?;
        }
    }
    Ok(())
}

fn tensor_types(output: &Output) -> impl Iterator<Item = (String, Value)> {
    output.tensors.iter().map(|t| (t.name.clone(), json!(t.stored.name())))
}

/// What was made, for people and as JSON.
pub fn report(plan: &Plan, done: &Done) -> (String, Value) {
    let mut text = files_table(&done.outputs);
    for (name, reason) in &plan.dropped {
        text.push_str(&format!("left out: {} ({reason})\n", mlpack_tensor::Escaped(name)));
    }
    let mut outputs = Vec::with_capacity(plan.outputs.len());
    for (i, (output, file)) in plan.outputs.iter().zip(&done.outputs).enumerate() {
        let mut value = json!({
            "path": file.path, "quant": output.variant, "bytes": file.byte_len, "sha256": file.sha256.to_string(),
            "tensors": output.tensors.len(), "types": type_counts(output),
        });
        if let Some(errors) = done.fidelity.get(i) {
            let total = TensorError::total(errors);
            value["error"] = json!({"rmse": total.rmse(), "cosine": total.cosine(), "max": total.max.error});
            text.push_str(&format!(
                "{}: RMSE {:.3e}, cosine {:.6}, largest error {:.3e}; every tensor within the limits\n",
                output.file_name,
                total.rmse(),
                total.cosine(),
                total.max.error
            ));
        }
        outputs.push(value);
    }
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
