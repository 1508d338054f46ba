//! From what was typed to what the libraries take.

use crate::cli::{
    DeviceArgs, MergingArgs, OnnxArgs, OnnxProfile, OnnxScheme, QuantizerArgs, RequantizerArgs, ResourceArgs,
    SourceArgs, TargetArgs,
};
use crate::show::Show;
use anyhow::{Context as _, bail};
use mlpack_arch::Families;
use mlpack_convert::{
    BlockOptions, Combine, FileType, Imatrix, Importance, Layout, Limits, OnDevice, OnnxRequest, OverlayOptions,
    Precision, QuantizeOptions, Resources, Split, TensorType, parse_override, parse_type,
};
use mlpack_device::{Choice, Device};
use mlpack_fs::read_to_string_bounded;
use mlpack_lora::ProductDevice;
use mlpack_onnx::{FixedDims, Profile, Scheme};
use mlpack_tensor::{Escaped, GgmlType};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file of tensor types that is read.
const MAX_TENSOR_TYPES: u64 = 16 << 20;

/// `DIR` or `DIR=WEIGHT`. A directory whose own name ends in `=NUMBER` is taken as it is when it exists.
pub fn adapter(text: &str) -> anyhow::Result<(PathBuf, f64)> {
    if let Some((dir, weight)) = text.rsplit_once('=')
        && !Path::new(text).exists()
    {
        let weight: f64 = weight.parse().ok().filter(|w: &f64| w.is_finite()).with_context(|| {
            format!(
                "adapter weight `{weight}` is not a number\n  expected: ADAPTER or ADAPTER=WEIGHT\n  found:    `{text}`"
            )
        })?;
        return Ok((PathBuf::from(dir), weight));
    }
    Ok((PathBuf::from(text), 1.0))
}

pub fn adapters(args: &SourceArgs) -> anyhow::Result<Vec<(PathBuf, f64)>> {
    args.adapters.iter().map(|text| adapter(text)).collect()
}

/// How adapters are laid over the base.
pub fn overlay(args: &MergingArgs) -> anyhow::Result<OverlayOptions> {
    let combine = Combine::parse(&args.combine, args.density, args.seed).map_err(mlpack_convert::Error::from)?;
    Ok(OverlayOptions { allow_empty: args.allow_empty, combine })
}

/// What was asked of the merging, as a statement says it: only what is not the default.
pub fn merging_parameters(args: &MergingArgs) -> serde_json::Map<String, serde_json::Value> {
    let mut parameters = serde_json::Map::new();
    if args.allow_empty {
        parameters.insert("allow_empty".to_owned(), true.into());
    }
    if args.combine != "sum" {
        parameters.insert("combine".to_owned(), args.combine.clone().into());
        // A statement spells fractions as text, which no reader rounds.
        parameters.insert("density".to_owned(), args.density.to_string().into());
        parameters.insert("seed".to_owned(), args.seed.into());
    }
    parameters
}

/// A number of bytes with an optional unit: powers of 1024 with `i` (MiB), of 1000 without (MB).
pub fn size(text: &str) -> anyhow::Result<u64> {
    const UNITS: &[(&str, u64)] = &[
        ("", 1),
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
    ];
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit = text[digits..].trim().to_uppercase();
    let size = text[..digits].parse::<u64>().ok().and_then(|n| {
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        n.checked_mul(*factor)
    });
    size.with_context(|| {
        format!(
            "`{text}` is not a size\n  expected: a number with B, KB, MB, GB, KiB, MiB or GiB\n  found:    `{text}`"
        )
    })
}

pub fn resources(args: &ResourceArgs) -> anyhow::Result<Resources> {
    Ok(Resources { memory: size(&args.memory)?, threads: args.threads, rehash: args.rehash, device: None })
}

/// The same with the device that was asked for, opened; `auto` opens one for the first plan that is worth it. In a build without
/// kernels that is the CPU, and says why where it was asked for.
pub fn resources_on(args: &ResourceArgs, on: &DeviceArgs, out: &Show) -> anyhow::Result<Resources> {
    let mut resources = resources(args)?;
    let memory = on.device_memory.as_deref().map(size).transpose()?;
    let choice = on.device.as_deref().map(Choice::parse).transpose()?;
    let lanes =
        if args.threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { args.threads };
    let limits = mlpack_device::Limits { memory, lanes };
    resources.device = match choice.unwrap_or_default() {
        Choice::Cpu if memory.is_some() => {
            bail!("--device-memory is for a GPU\n  expected: --device cuda[:N], or none\n  found:    --device cpu")
        }
        Choice::Cpu => None,
        Choice::Metal if memory.is_some() => {
            bail!("--device-memory is for CUDA\n  expected: --device cuda[:N], or none\n  found:    --device metal")
        }
        Choice::Metal => Some(OnDevice::Products(ProductDevice::metal().map_err(mlpack_convert::Error::from)?)),
        Choice::Cuda(index) => Some(OnDevice::opened(Device::open(index, limits)?)),
        Choice::Auto if Device::IS_BUILT => Some(OnDevice::if_worth(limits)),
        Choice::Auto => {
            if choice.is_some() {
                out.step(&format!("device: the CPU ({})", mlpack_device::Error::NotBuilt.in_one_line()));
            }
            None
        }
    };
    Ok(resources)
}

/// Refuses a base model where there is no adapter to convert for itself.
pub fn no_base(args: &TargetArgs) -> anyhow::Result<()> {
    if args.base.is_some() {
        bail!("--base is for --to gguf-lora\n  expected: adapters with -a, and the base as the model");
    }
    Ok(())
}

/// Where outputs are split.
pub fn split(args: &TargetArgs) -> anyhow::Result<Split> {
    let max_byte_len = args.split_max_size.as_deref().map_or(Ok(0), split_size)?;
    Ok(Split { max_tensors: args.split_max_tensors.unwrap_or(0), max_byte_len })
}

/// A number of bytes as llama.cpp's converter takes it: K, M and G are powers of 1000.
fn split_size(text: &str) -> anyhow::Result<u64> {
    let (digits, factor) = match text.strip_suffix(['K', 'M', 'G']) {
        None => (text, 1),
        Some(digits) if text.ends_with('K') => (digits, 1_000),
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
    };
    let size = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|size| *size > 0);
    size.with_context(|| {
        format!("--split-max-size `{text}` is not a size\n  expected: a number above zero, with K, M or G\n  found:    `{text}`")
    })
}

pub fn families(arch_files: &[PathBuf]) -> anyhow::Result<Families> {
    let mut families = Families::builtin();
    for file in arch_files {
        families.with_file(file)?;
    }
    Ok(families)
}

pub fn variants(names: &[String]) -> anyhow::Result<Vec<FileType>> {
    names.iter().map(|name| Ok(FileType::parse(name.trim())?)).collect()
}

/// What is asked of ONNX graphs.
pub fn onnx(args: &OnnxArgs) -> anyhow::Result<OnnxRequest> {
    if args.precision.is_empty() {
        bail!(
            "the precision of the graphs is not said\n  expected: --precision {}",
            Precision::names().collect::<Vec<_>>().join(", ")
        );
    }
    let default = BlockOptions::default();
    let fixed = fixed_dims(&args.fix_dims)?;
    Ok(OnnxRequest {
        fixed,
        keep_fp32: args.keep_fp32.iter().filter(|text| *text != OVERFLOW).cloned().collect(),
        layout: args.layout.as_deref().map_or(Ok(Layout::TransformersJs), Layout::parse)?,
        precisions: args
            .precision
            .iter()
            .map(|name| Ok(Precision::parse(name.trim())?))
            .collect::<anyhow::Result<_>>()?,
        profile: match args.profile.unwrap_or(OnnxProfile::Std) {
            OnnxProfile::Std => Profile::Std,
            OnnxProfile::Portable => Profile::Portable,
            OnnxProfile::Ort => Profile::Ort,
        },
        blocks: BlockOptions {
            size: args.block_size.unwrap_or(default.size),
            asymmetric: args.asymmetric,
            scheme: args.scheme.map(|scheme| match scheme {
                OnnxScheme::Blocks => Scheme::Blocks,
                OnnxScheme::Qdq => Scheme::Qdq,
                OnnxScheme::Dynamic => Scheme::Dynamic,
            }),
            accuracy_level: args.accuracy_level.unwrap_or(default.accuracy_level),
        },
    })
}

/// The value of an option by its name, as the command line has it.
pub fn value_named<T: clap::ValueEnum>(name: &str) -> anyhow::Result<T> {
    T::from_str(name, false).map_err(|_| anyhow::anyhow!("`{}` is not known to this version", Escaped(name)))
}

/// Those of `--keep-fp32` that float16 cannot hold.
pub const OVERFLOW: &str = "overflow";

/// Sizes of dimensions: `batch=1,sequence=128`.
fn fixed_dims(texts: &[String]) -> anyhow::Result<FixedDims> {
    let mut fixed = FixedDims::default();
    for text in texts {
        let (name, size) = text.trim().split_once('=').unwrap_or((text.trim(), ""));
        let (dim, least) = match name {
            "batch" => (&mut fixed.batch, 1),
            "sequence" => (&mut fixed.sequence, 1),
            "past" => (&mut fixed.past, 0),
            _ => bail!("--fix-dims `{}` names no dimension\n  expected: batch=N, sequence=N or past=N", Escaped(text)),
        };
        let size = size.parse::<u32>().ok().filter(|size| *size >= least);
        let size = size.with_context(|| {
            format!("--fix-dims `{}` has no size\n  expected: {name}=N with a number from {least}", Escaped(text))
        })?;
        if dim.replace(size.into()).is_some() {
            bail!("--fix-dims gives `{name}` twice\n  expected: one size");
        }
    }
    Ok(fixed)
}

/// Refuses what only ONNX graphs have.
pub fn no_onnx(args: &TargetArgs) -> anyhow::Result<()> {
    if !args.onnx.precision.is_empty() {
        bail!("--precision is for ONNX\n  expected: --to onnx, or --quant");
    }
    Ok(())
}

/// Refuses what ONNX graphs do not have.
pub fn only_onnx(args: &TargetArgs, quantizer: &QuantizerArgs) -> anyhow::Result<()> {
    let given = [
        (!args.quant.is_empty(), "--quant"),
        (args.base.is_some(), "--base"),
        (args.name.is_some(), "--name"),
        (args.pre.is_some(), "--pre"),
        (args.split_max_tensors.is_some(), "--split-max-tensors"),
        (args.split_max_size.is_some(), "--split-max-size"),
    ];
    if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
        bail!("{option} has no meaning for ONNX\n  expected: --precision, and the options that it has");
    }
    let limits = QuantizerArgs { max_rmse: None, min_cosine: None, ..quantizer.clone() };
    if let serde_json::Value::Object(options) = serde_json::to_value(limits)?
        && let Some((option, _)) = options.iter().next()
    {
        bail!(
            "--{} is an option of llama-quantize\n  expected: --to gguf, or no such option",
            option.replace('_', "-")
        );
    }
    Ok(())
}

/// llama-quantize's options. Relative paths start at `folder`, whatever they are called in the output.
pub fn quantize_options(
    args: &QuantizerArgs,
    requantizer: &RequantizerArgs,
    folder: &Path,
) -> anyhow::Result<QuantizeOptions> {
    let ty = |option: &'static str, name: &Option<String>| -> anyhow::Result<Option<GgmlType>> {
        Ok(match name {
            Some(name) => Some(parse_type(option, name)?),
            None => None,
        })
    };
    let patterns = tensor_types(args, folder)?;
    if args.imatrix.is_none() && !(args.include_weights.is_empty() && args.exclude_weights.is_empty()) {
        bail!(
            "--include-weights and --exclude-weights choose from an importance matrix, and there is none (--imatrix)"
        );
    }
    Ok(QuantizeOptions {
        pure: args.pure,
        tensor_types: patterns.iter().map(|text| Ok(TensorType::parse(text)?)).collect::<anyhow::Result<_>>()?,
        output_tensor_type: ty("--output-tensor-type", &args.output_tensor_type)?,
        token_embedding_type: ty("--token-embedding-type", &args.token_embedding_type)?,
        leave_output_tensor: args.leave_output_tensor,
        prune_layers: args.prune_layers.iter().copied().collect(),
        overrides: args.override_kv.iter().map(|text| Ok(parse_override(text)?)).collect::<anyhow::Result<_>>()?,
        keep_split: requantizer.keep_split,
        allow_requantize: args.allow_requantize,
        imatrix: args.imatrix.as_deref().map(|named| imatrix(named, args, folder)).transpose()?,
    })
}

fn imatrix(named: &str, args: &QuantizerArgs, folder: &Path) -> anyhow::Result<Imatrix> {
    imatrix_at(&folder.join(named), named, args)
}

/// The importance matrix at `path`, which the output's metadata calls `named`.
pub fn imatrix_at(path: &Path, named: &str, args: &QuantizerArgs) -> anyhow::Result<Imatrix> {
    let mut importance = Importance::open(path).map_err(mlpack_convert::Error::from)?;
    importance.keep(&args.include_weights, &args.exclude_weights);
    Ok(Imatrix {
        importance: Arc::new(importance),
        named: named.to_owned(),
        allow_unvisited_experts: args.allow_unvisited_experts,
    })
}

/// The patterns of the command line, then those of the file.
pub fn tensor_types(args: &QuantizerArgs, folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut patterns = args.tensor_type.clone();
    if let Some(file) = &args.tensor_type_file {
        let text = read_to_string_bounded(&folder.join(file), MAX_TENSOR_TYPES)?;
        patterns.extend(text.split_whitespace().map(str::to_owned));
    }
    Ok(patterns)
}

/// The error that is accepted.
pub fn limits(args: &QuantizerArgs) -> Limits {
    Limits { max_rmse: args.max_rmse, min_cosine: args.min_cosine }
}

/// What was asked for, as a statement says it.
pub fn parameters(
    args: &QuantizerArgs,
    requantizer: &RequantizerArgs,
    folder: &Path,
) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let named = QuantizerArgs { tensor_type: tensor_types(args, folder)?, tensor_type_file: None, ..args.clone() };
    let mut parameters = serde_json::Map::new();
    for value in [serde_json::to_value(named)?, serde_json::to_value(requantizer)?] {
        let serde_json::Value::Object(object) = value else { unreachable!("a struct serialises as an object") };
        // A statement spells fractions as text, which no reader rounds.
        parameters.extend(object.into_iter().map(|(key, value)| match value {
            serde_json::Value::Number(n) if n.is_f64() => (key, n.to_string().into()),
            other => (key, other),
        }));
    }
    Ok(parameters)
}

/// The name of what is made from a GGUF file: its own, without the numbers of a split and without its type.
pub fn quantized_name(input: &Path) -> anyhow::Result<String> {
    let stem = input.file_stem().unwrap_or_default().to_str();
    let stem = stem.with_context(|| format!("`{}` is not UTF-8; use --name", input.display()))?;
    let whole = match stem.rsplit_once("-of-") {
        Some((first, total)) if total.len() == 5 && total.bytes().all(|b| b.is_ascii_digit()) => {
            first.strip_suffix("-00001").unwrap_or(stem)
        }
        _ => stem,
    };
    let base = whole.rsplit_once(['-', '.']).filter(|(_, last)| FileType::parse(last).is_ok());
    Ok(base.map_or(whole, |(name, _)| name).to_owned())
}

/// The name of the outputs: what was asked for, else the last adapter's directory, else the model's.
pub fn output_name(target: &TargetArgs, source: &SourceArgs, adapters: &[(PathBuf, f64)]) -> anyhow::Result<String> {
    if let Some(name) = &target.name {
        return Ok(name.clone());
    }
    directory_name(adapters.last().map_or(&source.model, |(dir, _)| dir))
}

/// The last part of a directory's path, of the real one where the path ends in `.` or `..`.
pub fn directory_name(dir: &Path) -> anyhow::Result<String> {
    let name = match dir.file_name() {
        Some(name) => name.to_owned(),
        None => match std::path::absolute(dir).ok().and_then(|p| p.canonicalize().ok()) {
            Some(real) if real.file_name().is_some() => real.file_name().unwrap_or_default().to_owned(),
            _ => bail!("`{}` has no name to give to the outputs; use --name", dir.display()),
        },
    };
    name.into_string().map_err(|name| anyhow::anyhow!("`{}` is not UTF-8; use --name", Path::new(&name).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(size("256MiB").unwrap(), 256 << 20);
        assert_eq!(size("2 GB").unwrap(), 2_000_000_000);
        assert_eq!(size("123").unwrap(), 123);
        for bad in ["", "MiB", "1.5GiB", "-1", "99999999999GiB", "1XB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_of_a_split_are_decimal() {
        assert_eq!((split_size("300K").unwrap(), split_size("2G").unwrap()), (300_000, 2_000_000_000));
        assert_eq!((split_size("5M").unwrap(), split_size("123").unwrap()), (5_000_000, 123));
        for bad in ["", "0", "M", "1.5G", "-1K", "5MB", "99999999999999G"] {
            assert!(split_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_quantized_file_is_named_after_its_source_without_the_type() {
        for (input, name) in [
            ("a/legal-qa-BF16.gguf", "legal-qa"),
            ("model.f16.gguf", "model"),
            ("Llama-3.2-1B.gguf", "Llama-3.2-1B"),
            ("big-F16-00001-of-00004.gguf", "big"),
            ("plain.gguf", "plain"),
        ] {
            assert_eq!(quantized_name(Path::new(input)).unwrap(), name, "{input}");
        }
    }

    #[test]
    fn an_adapter_may_carry_its_weight() {
        assert_eq!(adapter("lora=0.25").unwrap(), (PathBuf::from("lora"), 0.25));
        assert_eq!(adapter("a/lora").unwrap(), (PathBuf::from("a/lora"), 1.0));
        assert!(adapter("lora=heavy").is_err());
        assert!(adapter("lora=inf").is_err());
    }
}
