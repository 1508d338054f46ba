//! Planning GGUF outputs: several variants of one model, from one read.

use crate::mixture::{Mixture, ModelFacts, allows_quantization, fit, quantized_order};
use crate::{Error, FileType, Input, Origin, Output, OutputTensor, Plan, Source, Step, Stored, Target};
use mlpack_arch::{MetadataRequest, Model, TensorRule, Transform, parameter_count};
use mlpack_gguf::{Layout, TensorSpec};
use mlpack_tensor::{Dtype, GgmlType, MetaValue, Metadata, Shape};

/// The version of ggml's quantization formats that every file states (`GGML_QUANT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct GgufRequest<'a> {
    /// The start of every file name, and what llama.cpp's metadata heuristics take for the directory's name.
    pub name: &'a str,
    /// The variants, each once.
    pub variants: &'a [FileType],
    /// The pre-tokenizer, where it cannot be recognised.
    pub pre: Option<&'a str>,
}

/// A tensor as convert_hf_to_gguf.py would write it, its type aside.
struct Converted {
    name: String,
    shape: Shape,
    always_f32: bool,
    source: Option<(usize, Dtype)>,
}

/// Plans one GGUF file for each variant.
///
/// # Errors
/// Every tensor that cannot be mapped or converted, together.
pub fn plan_gguf(source: &Source, model: &Model, request: &GgufRequest<'_>) -> Result<Plan, Error> {
    check_request(request)?;
    let mut plan = Plan { warnings: source.warnings.clone(), ..Plan::default() };
    let converted = convert(source, model, &mut plan)?;
    let intermediate = intermediate(&converted);
    let described = model.gguf_metadata(&MetadataRequest {
        name: request.name,
        file_type: intermediate.id,
        parameters: parameter_count(converted.iter().map(|c| (c.name.as_str(), &c.shape))),
        pre: request.pre,
        card: source.overlay.adapters().is_empty(),
    })?;
    plan.warnings.extend(described.warnings);
    plan.described_by = described.files;
    for &variant in request.variants {
        let mut metadata = described.entries.clone();
        let tensors = match variant.origin {
            Origin::Converter => {
                metadata.set("general.file_type", MetaValue::U32(variant.id));
                converter_tensors(&converted, variant)
            }
            Origin::Quantizer => {
                // llama-quantize sets both again, which moves them to the end.
                metadata.set_last("general.quantization_version", MetaValue::U32(QUANTIZATION_VERSION));
                metadata.set_last("general.file_type", MetaValue::U32(variant.id));
                quantizer_tensors(&converted, variant, intermediate, &metadata)
            }
        };
        add_output(&mut plan, source, request.name, variant, &metadata, &converted, tensors)?;
    }
    Ok(plan)
}

fn check_request(request: &GgufRequest<'_>) -> Result<(), Error> {
    let name = request.name;
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(Error::OutputName { name: name.to_owned() });
    }
    for (i, variant) in request.variants.iter().enumerate() {
        if request.variants[..i].contains(variant) {
            return Err(Error::RepeatedFileType { name: variant.name });
        }
    }
    Ok(())
}

/// Maps every tensor of the source, and makes the steps that read them.
fn convert(source: &Source, model: &Model, plan: &mut Plan) -> Result<Vec<Converted>, Error> {
    let mut converted = Vec::new();
    let mut problems = Vec::new();
    for extra in model.extra_tensors()? {
        let (rows, row_len) = (extra.shape.row_count().unwrap_or(0), extra.shape.row_len());
        let input = Input::Computed(extra.data);
        plan.steps.push(Step { input, rows, row_len, transform: Transform::Copy, targets: Vec::new() });
        converted.push(Converted { name: extra.name, shape: extra.shape, always_f32: true, source: None });
    }
    for (position, tensor) in source.checkpoint.tensors().iter().enumerate() {
        let (name, transform, always_f32) = match model.map_tensor(&tensor.name, &tensor.shape) {
            Ok(TensorRule::Mapped { gguf_name, transform, force_f32 }) => (gguf_name, transform, force_f32),
            Ok(TensorRule::Dropped { reason }) => {
                plan.dropped.push((tensor.name.clone(), reason));
                continue;
            }
            Err(e) => {
                problems.push(e.into());
                continue;
            }
        };
        if !tensor.dtype.is_float() {
            let (tensor, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
            problems.push(Error::TensorDtype { tensor, dtype, shape });
            continue;
        }
        let (rows, row_len) = rows_of(&tensor.shape, transform);
        plan.steps.push(Step { input: Input::Checkpoint(position), rows, row_len, transform, targets: Vec::new() });
        let source = Some((position, tensor.dtype));
        converted.push(Converted { name, shape: tensor.shape.clone(), always_f32, source });
    }
    Error::from_list(problems)?;
    Ok(converted)
}

/// Rows and row length of a tensor for the executor. The elements of a vector whose order changes are rows of one.
fn rows_of(shape: &Shape, transform: Transform) -> (u64, u64) {
    let (rows, row_len) = (shape.row_count().unwrap_or(0), shape.row_len());
    match transform {
        Transform::RopePermute { .. } if shape.rank() == 1 => (row_len, 1),
        _ => (rows, row_len),
    }
}

/// The converter's type that holds the source's values exactly: what llama-quantize would have been given.
fn intermediate(converted: &[Converted]) -> FileType {
    let first_matrix = converted.iter().filter(|c| c.shape.rank() >= 2).find_map(|c| c.source);
    match first_matrix {
        Some((_, Dtype::BF16)) => FileType::BF16,
        Some((_, Dtype::F16)) => FileType::F16,
        _ => FileType::F32,
    }
}

/// A tensor of an output: its place among the converted, its type, and the type that was wanted instead.
type Typed = (usize, GgmlType, Option<GgmlType>);

fn converter_type(c: &Converted, variant: FileType) -> (GgmlType, Option<GgmlType>) {
    if c.always_f32 {
        return (GgmlType::F32, None);
    }
    let ty = fit(variant.default, c.shape.row_len());
    (ty, (ty != variant.default).then_some(variant.default))
}

fn converter_tensors(converted: &[Converted], variant: FileType) -> Vec<Typed> {
    let typed = |(i, c): (usize, &Converted)| {
        let (ty, instead_of) = converter_type(c, variant);
        (i, ty, instead_of)
    };
    converted.iter().enumerate().map(typed).collect()
}

fn quantizer_tensors(
    converted: &[Converted],
    variant: FileType,
    intermediate: FileType,
    metadata: &Metadata,
) -> Vec<Typed> {
    let mut order: Vec<usize> = (0..converted.len()).collect();
    order.sort_by_key(|i| quantized_order(&converted[*i].name));
    let facts = ModelFacts::from_metadata(metadata);
    let mut mixture = Mixture::new(variant, &facts, order.iter().map(|i| converted[*i].name.as_str()));
    let typed = |i: usize| {
        let c = &converted[i];
        if !allows_quantization(&c.name, &c.shape) {
            let (ty, instead_of) = converter_type(c, intermediate);
            return (i, ty, instead_of);
        }
        let choice = mixture.choose(&c.name, &c.shape);
        (i, choice.ty, choice.instead_of)
    };
    order.into_iter().map(typed).collect()
}

/// Lays out one file and tells the steps where their values go.
fn add_output(
    plan: &mut Plan,
    source: &Source,
    name: &str,
    variant: FileType,
    metadata: &Metadata,
    converted: &[Converted],
    tensors: Vec<Typed>,
) -> Result<(), Error> {
    let file_name = format!("{name}-{}.gguf", variant.name);
    let spec = |(i, ty, _): &Typed| TensorSpec {
        name: converted[*i].name.clone(),
        ty: *ty,
        shape: converted[*i].shape.clone(),
    };
    let layout = Layout::new(metadata, tensors.iter().map(spec).collect())
        .map_err(|source| Error::Layout { file: file_name.clone(), source })?;
    let output = plan.outputs.len();
    let mut output_tensors = Vec::with_capacity(tensors.len());
    for (tensor, ((i, ty, instead_of), slot)) in tensors.iter().zip(layout.tensors()).enumerate() {
        plan.steps[*i].targets.push(Target { output, tensor });
        let source = converted[*i].source.map(|(position, _)| source.checkpoint.tensors()[position].name.clone());
        output_tensors.push(OutputTensor {
            name: slot.spec.name.clone(),
            source,
            stored: Stored::Ggml(*ty),
            instead_of: *instead_of,
            shape: slot.spec.shape.clone(),
            range: slot.range.clone(),
            padded_end: slot.padded_end,
        });
    }
    plan.outputs.push(Output {
        file_name,
        variant: Some(variant.name),
        preamble: layout.header().to_vec(),
        tensors: output_tensors,
        byte_len: layout.byte_len(),
    });
    Ok(())
}
