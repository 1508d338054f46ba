//! Planning GGUF outputs of a checkpoint: several variants of one model, from one read.

use crate::mixture::fit;
use crate::packed::is_scalable;
use crate::quantize_plan::{Given, Typed, add_files, add_variant, drop_unused};
use crate::{Error, FileType, Origin, Plan, QuantizeOptions, Source, SourceTensor, Split, Step};
use mlpack_arch::{MappedTensor, MetadataRequest, Model, Packing, parameter_count};
use mlpack_tensor::{Dtype, GgmlType, MetaArray, MetaValue, Metadata, Shape};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct GgufRequest<'a> {
    /// The start of every file name, and what llama.cpp's metadata heuristics take for the directory's name.
    pub name: &'a str,
    /// The variants, each once.
    pub variants: &'a [FileType],
    /// The pre-tokenizer, where it cannot be recognised.
    pub pre: Option<&'a str>,
    /// llama-quantize's options.
    pub options: &'a QuantizeOptions,
    /// Where the outputs are divided into several files.
    pub split: Split,
}

impl GgufRequest<'_> {
    /// Who defines the bytes of a variant. The converter's own variants come from llama-quantize where something is asked
    /// for that only it does.
    fn origin(&self, variant: FileType) -> Origin {
        if self.options.alter_converted() { Origin::Quantizer } else { variant.origin }
    }
}

/// A tensor as convert_hf_to_gguf.py would write it, its type aside. The plan has a step for each, in the same order.
struct Converted {
    name: String,
    shape: Shape,
    always_f32: bool,
    /// MXFP4 stays what it is.
    packing: Packing,
    source: Option<(String, Dtype)>,
}

impl Converted {
    fn is_mxfp4(&self) -> bool {
        matches!(self.packing, Packing::Mxfp4 { .. })
    }
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
        card: source.adapters().is_empty(),
    })?;
    check_vocabulary(&converted, &described.entries)?;
    plan.warnings.extend(described.warnings);
    plan.described_by = described.files;
    let given = given(&converted, intermediate);
    for &variant in request.variants {
        let stem = format!("{}-{}", request.name, variant.name);
        match request.origin(variant) {
            Origin::Converter => {
                let mut metadata = described.entries.clone();
                if metadata.find("general.file_type").is_some() {
                    let packed = converted.iter().any(Converted::is_mxfp4);
                    let plain = matches!(variant, FileType::F32 | FileType::F16 | FileType::BF16);
                    let id = if packed && plain { FileType::MXFP4_MOE.id } else { variant.id };
                    metadata.set("general.file_type", MetaValue::U32(id));
                }
                let tensors = converter_tensors(&converted, variant);
                add_files(&mut plan, &stem, variant, &metadata, request.split.cut(tensors))?;
            }
            Origin::Quantizer => {
                let (metadata, split) = (&described.entries, request.split);
                add_variant(&mut plan, &stem, &given, metadata, variant, request.options, split)?;
            }
        }
    }
    drop_unused(&mut plan, &given);
    Ok(plan)
}

/// Checks that the embedding and the output have a row for each token, without which llama.cpp loads no model.
fn check_vocabulary(converted: &[Converted], metadata: &Metadata) -> Result<(), Error> {
    let Some(MetaValue::Array(MetaArray::String(tokens))) = metadata.find("tokenizer.ggml.tokens") else {
        return Ok(());
    };
    let tokens = tokens.len() as u64;
    let mut problems = Vec::new();
    for c in converted.iter().filter(|c| matches!(&c.name[..], "token_embd.weight" | "output.weight")) {
        let rows = c.shape.row_count().unwrap_or(0);
        if rows != tokens {
            let tensor = c.source.as_ref().map_or(&c.name, |(name, _)| name).clone();
            problems.push(Error::VocabularySize { tensor, rows, tokens });
        }
    }
    Error::from_list(problems)
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
    for extra in model.extra_tensors()? {
        plan.steps.push(Step::computed(extra.data, &extra.shape));
        converted.push(Converted {
            name: extra.name,
            shape: extra.shape,
            always_f32: true,
            packing: Packing::None,
            source: None,
        });
    }
    let tensors: Vec<(&str, &Shape)> = source.tensors().iter().map(|t| (t.name.as_str(), &t.shape)).collect();
    let mapping = model.map_tensors(&tensors);
    let mut problems: Vec<Error> = mapping.problems.into_iter().map(Error::from).collect();
    plan.dropped.extend(mapping.dropped.iter().map(|(position, reason)| (tensors[*position].0.to_owned(), *reason)));
    for tensor in mapping.tensors {
        match source_of(source, &tensor) {
            Ok(from) => {
                plan.steps.push(Step::mapped(&tensor));
                let MappedTensor { gguf_name: name, shape, force_f32: always_f32, packing, .. } = tensor;
                converted.push(Converted { name, shape, always_f32, packing, source: Some(from) });
            }
            Err(e) => problems.push(e),
        }
    }
    Error::from_list(problems)?;
    Ok(converted)
}

/// The name and dtype of what a tensor is made of: floats, and of a stack all the same.
pub(crate) fn source_of(source: &Source, tensor: &MappedTensor) -> Result<(String, Dtype), Error> {
    let all = source.tensors();
    let first = &all[tensor.sources[0]];
    let (takes, unpacked): (fn(Dtype) -> bool, _) = match &tensor.packing {
        Packing::None => (Dtype::is_float, None),
        Packing::Scaled { scales, .. } => {
            let is_wrong = |p: &&usize| !all[**p].stored.dtype().is_some_and(|d| d.is_float() && is_scalable(d));
            if let Some(&position) = scales.iter().find(is_wrong) {
                let SourceTensor { name, stored, shape, .. } = &all[position];
                return Err(Error::TensorDtype { tensor: name.clone(), stored: *stored, shape: shape.clone() });
            }
            (is_scalable, Some(Dtype::F32))
        }
        Packing::Mxfp4 { scales } => {
            let SourceTensor { name, stored, shape, .. } = &all[*scales];
            if stored.dtype() != Some(Dtype::U8) {
                return Err(Error::TensorDtype { tensor: name.clone(), stored: *stored, shape: shape.clone() });
            }
            (|dtype| dtype == Dtype::U8, None)
        }
    };
    for &position in &tensor.sources {
        let SourceTensor { name, stored, shape, target, .. } = &all[position];
        // What is packed is not merged with anything.
        let merged = tensor.packing != Packing::None && target.is_some();
        if !stored.dtype().is_some_and(takes) || merged {
            return Err(Error::TensorDtype { tensor: name.clone(), stored: *stored, shape: shape.clone() });
        }
        if *stored != first.stored {
            let (tensor, like) = (name.clone(), first.name.clone());
            return Err(Error::StackDtype { tensor, stored: *stored, like, expected: first.stored });
        }
    }
    let dtype = unpacked.or(first.stored.dtype()).expect("it was just checked");
    // A stack is known by its first member and how many there are.
    let more = tensor.sources.len() - 1;
    let name = if more == 0 { first.name.clone() } else { format!("{} and {more} more", first.name) };
    Ok((name, dtype))
}

/// The converter's type that holds the source's values exactly: what llama-quantize would have been given.
fn intermediate(converted: &[Converted]) -> FileType {
    if converted.iter().any(|c| matches!(c.packing, Packing::Scaled { .. })) {
        return FileType::F32;
    }
    let matrices = converted.iter().filter(|c| c.shape.rank() >= 2 && !c.is_mxfp4());
    let first_matrix = matrices.filter_map(|c| c.source.as_ref()).next();
    match first_matrix {
        Some((_, Dtype::BF16)) => FileType::BF16,
        Some((_, Dtype::F16)) => FileType::F16,
        _ => FileType::F32,
    }
}

/// The tensors of the converter's file, as llama-quantize would find them.
fn given(converted: &[Converted], intermediate: FileType) -> Vec<Given> {
    let given = |(i, c): (usize, &Converted)| Given {
        name: c.name.clone(),
        shape: c.shape.clone(),
        ty: converter_type(c, intermediate).0,
        source: c.source.as_ref().map(|(name, _)| name.clone()),
        place: (0, i as u64),
    };
    converted.iter().enumerate().map(given).collect()
}

/// The type that the converter gives a tensor, and the one that was wanted instead.
fn converter_type(c: &Converted, variant: FileType) -> (GgmlType, Option<GgmlType>) {
    if c.is_mxfp4() {
        return (GgmlType::MXFP4, None);
    }
    if c.always_f32 {
        return (GgmlType::F32, None);
    }
    let ty = fit(variant.default, c.shape.row_len());
    (ty, (ty != variant.default).then_some(variant.default))
}

fn converter_tensors(converted: &[Converted], variant: FileType) -> Vec<Typed> {
    let typed = |(step, c): (usize, &Converted)| {
        let (ty, instead_of) = converter_type(c, variant);
        let (name, shape) = (c.name.clone(), c.shape.clone());
        let source = c.source.as_ref().map(|(name, _)| name.clone());
        Typed { step, name, shape, ty, instead_of, importance: None, source }
    };
    converted.iter().enumerate().map(typed).collect()
}

#[cfg(test)]
mod tests;
