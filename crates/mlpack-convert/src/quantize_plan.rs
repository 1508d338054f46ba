//! Planning what llama-quantize would make of a GGUF file, or of the file that a converted checkpoint would be
//! (llama.cpp b11434, `src/llama-quant.cpp`, `llama_model_quantize_impl`).

use crate::mixture::{Mixture, ModelFacts, quantized_order};
use crate::options::Imatrix;
use crate::{Error, FileType, Output, OutputTensor, Plan, QuantizeOptions, Source, Step, Stored, Target};
use mlpack_gguf::{Layout, TensorSpec, part_name};
use mlpack_tensor::{GgmlType, MetaValue, Metadata, Shape};
use std::collections::BTreeMap;

/// The version of ggml's quantization formats that every file states (`GGML_QUANT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// Keys of a split file, which an output that is one file does not have.
const SPLIT_KEYS: &[&str] = &["split.no", "split.count", "split.tensors.count"];

/// `general.file_type` of a file that does not state it: the type of most tensors, marked as a guess
/// (`LLAMA_FTYPE_GUESSED`).
const GUESSED: u32 = 1024;

/// Why a tensor of a pruned layer is in no output.
const PRUNED: &str = "its layer is pruned";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeRequest<'a> {
    /// The variants, each with its file's name without `.gguf`.
    pub variants: &'a [(FileType, String)],
    /// llama-quantize's options.
    pub options: &'a QuantizeOptions,
}

/// Plans what llama-quantize makes of a GGUF source: one file for each variant, or as many as the source has with
/// [`QuantizeOptions::keep_split`].
///
/// # Errors
/// Every tensor that cannot be quantized as asked, together.
pub fn plan_quantize(source: &Source, request: &QuantizeRequest<'_>) -> Result<Plan, Error> {
    let Some(model) = source.gguf() else {
        return Err(Error::NotAGguf { path: source.files().first().map(|f| f.path().to_owned()).unwrap_or_default() });
    };
    let mut plan = Plan { warnings: source.warnings.clone(), ..Plan::default() };
    let mut given = Vec::with_capacity(source.tensors().len());
    for (position, tensor) in source.tensors().iter().enumerate() {
        let Stored::Ggml(ty) = tensor.stored else { unreachable!("a GGUF source holds ggml types") };
        plan.steps.push(Step::copy(position, &tensor.shape));
        given.push(Given {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            ty,
            source: Some(tensor.name.clone()),
            place: (tensor.file, tensor.range.start),
        });
    }
    for (variant, stem) in request.variants {
        add_variant(&mut plan, stem, &given, model.metadata(), *variant, request.options, Split::default())?;
    }
    drop_unused(&mut plan, &given);
    Ok(plan)
}

/// A tensor in the file that llama-quantize is given; the plan has a step for each, in the same order.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub name: String,
    pub shape: Shape,
    pub ty: GgmlType,
    pub source: Option<String>,
    /// The file of a split model, and where the tensor is in it.
    pub place: (usize, u64),
}

/// A tensor of an output.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    /// The step that computes it.
    pub step: usize,
    pub name: String,
    pub shape: Shape,
    pub ty: GgmlType,
    pub instead_of: Option<GgmlType>,
    pub importance: Option<usize>,
    pub source: Option<String>,
}

/// Adds the output, or the outputs of a split, that llama-quantize makes for one variant.
pub(crate) fn add_variant(
    plan: &mut Plan,
    stem: &str,
    given: &[Given],
    metadata: &Metadata,
    variant: FileType,
    options: &QuantizeOptions,
    split: Split,
) -> Result<(), Error> {
    let numbers = Renumbered::new(given, options)?;
    let mut order: Vec<usize> = (0..given.len()).filter(|i| numbers.name(&given[*i].name).is_some()).collect();
    order.sort_by(|a, b| quantized_order(&given[*a].name).cmp(&quantized_order(&given[*b].name)));
    if options.keep_split {
        order.sort_by_key(|i| given[*i].place);
    }
    let mut changed = metadata.clone();
    for (key, value) in &options.overrides {
        changed.set_last(key.clone(), value.clone());
    }
    let imatrix = options.imatrix.as_ref().filter(|imatrix| !imatrix.importance.is_empty());
    let facts = ModelFacts { importance: imatrix.is_some(), ..ModelFacts::from_metadata(&changed) };
    let mut planned = Vec::with_capacity(order.len());
    let mut found = Found::default();
    let names: Vec<String> = order.iter().filter_map(|i| numbers.name(&given[*i].name)).collect();
    let mut mixture = Mixture::new(variant, &facts, options, names.iter().map(String::as_str));
    for (&i, name) in order.iter().zip(&names) {
        let tensor = &given[i];
        let shape = without_outer_ones(&tensor.shape);
        let choice = mixture.choose(name, &shape);
        let (ty, instead_of) = choice.map_or((tensor.ty, None), |choice| (choice.ty, choice.instead_of));
        let encoded = Encoded { given: tensor, name, shape: &shape, ty, variant };
        let importance = if ty == tensor.ty {
            None
        } else {
            encoded.check(options, &mut found);
            encoded.importance(imatrix, &mut found)
        };
        let source = tensor.source.clone();
        planned
            .push((tensor.place.0, Typed { step: i, name: name.clone(), shape, ty, instead_of, importance, source }));
    }
    let uncovered = found.judge(imatrix)?;
    if !uncovered.is_empty() {
        let names = mlpack_tensor::join_limited(uncovered.iter().map(String::as_str), 5);
        plan.warnings.push(format!("{}: the importance matrix has no values for {names}", variant.name));
    }
    plan.importance = imatrix.map(|imatrix| imatrix.importance.clone());
    let metadata = quantized_metadata(metadata, given, variant, options, &numbers);
    let parts = if options.keep_split {
        let count = given.iter().map(|g| g.place.0 + 1).max().unwrap_or(1);
        let part = |part| planned.iter().filter(|(file, _)| *file == part).map(|(_, typed)| typed.clone()).collect();
        (0..count).map(part).collect()
    } else {
        split.cut(planned.into_iter().map(|(_, typed)| typed).collect())
    };
    add_files(plan, stem, variant, &metadata, parts)
}

/// Where an output is divided into several files; 0 is no limit (`--split-max-tensors` and `--split-max-size` of the
/// converter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The most tensors of a file.
    pub max_tensors: u64,
    /// The most bytes of a file's tensors, unless it holds a single one. Metadata does not count, nor does padding.
    pub max_byte_len: u64,
}

impl Split {
    /// The tensors of each file.
    pub(crate) fn cut(self, tensors: Vec<Typed>) -> Vec<Vec<Typed>> {
        let mut parts: Vec<Vec<Typed>> = vec![Vec::new()];
        let mut byte_len = 0u64;
        for typed in tensors {
            // What is not whole blocks is refused when the file is laid out.
            let own = typed.ty.byte_len(&typed.shape).unwrap_or(0);
            let last = parts.last_mut().expect("there is always one");
            let is_full = self.max_tensors != 0 && last.len() as u64 >= self.max_tensors;
            let is_large = self.max_byte_len != 0 && byte_len.saturating_add(own) > self.max_byte_len;
            if !last.is_empty() && (is_full || is_large) {
                parts.push(vec![typed]);
                byte_len = own;
            } else {
                last.push(typed);
                byte_len = byte_len.saturating_add(own);
            }
        }
        parts
    }
}

/// Adds the files of one variant: one, or the parts of a split, of which the first has the metadata.
pub(crate) fn add_files(
    plan: &mut Plan,
    stem: &str,
    variant: FileType,
    metadata: &Metadata,
    parts: Vec<Vec<Typed>>,
) -> Result<(), Error> {
    let (count, total) = (parts.len(), parts.iter().map(Vec::len).sum::<usize>());
    for (no, tensors) in parts.into_iter().enumerate() {
        if count == 1 {
            return add_output(plan, format!("{stem}.gguf"), variant, metadata, tensors);
        }
        let mut metadata = if no == 0 { metadata.clone() } else { Metadata::new() };
        metadata.set_last("split.no", MetaValue::U16(no as u16));
        metadata.set_last("split.count", MetaValue::U16(count as u16));
        metadata.set_last("split.tensors.count", MetaValue::I32(total as i32));
        add_output(plan, part_name(stem, no as u64, count as u64), variant, &metadata, tensors)?;
    }
    Ok(())
}

/// Lays out one file and tells the steps where their values go.
fn add_output(
    plan: &mut Plan,
    file_name: String,
    variant: FileType,
    metadata: &Metadata,
    tensors: Vec<Typed>,
) -> Result<(), Error> {
    let spec = |t: &Typed| TensorSpec { name: t.name.clone(), ty: t.ty, shape: t.shape.clone() };
    let layout = Layout::new(metadata, tensors.iter().map(spec).collect())
        .map_err(|source| Error::Layout { file: file_name.clone(), source })?;
    let output = plan.outputs.len();
    let mut placed = Vec::with_capacity(tensors.len());
    for (tensor, (typed, slot)) in tensors.into_iter().zip(layout.tensors()).enumerate() {
        plan.steps[typed.step].targets.push(Target { output, tensor });
        placed.push(OutputTensor {
            name: typed.name,
            source: typed.source,
            stored: Stored::Ggml(typed.ty),
            instead_of: typed.instead_of,
            importance: typed.importance,
            shape: typed.shape,
            range: slot.range.clone(),
            padded_end: slot.padded_end,
        });
    }
    let (preamble, byte_len) = (layout.header().to_vec(), layout.byte_len());
    plan.outputs.push(Output { file_name, variant: Some(variant.name), preamble, tensors: placed, byte_len });
    Ok(())
}

/// Takes out the steps whose values go nowhere, and says so.
pub(crate) fn drop_unused(plan: &mut Plan, given: &[Given]) {
    for (step, given) in plan.steps.iter().zip(given) {
        if step.targets.is_empty() {
            plan.dropped.push((given.source.clone().unwrap_or_else(|| given.name.clone()), PRUNED));
        }
    }
    plan.steps.retain(|step| !step.targets.is_empty());
}

/// The metadata as llama-quantize leaves it; what it sets goes to the end.
fn quantized_metadata(
    metadata: &Metadata,
    given: &[Given],
    variant: FileType,
    options: &QuantizeOptions,
    numbers: &Renumbered,
) -> Metadata {
    let file_type = match metadata.find("general.file_type") {
        _ if variant != FileType::COPY => variant.id,
        Some(MetaValue::U32(stated)) => *stated,
        _ => guessed_file_type(given),
    };
    let mut metadata = metadata.clone();
    metadata.set_last("general.quantization_version", MetaValue::U32(QUANTIZATION_VERSION));
    metadata.set_last("general.file_type", MetaValue::U32(file_type));
    for key in SPLIT_KEYS {
        metadata.remove(key);
    }
    let imatrix = options.imatrix.as_ref().filter(|imatrix| !imatrix.importance.is_empty());
    let described = imatrix.map(|imatrix| imatrix.importance.metadata_entries(&imatrix.named)).unwrap_or_default();
    for (key, value) in options.overrides.iter().cloned().chain(described.into_iter().map(|(k, v)| (k.to_owned(), v))) {
        metadata.set_last(key, value);
    }
    if let (Some(count), Some(MetaValue::String(arch))) = (numbers.count, metadata.find("general.architecture")) {
        let key = format!("{arch}.block_count");
        metadata.set_last(key, MetaValue::U32(count));
    }
    metadata
}

/// What llama.cpp takes for the file type where the file does not say: that of the type that most tensors have.
fn guessed_file_type(given: &[Given]) -> u32 {
    let mut in_order: Vec<&Given> = given.iter().collect();
    in_order.sort_by(|a, b| quantized_order(&a.name).cmp(&quantized_order(&b.name)));
    let mut counts: BTreeMap<GgmlType, usize> = BTreeMap::new();
    let (mut most, mut ty) = (0, GgmlType::F32);
    for tensor in in_order {
        let count = counts.entry(tensor.ty).or_default();
        *count += 1;
        if *count > most {
            (most, ty) = (*count, tensor.ty);
        }
    }
    let named = match ty {
        GgmlType::Q3_K => Some(FileType::Q3_K_M),
        GgmlType::Q4_K => Some(FileType::Q4_K_M),
        GgmlType::Q5_K => Some(FileType::Q5_K_M),
        GgmlType::MXFP4 => None,
        other => FileType::ALL.iter().copied().find(|file_type| file_type.name == other.name()),
    };
    named.map_or(0, |file_type| file_type.id) | GUESSED
}

/// ggml counts no outer dimensions of 1.
pub(crate) fn without_outer_ones(shape: &Shape) -> Shape {
    let ones = shape.dims().iter().take(shape.rank().saturating_sub(1)).take_while(|d| **d == 1).count();
    Shape::new(shape.dims()[ones..].to_vec())
}

/// A tensor that changes its type.
struct Encoded<'a> {
    given: &'a Given,
    name: &'a str,
    shape: &'a Shape,
    ty: GgmlType,
    variant: FileType,
}

/// What was found about the tensors that change their types.
#[derive(Default)]
struct Found {
    problems: Vec<Error>,
    requantized: Vec<(String, GgmlType, GgmlType)>,
    without_importance: Vec<(String, GgmlType)>,
    /// Tensors that could use importance values and have none; nothing wrong, but worth saying.
    uncovered: Vec<String>,
}

impl Found {
    /// The uncovered tensors, if nothing is wrong.
    fn judge(mut self, imatrix: Option<&Imatrix>) -> Result<Vec<String>, Error> {
        if !self.requantized.is_empty() {
            self.problems.push(Error::Requantize { tensors: self.requantized });
        }
        if !self.without_importance.is_empty() {
            let file = imatrix.map(|imatrix| imatrix.importance.path().to_owned());
            self.problems.push(Error::ImportanceMissing { tensors: self.without_importance, file });
        }
        Error::from_list(self.problems)?;
        Ok(self.uncovered)
    }
}

impl Encoded<'_> {
    /// Whether its type can be read, written and fits its rows.
    fn check(&self, options: &QuantizeOptions, found: &mut Found) {
        let tensor = || self.name.to_owned();
        let from = self.given.ty;
        if !mlpack_quant::can_decode(from) {
            found.problems.push(Error::Undecodable { tensor: tensor(), ty: from });
        } else if from.is_quantized() && !options.allow_requantize {
            found.requantized.push((tensor(), from, self.ty));
        }
        let row_len = self.shape.row_len();
        if !row_len.is_multiple_of(self.ty.block_len()) {
            found.problems.push(Error::RowLength { tensor: tensor(), ty: self.ty, row_len });
        }
    }

    /// The entry of the importance matrix that it is encoded with.
    fn importance(&self, imatrix: Option<&Imatrix>, found: &mut Found) -> Option<usize> {
        let tensor = || self.name.to_owned();
        let is_embedding = matches!(self.name, "token_embd.weight" | "per_layer_token_embd.weight");
        let optional = is_embedding || self.name == "output.weight";
        // ggml itself needs values for some types, whatever the tensor.
        let required = mlpack_quant::needs_importance(self.ty) || !optional && self.requires_importance();
        // Layers that were numbered anew have their values under the old number.
        let entry = imatrix.and_then(|imatrix| imatrix.importance.find(&self.given.name));
        let (Some(imatrix), Some(i)) = (imatrix, entry) else {
            if required {
                found.without_importance.push((tensor(), self.ty));
            } else if imatrix.is_some() && !optional && mlpack_quant::uses_importance(self.ty) {
                found.uncovered.push(tensor());
            }
            return None;
        };
        let path = || imatrix.importance.path().to_owned();
        let entry = imatrix.importance.entry(i);
        let dims = self.shape.dims();
        let experts = if dims.len() >= 3 { dims[dims.len() - 3] } else { 1 };
        let expected = self.shape.row_len().saturating_mul(experts);
        let values = entry.value_count() as u64;
        if values != expected {
            // A token embedding is looked up, not multiplied: its values, if there are any, are of another kind.
            if !is_embedding {
                found.problems.push(Error::ImportanceSize { tensor: tensor(), path: path(), expected, found: values });
            } else if required {
                found.without_importance.push((tensor(), self.ty));
            }
            return None;
        }
        if !mlpack_quant::uses_importance(self.ty) {
            return None;
        }
        if !entry.unvisited.is_empty() && !imatrix.allow_unvisited_experts {
            let experts = entry.unvisited.iter().map(|expert| *expert as u64).collect();
            found.problems.push(Error::UnvisitedExperts { tensor: tensor(), path: path(), experts });
        }
        Some(i)
    }

    /// Types that llama-quantize refuses to write without importance values.
    fn requires_importance(&self) -> bool {
        use GgmlType::*;
        match self.ty {
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS => true,
            Q2_K => self.variant == FileType::Q2_K_S,
            _ => false,
        }
    }
}

/// Layers after pruning.
struct Renumbered {
    /// Old number to new, where something is pruned; `None` for a pruned layer.
    layers: BTreeMap<u64, Option<u64>>,
    /// The number of layers that are left, where something is pruned.
    count: Option<u32>,
}

impl Renumbered {
    fn new(given: &[Given], options: &QuantizeOptions) -> Result<Renumbered, Error> {
        if options.prune_layers.is_empty() {
            return Ok(Renumbered { layers: BTreeMap::new(), count: None });
        }
        let mut layers: BTreeMap<u64, Option<u64>> =
            given.iter().filter_map(|tensor| layer_of(&tensor.name)).map(|(layer, _)| (layer, None)).collect();
        if let Some(&layer) = options.prune_layers.iter().find(|layer| !layers.contains_key(layer)) {
            return Err(Error::NoSuchLayer { layer, layers: layers.len() as u64 });
        }
        // Layers before the first pruned one keep their numbers; the others count on from there.
        let first = options.prune_layers.first().copied().unwrap_or(0);
        let mut next = 0;
        for (layer, new) in layers.iter_mut().filter(|(layer, _)| !options.prune_layers.contains(layer)) {
            *new = Some(if *layer < first { *layer } else { next });
            next = new.unwrap_or(0) + 1;
        }
        if next == 0 {
            return Err(Error::NoLayerLeft);
        }
        Ok(Renumbered { layers, count: Some(next as u32) })
    }

    /// The name after pruning; `None` for a tensor of a pruned layer.
    fn name(&self, name: &str) -> Option<String> {
        match layer_of(name).and_then(|(layer, rest)| Some((self.layers.get(&layer)?, rest))) {
            None => Some(name.to_owned()),
            Some((new, rest)) => new.map(|new| format!("blk.{new}.{rest}")),
        }
    }
}

/// The layer of a tensor and the rest of its name.
fn layer_of(name: &str) -> Option<(u64, &str)> {
    let (number, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests;
