//! `mlpack quantize`

use super::convert::{EMBEDDED, record, report};
use crate::cli::QuantizeArgs;
use crate::exit::Exit;
use crate::show::{Show, bytes};
use crate::{inputs, lineage};
use anyhow::bail;
use mlpack_convert::{Done, FileType, Limits, Plan, QuantizeRequest, Resources, Source, execute, plan_quantize};
use mlpack_provenance::{StepKind, Store};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Quantizes a GGUF file to every variant asked for, in one pass.
pub fn quantize(args: &QuantizeArgs, out: &Show) -> anyhow::Result<Exit> {
    let resources = inputs::resources_on(&args.resources, &args.device, out)?;
    if args.input.is_dir() {
        bail!(
            "`{}` is a directory\n  expected: a GGUF file; mlpack convert quantizes a checkpoint while it converts it",
            args.input.display()
        );
    }
    let (dir, variants) = outputs(args)?;
    let options = inputs::quantize_options(&args.quantizer, &args.requantizer, Path::new(""))?;
    let source = Source::open_gguf(&args.input)?;
    let request = QuantizeRequest { variants: &variants, options: &options };
    let parameters = |variant: &str| {
        let mut parameters = inputs::parameters(&args.quantizer, &args.requantizer, Path::new(""))?;
        parameters.insert("quant".to_owned(), json!(variant));
        if args.embed_provenance {
            parameters.insert(EMBEDDED.to_owned(), json!(true));
        }
        Ok(parameters)
    };
    let limits = inputs::limits(&args.quantizer);
    let (plan, done) = quantize_into(&source, &request, limits, parameters, &dir, &resources, out)?;
    let (text, mut value) = report(&plan, &done);
    value["schema"] = json!("mlpack.quantize/v1");
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Quantizes, and records a step for each output; shared with `rebuild`. `parameters` are what was asked for, as the
/// statement of a variant says it.
pub fn quantize_into(
    source: &Source,
    request: &QuantizeRequest<'_>,
    limits: Limits,
    parameters: impl Fn(&str) -> anyhow::Result<Map<String, Value>>,
    dir: &Path,
    resources: &Resources,
    out: &Show,
) -> anyhow::Result<(Plan, Done)> {
    let mut plan = plan_quantize(source, request)?;
    plan.limits = limits;
    for output in &plan.outputs {
        refuse_input(source, &dir.join(&output.file_name))?;
    }
    out.warnings(&plan.warnings);
    let names: Vec<&str> = request.variants.iter().map(|(variant, _)| variant.name).collect();
    out.step(&format!(
        "quantizing {} tensors to {} in one pass: {}",
        source.tensors().len(),
        bytes(plan.byte_len()),
        names.join(", ")
    ));
    let store = Store::beside(dir);
    lineage::recall(source, &mut plan, &store);
    if parameters("")?.contains_key(EMBEDDED) {
        lineage::embed(StepKind::Quantize, source, &mut plan, &[], resources, &parameters)?;
    }
    out.device(resources, source, &plan);
    let bar = out.progress(source.byte_len());
    let done = execute(source, &plan, dir, resources, &|n| bar.inc(n))?;
    bar.finish_and_clear();
    out.warnings(&done.warnings);
    let dependencies = lineage::read(source, &plan, &done, &[], &store, out)?;
    record(StepKind::Quantize, &plan, &done, &dependencies, &store, parameters)?;
    Ok((plan, done))
}

/// The directory to write to, and each variant with its file's name without `.gguf`.
fn outputs(args: &QuantizeArgs) -> anyhow::Result<(PathBuf, Vec<(FileType, String)>)> {
    let variants = inputs::variants(&args.quant)?;
    let file = args.output.extension().is_some_and(|e| e == "gguf") && !args.output.is_dir();
    match (file, variants.as_slice()) {
        (true, [variant]) => {
            if args.name.is_some() {
                bail!("--name names the files of an output directory, and `{}` is a file", args.output.display());
            }
            let stem = args.output.file_stem().unwrap_or_default().to_str();
            let Some(stem) = stem else { bail!("`{}` is not UTF-8", args.output.display()) };
            Ok((args.output.parent().unwrap_or(Path::new("")).to_owned(), vec![(*variant, stem.to_owned())]))
        }
        (true, several) => bail!(
            "{} variants cannot go into one file\n  expected: a directory (-o)\n  found:    `{}`",
            several.len(),
            args.output.display()
        ),
        (false, _) => {
            let name = args.name.clone().map_or_else(|| inputs::quantized_name(&args.input), Ok)?;
            let named = variants.into_iter().map(|variant| (variant, format!("{name}-{}", variant.name)));
            Ok((args.output.clone(), named.collect()))
        }
    }
}

/// An output in the place of an input would be read while it is written over.
fn refuse_input(source: &Source, output: &Path) -> anyhow::Result<()> {
    let Ok(real) = output.canonicalize() else { return Ok(()) };
    if source.files().iter().any(|file| file.path().canonicalize().is_ok_and(|input| input == real)) {
        bail!("`{}` is the input\n  expected: another place for the output (-o)", output.display());
    }
    Ok(())
}
