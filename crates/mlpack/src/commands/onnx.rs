//! `mlpack convert --to onnx`

use super::changes;
use super::convert::EMBEDDED;
use super::described::Described;
use super::validate::{self, Validated};
use crate::cli::ConvertArgs;
use crate::exit::Exit;
use crate::show::{Show, bytes, files_json, files_table};
use crate::{inputs, lineage};
use mlpack_arch::Families;
use mlpack_convert::{
    Done, Limits, OnnxPlan, OnnxRequest, Precision, Resources, Source, f16_overflows, plan_onnx, seal_onnx, write_onnx,
};
use mlpack_fs::AtomicDir;
use mlpack_onnx::FixedDims;
use mlpack_provenance::{FoundRun, RunSource, Step, StepKind, Store};
use mlpack_tensor::Escaped;
use mlpack_validate::Runtime;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The names of limits among the parameters of a statement.
pub const LIMITS: [&str; 2] = ["max-rmse", "min-cosine"];
/// The parameter with the tensors that stay float32.
pub const KEEP_FP32: &str = "keep-fp32";
/// The parameters with sizes that are known.
pub const FIXED: [&str; 3] = ["fix-batch", "fix-sequence", "fix-past"];

/// What is asked for besides the graphs themselves.
pub struct Asked {
    /// The graphs.
    pub request: OnnxRequest,
    /// What they are for, where that is not what the class is for.
    pub task: Option<String>,
    /// Whether tensors that float16 cannot hold stay float32, too.
    pub keep_overflow: bool,
    /// How far stored values may be from their source.
    pub limits: Limits,
    /// Whether it is to be told how much the adapters change.
    pub measures_changes: bool,
    /// Whether the graphs say what they are made from.
    pub embed: bool,
    /// What the statement says besides.
    pub others: Map<String, Value>,
}

/// Converts a checkpoint to ONNX graphs, in every precision asked for, in one pass.
pub fn convert(args: &ConvertArgs, out: &Show) -> anyhow::Result<Exit> {
    inputs::only_onnx(&args.target, &args.quantizer)?;
    let onnx = &args.target.onnx;
    let mut asked = Asked {
        request: inputs::onnx(onnx)?,
        task: onnx.task.clone(),
        keep_overflow: onnx.keep_fp32.iter().any(|text| text == inputs::OVERFLOW),
        limits: inputs::limits(&args.quantizer),
        measures_changes: args.source.merging.report.is_some(),
        embed: args.embed_provenance,
        others: inputs::merging_parameters(&args.source.merging),
    };
    let runtime = validate::runtime(&args.validation, &asked.request)?;
    let adapters = inputs::adapters(&args.source)?;
    let resources = inputs::resources_on(&args.resources, &args.device, out)?;
    let families = inputs::families(&args.target.arch_file)?;
    let run = args.source.run.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let source =
        Source::open(&args.source.model, &adapters, &inputs::overlay(&args.source.merging)?)?.with_modules()?;
    let runs = lineage::runs(&adapters, run.as_ref(), None)?;
    let made = convert_into(&source, &families, &mut asked, &runs, &args.output, &resources, runtime.as_ref(), out)?;
    let Made { plan, done, task, dir, validated } = &made;
    let dropped = &plan.plan.dropped;
    let left: Vec<_> = dropped.iter().map(|(name, reason)| json!({"tensor": name, "reason": reason})).collect();
    let request = &asked.request;
    let mut value = json!({
        "schema": "mlpack.convert-onnx/v1", "directory": dir, "files": files_json(&done.outputs),
        "task": task, "precisions": names(request), "profile": request.profile.name(),
        "layout": request.layout.name(), "kept_fp32": request.keep_fp32, "dropped": left,
        "warnings": plan.plan.warnings,
    });
    let mut text = files_table(&done.outputs);
    if let Some(validated) = validated {
        value["validation"] = validate::json(validated);
        text.push_str(&validate::text(validated));
    }
    for (name, reason) in dropped {
        text.push_str(&format!("left out: {} ({reason})\n", Escaped(name)));
    }
    if let Some(report) = &args.source.merging.report {
        text.push_str(&changes::write(report, &source, &done.changes)?);
    }
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// What was made.
pub struct Made {
    plan: OnnxPlan,
    done: Done,
    task: &'static str,
    dir: std::path::PathBuf,
    validated: Option<Vec<Validated>>,
}

/// Converts into a directory that is not there yet, validates where there is a runtime to do it in, and records the step; shared with
/// `rebuild`.
#[expect(clippy::too_many_arguments, reason = "what is read, what is asked, where it goes, and who is told")]
pub fn convert_into(
    source: &Source,
    families: &Families,
    asked: &mut Asked,
    runs: &[FoundRun],
    output: &Path,
    resources: &Resources,
    runtime: Option<&Runtime>,
    out: &Show,
) -> anyhow::Result<Made> {
    let described = Described::new(source)?;
    let computation = described.computation(source, families, asked.task.as_deref())?;
    if asked.keep_overflow {
        for (name, magnitude) in f16_overflows(source, &computation, resources)? {
            out.warnings(&[format!("tensor `{}` stays float32: it has a magnitude of {magnitude:?}", Escaped(&name))]);
            asked.request.keep_fp32.push(name);
        }
    }
    let request = &asked.request;
    let mut plan = plan_onnx(source, &computation, request)?;
    plan.plan.described_by.extend_from_slice(families.files());
    plan.plan.limits = asked.limits;
    plan.plan.measures_changes = asked.measures_changes;
    out.warnings(&plan.plan.warnings);
    out.step(&format!(
        "converting {} tensors ({}) to {} of ONNX in one pass: {}",
        source.tensors().len(),
        computation.task(),
        bytes(plan.plan.byte_len()),
        names(request).join(", ")
    ));
    let dir = AtomicDir::create(output)?;
    let path = dir.path().to_owned();
    let store = Store::beside(path.parent().unwrap_or(Path::new("")));
    lineage::recall(source, &mut plan.plan, &store);
    let parameters = parameters(asked);
    if asked.embed {
        let same = |_: &str| Ok(parameters.clone());
        lineage::embed(StepKind::Convert, source, &mut plan.plan, runs, resources, same)?;
    }
    out.device(resources, source, &plan.plan);
    let bar = out.progress(source.byte_len());
    let mut done = write_onnx(source, &plan, &dir, resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    out.warnings(&done.warnings);
    let request = &asked.request;
    let validate = |runtime| validate::all(runtime, (source, &computation), request, &plan, dir.contents(), out);
    let validated = runtime.map(validate).transpose()?;
    seal_onnx(dir, &mut done)?;
    let dependencies = lineage::read(source, &plan.plan, &done, runs, &store, out)?;
    let mut step = Step::new(StepKind::Convert, parameters, dependencies);
    step.outputs = lineage::directory(&path, &done.outputs);
    step.byproducts.extend(validated.as_ref().map(|all| ("validation".to_owned(), validate::json(all))));
    store.record(&step)?;
    store.write_sidecar(&step.outputs[0])?;
    Ok(Made { plan, done, task: computation.task(), dir: path, validated })
}

fn names(request: &OnnxRequest) -> Vec<&'static str> {
    request.precisions.iter().map(|p| p.name()).collect()
}

/// What was asked for, as the statement says it.
fn parameters(asked: &Asked) -> Map<String, Value> {
    let request = &asked.request;
    let mut parameters = asked.others.clone();
    let mut say = |name: &str, value: Value| drop(parameters.insert(name.to_owned(), value));
    say("to", json!("onnx"));
    say("precision", json!(names(request)));
    say("profile", json!(request.profile.name()));
    say("layout", json!(request.layout.name()));
    if let Some(task) = &asked.task {
        say("task", json!(task));
    }
    if request.precisions.iter().any(|p| matches!(p, Precision::Int4 | Precision::Int8)) {
        say("block-size", json!(request.blocks.size));
        say("asymmetric", json!(request.blocks.asymmetric));
        say("accuracy-level", json!(request.blocks.accuracy_level));
        if let Some(scheme) = request.blocks.scheme {
            say("scheme", json!(scheme.name()));
        }
    }
    if !request.keep_fp32.is_empty() {
        say(KEEP_FP32, json!(request.keep_fp32));
    }
    let FixedDims { batch, sequence, past } = request.fixed;
    for (name, size) in FIXED.into_iter().zip([batch, sequence, past]) {
        if let Some(size) = size {
            say(name, json!(size));
        }
    }
    // A statement spells fractions as text, which no reader rounds.
    for (name, limit) in LIMITS.into_iter().zip([asked.limits.max_rmse, asked.limits.min_cosine]) {
        if let Some(limit) = limit {
            say(name, json!(limit.to_string()));
        }
    }
    if asked.embed {
        say(EMBEDDED, json!(true));
    }
    parameters
}

/// What a statement's parameters ask for.
///
/// # Errors
/// When they say something that this version does not know.
pub fn asked(parameters: &Map<String, Value>) -> anyhow::Result<Asked> {
    let text = |key: &str| parameters.get(key).and_then(Value::as_str);
    let number = |key: &str| parameters.get(key).and_then(Value::as_u64);
    let list = |key: &str| -> Vec<String> {
        let values = parameters.get(key).and_then(Value::as_array).into_iter().flatten();
        values.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let args = crate::cli::OnnxArgs {
        precision: list("precision"),
        task: text("task").map(str::to_owned),
        profile: text("profile").map(inputs::value_named).transpose()?,
        block_size: number("block-size").and_then(|n| n.try_into().ok()),
        asymmetric: parameters.get("asymmetric").is_some_and(|value| *value == true),
        accuracy_level: number("accuracy-level").and_then(|n| n.try_into().ok()),
        scheme: text("scheme").map(inputs::value_named).transpose()?,
        keep_fp32: list(KEEP_FP32),
        layout: text("layout").map(str::to_owned),
        fix_dims: FIXED
            .iter()
            .filter_map(|key| Some(format!("{}={}", key.strip_prefix("fix-")?, number(key)?)))
            .collect(),
    };
    let [max_rmse, min_cosine] = LIMITS.map(|key| text(key).and_then(|limit| limit.parse().ok()));
    let others = ["allow_empty", "combine", "density", "seed"];
    let others = others.iter().filter_map(|key| Some(((*key).to_owned(), parameters.get(*key)?.clone()))).collect();
    Ok(Asked {
        request: inputs::onnx(&args)?,
        task: args.task,
        keep_overflow: false,
        limits: Limits { max_rmse, min_cosine },
        measures_changes: false,
        embed: parameters.contains_key(EMBEDDED),
        others,
    })
}
