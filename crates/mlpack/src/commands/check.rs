//! `mlpack check`

use super::convert::type_counts;
use super::described::Described;
use crate::cli::{CheckArgs, Format};
use crate::exit::Exit;
use crate::inputs;
use crate::show::{Show, bytes, table};
use anyhow::bail;
use mlpack_convert::{GgufRequest, Output, Plan, QuantizeRequest, Source, plan_gguf, plan_onnx, plan_quantize};
use mlpack_tensor::{Escaped, MetaValue};
use serde_json::{Value, json};
use std::path::Path;

/// Shows what `convert` or `quantize` would write, from headers alone.
pub fn check(args: &CheckArgs, out: &Show) -> anyhow::Result<Exit> {
    match args.target.format {
        Format::Gguf => inputs::no_onnx(&args.target)?,
        Format::GgufLora => bail!("an adapter is not checked for itself\n  expected: --to gguf"),
        Format::Onnx => inputs::only_onnx(&args.target, &args.quantizer)?,
    }
    let adapters = inputs::adapters(&args.source)?;
    let variants = inputs::variants(&args.target.quant)?;
    let options = inputs::quantize_options(&args.quantizer, &args.requantizer, Path::new(""))?;
    let model = &args.source.model;
    let gguf = args.target.format == Format::Gguf;
    let (source, arch, plan) = if gguf && model.extension().is_some_and(|e| e == "gguf") && model.is_file() {
        if !adapters.is_empty() {
            bail!("adapters are laid over a checkpoint, and `{}` is a GGUF file", model.display());
        }
        let name = args.target.name.clone().map_or_else(|| inputs::quantized_name(model), Ok)?;
        let variants: Vec<_> = variants.into_iter().map(|v| (v, format!("{name}-{}", v.name))).collect();
        let source = Source::open_gguf(model)?;
        let plan = plan_quantize(&source, &QuantizeRequest { variants: &variants, options: &options })?;
        let arch = match source.gguf().and_then(|gguf| gguf.metadata().find("general.architecture")) {
            Some(MetaValue::String(arch)) => Escaped(arch).to_string(),
            _ => "unknown architecture".to_owned(),
        };
        (source, arch, plan)
    } else {
        let name = inputs::output_name(&args.target, &args.source, &adapters)?;
        let families = inputs::families(&args.target.arch_file)?;
        let source = Source::open(model, &adapters, &inputs::overlay(&args.source.merging)?)?;
        let source = if args.target.format == Format::Onnx { source.with_modules()? } else { source };
        let files = Described::new(&source)?;
        let (arch, plan) = if args.target.format == Format::Onnx {
            let computation = files.computation(&source, &families, args.target.onnx.task.as_deref())?;
            let plan = plan_onnx(&source, &computation, &inputs::onnx(&args.target.onnx)?)?.plan;
            (computation.task().to_owned(), plan)
        } else {
            let described = files.open(&source, &families)?;
            let (pre, split) = (args.target.pre.as_deref(), inputs::split(&args.target)?);
            let request = GgufRequest { name: &name, variants: &variants, pre, options: &options, split };
            (described.arch().to_owned(), plan_gguf(&source, &described, &request)?)
        };
        (source, arch, plan)
    };
    out.warnings(&plan.warnings);
    let free = mlpack_fs::free_bytes(&args.output);
    out.result(&text(args, &source, &arch, &plan, free), &value(&source, &arch, &plan, free));
    if let Some(free) = free.filter(|free| *free < plan.byte_len()) {
        let path = args.output.join(&plan.outputs[0].file_name);
        return Err(mlpack_fs::Error::NoSpace { path, needed: plan.byte_len(), free: Some(free) }.into());
    }
    Ok(Exit::Done)
}

fn text(args: &CheckArgs, source: &Source, arch: &str, plan: &Plan, free: Option<u64>) -> String {
    let mut text = format!(
        "model     {} ({arch}, {} tensors in {} files)\n",
        args.source.model.display(),
        source.tensors().len(),
        source.files().len()
    );
    for (adapter, weight) in source.adapters() {
        text.push_str(&format!(
            "adapter   {} (weight {weight}, rank {}, {} tensors, all matched)\n",
            adapter.dir().display(),
            adapter.config().rank,
            adapter.tensors().len()
        ));
    }
    text.push_str(&format!("plan      sha256 {}\n\n", plan.digest()));
    let rows = plan.outputs.iter().map(|output| {
        let types: Vec<String> = type_counts(output).into_iter().map(|(ty, n)| format!("{n} {ty}")).collect();
        [output.file_name.clone(), bytes(output.byte_len), types.join(", ")]
    });
    text.push_str(&table(["file", "size", "tensors"], rows));
    let free = free.map_or("unknown".to_owned(), bytes);
    text.push_str(&format!("\nneeds {} in `{}`; free {free}\n", bytes(plan.byte_len()), args.output.display()));
    for (name, reason) in &plan.dropped {
        text.push_str(&format!("left out: {} ({reason})\n", Escaped(name)));
    }
    for output in &plan.outputs {
        let fallbacks: Vec<&str> =
            output.tensors.iter().filter(|t| t.instead_of.is_some()).map(|t| t.name.as_str()).collect();
        if !fallbacks.is_empty() {
            text.push_str(&format!(
                "{}: {} tensors have rows that their type cannot hold and take another type\n",
                output.file_name,
                fallbacks.len()
            ));
        }
        if args.tensors {
            text.push_str(&tensors(output));
        }
    }
    text
}

fn tensors(output: &Output) -> String {
    let rows = output.tensors.iter().map(|t| {
        let stored = match t.instead_of {
            Some(wanted) => format!("{} (for {wanted})", t.stored.name()),
            None => t.stored.name().to_owned(),
        };
        let source = t.source.as_deref().unwrap_or("computed from config.json");
        [t.range.start.to_string(), stored, t.shape.to_string(), t.name.clone(), Escaped(source).to_string()]
    });
    format!("\n{}\n{}", output.file_name, table(["offset", "type", "shape", "tensor", "from"], rows))
}

fn value(source: &Source, arch: &str, plan: &Plan, free: Option<u64>) -> Value {
    let outputs: Vec<_> = plan.outputs.iter().map(output_value).collect();
    let dropped: Vec<_> = plan.dropped.iter().map(|(name, reason)| json!({"tensor": name, "reason": reason})).collect();
    json!({
        "schema": "mlpack.check/v1",
        "arch": arch,
        "tensors": source.tensors().len(),
        "changed": source.overlay().map_or(0, |overlay| overlay.targets().len()),
        "plan": plan.digest().to_string(),
        "bytes": plan.byte_len(),
        "free": free,
        "outputs": outputs,
        "dropped": dropped,
        "warnings": plan.warnings,
    })
}

fn output_value(output: &Output) -> Value {
    let tensors: Vec<_> = output
        .tensors
        .iter()
        .map(|t| {
            json!({
                "name": t.name, "from": t.source, "type": t.stored.name(), "instead_of": t.instead_of.map(|ty| ty.name()),
                "shape": t.shape.dims(), "offset": t.range.start, "bytes": t.range.end - t.range.start,
            })
        })
        .collect();
    json!({"file": output.file_name, "quant": output.variant, "bytes": output.byte_len, "tensors": tensors})
}
