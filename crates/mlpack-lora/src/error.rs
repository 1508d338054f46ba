//! What can be wrong with an adapter, or between an adapter and a base.

use crate::{TorchProblem, WrongElement};
use mlpack_fs::ErrorKind;
use mlpack_tensor::{Dtype, Escaped, join_limited};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Entries of a list that are shown before it is cut with a count.
const SHOWN: usize = 10;

/// Kinds that PEFT 0.21 cannot merge either: they add to prompts, or choose among adapters for each token.
const ALONGSIDE: &[&str] = &[
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "XLORA",
    "POLY",
];

/// Why an adapter cannot be read or laid over a base.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// The weights cannot be read.
    #[error(transparent)]
    Safetensors(#[from] mlpack_safetensors::Error),
    /// The directory holds no adapter.
    #[error("cannot read `{}`: not an adapter directory\n  expected: {missing}\n  found:    {found}", path.display())]
    NotAnAdapter {
        /// The directory.
        path: PathBuf,
        /// The file that is missing.
        missing: &'static str,
        /// What is there instead.
        found: String,
    },
    /// `adapter_config.json` is not what PEFT writes.
    #[error("cannot read `{}`: not a PEFT adapter config\n  found:    {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// What the JSON parser said.
        reason: String,
    },
    /// A `peft_type` that this version does not merge.
    #[error("cannot merge `{}`\n  peft_type: unknown or not handled\n  expected: LORA, LOHA, LOKR, IA3 or TRAINABLE_TOKENS\n  found:    `{}`", path.display(), Escaped(found))]
    PeftType {
        /// The config file.
        path: PathBuf,
        /// The type found.
        found: String,
    },
    /// A setting that would change the result and that this version does not handle.
    #[error("cannot merge `{}`\n  {key}: not handled\n  expected: {expected}\n  found:    {}", path.display(), Escaped(found))]
    Setting {
        /// The config file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What would be handled.
        expected: &'static str,
        /// The value found.
        found: String,
    },
    /// A pattern of `rank_pattern` or `alpha_pattern` is not a regular expression.
    #[error("cannot read `{}`\n  {key}: `{}` is not a regular expression\n  found:    {reason}", path.display(), Escaped(pattern))]
    Pattern {
        /// The config file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What the regex parser said.
        reason: String,
    },
    /// A file of PyTorch's that cannot be read, or that would run something when PyTorch reads it.
    #[error("cannot read `{}`: not a map of tensors as torch.save writes it\n  found:    {problem}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: TorchProblem,
    },
    /// The training state of DeepSpeed's ZeRO, whose tensors are in pieces.
    #[error("cannot read `{}`: a DeepSpeed ZeRO checkpoint, whose tensors are in pieces\n  expected: adapter_model.safetensors\n  found:    {}", path.display(), Escaped(found))]
    DeepSpeed {
        /// The directory.
        path: PathBuf,
        /// One of its files.
        found: String,
    },
    /// The base's weights are quantized.
    #[error("cannot merge into a quantized base\n  `{}`: quantization_config\n  expected: weights in BF16, F16, F32 or FP8\n  found:    {}", path.display(), Escaped(method))]
    QuantizedBase {
        /// The base's config.
        path: PathBuf,
        /// `quant_method`.
        method: String,
    },
    /// The base's config cannot be read.
    #[error("cannot read `{}`: not a model config\n  found:    {reason}", path.display())]
    BaseConfig {
        /// The config.
        path: PathBuf,
        /// What the JSON parser said.
        reason: String,
    },
    /// A base tensor that nothing can be merged into.
    #[error("cannot merge into tensor `{}`\n  found:    {reason}", Escaped(tensor))]
    Base {
        /// The base tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// Modules of an adapter that change nothing: a factor is zero throughout.
    #[error("cannot merge `{}`: {} of its {total} modules change nothing{}", path.display(), modules.len(), list_names(modules))]
    Unchanged {
        /// The weights file.
        path: PathBuf,
        /// The number of modules in the adapter.
        total: usize,
        /// The modules.
        modules: Vec<String>,
    },
    /// Several independent problems.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"))]
    Several(Vec<Error>),
    /// A way of combining adapters that does not exist.
    #[error(
        "cannot combine adapters by `{}` with density {density}\n  expected: sum, ties, dare or magnitude-prune, and a density above 0 and at most 1",
        Escaped(name)
    )]
    Combine {
        /// The way that was asked for.
        name: String,
        /// The share of elements that stays.
        density: f64,
    },
    /// The adapter holds no tensors.
    #[error("cannot merge `{}`: the adapter holds no tensors", path.display())]
    Empty {
        /// The weights file.
        path: PathBuf,
    },
    /// Adapter tensors that belong to nothing in the base, or are half of a pair.
    #[error("cannot merge `{}`: {} of its {total} tensors are not used{}", path.display(), unmatched.len(), list_unmatched(unmatched))]
    Unmatched {
        /// The weights file.
        path: PathBuf,
        /// The number of tensors in the adapter.
        total: usize,
        /// Each tensor that is not used, and why.
        unmatched: Vec<Unmatched>,
    },
    /// Adapter tensors whose shapes do not fit the base, the adapter's other half, or the config.
    #[error("cannot merge `{}`: {}{}", path.display(), does_not_fit(base, misfits), list_misfits(misfits))]
    Misfit {
        /// The weights file.
        path: PathBuf,
        /// The base directory.
        base: PathBuf,
        /// Each tensor that does not fit, and why.
        misfits: Vec<Misfit>,
    },
    /// The device refused a computation.
    #[error("cannot merge tensor `{}`: the device failed\n  found:    {reason}", Escaped(tensor))]
    Device {
        /// The base tensor.
        tensor: String,
        /// What the device said.
        reason: String,
    },
    /// Products on Apple's GPUs are not part of this build.
    #[error(
        "this build of mlpack has no Metal support\n  expected: a build on macOS with the feature `metal`\n  found:    one without it"
    )]
    MetalNotBuilt,
    /// The system is not Apple's.
    #[error("there is no Metal on this system\n  expected: macOS\n  found:    {system}")]
    NoMetal {
        /// The system.
        system: &'static str,
    },
    /// Metal knows no device.
    #[error("Metal has no device\n  expected: a GPU\n  found:    none")]
    NoMetalGpu,
    /// A GPU failed.
    #[error("the GPU `{}` failed\n  found:    {}", Escaped(name), Escaped(reason))]
    GpuFailed {
        /// What the system calls it.
        name: String,
        /// What was said, in one line.
        reason: String,
    },
    /// A product of a GPU is none of float32.
    #[error(
        "the GPU `{}` does not multiply as float32 arithmetic does\n  product of rank {rank}, row {}, column {}\n  expected: {:e}, or what is within {:.1e} of it\n  found:    {:e}",
        Escaped(name), wrong.row, wrong.col, wrong.expected, wrong.within, wrong.found
    )]
    GpuInexact {
        /// What the system calls it.
        name: String,
        /// Terms of each of its sums.
        rank: usize,
        /// The first element that is wrong.
        wrong: WrongElement,
    },
    /// A merged value is NaN or infinite.
    #[error(
        "cannot merge tensor `{}`: a merged value is not finite\n  expected: a finite {dtype} value\n  found:    {value:?} at row {row}, column {column}",
        Escaped(tensor)
    )]
    NotFinite {
        /// The base tensor.
        tensor: String,
        /// The base dtype.
        dtype: Dtype,
        /// The row of the element.
        row: u64,
        /// The column of the element.
        column: u64,
        /// The sum before rounding.
        value: f64,
    },
}

/// An adapter tensor that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// No base tensor has its name.
    NoBase {
        /// The adapter tensor.
        key: String,
        /// The base tensor that it asks for.
        wanted: String,
        /// The base tensor with the most similar name.
        nearest: Option<String>,
    },
    /// Its other half is missing.
    NoPartner {
        /// The adapter tensor.
        key: String,
        /// The tensor that should be there.
        partner: String,
    },
    /// Several base tensors could be meant.
    Ambiguous {
        /// The adapter tensor.
        key: String,
        /// The base tensor that it asks for.
        wanted: String,
        /// Those whose names differ from that by a prefix that comes and goes.
        candidates: Vec<String>,
    },
    /// Another tensor has its place.
    Repeated {
        /// The adapter tensor.
        key: String,
        /// The other one.
        first: String,
    },
    /// Its name is of no known form.
    UnknownForm {
        /// The adapter tensor.
        key: String,
        /// The base tensor with the most similar name.
        nearest: Option<String>,
    },
}

/// An adapter tensor that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The adapter tensor.
    pub key: String,
    /// The base tensor; `None` where no base would do.
    pub base: Option<String>,
    /// The shape that would fit, and what it follows from.
    pub expected: String,
    /// The shape or dtype found.
    pub found: String,
}

fn does_not_fit(base: &Path, misfits: &[Misfit]) -> String {
    if misfits.iter().all(|m| m.base.is_none()) {
        return "its tensors cannot be used".to_owned();
    }
    match base.as_os_str().is_empty() {
        true => "it does not fit the base".to_owned(),
        false => format!("it does not fit the base `{}`", base.display()),
    }
}

fn list_names(names: &[String]) -> String {
    let mut out = String::new();
    for name in names.iter().take(SHOWN) {
        let _ = write!(out, "\n  module `{}`", Escaped(name));
    }
    cut(&mut out, names.len());
    out
}

fn list_unmatched(unmatched: &[Unmatched]) -> String {
    let mut out = String::new();
    for u in unmatched.iter().take(SHOWN) {
        let (key, why, nearest) = match u {
            Unmatched::NoBase { key, wanted, nearest } => {
                (key, format!("no base tensor `{}`", Escaped(wanted)), nearest.as_deref())
            }
            Unmatched::NoPartner { key, partner } => (key, format!("its pair `{}` is missing", Escaped(partner)), None),
            Unmatched::Ambiguous { key, wanted, candidates } => {
                let candidates = join_limited(candidates.iter().map(String::as_str), SHOWN);
                (key, format!("`{}` could be any of {candidates}", Escaped(wanted)), None)
            }
            Unmatched::Repeated { key, first } => (key, format!("`{}` has the same place", Escaped(first)), None),
            Unmatched::UnknownForm { key, nearest } => {
                (key, "no part of an adapter that is handled".to_owned(), nearest.as_deref())
            }
        };
        let _ = write!(out, "\n  key `{}`: {why}", Escaped(key));
        if let Some(nearest) = nearest {
            let _ = write!(out, " (nearest: `{}`)", Escaped(nearest));
        }
    }
    cut(&mut out, unmatched.len());
    out
}

fn list_misfits(misfits: &[Misfit]) -> String {
    let mut out = String::new();
    for m in misfits.iter().take(SHOWN) {
        let _ = write!(out, "\n  key `{}`", Escaped(&m.key));
        if let Some(base) = &m.base {
            let _ = write!(out, " on tensor `{}`", Escaped(base));
        }
        let _ = write!(out, "\n    expected: {}\n    found:    {}", m.expected, m.found);
    }
    cut(&mut out, misfits.len());
    out
}

fn cut(out: &mut String, len: usize) {
    if len > SHOWN {
        let _ = write!(out, "\n  and {} more", len - SHOWN);
    }
}

impl Error {
    /// The text, for within a sentence.
    pub fn in_one_line(&self) -> String {
        let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        self.to_string().lines().map(line).collect::<Vec<_>>().join("; ")
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::Safetensors(e) => e.kind(),
            Error::NotAnAdapter { .. }
            | Error::Config { .. }
            | Error::BaseConfig { .. }
            | Error::Pattern { .. }
            | Error::Torch { .. }
            | Error::Empty { .. } => ErrorKind::Malformed,
            Error::PeftType { .. }
            | Error::Setting { .. }
            | Error::DeepSpeed { .. }
            | Error::QuantizedBase { .. }
            | Error::Base { .. } => ErrorKind::Unsupported,
            Error::Combine { .. } | Error::MetalNotBuilt | Error::NoMetal { .. } => ErrorKind::Misuse,
            Error::Several(all) => all.first().map_or(ErrorKind::Mismatch, Error::kind),
            Error::Unchanged { .. } | Error::Unmatched { .. } | Error::Misfit { .. } | Error::NotFinite { .. } => {
                ErrorKind::Mismatch
            }
            Error::Device { .. } | Error::NoMetalGpu | Error::GpuFailed { .. } | Error::GpuInexact { .. } => {
                ErrorKind::Io
            }
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::Safetensors(e) => return e.hint(),
            Error::NotAnAdapter { .. } => "give the directory that PEFT's save_pretrained wrote",
            Error::Several(all) => return all.iter().find_map(Error::hint),
            Error::Torch { problem: TorchProblem::Call(_), .. } => {
                "do not open this file with PyTorch: it runs what it names; get the adapter as safetensors from its author"
            }
            Error::Torch { .. } => "save the adapter with save_pretrained, which writes adapter_model.safetensors",
            Error::DeepSpeed { path, .. } => {
                // The script takes the folder that has the steps in it.
                let is_step = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("global_step"));
                let dir = if is_step { path.parent().unwrap_or(path) } else { path }.display();
                return Some(format!(
                    "consolidate it first: python -m deepspeed.utils.zero_to_fp32 {dir} {dir}/consolidated --safe_serialization; \
                     or train with stage3_gather_16bit_weights_on_model_save and give the directory that save_pretrained wrote"
                ));
            }
            Error::QuantizedBase { .. } => {
                "merge into the unquantized model that this one was made from, then quantize the result (mlpack convert --quant)"
            }
            Error::Unchanged { .. } => {
                "these modules were not trained, or were saved before training; if that is meant, merge with --allow-empty"
            }
            Error::Setting { key: "init_lora_weights", .. } => {
                "save the adapter again with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), which turns it \
                 into a plain LoRA of the original base"
            }
            Error::PeftType { found, .. } if found.is_empty() => {
                "the config is not whole; give the directory that PEFT's save_pretrained wrote"
            }
            Error::PeftType { found, .. } if ALONGSIDE.contains(&found.as_str()) => {
                "this kind works beside the weights while the model runs; no merged weight can do the same"
            }
            Error::PeftType { .. } | Error::Setting { .. } => {
                "merge this adapter with PEFT's merge_and_unload() and convert the merged directory"
            }
            Error::Unmatched { unmatched, .. }
                if unmatched.iter().all(|u| matches!(u, Unmatched::NoPartner { .. })) =>
            {
                "the adapter file is incomplete; save it again from the training checkpoint"
            }
            Error::Unmatched { total, unmatched, .. }
                if unmatched.len() == *total && unmatched.iter().all(|u| matches!(u, Unmatched::NoBase { .. })) =>
            {
                "the base has none of the modules that the adapter was trained on: it is of another architecture; give the base that \
                 adapter_config.json names (base_model_name_or_path)"
            }
            Error::Unmatched { .. } => {
                "nothing was merged; check that the adapter was trained on this base (adapter_config.json, base_model_name_or_path)"
            }
            Error::Misfit { misfits, .. } if misfits.iter().all(|m| m.base.is_none()) => {
                "the adapter is damaged, or its training diverged; save it again from the training checkpoint"
            }
            Error::Misfit { .. } => {
                "the adapter was trained on another base; see base_model_name_or_path in adapter_config.json"
            }
            Error::MetalNotBuilt => {
                "build it on a Mac with `cargo build --release --features metal` (docs/gpu.md); --device cpu gives the same bytes"
            }
            Error::NoMetal { .. } | Error::NoMetalGpu | Error::GpuFailed { .. } | Error::GpuInexact { .. } => {
                "--device cpu gives the same bytes"
            }
            Error::NotFinite { .. } => {
                "the base or the adapter is damaged, or the training diverged; nothing was written"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
